"""Verbs for what a finished run exported: chat, publish, download, convert, bind, verify."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from pipeline.errors import LabError
from pipeline.exports.chat import chat_client, sources
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.lab import cli
from tests.helpers.planted import one_stage, plant

Capture = pytest.CaptureFixture[str]
PIPELINE = [sys.executable, "-m", "pipeline"]


class TestChat:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        async def stream(home: Path, source: sources.Source, *rest: Any) -> AsyncIterator[dict[str, Any]]:
            asked.append(rest)
            for side in rest[1]:
                for text in ("In the ", "välley."):
                    yield {"side": side, "text": text}
                facts = {"tokens": 4, "tokens_per_second": 20.5, "first_token_seconds": 0.1}
                yield {"side": side, "done": True, **facts}

        monkeypatch.setattr(chat_client, "stream", stream)
        return asked

    def test_json_has_the_shape_of_the_contract(
        self, finished: Run, capsys: Capture, asked: list[tuple[Any, ...]]
    ) -> None:
        code, out, _ = cli(
            capsys, "chat", finished.id, "Where?", "--json", "--max-new-tokens", 9, "--seed", 5
        )
        answer = {
            "text": "In the välley.",
            "tokens": 4,
            "tokens_per_second": 20.5,
            "first_token_seconds": 0.1,
        }
        assert code == 0
        assert json.loads(out) == {"prompt": "Where?", "seed": 5, "base": answer, "adapter": answer}
        assert asked == [("Where?", ("base", "adapter"), 5, 9, 0.0, "")]

    @pytest.mark.parametrize("side", ["base", "adapter"])
    def test_one_side(self, finished: Run, capsys: Capture, asked: list[Any], side: str) -> None:
        code, out, _ = cli(capsys, "chat", finished.id, "Where?", "--side", side)
        assert (code, out) == (0, f"{side} (4 tokens, 20 a second):\nIn the välley.\n\n")

    def test_without_an_adapter_both_is_the_base(
        self, finished: Run, capsys: Capture, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact = Run.artifact
        monkeypatch.setattr(
            Run, "artifact", lambda run, kind: None if kind == "onnx_adapter" else artifact(run, kind)
        )
        assert list(json.loads(cli(capsys, "chat", finished.id, "Where?", "--json")[1])) == [
            "prompt",
            "seed",
            "base",
        ]

    def test_with_a_merged_adapter_both_is_the_adapter(
        self, finished: Run, capsys: Capture, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact = Run.artifact
        monkeypatch.setattr(
            Run, "artifact", lambda run, kind: "/x" if kind == "merged" else artifact(run, kind)
        )
        answered = json.loads(cli(capsys, "chat", finished.id, "Where?", "--json")[1])
        assert list(answered) == ["prompt", "seed", "adapter"]

    def test_a_folder_answers_as_a_run_does(
        self, finished: Run, capsys: Capture, asked: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Path(str(finished.artifact("onnx")))
        monkeypatch.chdir(folder.parent)
        answered = json.loads(cli(capsys, "chat", folder.name, "Where?", "--json")[1])
        assert list(answered) == ["prompt", "seed", "base", "adapter"]

    def test_a_run_that_cannot_answer_yet_is_exit_code_1(self, store: Store, capsys: Capture) -> None:
        run = plant(store)
        code, out, err = cli(capsys, "chat", run, "Where?")
        assert (code, out) == (1, "")
        assert err == f"Run {run} is queued; it can answer once its optimize stage is done.\n"

    @pytest.mark.parametrize(
        ("ends", "code", "said"),
        [
            (LabError("Others wait to be answered."), 1, "Others wait to be answered.\n"),
            (KeyboardInterrupt(), 130, ""),
        ],
    )
    def test_what_was_answered_before_the_end_is_printed(
        self,
        finished: Run,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        ends: BaseException,
        code: int,
        said: str,
    ) -> None:
        async def stream(*_: Any) -> AsyncIterator[dict[str, Any]]:
            yield {"side": "base", "text": "So far"}
            raise ends

        monkeypatch.setattr(chat_client, "stream", stream)
        told = cli(capsys, "chat", finished.id, "Where?")
        shown = (
            "base (ended before it was complete):\nSo far\n\nadapter (ended before it was complete):\n\n\n"
        )
        assert told == (code, shown, said)
        told = cli(capsys, "chat", finished.id, "Where?", "--json")
        assert json.loads(told[1])["base"] == {"text": "So far", "stopped": True}

    @pytest.mark.parametrize(
        "argv",
        [
            ["", "--json"],
            ["Hi", "--side", "left"],
            ["Hi", "--max-new-tokens", "0"],
            ["Hi", "--max-new-tokens", "x"],
        ],
    )
    def test_bad_input_is_exit_code_2(self, finished: Run, capsys: Capture, argv: list[str]) -> None:
        code, out, err = cli(capsys, "chat", finished.id, *argv)
        assert (code, out) == (2, "")
        assert err
        assert "Traceback" not in err


class TestPublish:
    def test_a_dry_run_writes_nothing(self, store: Store, finished: Run, capsys: Capture) -> None:
        before = sorted(store.home.rglob("*"))
        code, out, _ = cli(capsys, "publish", finished.id, "--to", "local", "--name", "trips", "--dry-run")
        assert code == 0
        assert out.startswith(f"trips version 1 -> {store.home}/registry/trips/1\n")
        size = (Path(str(finished.artifact("onnx"))) / "model.onnx").stat().st_size
        assert f"{size:>16,} bytes  model.onnx\n" in out
        assert out.endswith("Nothing was published: this was a dry run.\n")
        assert sorted(store.home.rglob("*")) == before
        assert len(store.get(finished.id).stages) == 4

    def test_it_is_published_by_the_worker(self, store: Store, finished: Run, capsys: Capture) -> None:
        publish = ("publish", finished.id, "--to", "local", "--name", "trips", "--version", "3")
        code, out, err = cli(capsys, *publish)
        assert (code, err) == (0, "")
        assert out.endswith(f"Published to {store.home}/registry/trips/3\n")
        assert store.get(finished.id).stage("publish").metrics["version"] == "3"
        code, _, err = cli(capsys, *publish)
        assert (code, err) == (2, "version: trips already has a version 3; leave it empty for the next one\n")
        assert [stage.name for stage in store.get(finished.id).stages[4:]] == ["publish"]

    def test_one_that_fails_is_exit_code_1(
        self, finished: Run, capsys: Capture, served: Callable[[str], None]
    ) -> None:
        served("fails")
        code, out, err = cli(capsys, "publish", finished.id, "--to", "local", "--name", "trips")
        assert code == 1
        assert (out + err).endswith("The template has no response.\n")

    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["--to", "moon", "--name", "x"], "invalid choice: 'moon'"),
            (["--to", "local"], "the following arguments are required: --name"),
            (["--to", "local", "--name", "../x"], "name: '../x' is not allowed"),
            (["--to", "local", "--name", "x", "--version", "1.0"], "version: '1.0' is not allowed"),
        ],
    )
    def test_bad_input_is_exit_code_2(
        self, finished: Run, capsys: Capture, argv: list[str], expected: str
    ) -> None:
        code, _, err = cli(capsys, "publish", finished.id, *argv)
        assert code == 2
        assert expected in err


class TestDownload:
    def test_it_has_a_name_of_its_own_and_never_overwrites(
        self, finished: Run, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        name = f"finished-{finished.id}.zip"
        code, out, err = cli(capsys, "download", finished.id)
        assert (code, err) == (0, "")
        assert out.startswith(f"{name}: {Path(name).stat().st_size:,} bytes; unpacked, `python app.py`")
        before = Path(name).read_bytes()
        code, out, err = cli(capsys, "download", finished.id)
        assert (code, out, err) == (2, "", f"{name}: already exists; give another name with --to\n")
        assert [path.name for path in Path().iterdir()] == [name]
        assert Path(name).read_bytes() == before

    def test_it_goes_where_it_is_told(self, finished: Run, capsys: Capture, tmp_path: Path) -> None:
        target = tmp_path / "it.zip"
        code, out, _ = cli(capsys, "download", finished.id, "--to", target)
        assert (code, out.partition(":")[0]) == (0, str(target))
        assert "model.onnx" in zipfile.ZipFile(target).namelist()
        code, _, err = cli(capsys, "download", finished.id, "--to", tmp_path / "no" / "it.zip")
        assert (code, err) == (2, f"{tmp_path / 'no'}: no such folder\n")

    def test_a_run_without_an_export_is_exit_code_2(
        self, store: Store, capsys: Capture, tmp_path: Path
    ) -> None:
        run = plant(store)
        code, _, err = cli(capsys, "download", run, "--to", tmp_path / "it.zip")
        assert (code, err) == (
            2,
            f"Run {run} is queued and has no exported model; only a finished one is downloaded.\n",
        )
        assert not (tmp_path / "it.zip").exists()


class TestReport:
    def test_it_is_printed_or_written_in_the_format_of_the_name(
        self, finished: Run, capsys: Capture, tmp_path: Path
    ) -> None:
        code, out, err = cli(capsys, "report", finished.id)
        assert (code, out.partition("\n")[0], err) == (0, "# finished", "")
        assert "Where is town" not in out
        code, out, _ = cli(capsys, "report", finished.id, "--rows", "--format", "md")
        assert "Where is town 1?" in out
        for name, begin in (("it.html", "<!doctype html>"), ("it.md", "# finished")):
            code, out, _ = cli(capsys, "report", finished.id, "--to", tmp_path / name)
            assert (code, out.partition(":")[0]) == (0, str(tmp_path / name))
            assert (tmp_path / name).read_text("utf-8").startswith(begin)

    def test_a_folder_that_is_not_there_is_one_sentence(
        self, finished: Run, capsys: Capture, tmp_path: Path
    ) -> None:
        code, _, err = cli(capsys, "report", finished.id, "--to", tmp_path / "no" / "it.html")
        assert (code, err) == (2, f"{tmp_path / 'no'}: no such folder\n")


class TestConvert:
    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["no", "RUN"], "no: no such folder; give the folder of a PEFT adapter"),
            (["here", "RUN", "--to", "x.bin"], "x.bin: the name of an adapter's file ends in .onnx_adapter"),
            (["here", "RUN", "--to", "no/x.onnx_adapter"], "no such folder"),
            (["here", "RUN"], "here: here has no adapter_config.json; give the folder of a PEFT adapter"),
            (["here", "no/folder"], "no/folder: no such folder"),
            (["here/pipe", "RUN"], "pipe has no adapter_config.json"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(
        self, finished: Run, capsys: Capture, words: list[str], reason: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        (tmp_path / "cwd" / "here" / "pipe").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "cwd")
        os.mkfifo("here/pipe/adapter_config.json")
        code, out, err = cli(capsys, "convert", *(finished.id if word == "RUN" else word for word in words))
        assert (code, out) == (2, "")
        assert reason in err
        assert [path.name for path in Path().iterdir()] == ["here"]


class TestBind:
    def test_a_run_is_bound_into_a_folder_that_verifies(
        self, finished: Run, capsys: Capture, tmp_path: Path
    ) -> None:
        to = tmp_path / "bound"
        code, out, err = cli(capsys, "bind", finished.id, "--to", to)
        assert (code, err) == (0, "")
        assert re.fullmatch(
            rf"{to}: adapter_weights\.onnx_adapter bound, 2 tensors of [^;]*; "
            r"\d[^ ]* \w+ of weights shared with the base\n"
            rf"Check it with `python -m pipeline verify {to}`\.\n",
            out,
        )
        assert (to / "model.onnx.data").samefile(Path(str(finished.artifact("onnx"))) / "model.onnx.data")
        assert cli(capsys, "verify", to)[0] == 0

    def test_a_folder_is_bound_with_an_adapter_by_name(
        self, finished: Run, capsys: Capture, tmp_path: Path
    ) -> None:
        folder = Path(str(finished.artifact("onnx")))
        (folder / "adapter_weights.onnx_adapter").rename(folder / "warm.onnx_adapter")
        code, out, _ = cli(capsys, "bind", folder, "--adapter", "warm", "--to", tmp_path / "bound")
        assert (code, "warm.onnx_adapter bound" in out) == (0, True)

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["RUN", "--adapter", "cold"], "'cold' is no .onnx_adapter file; in the folder there are"),
            (["no/folder"], "no/folder: no such folder"),
            (["nothing"], "nothing: no such run"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(
        self, finished: Run, capsys: Capture, tmp_path: Path, words: list[str], reason: str
    ) -> None:
        given = [finished.id if word == "RUN" else word for word in words]
        code, out, err = cli(capsys, "bind", *given, "--to", tmp_path / "bound")
        assert (code, out) == (2, "")
        assert reason in err
        assert not (tmp_path / "bound").exists()


class TestVerify:
    def test_a_folder_and_a_run_are_checked(self, finished: Run, capsys: Capture) -> None:
        folder = str(finished.artifact("onnx"))
        for target in (folder, finished.id):
            code, out, err = cli(capsys, "verify", target)
            assert (code, err) == (0, "")
            assert out.startswith(f"{folder}\nCHECK ")
            assert re.search(
                r"^answers with adapter_weights.onnx_adapter +ok +answers diff", out, re.MULTILINE
            )

    def test_of_a_bound_run_the_folder_that_is_shipped_is_checked(
        self, finished_bound: Run, capsys: Capture
    ) -> None:
        code, out, _ = cli(capsys, "verify", finished_bound.id)
        assert (code, out.partition("\n")[0]) == (0, finished_bound.artifact("bound"))
        assert re.search(r"^bound adapter +ok +'adapter_weights.onnx_adapter' is a part", out, re.MULTILINE)

    def test_what_failed_is_exit_code_1(self, finished: Run, capsys: Capture) -> None:
        (Path(str(finished.artifact("onnx"))) / "lab.json").unlink()
        code, out, _ = cli(capsys, "verify", finished.id)
        assert code == 1
        assert re.search(r"^template +failed +lab.json is missing; export", out, re.MULTILINE)
        code, out, _ = cli(capsys, "verify", finished.id, "--json")
        found = json.loads(out)
        assert (code, found["good"]) == (1, False)
        assert {"check": "template", "status": "failed", "message": ANY} in found["checks"]

    def test_json_of_a_good_one(self, finished: Run, capsys: Capture) -> None:
        code, out, _ = cli(capsys, "verify", finished.id, "--json")
        found = json.loads(out)
        assert (code, found["good"], found["folder"]) == (0, True, finished.artifact("onnx"))
        assert {check["status"] for check in found["checks"]} == {"ok"}

    def test_bad_input_is_exit_code_2(self, store: Store, tmp_path: Path, capsys: Capture) -> None:
        queued = one_stage(store)
        for target, reason in (
            (tmp_path / "nowhere", "no such folder"),
            ("nothing", "nothing: no such run"),
            (queued, "has no exported model; it is queued"),
        ):
            code, out, err = cli(capsys, "verify", target)
            assert (code, out) == (2, "")
            assert reason in err
