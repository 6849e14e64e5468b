"""Databases really damaged: bytes overwritten, cut off, without a header, deleted."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.store import Store, backup
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, Run
from pipeline.system import hardware, locks
from tests.helpers.lab import until
from tests.helpers.planted import finish_all, plant


def overwritten(path: Path) -> None:
    dice = random.Random(0)
    with path.open("r+b") as file:
        for at in range(4096, path.stat().st_size, 4096):
            file.seek(at)
            file.write(dice.randbytes(512))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(100))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = (overwritten, cut_off, without_header, emptied, Path.unlink)


def lines(runs: list[Run]) -> list[tuple[Any, ...]]:
    """What a person would miss of these runs."""
    return [
        (
            *(run.id, run.name, run.status, round(run.created, 3), run.recipe, run.data, run.owner),
            *((s.name, s.status, s.options, s.metrics, s.artifacts, s.error) for s in run.stages),
        )
        for run in runs
    ]


def write_result(store: Store, run: str, stage: str, **facts: Any) -> dict[str, Any]:
    """What a stage's process leaves."""
    folder = store.folder(run, stage)
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text('{"attempt": true}\n')
    (folder / "result.json").write_text(json.dumps(facts))
    return facts


def mended(store: Store, damage: Callable[[Path], None]) -> Store:
    damage(store.path)
    return Store(store.home, check=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_is_restored_and_completed_from_the_folders(
    store: Store, damage: Callable[[Path], None]
) -> None:
    old = finish_all(store, plant(store, "old"), {"finetune": {"metrics": {"loss": 1.5}}}).id
    store.annotate(old, notes="the good one")
    going, queued = plant(store, "going"), plant(store, "queued")
    store.claim("cpu")
    assert backup.make(store.path) is None
    artifact = {
        "name": "m", "kind": "checkpoint", "path": str(store.home / "artifacts" / "x"), "bytes": 1,
    }  # fmt: skip
    told = write_result(
        store, going, "quantize", status=DONE, metrics={"bits": 4}, artifacts=[artifact], seconds=2.0
    )
    store.finish(going, "quantize", **told)
    store.claim_next(going, "cpu")
    told = write_result(store, going, "finetune", status=FAILED, error="It broke.", seconds=1.0)
    store.finish(going, "finetune", **told)
    newer = plant(store, "newer", {"quantize": {"bits": 8}}, owner="ada")
    before, order = lines(store.list()), store.queue()
    again = mended(store, damage)
    assert lines(again.list()) == before
    assert again.get(old).notes == "the good one"
    assert [again.get(run).status for run in (old, going, queued, newer)] == [DONE, FAILED, QUEUED, QUEUED]
    assert again.queue() == order
    kept = aside(store)
    assert len(kept) == (0 if damage is Path.unlink else 1)
    assert "1 run added" in (again.notice() or "")


def aside(store: Store) -> list[Path]:
    """Damaged databases that were put aside; what SQLite may have left beside one goes with it."""
    found = store.home.glob("runs.db.damaged-*")
    return [path for path in found if not path.name.endswith(("-wal", "-shm"))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_copy_everything_is_read_from_the_folders(
    store: Store, damage: Callable[[Path], None]
) -> None:
    runs = {name: plant(store, name) for name in ("done", "failed", "begun", "alive", "between", "queued")}
    for name in ("done", "between"):
        for stage in ("quantize", "finetune", "optimize", "evaluate")[: 4 if name == "done" else 2]:
            write_result(store, runs[name], stage, status=DONE, metrics={"stage": stage}, seconds=1.0)
    write_result(store, runs["failed"], "quantize", status=FAILED, error="It broke.")
    for name in ("begun", "alive"):
        store.folder(runs[name], "quantize").mkdir()
        (store.folder(runs[name], "quantize") / "events.jsonl").write_text('{"attempt": true}\n')
    lock = locks.take(store.folder(runs["alive"], "quantize") / "lock")
    assert lock is not None
    again = mended(store, damage)
    os.close(lock)
    found = {name: again.get(run) for name, run in runs.items()}
    assert {name: run.status for name, run in found.items()} == {
        "done": DONE, "failed": FAILED, "begun": INTERRUPTED, "alive": RUNNING, "between": QUEUED,
        "queued": QUEUED,
    }  # fmt: skip
    assert [stage.metrics for stage in found["done"].stages][2] == {"stage": "optimize"}
    assert found["failed"].stages[0].error == "It broke."
    assert "retry it" in (found["begun"].stages[0].error or "")
    assert [stage.status for stage in found["begun"].stages[1:]] == [CANCELED] * 3
    assert again.running() == [(runs["alive"], "quantize", hardware.devices()[0])]
    assert again.claim("cpu") == (runs["between"], "optimize")
    again.retry(runs["begun"])
    assert again.get(runs["begun"]).status == QUEUED
    assert "no copy" in (again.notice() or "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("quantize/result.json", '{"status": null}'),
        ("quantize/result.json", '{"status": "done", "seconds": ' + "9" * 30 + "}"),
        ("quantize/result.json", '{"status": "done", "artifacts": [{}]}'),
        ("run.json", '{"id": "x"}'),
        ("run.json", '{"id": "x", "created": "then", "stages": []}'),
    ],
)
def test_a_folder_that_cannot_be_read_keeps_no_other(store: Store, file: str, content: str) -> None:
    bad, good = plant(store), plant(store, name="good")
    before = lines([store.get(good)])
    write_result(store, bad, "quantize", status=DONE)
    (store.folder(bad) / file).write_text(content)
    store.path.unlink()
    again = Store(store.home)
    assert lines([again.get(good)]) == before
    assert [run.id for run in again.list()] == [good]
    assert "(1 run added). 1 folder of runs could not be read." in str(again.notice())


def as_folder(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").mkdir()


def as_link_to_itself(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("run.json")


def with_result_folder(folder: Path) -> None:
    (folder / "quantize" / "result.json").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [as_folder, as_link_to_itself, with_result_folder])
def test_a_folder_that_is_not_ours_to_read_keeps_no_other(
    store: Store, spoil: Callable[[Path], None]
) -> None:
    bad, good = plant(store), plant(store, name="good")
    spoil(store.folder(bad))
    store.path.unlink()
    again = Store(store.home)
    assert [run.id for run in again.list()] == [good]
    assert "1 folder of runs could not be read." in str(again.notice())


def test_what_is_nested_without_end_is_no_run(store: Store) -> None:
    bad, good = plant(store), plant(store, name="good")
    (store.folder(bad) / "run.json").write_text("[" * 100_000)
    store.path.unlink()
    assert [run.id for run in Store(store.home).list()] == [good]


def test_a_publish_is_read_from_its_folder_too(store: Store, finished: Run) -> None:
    backup.make(store.path)
    stage = store.add_publish(finished.id, {"to": "local", "name": "trips"})
    write_result(store, finished.id, stage, status=DONE, metrics={"version": "1"})
    again = mended(store, overwritten)
    published = again.get(finished.id).stage(stage)
    assert (published.status, published.metrics) == (DONE, {"version": "1"})
    assert published.options == {"to": "local", "name": "trips"}
    assert again.get(finished.id).status == DONE


def test_older_news_does_not_overwrite_the_copy(store: Store) -> None:
    """A run that was retried is queued, whatever its last attempt left."""
    run = plant(store)
    store.claim("cpu")
    told = write_result(store, run, "quantize", status=FAILED, error="It broke.")
    for file in store.folder(run, "quantize").iterdir():
        os.utime(file, (1, 1))
    store.finish(run, "quantize", **told)
    store.retry(run)
    backup.make(store.path)
    assert mended(store, overwritten).get(run).status == QUEUED


def test_a_damaged_copy_is_passed_over(store: Store) -> None:
    first = plant(store, "first")
    backup.make(store.path)
    plant(store, "second")
    backup.make(store.path)
    newest, before = backup.paths(store.path)
    assert newest.exists()
    assert before.exists()
    overwritten(newest)
    again = mended(store, overwritten)
    assert [run.name for run in again.list()] == ["second", "first"]
    assert "1 run added" in (again.notice() or "")
    assert again.get(first).status == QUEUED


def test_damage_met_on_the_way_is_mended_for_the_next_call(store: Store) -> None:
    runs = [plant(store, f"{n}") for n in range(40)]
    backup.make(store.path)
    overwritten(store.path)
    with pytest.raises(LabError, match="it is restored now as far as possible, so try again"):
        store.list()
    assert [run.id for run in store.list()] == runs[::-1]


def test_a_database_deleted_under_the_worker_is_restored(store: Store) -> None:
    run = plant(store)
    store.path.unlink()
    with pytest.raises(LabError, match="is gone; it is restored now"):
        store.claim("cpu")
    assert store.claim("cpu") == (run, "quantize")


def test_a_damaged_database_never_becomes_a_copy(store: Store) -> None:
    run = plant(store)
    backup.make(store.path)
    good = backup.paths(store.path)[0].read_bytes()
    for n in range(40):
        plant(store, f"{n}")
    overwritten(store.path)
    assert backup.make(store.path) is not None
    assert backup.paths(store.path)[0].read_bytes() == good
    assert [path.name for path in store.home.glob(".runs.db*")] == []
    assert Store(store.home, check=True).get(run).status == QUEUED


def test_a_locked_database_is_not_set_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plant(store)
    monkeypatch.setattr(backup, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")  # else readers would not notice
        other.execute("BEGIN EXCLUSIVE")
        for refused in (lambda: store.request_cancel(run), store.list, lambda: Store(store.home, check=True)):
            with pytest.raises(LabError, match=r"another program has kept it locked for 0\.1 seconds; close"):
                refused()
    store.request_cancel(run)
    assert list(store.home.glob("runs.db.damaged-*")) == []
    assert store.notice() is None


def test_what_cannot_be_mended_for_want_of_room_stays_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(store)
    backup.make(store.path)
    overwritten(store.path)
    damaged = store.path.read_bytes()
    (store.home / ".runs.db.part").symlink_to("/dev/full")
    monkeypatch.setattr("pipeline.store.repair._remove", lambda part: None)
    with pytest.raises(LabError, match="The disk is full"):
        Store(store.home, check=True)
    assert store.path.read_bytes() == damaged
    monkeypatch.undo()
    (store.home / ".runs.db.part").unlink()
    assert len(Store(store.home, check=True).list()) == 1


def test_many_that_meet_the_damage_at_once_mend_it_once(store: Store) -> None:
    runs = {plant(store, f"{n}") for n in range(40)}
    backup.make(store.path)
    overwritten(store.path)
    code = (
        "import sys, pathlib; from pipeline.store import Store;"
        "print(len(Store(pathlib.Path(sys.argv[1]), check=True).list()))"
    )
    command = [sys.executable, "-c", code, str(store.home)]
    opened = [subprocess.Popen(command, cwd=settings.ROOT, stdout=subprocess.PIPE) for _ in range(6)]
    assert {process.communicate(timeout=180)[0] for process in opened} == {b"40\n"}
    assert {run.id for run in store.list()} == runs
    assert len(aside(store)) == 1


def test_nobody_uses_the_database_while_it_is_mended(store: Store) -> None:
    plant(store)
    found: list[int] = []
    lock = locks.take(store.lock)
    assert lock is not None
    reader = threading.Thread(target=lambda: found.append(len(store.list())))
    reader.start()
    reader.join(0.2)
    assert found == []
    os.close(lock)
    reader.join(60)
    assert found == [1]


class TestCopies:
    def test_they_follow_what_is_written(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        newest, before = backup.paths(store.path)
        store.back_up()
        assert newest.exists()
        assert not before.exists()
        monkeypatch.setattr(backup, "EVERY_SECONDS", 0.0)
        made = newest.stat().st_mtime_ns
        store.back_up()
        assert newest.stat().st_mtime_ns == made, "nothing was written since"
        until(lambda: plant(store) and backup.is_due(store.path), "a write with a later time")
        store.back_up()
        assert newest.stat().st_mtime_ns > made
        assert before.stat().st_mtime_ns == made
        assert newest.stat().st_mode & 0o777 == 0o600

    def test_not_more_often_than_said(self, store: Store) -> None:
        store.back_up()
        made = backup.paths(store.path)[0].stat().st_mtime_ns
        plant(store)
        store.back_up()
        assert backup.paths(store.path)[0].stat().st_mtime_ns == made


def test_the_notice_is_heard_once_and_stays_until_dismissed(store: Store) -> None:
    plant(store)
    assert (store.notice(), store.unheard()) == (None, None)
    again = mended(store, without_header)
    text = again.unheard()
    assert text is not None
    assert "\n" not in text
    assert (again.unheard(), again.notice()) == (None, text)
    again.dismiss()
    assert (again.notice(), again.unheard()) == (None, None)
