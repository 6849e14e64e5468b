"""The trial's own process: which rows it takes, what it says of a failure, and models that are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.prompts import templates
from pipeline.stages import recipe
from pipeline.system import own_process
from pipeline.system.files import write_whole
from pipeline.worker import probe, trial
from tests.helpers import talks, tiny
from tests.helpers.lab import has_landlock

ROWS = templates.parse("{prompt} {response}")


class TestRows:
    def test_they_are_spread_over_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.jsonl"
        lines = [json.dumps({"prompt": f"p{i}", "response": "r" * (i % 7)}) for i in range(5000)]
        file.write_text("\n".join(lines), encoding="utf-8-sig")
        found = [int(row["prompt"][1:]) for row in trial.spread_rows(file)]
        assert found[:8] == list(range(8))
        assert len(found) == len(set(found)) > 50
        assert found == sorted(found)
        assert found[-1] > 4500

    @pytest.mark.parametrize("count", [1, 2, 3, 40])
    def test_small_files_lose_no_first_rows(self, tmp_path: Path, count: int) -> None:
        rows = list(trial.spread_rows(tiny.dataset(tmp_path / "rows.jsonl", count)))
        assert len(rows) >= min(count, 8)
        assert len({json.dumps(row) for row in rows}) == len(rows)

    def test_short_ones_with_different_prompts_are_tried(self) -> None:
        rows = [{"prompt": f"p{i % 20}", "response": "r" * i} for i in range(40)]
        tried = trial.tried(rows, ROWS)
        assert [row["prompt"] for row in tried] == [f"p{i}" for i in range(8)]

    def test_rows_that_nearly_repeat_others_come_last(self) -> None:
        """Else evaluate would have nothing to ask: no held-out row that is nearly a trained one is asked."""
        same = [{"prompt": "".join(map(chr, range(97, 220))) + str(i), "response": "ok"} for i in range(10)]
        other = [{"prompt": f"{i} " * 60 + chr(97 + i) * 90, "response": "a longer answer"} for i in range(7)]
        tried = trial.tried(same + other, ROWS)
        assert len(tried) == 8
        assert [row for row in tried if row in same] == same[:1]
        assert len(trial.tried(same, ROWS)) == 8

    def test_what_is_infinite_in_a_field_that_nobody_uses_ends_no_trial(self, tmp_path: Path) -> None:
        trial.write_rows(tmp_path / "rows", [json.loads('{"prompt": "a", "x": [1e999]}')])
        assert (tmp_path / "rows").read_text() == '{"prompt": "a", "x": [null]}\n'

    def test_conversations_with_different_prompts_are_tried(self) -> None:
        rows = [talks.talk("a", "b", f"c{i % 20}", "d" * i) for i in range(40)]
        tried = trial.tried(rows, ROWS)
        assert [row["messages"][2]["content"] for row in tried] == [f"c{i}" for i in range(8)]


class TestSentences:
    @pytest.mark.parametrize(
        ("error", "step", "expected"),
        [
            (
                KeyError("multi_cache"),
                "optimize",
                "This model cannot be exported: the settings for long texts in its config.json do not fit"
                " together (max_position_embeddings differs from original_max_position_embeddings, and there"
                " is no longrope scaling); choose another base model.",
            ),
            (
                NotImplementedError("The /x model is not currently supported."),
                "optimize",
                "This model cannot be exported: ONNX Runtime GenAI has no exporter for BloomForCausalLM;"
                " choose another base model.",
            ),
            (
                IndexError("list index out of range"),
                "quantize",
                "This model cannot be quantized: on a small copy of it, quantize failed; choose another base"
                " model or other quantize options (the log has the details).",
            ),
            (
                ValueError("no room"),
                "finetune",
                "This model cannot be fine-tuned: on a small copy of it, finetune failed (no room); choose"
                " another base model or other finetune options (the log has the details).",
            ),
            (
                KeyError("x"),
                "model",
                "This model cannot be loaded: config.json: hidden_act is 'x', which no library here knows;"
                " choose another base model.",
            ),
            (
                RuntimeError("GroupQueryAttention: head_size must be a multiple of 8. Got 4"),
                "evaluate",
                "This model cannot be run after its export: its attention heads do not have a multiple of 8"
                " numbers, which ONNX Runtime needs; choose another base model.",
            ),
            (LabError("Do this."), "finetune", "Do this."),
            (OSError(28, "No space left"), "finetune", "The disk is full; free some space in the home folder"
             " and retry."),
        ],
    )  # fmt: skip
    def test_what_failed_is_a_sentence(self, error: Exception, step: str, expected: str) -> None:
        config = {"architectures": ["BloomForCausalLM"], "hidden_act": "x"}
        assert trial.said(error, step, config) == expected

    def test_code_of_its_own_and_unknown_kinds_are_named(self) -> None:
        unknown = ValueError("Transformers does not recognize this architecture.")
        assert trial.unloadable({"model_type": "x", "auto_map": {}}, unknown).startswith(
            "This model cannot be loaded: the installed transformers does not know 'x' models; "
        )
        refused = TypeError("Validation error for field 'rope_theta': TypeError: expected float, got str")
        assert trial.unloadable({"model_type": "x"}, refused) == (
            "This model cannot be loaded: the installed transformers does not accept rope_theta in its"
            " config.json; choose another base model (the log has the details)."
        )
        assert "its config.json has no model_type" in trial.unloadable({}, unknown)
        assert "needs code of its own" in trial.unloadable({"auto_map": {"AutoConfig": "a.B"}}, unknown)


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny llama for the test to break."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


@pytest.mark.chain
class TestUnfitModels:
    """Each is refused in words before any stage is tried; the trial's own process calls the same."""

    @pytest.mark.parametrize(
        ("kind", "sizes"),
        [
            ("Bert", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
            ("Mamba", {"hidden_size": 64, "num_hidden_layers": 2}),
            ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
        ],
    )
    def test_those_that_are_built_otherwise(
        self, llama: Path, tmp_path: Path, kind: str, sizes: dict[str, int]
    ) -> None:
        import transformers

        getattr(transformers, f"{kind}Config")(vocab_size=320, **sizes).save_pretrained(llama)
        data = tiny.dataset(tmp_path / "rows.jsonl")
        walk = trial.Walk(
            probe.Task(
                str(llama),
                str(data),
                recipe.build(
                    {"name": "trip", "model": str(llama), "data": str(data)}, data.parent, ["quantize=null"]
                ).to_dict(),
            ),
            tmp_path,
            None,
        )
        with pytest.raises(LabError, match=f"'{kind.lower()}' models are not built of decoder"):
            walk.go()
        assert walk.step in ("config", "model")

    def test_those_whose_small_copy_would_not_be_small(self, llama: Path, tmp_path: Path) -> None:
        config = probe.read_config(llama) | {"vocab_size": 1 << 22, "head_dim": 1 << 14}
        config["hidden_size"] = config["num_attention_heads"] << 14
        with pytest.raises(LabError, match=r"one small layer of it has \d{3}\.\d B parameters, as no real"):
            trial.build(config, llama, tmp_path / "small", 64)
        assert not (tmp_path / "small").exists()

    @pytest.mark.parametrize("content", ["{}", '{"model": {"type": "x"}}', None])
    def test_those_whose_tokenizer_is_damaged(self, llama: Path, content: str | None) -> None:
        file = llama / "tokenizer.json"
        file.unlink() if content is None else file.write_text(content)
        what = "missing" if content is None else "damaged"
        with pytest.raises(LabError, match=rf"^This model's tokenizer cannot be loaded: its \S+ is {what};"):
            trial.check_tokenizer(llama, None, None)

    def test_those_that_know_fewer_tokens_than_their_tokenizer(self, llama: Path, tmp_path: Path) -> None:
        trial.check_tokenizer(llama, None, 259)
        with pytest.raises(LabError, match=r"'Ń' is number 258, and vocab_size in its config\.json is 258;"):
            trial.check_tokenizer(llama, None, 258)
        from transformers import AutoTokenizer

        from pipeline.passes.rows import Rows

        # a token for pictures, say, is no fault until a row names it
        made = AutoTokenizer.from_pretrained(llama)
        made.add_tokens(["<image>"], special_tokens=True)
        made.save_pretrained(llama)
        config = json.loads((llama / "config.json").read_text())
        (llama / "config.json").write_text(json.dumps({**config, "vocab_size": 259}))
        trial.check_tokenizer(llama, None, 259)
        rows = [{"prompt": text, "response": "b"} for text in ("a", "<image>")]
        template = templates.parse("{prompt}: {response}")
        shown = Rows(rows, template, llama, 64, "all")
        assert len(shown[0][0]["input_ids"]) == 5
        with pytest.raises(LabError, match=r"'<image>' is number 259, and vocab_size in its \S+ is 259"):
            shown[1]


READS = """
import json, sys, tempfile
from pathlib import Path
from types import SimpleNamespace
from pipeline.stages import events
from pipeline.worker import trial

def read(path):
    try:
        return path.read_text()
    except OSError as error:
        return error.strerror

class Walk:
    step, config, recipe = "config", {}, SimpleNamespace(finetune=None)

    def __init__(self, task, scratch, told):
        self.task, self.scratch, self.told = task, scratch, told

    def go(self):
        own = [Path(self.task.files) / "config.json", Path(self.task.data), Path(tempfile.mkstemp()[1])]
        events.append(self.told, {"message": "At work", "progress": 0.0})
        found = {path.name: read(path) for path in (*own, *map(Path, sys.argv[2:]))}
        (self.scratch / "found.json").write_text(json.dumps({**found, "temporary": tempfile.gettempdir()}))

trial.Walk = Walk
sys.exit(trial.main(Path(sys.argv[1])))
"""


def test_what_a_model_s_files_name_is_not_opened(
    tmp_path: Path, home: Path, recipe_file: Path, dataset: Path
) -> None:
    """Whichever library takes whatever value for a path: the trial reads its task's files and no others."""
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    for folder in (model, scratch):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "private").write_text("secret")
    (home / "theirs").write_text("secret")
    task = probe.Task(str(model), str(dataset), recipe.load(recipe_file).to_dict())
    write_whole(scratch / probe.TASK, dataclasses.asdict(task))
    words = ["-c", READS, *map(str, (scratch, tmp_path / "private", home / "theirs"))]
    (told := tmp_path / "events.jsonl").touch()
    done = own_process.run(words, 60, settings.local_environment(OLIVE_LAB_EVENTS=str(told)))
    assert not done.returncode, done.stderr
    assert "At work" in told.read_text()
    found = json.loads((scratch / "found.json").read_text())
    assert found["config.json"] == "{}"
    assert found[dataset.name] == dataset.read_text()
    assert found["temporary"] == str(scratch)
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    assert (found["private"], found["theirs"]) == ("Permission denied",) * 2
