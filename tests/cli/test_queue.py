"""`queue`, `pause`, `resume`, `move` and `sweep` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.store import Store
from tests.helpers.planted import plant

pytestmark = pytest.mark.usefixtures("no_worker")


def waiting(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["queue", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_what_waits_is_listed_in_its_order(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = plant(store, "first"), plant(store, "second")
    assert main(["queue"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["1", first, "first"], ["2", second, "second"]]


def test_an_empty_queue(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue"]) == 0
    assert capsys.readouterr().out == "No runs are waiting.\n"


def test_a_run_is_moved(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = plant(store, "first"), plant(store, "second")
    assert main(["move", second, "first"]) == 0
    assert waiting(capsys) == {"paused": False, "waiting": [second, first]}


def test_only_what_waits_is_moved(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(store)
    store.claim("cpu")
    assert main(["move", run, "first"]) == 1
    assert "only waiting runs have a position" in capsys.readouterr().err


def test_a_pause_and_its_end(store: Store, no_worker: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    plant(store)
    assert main(["pause"]) == 0
    assert waiting(capsys)["paused"] is True
    assert store.claim("cpu") is None
    main(["queue"])
    assert capsys.readouterr().out.startswith("The queue is paused")
    assert main(["resume"]) == 0
    assert no_worker == [store.home]
    assert store.claim("cpu") is not None


def test_a_sweep_of_a_file_and_of_a_run(
    store: Store, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(recipe_file), "finetune.r=4,8"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    runs = [line.split()[0] for line in lines]
    assert [run.id for run in store.queue()] == runs
    assert last == f"2 runs are queued as the group {store.get(runs[0]).recipe['group']}."
    assert main(["sweep", runs[0], "seed=1,2"]) == 0
    assert len(store.queue()) == 4


def test_a_sweep_with_a_fault_queues_nothing(
    store: Store, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(recipe_file), "finetune.r=4,-1"]) == 2
    assert "finetune.r" in capsys.readouterr().err
    assert store.queue() == []
