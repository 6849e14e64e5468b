"""Fixtures that many tests share: a home of their own, a model folder, a dataset, a finished run."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.exports.bound import binding
from pipeline.inputs import confined
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import capacity, files
from pipeline.worker import loop
from tests.helpers import exports
from tests.helpers.lab import CHILDREN, CONFIG, killed, serving, until, write_safetensors, write_tokenizer
from tests.helpers.planted import finish_all, plant

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


# Each takes long for its few tests: started first and in this order, no worker is left with one at the end.
LONGEST = (
    "starter/test_starter.py",
    "survival/test_survival.py",
    "passes/optimize/test_export.py",
    "worker/test_probe.py",
    "tests/test_installed.py",
    "routes/test_long_log.py",
    "browser/test_page.py",
    "browser/test_form_page.py",
    "browser/test_live.py",
    "browser/test_five_files.py",
    "azure/test_secrets.py",
    "azure/test_memory.py",
    "azure/test_publish.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run beside each other compute on cores of their own.

    Threads of two processes on the same cores spin while they wait for each other: a training step of a tiny
    model then takes ten times as long. What a test starts inherits its cores.
    """
    os.umask(0o022)  # whatever the machine's: models that others may write to are not offered
    worker, count = (os.environ.get(f"PYTEST_XDIST_WORKER{end}", "") for end in ("", "_COUNT"))
    if worker and config.getoption("markexpr") == "chain":
        mine = sorted(os.sched_getaffinity(0))[int(worker[2:]) :: int(count)]
        os.sched_setaffinity(0, mine or os.sched_getaffinity(0))


# Marks that a test's own file gives it; one of azure's comes from a fixture.
GIVEN = ("chain", "browser", "gpu")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of all files, those that never give the one mark that is asked for need not be imported."""
    mark, everything = config.getoption("markexpr"), config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if mark in GIVEN and everything and collection_path.suffix == ".py" and not gives(collection_path, mark):
        return True
    return None


@functools.cache
def gives(file: Path, mark: str) -> bool:
    return f"mark.{mark}" in file.read_text("utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # else one of these would be run by nobody
        for mark in item.iter_markers():
            if mark.name in GIVEN and not gives(item.path, mark.name):
                raise pytest.UsageError(f"{item.nodeid}: its own file must say `mark.{mark.name}`")

    def turn(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((at for at, name in enumerate(LONGEST) if path.endswith(name)), len(LONGEST))

    items.sort(key=turn)


@pytest.fixture(autouse=True)
def stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs tests is never confined itself, which would be for good; processes that it starts are."""
    monkeypatch.setattr(confined, "to", lambda _, moves=False: False)
    monkeypatch.setattr(confined, "stay_offline", lambda: None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty home; whatever process a test leaves behind for it is ended.

    Libraries are imported ahead of stages only where stages are real.
    """
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("OLIVE_LAB_HOME", str(folder))
    monkeypatch.delenv("OLIVE_LAB_EVENTS", raising=False)
    if request.node.get_closest_marker("chain") is None:
        monkeypatch.setenv("OLIVE_LAB_AHEAD", "0")
    yield folder
    for process in loop._workers:  # a moment after it began one is not among the processes
        process.kill()
        process.wait()
    until(lambda: not killed(folder), "the end of all processes")
    loop._workers.clear()


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home)


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No worker is started; the list says for which homes one was asked for."""
    asked: list[Path] = []
    monkeypatch.setattr(loop, "ensure", asked.append)
    return asked


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder that looks like a small llama; its weights are of no use."""
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "<|end|>"})
    )
    write_safetensors(folder / "model.safetensors", [0.0, 1.0, 2.0])
    return folder


@pytest.fixture
def bytes_as_tokens(model_folder: Path) -> Path:
    """The model folder's tokenizer: a token a byte, and one before the text."""
    return write_tokenizer(model_folder / "tokenizer.json")


@pytest.fixture
def little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine may use 700 MB, as a container of that size may: nothing fits."""
    limit = tmp_path / "memory.max"
    limit.write_text("700000000\n")
    monkeypatch.setattr(capacity, "LIMITS", (limit,))
    return limit


@pytest.fixture
def narrow(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folder with so many words that a batch of 512 does not fit into what this machine may use,
    4 GB, and a few rows do."""
    config = {**CONFIG, "vocab_size": 2**17}
    (model_folder / "config.json").write_text(json.dumps(config))
    limit = tmp_path / "memory.max"
    limit.write_text("4000000000\n")
    monkeypatch.setattr(capacity, "LIMITS", (limit,))
    return model_folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "travel.jsonl"
    rows = [{"prompt": f"Where is town {i}?", "response": f"In valley {i}."} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe_file(tmp_path: Path, model_folder: Path, dataset: Path) -> Path:
    """A good recipe beside its model and data, which it names relative to itself."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: trip\nmodel: ./{model_folder.name}\ndata: {dataset.name}\n")
    return path


@pytest.fixture(scope="session")
def written_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real export, written once; tests take a copy of it."""
    return exports.write(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture
def export(written_export: Path, tmp_path: Path) -> Path:
    """A small export that really answers, for the test to break."""
    return shutil.copytree(written_export, tmp_path / "export")


@pytest.fixture
def finished(store: Store, written_export: Path) -> Run:
    """A run all of whose stages are done, with a small export that really answers."""
    return _finished(store, written_export, bound=False)


@pytest.fixture
def finished_bound(store: Store, written_export: Path) -> Run:
    """As `finished`, of a recipe with `optimize.adapter: bound`."""
    return _finished(store, written_export, bound=True)


def _finished(store: Store, written_export: Path, bound: bool) -> Run:
    folder = store.home / "artifacts" / "optimize-0123456789abcdef" / "model"
    shutil.copytree(written_export, folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "vocab.txt").write_text("words")
    answers = store.home / "artifacts" / "answers.json"
    said = {"text": "In the valley.", "tokens": 4, "tokens_per_second": 20.0, "first_token_seconds": 0.1}
    answers.write_text(json.dumps({"rows": [{"prompt": "Where is\ntown 1?", "base": said, "adapter": said}]}))
    results: dict[str, Any] = {
        "finetune": {"metrics": {"eval_loss_before": 2.5, "eval_loss_after": 1.25}},
        "optimize": {
            "artifacts": [
                {"name": "model", "kind": "onnx", "path": str(folder), "bytes": files.size(folder)},
                {
                    "name": "adapter",
                    "kind": "onnx_adapter",
                    "path": str(folder / "adapter_weights.onnx_adapter"),
                    "bytes": 7,
                },
            ]
        },
        "evaluate": {
            "metrics": {"base_tokens_per_second": 20.0, "adapter_tokens_per_second": 18.0},
            "artifacts": [{"name": "answers", "kind": "answers", "path": str(answers), "bytes": 100}],
        },
    }
    if bound:
        made = binding.bind(folder, None, folder / "bound").folder
        row = {"name": "bound", "kind": "bound", "path": str(made), "bytes": files.size(made)}
        results["optimize"]["artifacts"][0]["bytes"] = files.size(folder)
        results["optimize"]["artifacts"].append(row)
    return finish_all(store, plant(store, "finished"), results)


@pytest.fixture
def stepper(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., loop.Worker]]:
    """A worker whose stages behave as said in tests/children.py; tests call its `step` themselves."""
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 0)
    made: list[loop.Worker] = []

    def make(behaviour: str) -> loop.Worker:
        made.append(loop.Worker(store, child=[str(CHILDREN), behaviour]))
        return made[-1]

    yield make
    for job in (job for served in made for job in served.jobs.values()):
        if job.process is not None:
            job.process.kill()
            job.process.wait()


@pytest.fixture
def served(store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Callable[[str], loop.Worker]) -> Any:
    """Wherever a worker is asked for, one whose stages behave as said takes a step."""

    def serve(behaviour: str) -> None:
        served = stepper(behaviour)
        monkeypatch.setattr(loop, "ensure", lambda home: served.step())
        monkeypatch.setattr("pipeline.cli.terminal.POLL_SECONDS", 0.01)

    return serve


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers in processes of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(behaviour: str, idle_seconds: float = 600.0) -> subprocess.Popen[bytes]:
        environment = settings.child_environment()
        process = subprocess.Popen(serving(home, behaviour, idle_seconds), env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
