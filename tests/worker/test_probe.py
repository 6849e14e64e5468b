"""The trial of a model before a run: what it is remembered by, what it says, and the real thing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.store.run import EVENTS, FAILED, RESULT
from pipeline.worker import probe, processes, stage_process
from pipeline.worker.ahead import warm
from tests.helpers import tiny
from tests.helpers.lab import until

SHORT = ("quantize.calibration_length=64", "finetune.max_length=64")  # tiny models read no more
UNREADABLE = (
    "This model cannot be exported: ONNX Runtime GenAI cannot read its Unigram tokenizer, so nothing could"
    " talk to the exported files; choose another base model."
)


def chosen(model: Path, data: Path, *changes: str) -> recipe.Recipe:
    return recipe.build({"name": "trip", "model": str(model), "data": str(data)}, data.parent, list(changes))


class TestKeys:
    @pytest.mark.parametrize(
        "change",
        [
            "name=other",
            "seed=7",
            "eval_fraction=0.3",
            "finetune.max_steps=9",
            "finetune.epochs=2",
            "finetune.learning_rate=0.1",
            "finetune.batch_size=1",
            "finetune.r=64",
            "finetune.max_length=64",
            "quantize.calibration_blocks=8",
            "evaluate.prompts=9",
            "score.rows=8",
        ],
    )
    def test_what_cannot_matter_is_not_tried_again(
        self, model_folder: Path, dataset: Path, change: str
    ) -> None:
        before = probe.keys(chosen(model_folder, dataset), model_folder)
        assert probe.keys(chosen(model_folder, dataset, change), model_folder) == before

    @pytest.mark.parametrize(
        "change",
        ["quantize.bits=8", "quantize=null", "finetune.method=rslora", "optimize.precision=int8",
         "quantize.group_size=16", "finetune=null", "finetune.packing=true"],
    )  # fmt: skip
    def test_what_can_matter_is(self, model_folder: Path, dataset: Path, change: str) -> None:
        walk, tokenizer = probe.keys(chosen(model_folder, dataset), model_folder)
        changed = probe.keys(chosen(model_folder, dataset, change), model_folder)
        assert (changed[0] != walk, changed[1]) == (True, tokenizer)

    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
    def test_another_tokenizer_or_config_is_tried(self, model_folder: Path, dataset: Path, file: str) -> None:
        before = probe.keys(chosen(model_folder, dataset), model_folder)
        path = model_folder / file
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, "eos_token_id": 7}))
        after = probe.keys(chosen(model_folder, dataset), model_folder)
        assert (before[0] != after[0], before[1] != after[1]) == (True, True)

    def test_another_folder_is_tried(self, model_folder: Path, dataset: Path) -> None:
        other = shutil.copytree(model_folder, model_folder.with_name("other"))
        before = probe.keys(chosen(model_folder, dataset), model_folder)
        after = probe.keys(chosen(other, dataset), other)
        assert (before[0] != after[0], before[1] != after[1]) == (True, True)

    def test_weights_do_not_matter(self, model_folder: Path, dataset: Path) -> None:
        before = probe.keys(chosen(model_folder, dataset), model_folder)
        (model_folder / "model.safetensors").write_bytes(b"other")
        assert probe.keys(chosen(model_folder, dataset), model_folder) == before


class TestDeaths:
    @pytest.mark.parametrize(
        ("end", "expected"),
        [
            (
                "kill -KILL $$",
                "at the step 'start' that was killed, most likely because memory ran out; retry",
            ),
            ("kill -SEGV $$", "crashed (Segmentation fault), as the real model would; choose another base"),
            ("exit 3", "ended without a reason (exit code 3); retry, and the log has the details."),
        ],
    )
    def test_a_trial_that_dies_is_a_sentence_and_leaves_nothing(
        self,
        home: Path,
        model_folder: Path,
        dataset: Path,
        monkeypatch: pytest.MonkeyPatch,
        end: str,
        expected: str,
    ) -> None:
        python = home / "python"
        python.write_text(f"#!/bin/sh\n{end}\n")
        python.chmod(0o700)
        monkeypatch.setattr(settings, "python", lambda: str(python))
        with pytest.raises(LabError) as raised:
            probe.require(home, chosen(model_folder, dataset), dataset, model_folder, home / "work")
        assert expected in str(raised.value)
        assert not (home / "work").exists()
        assert list((home / "probes").glob("*")) == [home / "probes" / ".locks"]

    def test_nothing_is_remembered_of_files_that_changed_meanwhile(
        self, home: Path, model_folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is remembered counts for every model whose files are as these were before."""

        def tried(task: probe.Task, scratch: Path, *_: Any) -> None:
            (scratch / probe.EXPORT).mkdir(parents=True)
            config = Path(task.files) / "tokenizer_config.json"
            config.write_text(config.read_text() + " " if config.exists() else "{}")

        monkeypatch.setattr(probe, "_try", tried)
        with pytest.raises(LabError, match="changed while they were read, so nothing is kept"):
            probe.require(home, chosen(model_folder, dataset), dataset, model_folder, home / "work")
        assert list((home / "probes").glob("*")) == [home / "probes" / ".locks"]

    def test_a_kept_tokenizer_that_does_not_fit_is_made_again(
        self, home: Path, model_folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would keep everybody from running that model, for good."""
        asked: list[str | None] = []

        def tried(task: probe.Task, scratch: Path, *_: Any) -> None:
            asked.append(task.exported)
            if task.exported is not None:
                raise LabError("Training and answering read different tokens.")
            (scratch / probe.EXPORT).mkdir(parents=True)
            (scratch / probe.EXPORT / "tokenizer.json").write_text(f"made {len(asked)}")

        monkeypatch.setattr(probe, "_try", tried)
        given = chosen(model_folder, dataset)
        probe.require(home, given, dataset, model_folder, home / "work")
        with dataset.open("a") as file:
            file.write('{"prompt": "another", "response": "row"}\n')
        probe.require(home, given, dataset, model_folder, home / "work")
        kept = home / "probes" / probe.keys(given, model_folder)[1]
        assert asked == [None, str(kept), None]
        assert (kept / "tokenizer.json").read_text() == "made 3"

    def test_a_trial_that_never_exits_counts_as_its_verdict(
        self, home: Path, model_folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = home / "python"
        python.write_text(f'#!/bin/sh\necho \'{{"error": "No."}}\' > "$4/{probe.VERDICT}"\nexec sleep 100\n')
        python.chmod(0o700)
        monkeypatch.setattr(settings, "python", lambda: str(python))
        monkeypatch.setenv("OLIVE_LAB_EXIT_SECONDS", "0.1")
        with pytest.raises(LabError, match=r"^No\.$"):
            probe.require(home, chosen(model_folder, dataset), dataset, model_folder, home / "work")

    def test_a_trial_that_does_nothing_is_given_up(
        self, home: Path, model_folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = home / "python"
        python.write_text("#!/bin/sh\nexec sleep 1000\n")
        python.chmod(0o700)
        monkeypatch.setattr(settings, "python", lambda: str(python))
        monkeypatch.setattr(probe, "STILL_SECONDS", 0.0)
        with pytest.raises(LabError, match=r"at the step .start. nothing was done for 0\.0 s; retry"):
            probe.require(home, chosen(model_folder, dataset), dataset, model_folder, home / "work")
        assert not (home / "work").exists()


def unigram(folder: Path) -> Path:
    """A tiny llama whose tokenizer is of a kind that the runtime does not read."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tiny.build("llama", folder)
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>")
    trained.train_from_iterator(["See the old town of Rome, Oslo, Lima and Cairo."] * 5, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|im_end|>", unk_token="<unk>", chat_template=tiny.CHATML
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def outcome(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Carry a run's first stage out as the worker's child does; what became of it."""

    def carry_out(run: str) -> dict[str, Any]:
        folder = store.folder(run, "quantize")
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("OLIVE_LAB_EVENTS", str(folder / EVENTS))
        stage_process.main(run, "quantize")
        return dict(json.loads((folder / RESULT).read_text()))

    monkeypatch.setattr(warm, "affordable", lambda: False)  # nothing is imported here meanwhile
    return carry_out


@pytest.mark.chain
def test_a_tokenizer_that_the_runtime_cannot_read_ends_the_run_before_quantize(
    store: Store,
    tmp_path: Path,
    no_worker: list[Path],
    outcome: Callable[[str], dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first trial is killed in its middle; the retry tries again and finds what is wrong."""
    data = tiny.dataset(tmp_path / "rows.jsonl")
    run = submit.submit(store, chosen(unigram(tmp_path / "model"), data, *SHORT))
    folder = store.folder(run, "quantize")

    def kill() -> None:
        until((folder / "work" / probe.STEP).exists, "the trial")
        (trial,) = trials(folder)
        os.kill(trial, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert "was killed, most likely because memory ran out" in outcome(run)["error"]
    killer.join()
    capfd.readouterr()
    result = outcome(run)
    assert (result["status"], result["error"]) == (FAILED, UNREADABLE)
    assert "type must be object" in capfd.readouterr().err, "the log has the details"
    assert not trials(folder)
    assert not (folder / "work").exists()
    assert [path.name for path in (store.home / "artifacts").iterdir()] == [".locks"]
    messages = [json.loads(line).get("message") for line in (folder / EVENTS).read_text().splitlines()]
    assert f"{probe.TITLE}: tokenizer (2 of 8)" in messages


def trials(folder: Path) -> list[int]:
    """Living trials of a stage."""
    mark = f"OLIVE_LAB_EVENTS={folder / EVENTS}".encode()
    return [
        pid
        for pid in processes._processes()
        if mark in processes._environment(pid)
        and b"pipeline.worker.trial" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.chain
def test_files_that_arrive_broken_are_refused_before_the_trial(home: Path, tmp_path: Path) -> None:
    """Of a hub's model only config.json is seen before a run."""
    llama = tiny.build("llama", tmp_path / "model")
    data = tiny.dataset(tmp_path / "rows.jsonl")
    given = chosen(llama, data, *SHORT)
    (llama / "generation_config.json").write_text("[]")
    with pytest.raises(LabError, match=r"^This model cannot be loaded: generation_config\.json is not"):
        probe.require(home, given, data, llama, home / "work")


@pytest.mark.chain
def test_a_config_that_cannot_be_exported_is_found_without_the_real_weights(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny.build("phi3", tmp_path / "model"), tiny.dataset(tmp_path / "rows.jsonl")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "original_max_position_embeddings": 4096}))
    (model / "model.safetensors").unlink()
    with pytest.raises(LabError, match="the settings for long texts in its config"):
        probe.require(home, chosen(model, data, "quantize=null", "finetune=null"), data, model, home / "work")
    assert "KeyError: 'multi_cache'" in capfd.readouterr().err


@pytest.mark.chain
def test_a_good_model_is_tried_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model, data = tiny.build("llama", tmp_path / "model"), tiny.dataset(tmp_path / "rows.jsonl")
    (model / "model.safetensors").unlink()

    def steps(data: Path, *changes: str) -> list[str]:
        probe.require(home, chosen(model, data, *changes), data, model, home / "work")
        lines = capfd.readouterr().out.splitlines()
        return [line.split()[-4] for line in lines if line.startswith(f"-- {probe.TITLE}")]

    assert steps(data) == [
        "config",
        "tokenizer",
        "model",
        "quantize",
        "finetune",
        "optimize",
        "evaluate",
        "ids",
    ]
    other = tiny.dataset(tmp_path / "other.jsonl", 9)
    assert steps(other) == ["ids"], "another dataset: the tokenizer is compared with its rows"
    monkeypatch.setattr(settings, "python", lambda: "/bin/false")
    assert steps(data) == []
    assert steps(other, "finetune.max_steps=3") == []
    assert not (home / "work").exists()
    kept = {path.suffix for path in next((home / "probes").glob("tokenizer-*")).iterdir()}
    assert ".json" in kept
    assert not kept & {".onnx", ".data", ".onnx_adapter"}
