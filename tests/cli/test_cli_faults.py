"""What the command line and the worker do with a home in trouble."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from pipeline.__main__ import main
from pipeline.store import Store, backup
from pipeline.store.run import DONE
from pipeline.worker.loop import Worker
from tests.helpers.lab import until
from tests.helpers.planted import plant


def test_a_mended_database_is_said_once(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(store)
    store.path.write_bytes(b"damaged" * 1000)
    assert main(["list"]) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("The database of runs was damaged on ")
    assert run in said.out
    assert main(["list"]) == 0
    assert capsys.readouterr().err == ""


def test_a_locked_database_is_a_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant(store)
    monkeypatch.setattr(backup, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert main(["show", run]) == 0, "who only reads is not kept waiting"
        capsys.readouterr()
        assert main(["cancel", run]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("close what has it open, and try again.\n")


def test_the_worker_goes_on_when_the_lock_is_gone(
    store: Store,
    stepper: Callable[[str], Worker],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(backup, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.worker.loop.TROUBLE_SECONDS", 0.05)
    run = plant(store)
    worker = stepper("finishes")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        serving = threading.Thread(target=worker.serve, kwargs={"idle_seconds": 0.3})
        serving.start()
        until(lambda: "kept it locked" in capsys.readouterr().out, "a word of the worker")
    serving.join(60)
    assert store.get(run).status == DONE


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("multi_cache")

    monkeypatch.setattr(Store, "list", fail)
    assert main(["list"]) == 1
    file = store.home / "errors.log"
    assert capsys.readouterr().err == (
        "This failed with an internal error (KeyError: 'multi_cache'); try again; if it fails again, report"
        f" it. The details are in {file}.\n"
    )
    assert "Traceback (most recent call last)" in file.read_text()
