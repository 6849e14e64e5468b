"""The command line: its verbs, exit codes and JSON are a contract."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.stages.costs import machine
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, QUEUED, RUNNING, Run
from pipeline.system import hardware, locks
from pipeline.worker import loop
from tests.helpers.lab import cli, serving, until
from tests.helpers.page import SAMPLE
from tests.helpers.planted import finish_all, plant
from tests.runs.comparing.test_scorecard import MEASURED

Capture = pytest.CaptureFixture[str]
PIPELINE = [sys.executable, "-m", "pipeline"]


def start(*argv: object) -> subprocess.Popen[str]:
    """The real command, in a process group of its own."""
    # Who runs the tests in the background has them ignore Ctrl-C, and that is inherited.
    return subprocess.Popen(
        ["env", "--default-signal=INT", *PIPELINE, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=settings.ROOT,
        start_new_session=True,
    )


@pytest.mark.parametrize("argv", [["x" * 10**6], ["list", "x" * 10**6], ["list", "--status", "x" * 10**6]])
def test_words_that_are_not_understood_are_cut(capsys: Capture, argv: list[str]) -> None:
    code, _, err = cli(capsys, *argv)
    assert (code, len(err) < 4000) == (2, True)


class TestRun:
    def test_a_run_is_queued_and_followed(
        self, store: Store, recipe_file: Path, capsys: Capture, served: Callable[[str], None]
    ) -> None:
        served("finishes")
        code, out, err = cli(
            capsys, "run", recipe_file, "--set", "finetune.max_steps=10", "--set", "name=short"
        )
        assert (code, err) == (0, "")
        (found,) = store.list()
        assert (found.name, found.status, found.recipe["finetune"]["max_steps"]) == ("short", DONE, 10)
        assert out.startswith(f"Run {found.id} is queued. Ctrl-C stops following; the run continues.\n")
        assert f"Run {found.id} (short): done" in out

    def test_notes_on_the_data_are_printed(
        self, store: Store, recipe_file: Path, dataset: Path, capsys: Capture, no_worker: list[Path]
    ) -> None:
        dataset.write_text(dataset.read_text() * 2)
        said = "Note: 20 of 40 rows are copies of an earlier one.\n"
        assert cli(capsys, "submit", recipe_file)[2] == said
        assert cli(capsys, "sweep", recipe_file, "finetune.r=4,8")[2] == said

    def test_a_failed_stage_is_exit_code_1(
        self, store: Store, recipe_file: Path, capsys: Capture, served: Callable[[str], None]
    ) -> None:
        served("fails")
        code, out, _ = cli(capsys, "run", recipe_file)
        assert code == 1
        assert "quantize: The template has no response." in out

    def test_submit_prints_the_id_and_nothing_else(
        self, store: Store, recipe_file: Path, capsys: Capture, no_worker: list[Path]
    ) -> None:
        code, out, err = cli(capsys, "submit", recipe_file)
        assert (code, err) == (0, "")
        assert out == f"{store.list()[0].id}\n"
        assert no_worker == [store.home]

    def test_an_earlier_run_stands_for_its_recipe(
        self, store: Store, recipe_file: Path, capsys: Capture, no_worker: list[Path]
    ) -> None:
        cli(capsys, "submit", recipe_file)
        (first,) = store.list()
        code, out, err = cli(capsys, "submit", first.id, "--set", "finetune.r=8")
        assert (code, err) == (0, "")
        again = store.get(out.strip())
        assert (again.recipe["finetune"]["r"], again.recipe["quantize"]) == (8, first.recipe["quantize"])
        code, _, err = cli(capsys, "submit", "20200101-000000-abcdef")
        assert (code, err) == (
            2,
            "20200101-000000-abcdef: no such run; `python -m pipeline list` shows them\n",
        )

    @pytest.mark.parametrize("verb", ["run", "submit"])
    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ("quantize.bits=5", "quantize.bits: 5 is not allowed; allowed: 4 or 8"),
            ("quantize.group_size=64", "quantize.group_size: 64 does not divide"),
            ("modle=x", "modle: unknown key; allowed: name, model"),
            ("model=./missing", "missing: no such folder"),
            ("data=missing.jsonl", "missing.jsonl: there is no such file"),
            ("template={prompt", "is never closed"),
            ("nonsense", "write it as key=value"),
        ],
    )
    def test_bad_input_is_exit_code_2_and_nothing_is_queued(
        self, store: Store, recipe_file: Path, capsys: Capture, no_worker: list[Path],
        verb: str, change: str, expected: str,
    ) -> None:  # fmt: skip
        code, out, err = cli(capsys, verb, recipe_file, "--set", change)
        assert (code, out, store.list(), no_worker) == (2, "", [], [])
        assert expected in err
        assert "Traceback" not in err
        assert not (store.home / "datasets").exists()

    def test_ctrl_c_leaves_the_run_running(self, store: Store, recipe_file: Path) -> None:
        server = subprocess.Popen(serving(store.home, "waits"), env=settings.child_environment())
        until(lambda: locks.held(store.home / loop.WORKER_LOCK), "the worker")
        terminal = start("run", recipe_file)
        until(lambda: store.list() and store.list()[0].status == RUNNING, "the run")
        assert terminal.stdout is not None
        assert "Ctrl-C stops following" in terminal.stdout.readline()
        os.killpg(terminal.pid, signal.SIGINT)
        _, err = terminal.communicate(timeout=60)
        assert (terminal.returncode, "Traceback" in err) == (130, False)
        (found,) = store.list()
        assert (found.status, found.cancel_requested) == (RUNNING, False)
        for stage in found.stages:
            until(lambda stage=stage: store.folder(found.id, stage.name).exists(), "the stage's turn")  # type: ignore[misc]
            (store.folder(found.id, stage.name) / "go").touch()
        until(lambda: store.list()[0].status == DONE, "the end of the run")
        server.kill()
        server.wait()

    def test_the_real_worker_and_child_are_started(
        self, store: Store, recipe_file: Path, model_folder: Path
    ) -> None:
        """The whole way through real processes, up to the stage that finds its model gone."""
        worker_lock = locks.take(store.home / loop.WORKER_LOCK)
        assert worker_lock is not None
        terminal = start("run", recipe_file)
        assert terminal.stdout is not None
        terminal.stdout.readline()
        (model_folder / "config.json").unlink()
        os.close(worker_lock)
        out, err = terminal.communicate(timeout=180)
        assert (terminal.returncode, err) == (1, "")
        reason = f"model: {model_folder}: has no config.json; give the folder of a Hugging Face model"
        assert f"quantize: {reason}" in out
        found = store.list()[0]
        assert (found.status, found.stages[0].error) == (FAILED, reason)

    def test_what_does_not_fit_is_refused_with_the_nearest_setting_and_that_is_taken(
        self, store: Store, recipe_file: Path, narrow: Path, no_worker: list[Path], capsys: Capture
    ) -> None:
        (store.home / machine.FILE).write_text("{}")  # so that none is measured beside other tests
        given = recipe_file, "--set", f"data={SAMPLE}", "--set"
        for verb in (["submit"], ["run", "--dry-run"]):
            code, out, err = cli(capsys, *verb, *given, "finetune.batch_size=512")
            assert (code, out, store.list(), no_worker) == (2, "", [], [])
            told = re.fullmatch(
                r"finetune\.batch_size: 512 needs about \S+ GB of memory, and 3\.6 GB can be used here;"
                r" (\d+) fits\n",
                err,
            )
            assert told, err
        nearest = int(told[1])
        too_much = cli(capsys, "submit", *given, f"finetune.batch_size={2 * nearest}")
        assert (too_much[0], store.list()) == (2, [])
        assert cli(capsys, "submit", *given, f"finetune.batch_size={nearest}")[0] == 0
        assert len(store.list()) == 1


class TestListAndShow:
    def test_an_empty_home_says_what_to_do(self, home: Path, capsys: Capture) -> None:
        assert "There are no runs yet" in cli(capsys, "list")[1]
        assert cli(capsys, "list", "--json")[:2] == (0, "[]\n")

    def test_runs_are_listed_newest_first(self, store: Store, finished: Run, capsys: Capture) -> None:
        newer = plant(store, "newer")
        code, out, _ = cli(capsys, "list", "--json")
        listed = json.loads(out)
        assert (code, [run["id"] for run in listed]) == (0, [newer, finished.id])
        lines = cli(capsys, "list")[1].splitlines()
        assert [line.split()[0] for line in lines] == ["RUN", newer, finished.id]

    def test_show_has_the_shape_of_the_contract(self, store: Store, finished: Run, capsys: Capture) -> None:
        code, out, _ = cli(capsys, "show", finished.id, "--json")
        shown = json.loads(out)
        assert code == 0
        assert list(shown) == [
            "id",
            "name",
            "status",
            "created",
            "owner",
            "notes",
            "tags",
            "recipe",
            "stages",
        ]
        assert {tuple(stage) for stage in shown["stages"]} == {
            ("name", "status", "started", "finished", "seconds", "reused", "error", "metrics", "artifacts")
        }
        optimize = shown["stages"][2]
        assert (optimize["name"], optimize["status"], optimize["seconds"], optimize["reused"]) == (
            "optimize", "done", 1.5, False,
        )  # fmt: skip
        assert [list(artifact) for artifact in optimize["artifacts"]] == [
            ["name", "kind", "path", "bytes"]
        ] * 2
        assert shown == json.loads(cli(capsys, "list", "--json")[1])[0]

    def test_show_as_text_ends_with_the_answers(self, finished: Run, capsys: Capture) -> None:
        code, out, _ = cli(capsys, "show", finished.id[-6:])
        assert code == 0
        assert "PROMPT   Where is town 1?" in out

    @pytest.mark.parametrize(
        "verb", [["show"], ["logs"], ["cancel"], ["retry"], ["chat", "RUN", "Hi"], ["download"]]
    )
    def test_an_unknown_run_is_exit_code_2(self, home: Path, capsys: Capture, verb: list[str]) -> None:
        argv = [verb[0], "nope", *verb[2:]]
        assert cli(capsys, *argv) == (2, "", "nope: no such run; `python -m pipeline list` shows them\n")


class TestLogs:
    @pytest.fixture
    def run(self, store: Store) -> str:
        run = plant(store)
        store.claim("cpu")
        for stage in ("quantize", "finetune"):
            store.folder(run, stage).mkdir()
            (store.folder(run, stage) / "log.txt").write_text(f"log of {stage}\n")
        return run

    def test_by_default_of_the_stage_that_runs(self, store: Store, run: str, capsys: Capture) -> None:
        assert cli(capsys, "logs", run) == (0, "log of quantize\n", "")
        store.finish(run, "quantize", DONE)
        store.claim_next(run, "cpu")
        assert cli(capsys, "logs", run) == (0, "log of finetune\n", "")
        assert cli(capsys, "logs", run, "quantize") == (0, "log of quantize\n", "")

    def test_an_unknown_stage_is_exit_code_2(self, run: str, capsys: Capture) -> None:
        code, _, err = cli(capsys, "logs", run, "train")
        assert (code, err) == (
            2,
            "train: no such stage; this run has quantize, finetune, optimize, evaluate\n",
        )

    def test_following_ends_with_the_stage(
        self, store: Store, run: str, capsys: Capture, no_worker: list[Path]
    ) -> None:
        threading.Timer(0.1, store.finish, [run, "quantize", DONE]).start()
        assert cli(capsys, "logs", run, "--follow") == (0, "log of quantize\n", "")
        assert store.get(run).stages[0].status == DONE

    def test_a_reader_that_has_seen_enough_is_no_error(self, store: Store, run: str) -> None:
        (store.folder(run, "quantize") / "log.txt").write_text("a long line of the log\n" * 100_000)
        process = start("logs", run)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(60)) == ("", 0)
        process.stderr.close()

    def test_nor_is_one_that_has_gone_already(self, run: str) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*PIPELINE, "list"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=settings.ROOT
        )
        os.close(write)
        assert (done.stderr, done.returncode) == ("", 0)


class TestCancelAndRetry:
    def test_a_queued_run(self, store: Store, capsys: Capture, no_worker: list[Path]) -> None:
        run = plant(store)
        assert cli(capsys, "cancel", run) == (0, f"Run {run} is canceled.\n", "")

    def test_a_running_run_is_waited_for(
        self, store: Store, capsys: Capture, served: Callable[[str], None]
    ) -> None:
        served("ignores_sigterm")
        run = plant(store)
        loop.ensure(store.home)
        until((store.folder(run, "quantize") / "ready.json").exists, "the stage")
        assert cli(capsys, "cancel", run) == (0, f"Run {run} is canceled.\n", "")
        assert store.get(run).status == CANCELED

    def test_a_publish_is_waited_for_and_its_run_stays_done(
        self, store: Store, finished: Run, capsys: Capture, served: Callable[[str], None]
    ) -> None:
        served("waits")
        store.add_publish(finished.id, {"to": "local"})
        loop.ensure(store.home)
        store.add_publish(finished.id, {"to": "local"})
        code, out, _ = cli(capsys, "cancel", finished.id)
        assert code == 0
        assert out.splitlines() == [
            f"{name} of run {finished.id} is canceled." for name in ("publish", "publish-2")
        ]
        assert store.get(finished.id).status == DONE

    def test_an_ended_run_is_exit_code_1(self, finished: Run, capsys: Capture, no_worker: list[Path]) -> None:
        assert cli(capsys, "cancel", finished.id) == (1, "", f"Run {finished.id} has already ended (done).\n")
        code, out, err = cli(capsys, "retry", finished.id)
        assert (code, out) == (1, "")
        assert "is done; only a failed, canceled or interrupted one is retried" in err

    def test_a_canceled_run_is_queued_again(
        self, store: Store, capsys: Capture, no_worker: list[Path]
    ) -> None:
        run = plant(store)
        store.request_cancel(run)
        code, out, _ = cli(capsys, "retry", run)
        assert code == 0
        assert f"Run {run} is queued again" in out
        assert (store.get(run).status, no_worker) == (QUEUED, [store.home])


def test_a_home_that_is_a_file_is_exit_code_2(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OLIVE_LAB_HOME", str(tmp_path / "file"))
    code, _, err = cli(capsys, "list")
    assert (code, err) == (2, f"OLIVE_LAB_HOME: {tmp_path / 'file'} cannot be made a folder (File exists)\n")


def test_the_home_may_be_relative_and_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLIVE_LAB_HOME", "new/home")
    assert cli(capsys, "list")[0] == 0
    assert (tmp_path / "new" / "home" / "runs.db").is_file()
    assert (tmp_path / "new" / "home").stat().st_mode & 0o777 == 0o700


def test_an_error_of_the_system_is_a_sentence(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "list", full)
    expected = "The disk is full; free some space in the home folder and retry.\n"
    assert cli(capsys, "list") == (1, "", expected)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["list", "--nonsense"]])
def test_bad_usage_is_exit_code_2(home: Path, capsys: Capture, argv: list[str]) -> None:
    code, _, err = cli(capsys, *argv)
    assert code == 2
    assert "usage: python -m pipeline" in err


def test_help_names_every_verb_of_the_contract(home: Path, capsys: Capture) -> None:
    code, out, _ = cli(capsys, "--help")
    assert code == 0
    verbs = [
        "check",
        "run",
        "submit",
        "app",
        "starter",
        "models",
        "list",
        "note",
        "diff",
        "compare",
        "delete",
        "votes",
        "restore",
        "gc",
    ]
    verbs += ["show", "logs"]
    verbs += ["cancel", "retry", "sweep", "queue", "pause", "resume", "move", "scorecard", "chat"]
    verbs += [
        "serve",
        "verify",
        "convert",
        "bind",
        "publish",
        "foundry",
        "azure",
        "pull",
        "hub",
        "download",
        "report",
        "worker",
    ]
    assert re.findall(r"^    (\w+)", out, re.MULTILINE) == verbs


def test_it_imports_nothing_heavy(home: Path) -> None:
    code = (
        "import sys; from pipeline.__main__ import main; main(['list']);"
        "heavy = ('torch', 'numpy', 'transformers', 'peft', 'olive', 'onnx', 'onnxruntime',"
        " 'onnxruntime_genai', 'gradio', 'azure', 'huggingface_hub', 'datasets', 'pandas', 'scipy',"
        " 'torchmetrics', 'jsonschema');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=settings.ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_scorecard_is_queued_followed_and_shown(
    home: Path, model_folder: Path, dataset: Path, no_worker: list[Path], capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = Store(home)
    monkeypatch.setattr(
        "pipeline.cli.terminal.until_ended", lambda store, run: finish_all(store, run, MEASURED)
    )
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    words = ["scorecard", model_folder, "--data", dataset, "--json"]
    code, out, _ = cli(capsys, *words, "--algorithms", "rtn, awq")
    rows = json.loads(out)
    assert code == 0
    assert [(row["algorithm"], row["general_perplexity"]) for row in rows] == [("rtn", 34.5), ("awq", 34.5)]
    code, out, err = cli(capsys, *words, "--algorithms", "rtn,autoawq", "--set", "quantize.bits=8")
    assert code == 1
    assert "autoawq is left out. quantize.engine: 'autoawq' needs an NVIDIA GPU" in err
    assert store.list()[0].recipe["quantize"]["bits"] == 8
    code, _, err = cli(capsys, *words, "--algorithms", "awk")
    allowed = "float, rtn, gptq, awq, awq-alone, autoawq"
    assert (code, err) == (2, f"algorithms: awk; allowed: {allowed}, joined by commas\n")


def test_a_dry_run_says_what_a_run_takes_and_starts_nothing(
    store: Store, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.home / machine.FILE).write_text("{}")  # so that none is measured beside other tests
    code, out, _ = cli(capsys, "run", recipe_file, "--dry-run")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:6]] == [
        "STAGE", "quantize", "finetune", "optimize", "evaluate", "all",
    ]  # fmt: skip
    assert "Training makes 13 passes over the 18 rows that are not held out." in out
    code, out, _ = cli(capsys, "run", recipe_file, "--dry-run", "--json", "--set", "finetune.max_steps=9")
    facts = json.loads(out)
    assert code == 0
    assert facts["passes"] == 2.0
    assert all(len(cost["memory"]) == 3 for cost in facts["stages"].values())
    assert store.list() == []


def test_a_dry_run_refuses_what_a_run_would(
    home: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / machine.FILE).write_text("{}")
    code, out, error = cli(capsys, "run", recipe_file, "--dry-run", "--set", "finetune.target_modules=odd")
    assert (code, out) == (2, "")
    assert "finetune.target_modules" in error
    assert cli(capsys, "run", recipe_file, "--json")[0] == 2
