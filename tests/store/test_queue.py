"""The queue as the store keeps it: turns, places, the pause, slots, and older databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.store import Store, queue, run_file
from pipeline.store.run import CANCELED, DONE, PUBLISH, QUEUED, RUNNING, Run
from pipeline.system import files
from pipeline.worker.loop import Worker
from tests.helpers.planted import plant


def add(store: Store, name: str, owner: str = "ann", runs_on: str = "any") -> str:
    data = store.home / "datasets" / "d.jsonl"
    return plant(store, name, ["quantize"], owner=owner, data=data, runs_on=runs_on)


def serve_all(store: Store) -> list[str]:
    """Names of the runs in the order in which they begin."""
    begun = []
    while (claimed := store.claim("cpu")) is not None:
        begun.append(store.get(claimed[0]).name)
        store.finish(*claimed, DONE)
        store.claim_next(claimed[0], "cpu")
    return begun


def names(store: Store) -> list[str]:
    return [run.name for run in store.queue()]


class TestTurns:
    def test_people_take_turns_in_the_order_that_is_shown(self, store: Store) -> None:
        for number in range(3):
            add(store, f"ann{number}")
        for number in range(2):
            add(store, f"bob{number}", "bob")
        shown = names(store)
        assert shown == ["ann0", "bob0", "ann1", "bob1", "ann2"]
        assert serve_all(store) == shown

    def test_a_run_queued_later_by_somebody_else_does_not_wait_for_all_of_ones_runs(
        self, store: Store
    ) -> None:
        for number in range(4):
            add(store, f"ann{number}")
        claimed = store.claim("cpu")
        assert claimed is not None
        add(store, "bob", "bob")
        assert names(store) == ["bob", "ann1", "ann2", "ann3"]

    def test_stages_after_the_first_take_no_turn(self, store: Store) -> None:
        long = plant(store, "long", ["quantize", "finetune"], owner="ann")
        add(store, "bob", "bob")
        store.claim("cpu")
        store.finish(long, "quantize", DONE)
        assert store.claim_next(long, "cpu") == "finetune"

    def test_the_clock_may_be_set_back(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        first = add(store, "first")
        monkeypatch.setattr("pipeline.store.queue.time.time", lambda: 1000.0)
        second = add(store, "second")
        assert [run.id for run in store.queue()] == [first, second]
        assert [run.id for run in store.list()] == [second, first]


class TestMove:
    @pytest.fixture
    def three(self, store: Store) -> list[str]:
        return [add(store, name) for name in "abc"]

    @pytest.mark.parametrize(
        ("which", "where", "order"),
        [
            (2, "first", "cab"),
            (2, "up", "acb"),
            (0, "down", "bac"),
            (0, "last", "bca"),
            (0, "up", "abc"),
            (2, "down", "abc"),
        ],
    )
    def test_a_run_is_moved(self, store: Store, three: list[str], which: int, where: str, order: str) -> None:
        store.move(three[which], where)
        assert "".join(names(store)) == order
        assert "".join(serve_all(store)) == order

    def test_nobody_elses_turn_is_taken(self, store: Store, three: list[str]) -> None:
        add(store, "x", "bob")
        add(store, "y", "bob")
        assert "".join(names(store)) == "axbyc"
        store.move(three[2], "first")
        assert "".join(names(store)) == "cxayb"

    @pytest.mark.parametrize(
        ("which", "where", "order"),
        [
            (2, "first", "bcxa"),  # behind what was interrupted
            (0, "last", "bcxa"),
            (1, "up", "baxc"),
            (1, "first", "baxc"),
            (1, "down", "axbc"),  # whoever puts it behind another run doesn't want it first
            (1, "last", "axcb"),
        ],
    )
    def test_what_was_interrupted_stays_first_unless_it_is_moved_back(
        self, store: Store, three: list[str], which: int, where: str, order: str
    ) -> None:
        add(store, "x", "bob")
        store.requeue(three[1])
        assert "".join(names(store)) == "baxc"
        store.move(three[which], where)
        assert "".join(names(store)) == order

    def test_interrupted_runs_of_others_keep_their_turns(self, store: Store, three: list[str]) -> None:
        other = add(store, "x", "bob")
        last = add(store, "d")
        for run in (other, last):
            store.requeue(run)
        assert "".join(names(store)) == "xdabc"
        store.move(three[2], "first")
        assert "".join(names(store)) == "xdcab"

    def test_what_runs_has_no_place(self, store: Store, three: list[str]) -> None:
        store.claim("cpu")
        with pytest.raises(LabError, match="is running; only waiting runs have a position"):
            store.move(three[0], "last")


class TestPause:
    def test_nothing_begins_and_what_runs_goes_on(self, store: Store) -> None:
        long = plant(store, "long", ["quantize", "finetune"])
        add(store, "next")
        store.claim("cpu")
        store.pause(True)
        store.finish(long, "quantize", DONE)
        assert store.claim_next(long, "cpu") == "finetune"
        store.finish(long, "finetune", DONE)
        assert store.claim_next(long, "cpu") is None
        assert store.claim("cpu") is None
        assert Store(store.home).paused
        assert not store.waiting()

    def test_it_goes_on_where_it_stood(self, store: Store) -> None:
        add(store, "one")
        store.pause(True)
        store.pause(False)
        assert store.waiting()
        assert serve_all(store) == ["one"]


class TestSlots:
    def test_a_gpu_takes_no_run_that_wants_the_processor(self, store: Store) -> None:
        slow, fast = add(store, "slow", runs_on="cpu"), add(store, "fast")
        assert store.claim("cuda:0", ("any",)) == (fast, "quantize")
        assert store.claim("cuda:1", ("any",)) is None
        assert store.claim("cpu", ("cpu",)) == (slow, "quantize")

    def test_without_gpus_the_processor_takes_all(self, store: Store) -> None:
        add(store, "slow", runs_on="cpu")
        add(store, "any")
        assert serve_all(store) == ["slow", "any"]


def test_a_home_that_is_moved_keeps_its_runs(store: Store, tmp_path: Path) -> None:
    run = add(store, "one")
    inside, outside = store.home / "artifacts" / "quantize-1" / "model", Path("/elsewhere")
    store.claim("cpu")
    store.finish(
        run,
        "quantize",
        DONE,
        artifacts=[{"kind": "a", "path": str(path), "bytes": 1} for path in (inside, outside)],
    )
    moved = tmp_path / "moved"
    store.home.rename(moved)
    found = Store(moved).get(run)
    assert [a["path"] for a in found.stages[0].artifacts] == [
        f"{moved}/artifacts/quantize-1/model",
        str(outside),
    ]
    assert found.data == f"{moved}/datasets/d.jsonl"
    moved.rename(store.home)


FIRST_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
    recipe TEXT NOT NULL, data TEXT NOT NULL, cancel_requested INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, position INTEGER NOT NULL, name TEXT NOT NULL,
    status TEXT NOT NULL, options TEXT NOT NULL, started REAL, finished REAL, seconds REAL,
    reused INTEGER NOT NULL DEFAULT 0, error TEXT, metrics TEXT NOT NULL DEFAULT '{}',
    artifacts TEXT NOT NULL DEFAULT '[]', device TEXT,
    PRIMARY KEY (run, position), UNIQUE (run, name)
);
CREATE INDEX runs_by_status ON runs(status);
CREATE INDEX stages_by_status ON stages(status);
INSERT INTO runs VALUES ('20260101-000000-aaaaaa', 'old', 'queued', 1.0, '{}', '/d', 0);
INSERT INTO runs VALUES ('20260101-000001-bbbbbb', 'older', 'running', 2.0, '{}', '/d', 0);
INSERT INTO stages (run, position, name, status, options) VALUES
    ('20260101-000000-aaaaaa', 0, 'quantize', 'queued', '{}'),
    ('20260101-000001-bbbbbb', 0, 'quantize', 'running', '{}');
PRAGMA user_version = 1;
"""


def test_a_database_of_the_first_version_is_brought_up_with_its_runs(home: Path) -> None:
    with closing(sqlite3.connect(home / "runs.db")) as db:
        db.executescript("PRAGMA journal_mode = WAL;" + FIRST_SCHEMA)
    store = Store(home)
    assert [(run.name, run.status) for run in store.list()] == [("older", RUNNING), ("old", QUEUED)]
    new = add(store, "new")
    assert names(store) == ["old", "new"]
    store.move(new, "first")
    assert store.claim("cpu") is not None
    assert Store(home).attempts("20260101-000000-aaaaaa", "quantize") == 1


@pytest.mark.parametrize("waits", ["nothing", "a paused queue", "a publish whose run is not done"])
def test_a_worker_without_work_never_takes_the_write_lock(
    store: Store, stepper: Callable[[str], Worker], monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    if waits != "nothing":
        run = add(store, "one")
        store.pause(True)
    if waits == "a publish whose run is not done":
        store.add_publish(run, {"to": "local"})
    statements: list[str] = []
    connect = Store._connect

    def traced(self: Store) -> sqlite3.Connection:
        db = connect(self)
        db.set_trace_callback(statements.append)
        return db

    monkeypatch.setattr(Store, "_connect", traced)
    served = stepper("finishes")
    served.recover()
    for _ in range(3):
        served.step()
        store.back_up()
    assert statements
    assert [text for text in statements if not text.startswith(("SELECT", "PRAGMA"))] == []


class TestEnds:
    """What a browser may add has an end: every look at the queue and the history reads all that is there."""

    def test_as_many_wait_as_may(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queue, "MOST_WAITING", 3)
        first = add(store, "first")
        new = queue.New("new", {}, store.home / "datasets" / "d.jsonl", {"quantize": {}})
        with pytest.raises(LabError, match="1 runs wait already, as many as may; wait until"):
            store.add_all([new] * 3, "bob")
        for owner in ("bob", "carl"):
            store.add_all([new], owner)
        store.request_cancel(first)
        add(store, "another", "dora")
        with pytest.raises(LabError, match="3 runs wait already"):
            store.retry(first)
        assert len(names(store)) == len(store.list()) - 1 == len([*store.runs.iterdir()]) - 1 == 3

    def test_nobody_takes_the_places_of_all(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten sweeps would keep everybody from starting anything, under however many names they come."""
        monkeypatch.setattr(queue, "MOST_WAITING", 20)
        monkeypatch.setattr(queue, "RESERVED", 4)
        new = queue.New("new", {}, store.home / "datasets" / "d.jsonl", {"quantize": {}})
        for most in (8, 4, 2):
            with pytest.raises(LabError, match=rf"^Up to {most} runs may be queued at once now"):
                store.add_all([new] * (most + 1), "ann")
            runs = store.add_all([new] * most, "ann")
        with pytest.raises(LabError, match=r"^Up to 1 runs may be queued at once now"):
            store.add_all([new] * 2, "bob")
        store.request_cancel(runs[0])
        store.retry(runs[0])
        for owner in ("ann", "bob", "", "carl", "dora", "ann"):
            add(store, "alone", owner)
        with pytest.raises(LabError, match="20 runs wait already, as many as may"):
            add(store, "one more", "ida")

    def test_as_many_are_kept_as_may_deleted_ones_too(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue, "MOST_RUNS", 2)
        runs = [add(store, name) for name in ("one", "two")]
        for run in runs:
            store.request_cancel(run)
        store.delete(runs[0])
        with pytest.raises(LabError, match="keeps 2 runs, as many as it may; delete some"):
            add(store, "three")
        store.retry(runs[1])
        assert store.forget(runs[0], before=1e11)
        add(store, "three")


class TestLongRecords:
    """What people write is bounded for a whole record too: lists read a thousand of them."""

    def test_nothing_is_queued_with_a_recipe_that_is_too_long(self, store: Store) -> None:
        with pytest.raises(InputError, match=r"The recipe has 33,\d+ bytes, and a run keeps up to 32,000"):
            plant(store, texts=["x" * 3_300] * 10)
        with pytest.raises(InputError, match="The recipe has"):
            plant(store, texts=["\N{GRINNING FACE}" * 4_000] * 2)  # bytes count, not letters
        assert store.list() == []
        assert list(store.runs.iterdir()) == []
        plant(store, texts=["x" * 3_100] * 10)

    def test_publishings_of_a_run_share_one_bound(self, store: Store, finished: Run) -> None:
        long = {"to": "local", "name": "trips", "description": "\N{GRINNING FACE}" * 4_000}
        store.add_publish(finished.id, long)
        for ask in (store.require_publishable, store.add_publish):
            with pytest.raises(InputError, match="publishing, with the earlier ones of its run, has 32,1"):
                ask(finished.id, long)
        store.add_publish(finished.id, {**long, "description": "short"})
        store.request_cancel(finished.id)
        store.require_publishable(finished.id, long)
        assert store.add_publish(finished.id, long) == "publish-3"
        assert publishings(store, finished) == ["publish-2", "publish-3"], "the oldest made room"

    def test_nothing_is_queued_on_a_disk_that_is_nearly_full(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "KEPT_FREE", 1 << 60)
        with pytest.raises(LabError, match="disk is nearly full"):
            add(store, "one")


def test_a_run_is_not_published_without_end(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is said of a run has a part for each, also for those that were canceled while they ran."""
    monkeypatch.setattr(queue, "MOST_PUBLISHINGS", 2)
    for name, status in (("publish", DONE), ("publish-2", CANCELED)):
        assert store.add_publish(finished.id, {"to": "local", "name": "trips"}) == name
        claimed = store.claim_publish()
        assert claimed == (finished.id, name)
        store.finish(*claimed, status)
    for ask in (store.require_publishable, store.add_publish):
        with pytest.raises(LabError, match="published 2 times; use its recipe again"):
            ask(finished.id, {"to": "local", "name": "trips"})
    assert publishings(store, finished) == ["publish", "publish-2"]


def test_publishings_that_never_ran_do_not_keep_a_run_from_being_published(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can add and cancel as many as there may be. Waiting ones stay, and the record stays bounded."""
    monkeypatch.setattr(queue, "MOST_PUBLISHINGS", 3)
    for name in "abc":
        store.add_publish(finished.id, {"to": "local", "name": name})
    with pytest.raises(LabError, match="published 3 times"):
        store.add_publish(finished.id, {"to": "local", "name": "d"})
    store.request_cancel(finished.id)
    for number in range(4, 9):
        store.require_publishable(finished.id, {"to": "local", "name": "honest"})
        assert store.add_publish(finished.id, {"to": "local", "name": "honest"}) == f"publish-{number}"
        assert len(publishings(store, finished)) == 3
        store.request_cancel(finished.id)
    assert publishings(store, finished) == ["publish-6", "publish-7", "publish-8"]
    kept = run_file.read(store.folder(finished.id) / run_file.FILE)
    assert kept is None or [name for name in kept["stages"] if "pub" in name] == publishings(store, finished)


def publishings(store: Store, run: Run) -> list[str]:
    return [stage.name for stage in store.get(run.id).stages if stage.kind == PUBLISH]
