"""What the float model answers, beside its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import evaluate, optimize
from pipeline.stages.context import Context, Results
from tests.helpers import carry, tiny

pytestmark = pytest.mark.chain

Evaluated = Callable[[str, evaluate.Options], Results]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Path]:
    """A small model that was exported in float32, and what its stages are given."""
    folder = tmp_path_factory.mktemp("float")
    data = folder / "data.jsonl"
    rows = [{"prompt": f"town {n}", "response": f"{n * 7919} in valley {n * n}"} for n in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = carry.context_of(folder, tiny.build("llama", folder / "model"), data=data, eval_fraction=0.5)
    made = carry.stage(given, "exported", optimize, optimize.Options(precision="fp32"))
    return given, made.artifacts[0].path


@pytest.fixture
def evaluated(exported: tuple[Context, Path]) -> Evaluated:
    given, onnx = exported
    return lambda name, options: carry.stage(given, name, evaluate, options, onnx=onnx)


def rows_of(made: Results) -> list[dict[str, Any]]:
    (file,) = (artifact.path for artifact in made.artifacts if artifact.kind == "answers")
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def test_a_float_export_answers_as_the_float_model_does(
    exported: tuple[Context, Path], evaluated: Evaluated
) -> None:
    """The same prompts, tokens and limit; and what transformers generates is that as well."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.exports import serving_ids

    options = evaluate.Options(rows=0, prompts=4, max_new_tokens=12, float=True, checks="regex: (?s)^.*$")
    made = evaluated("both", options)
    rows = rows_of(made)
    assert len(rows) == 4
    for row in rows:
        for fact in ("text", "tokens", "cut", "ended", "nearness", "checks"):
            assert row["float"][fact] == row["base"][fact]
        assert row["float"]["tokens_per_second"] > 0
    found = made.metrics["answers"]
    assert found["float_prompts"] == 4
    for name in ("tokens", "ended", "exact_match", "token_f1", "rouge_l", "chrf"):
        assert found[name]["float"] == pytest.approx(found[name]["base"])
    assert found["checks"][0]["float"] == 1.0
    assert made.metrics["float_tokens_per_second"] > 0
    given, onnx = exported
    reader = serving_ids.load(onnx)
    ids = reader.reader.ids({"prompt": rows[0]["prompt"]})
    model = AutoModelForCausalLM.from_pretrained(given.model).eval()
    likely = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, use_cache=False)
    new = likely[0, len(ids) :].tolist()
    said = [*new[: rows[0]["float"]["tokens"]]]
    decoder = reader.tokenizer.create_stream()
    text = "".join(decoder.decode(token) for token in said[: len(said) - rows[0]["float"]["ended"]])
    assert text.strip() == rows[0]["float"]["text"]


def test_without_the_option_it_is_not_asked(evaluated: Evaluated) -> None:
    made = evaluated("base", evaluate.Options(rows=0, prompts=2, max_new_tokens=2))
    assert not [row for row in rows_of(made) if "float" in row]
    assert "float_prompts" not in made.metrics["answers"]
    assert "float_tokens_per_second" not in made.metrics


def test_it_has_as_many_minutes_as_the_export(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here its answers take a minute each, and those of the export no time."""
    from pipeline.passes.measure.asking import allowance
    from pipeline.passes.measure.asking.float_answers import FloatAnswers

    now, stream = [0.0], FloatAnswers.stream

    def slow(self: FloatAnswers, prompt: str, most: int) -> Any:
        now[0] += 60
        return stream(self, prompt, most)

    monkeypatch.setattr(FloatAnswers, "stream", slow)
    monkeypatch.setattr(allowance, "clock", lambda: now[0])
    options = evaluate.Options(rows=0, prompts=4, max_new_tokens=2, float=True, answer_minutes=2)
    made = evaluated("slow", options)
    assert [row["float"] is None for row in rows_of(made)] == [False, True, False, True]
    assert made.metrics["answers"]["float_prompts"] == 2
    assert "not_asked" not in made.metrics
