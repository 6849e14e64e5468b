"""The graph that is built beside a training: by a fork, for the optimize stage of the same run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import settings
from pipeline.stages import optimize
from pipeline.system import capacity, checksums, hardware
from pipeline.worker.ahead import graph, warm

BUILDS = """
import os, sys
from pathlib import Path
from pipeline.worker.ahead import graph
folder, work = Path(sys.argv[1]), Path(sys.argv[2])

def build(output, scratch):
    for made in (output, scratch):
        made.mkdir()
    print("building", os.environ["CUDA_VISIBLE_DEVICES"] == "", os.environ["OLIVE_LAB_EVENTS"] == "")
    first = int(Path("/proc/self/oom_score_adj").read_text()) > importance
    print(os.getpgid(0) == os.getpid(), os.nice(0) > before, first, "OLIVE_LAB_WEBHOOK" in os.environ)
    sys.stdout.flush()
    if sys.argv[3] == "hangs":
        Path(work / "pid").write_text(str(os.getpid()))
        while True:
            pass
    if sys.argv[3] == "fails":
        raise ValueError("no such layer")
    (output / "said").write_text((folder / graph.PART / graph.LOG).read_text())
    for name in ("model.onnx", "model.onnx.data"):
        (output / name).write_text(name)

before, importance = os.nice(0), int(Path("/proc/self/oom_score_adj").read_text())
def full(*_):
    raise OSError(28, "No space left on device")

if sys.argv[3] == "full":
    graph.write_whole = full
with graph.Building(folder, "the key", build) as building:
    if sys.argv[3] == "hangs":
        while not (work / "pid").exists() or not (work / "pid").read_text():
            pass
    else:
        print(building.finish())
print(sorted(path.name for path in folder.iterdir()))
"""


def built(folder: Path, how: str = "") -> str:
    """What the process of a training says that builds a graph into `folder`/training."""
    training, work = folder / "training", folder / "work"
    for made in (training, work):
        made.mkdir()
    (training / graph.FOLDER).mkdir()  # of an earlier attempt
    environment = settings.child_environment(
        OLIVE_LAB_EVENTS=str(folder / "events"), OLIVE_LAB_WEBHOOK="secret"
    )
    done = subprocess.run(
        [sys.executable, "-c", BUILDS, str(training), str(work), how],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_what_is_built_is_taken_by_the_export_of_that_key(tmp_path: Path) -> None:
    """The process that builds it is quiet, has no GPU and no secrets, and gives way to the training."""
    assert built(tmp_path).splitlines() == ["True", "['ahead']"]
    (tmp_path / "scratch").mkdir()
    found = graph.taken(tmp_path / "training", "the key", tmp_path / "scratch")
    assert found is not None
    assert found.is_relative_to(tmp_path / "scratch")
    assert (found / "model.onnx").read_text() == "model.onnx"
    assert (found / "said").read_text().splitlines() == ["building True True", "True True True False"]
    assert not list((tmp_path / "training").iterdir())
    checksums.write(found)
    assert checksums.intact(found)


def test_what_another_export_needs_is_not_taken(tmp_path: Path) -> None:
    built(tmp_path)
    assert graph.taken(tmp_path / "training", "another key", tmp_path / "work") is None
    assert graph.taken(tmp_path / "training", "the key", tmp_path / "work") is None


def test_one_that_fails_leaves_its_reason_in_the_log_and_nothing_else(tmp_path: Path) -> None:
    said = built(tmp_path, "fails")
    assert "ValueError: no such layer" in said
    assert said.splitlines()[-2:] == ["False", "[]"]
    assert graph.taken(tmp_path / "training", "the key", tmp_path / "work") is None


def test_a_disk_that_is_full_at_its_end_costs_the_training_nothing(tmp_path: Path) -> None:
    said = built(tmp_path, "full")
    assert "not built beside the training" in said
    assert said.splitlines()[-2:] == ["False", "[]"]


def test_one_that_is_not_waited_for_is_ended(tmp_path: Path) -> None:
    assert built(tmp_path, "hangs").splitlines() == ["[]"]
    assert not Path(f"/proc/{(tmp_path / 'work' / 'pid').read_text()}").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True), ({"adapter": "merged"}, False), ({"adapter": "bound"}, True), ({"cores": 2}, False),
        ({"gpus": 0}, False), ({"memory": 6 << 30}, False), ({"container": 10 << 30}, False),
        ({"checkpoint": False}, False),
        ({"device": "gpu", "provider": "CUDAExecutionProvider"}, False), ({"can_fork": False}, False),
    ],
)  # fmt: skip
def test_it_is_built_where_there_is_room(
    changes: dict[str, Any], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a training on a GPU, for an export for the CPU, of a checkpoint that is there."""
    given = SimpleNamespace(
        **{"cores": 16, "gpus": 1, "memory": 64 << 30, "container": 64 << 30, "can_fork": True}
        | {"checkpoint": True}
        | changes
    )
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "gpus", lambda: given.gpus)
    monkeypatch.setattr(hardware, "cores", lambda: given.cores)
    monkeypatch.setattr(warm, "can_fork", lambda: given.can_fork)
    monkeypatch.setattr(warm, "_free_memory", lambda: given.memory)
    monkeypatch.setattr(capacity, "memory", lambda: given.container)
    options = optimize.Options(**{k: v for k, v in changes.items() if k in ("adapter", "device", "provider")})
    assert graph.wanted(options, {"checkpoint": tmp_path} if given.checkpoint else {}) is expected
    assert graph.wanted(None, {"checkpoint": tmp_path}) is False
