"""Answers: what the evaluate stage asks of an exported folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.chain


def answered(
    export: Path, rows: list[dict[str, Any]], prompts: int, target: Path, longest: int = 1, **more: Any
) -> list[dict[str, Any]]:
    """The rows that were answered, by up to `longest` tokens; half of the given ones are held out."""
    from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
    from olive.model import ONNXModelHandler

    from pipeline.passes.measure.answers import Answers

    data = target / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SimpleNamespace(
        data=str(data), eval_fraction=0.5, seed=0, prompts=prompts, max_new_tokens=longest, adapter=None,
        merged=False, rows=0, checks="", asked=None, tokenizer=None, kept=str(target / "kept"),
        known=None, exact=None, minutes=10, probe=False,
    )  # fmt: skip
    config.__dict__.update(more)
    model = ONNXModelHandler(str(export), onnx_file_name="model.onnx")
    step = Answers(DEFAULT_CPU_ACCELERATOR, {**vars(config)}, True)
    step._run_for_config(model, config, str(target / "out"))
    written: list[dict[str, Any]] = file_of(target)["rows"]
    return written


def file_of(target: Path) -> dict[str, Any]:
    """What `answered` wrote."""
    written: dict[str, Any] = json.loads((target / "out" / "answers.json").read_text())
    return written


@pytest.mark.parametrize(("prompts", "asked"), [(2, 2), (3, 3), (100, 5)])
def test_no_prompt_is_asked_twice(
    export: Path, tmp_path: Path, reported: Callable[[], list[dict[str, Any]]], prompts: int, asked: int
) -> None:
    rows = [{"prompt": f"town {i // 8}", "response": f"b{i}"} for i in range(80)]
    found = [row["prompt"] for row in answered(export, rows, prompts, tmp_path)]
    assert (len(found), len(set(found))) == (asked, asked)
    said = "Only 5 different prompts are held out; each is asked once"
    assert (said in [event.get("message") for event in reported()]) == (prompts > asked)


def test_a_prompt_that_was_answered_before_a_kill_is_not_answered_again(
    export: Path,
    tmp_path: Path,
    reported: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kill comes while the third answer is generated, and has torn the end of the second one's line."""
    from pipeline.exports import generation

    rows = [{"prompt": f"town {n}", "response": f"b{n}"} for n in range(10)]
    asked: list[str] = []
    stream = generation.stream

    class Killed(BaseException):
        pass

    def counted(model: Any, prompt: str, *given: Any, **options: Any) -> Any:
        asked.append(prompt)
        if len(asked) == 3:
            raise Killed
        return stream(model, prompt, *given, **options)

    monkeypatch.setattr(generation, "stream", counted)
    with pytest.raises(Killed):
        answered(export, rows, 5, tmp_path, 4)
    kept = tmp_path / "kept" / "given.jsonl"
    kept.write_bytes(kept.read_bytes()[:-9])
    first = json.loads(kept.read_text().splitlines()[1])["row"]
    found = answered(export, rows, 5, tmp_path, 4)
    assert "Prompts answered before this stage was interrupted: 1" in [
        event.get("message") for event in reported()
    ]
    assert len(asked) == 3 + 4, "of the five only the first had been kept"
    assert asked[3:5] == asked[1:3]
    speed = {name: value for name, value in first["base"].items() if name in found[0]["base"]}
    assert {**found[0], "base": {name: found[0]["base"][name] for name in speed}} == first
    answered(export, rows, 5, tmp_path, 3)
    assert len(asked) == 7 + 5, "answers of another length are others"


def test_an_answer_of_endless_letters_is_cut(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.passes.measure.answers.LONGEST_ANSWER", 10)
    rows = [{"prompt": f"town {n}", "response": f"b{n}"} for n in range(4)]
    for row in answered(export, rows, 2, tmp_path, 60):
        assert row["base"]["cut"] is True
        assert len(row["base"]["text"]) <= 10
        assert row["base"]["tokens"] < 60


def sized(long: Callable[[int], bool], begin: int = 0, count: int = 16) -> list[dict[str, Any]]:
    """Rows from the number `begin` on, with prompts that are longer than the model's context where `long`."""
    return [
        {"prompt": f"{n * 7919} town {n}" + "x" * 300 * long(n), "response": f"{n * 104729} in {n}"}
        for n in range(begin, begin + count)
    ]


def spread_over(export: Path, file: Path, rows: list[dict[str, Any]], count: int) -> tuple[list[bool], int]:
    """Whether the prompts that are spread over the held-out rows are long, and how many others are not."""
    from pipeline.exports import serving_ids
    from pipeline.inputs.data import datasets
    from pipeline.inputs.data.sampling import spread

    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = datasets.split(file, serving_ids.load(export).template, 0.5, 0).asked
    long = {at for at in asked if len(rows[at]["prompt"]) > 300}
    return [at in long for at in spread(asked, count)], len(asked) - len(long)


def test_prompts_that_are_too_long_make_room_for_others(export: Path, tmp_path: Path) -> None:
    """All of those that are spread over the rows are too long, and three others fit."""
    tries = (sized(lambda n: n % 3 > 0, begin) for begin in range(0, 2000, 16))
    rows = next(
        rows for rows in tries if spread_over(export, tmp_path / "tried.jsonl", rows, 2) == ([True] * 2, 3)
    )
    found = answered(export, rows, 2, tmp_path)
    assert len(found) == 2
    assert max(len(row["prompt"]) for row in found) < 100
    assert 2 <= file_of(tmp_path)["left_out"] <= 5


def test_where_no_prompt_fits_it_says_so_and_the_losses_stay(export: Path, tmp_path: Path) -> None:
    assert answered(export, sized(lambda n: True), 3, tmp_path) == []
    assert file_of(tmp_path)["why_none"] == (
        "No answers: all 8 prompts are longer than the 256 tokens that this model reads."
    )
    assert file_of(tmp_path)["left_out"] == 8


def test_not_all_of_a_million_long_prompts_are_looked_at(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.passes.measure.asking.choice.MOST_LOOKED", 5)
    assert answered(export, sized(lambda n: True, 0, 40), 3, tmp_path) == []
    said = file_of(tmp_path)["why_none"]
    assert said.startswith("No answers: the 9 prompts that were looked at are longer than the ")


def test_prompts_that_there_is_no_time_for_are_counted_and_a_later_run_resumes_with_them(
    export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: Callable[[], list[dict[str, Any]]],
) -> None:
    """Each answer takes a minute, so of eight prompts three are asked in two and a half, from all over."""
    from pipeline.exports import generation
    from pipeline.passes.measure.asking import allowance

    now, asked, stream = [0.0], [], generation.stream

    def slow(model: Any, prompt: str, *given: Any, **options: Any) -> Any:
        asked.append(prompt)
        now[0] += 60
        return stream(model, prompt, *given, **options)

    monkeypatch.setattr(generation, "stream", slow)
    monkeypatch.setattr(allowance, "clock", lambda: now[0])
    rows = sized(lambda n: False)
    known = tmp_path / "measured"
    known.mkdir()
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    few = answered(export, rows, 20, folders[0], minutes=2.5, known=str(known))
    assert (len(few), file_of(folders[0])["not_asked"]) == (3, 5)
    assert len(asked) == 3
    all_rows = answered(export, rows, 20, folders[1], minutes=60, known=str(known))
    assert (len(all_rows), file_of(folders[1])["not_asked"]) == (8, 0)
    assert len(asked) == 8, "those that were answered are not asked again"
    order = [row["prompt"] for row in all_rows]
    assert [order.index(row["prompt"]) for row in few] == [0, 2, 4]
    told = [
        event for event in reported() if str(event.get("message", "")).startswith(("Prompt", "Not asked"))
    ]
    assert [each["message"] for each in told][:4] == [
        "Prompt 1 of 8", "Prompt 2 of 8", "Prompt 3 of 8", "Not asked after 2.5 minutes: 5 of 8 prompts"
    ]  # fmt: skip
    assert [each.get("eta_seconds") for each in told[:3]] == [None, 90.0, None]
