from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.store import Store
from pipeline.store.queue import New
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, Run
from tests.helpers.planted import finish_all, one_stage, plant


def statuses(store: Store, run: str) -> dict[str, str]:
    found = store.get(run)
    return {"run": found.status, **{stage.name: stage.status for stage in found.stages}}


def test_a_run_is_queued_with_its_stages_in_order(store: Store) -> None:
    run = store.add("trip", {"name": "trip"}, Path("/d"), {"quantize": {"bits": 4}, "optimize": {}})
    found = store.get(run)
    assert (found.name, found.status, found.recipe, found.data) == ("trip", QUEUED, {"name": "trip"}, "/d")
    assert [(s.name, s.status, s.options) for s in found.stages] == [
        ("quantize", QUEUED, {"bits": 4}),
        ("optimize", QUEUED, {}),
    ]
    assert store.folder(run).is_dir()


def test_the_home_is_for_its_owner_only(store: Store) -> None:
    run = plant(store)
    for folder in (store.runs, store.folder(run)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_runs_are_listed_newest_first(store: Store) -> None:
    added = [plant(store, name) for name in ("first", "second", "third")]
    assert [run.id for run in store.list()] == added[::-1]
    assert [run.name for run in store.list(limit=2)] == ["third", "second"]
    assert [len(run.stages) for run in store.list()] == [4, 4, 4]


def test_stages_are_claimed_one_after_the_other(store: Store) -> None:
    run = plant(store)
    assert store.claim("cpu") == (run, "quantize")
    assert statuses(store, run) == {
        "run": RUNNING, "quantize": RUNNING, "finetune": QUEUED, "optimize": QUEUED, "evaluate": QUEUED,
    }  # fmt: skip
    assert store.running() == [(run, "quantize", "cpu")]
    store.finish(
        run,
        "quantize",
        DONE,
        seconds=2.0,
        reused=True,
        metrics={"a": 1},
        artifacts=[{"kind": "x", "path": "/elsewhere"}],
    )
    assert store.claim_next(run, "cpu") == "finetune"
    quantize = store.get(run).stage("quantize")
    assert (quantize.seconds, quantize.reused, quantize.metrics, quantize.artifacts) == (
        2.0, True, {"a": 1}, [{"kind": "x", "path": "/elsewhere"}],
    )  # fmt: skip
    assert quantize.started is not None
    assert quantize.finished is not None
    assert quantize.started <= quantize.finished


def test_a_run_is_done_after_its_last_stage(store: Store) -> None:
    assert finish_all(store, plant(store)).status == DONE
    assert store.claim("cpu") is None


def test_the_oldest_run_is_claimed_first_and_never_twice(store: Store) -> None:
    first, second = plant(store, "first"), plant(store, "second")
    assert store.claim("cuda:0") == (first, "quantize")
    assert store.claim("cuda:1") == (second, "quantize")
    assert store.claim("cuda:2") is None


def test_a_failed_stage_ends_its_run(store: Store) -> None:
    run = plant(store)
    store.claim("cpu")
    store.finish(run, "quantize", FAILED, error="It broke.")
    assert statuses(store, run) == {
        "run": FAILED, "quantize": FAILED, "finetune": CANCELED, "optimize": CANCELED, "evaluate": CANCELED,
    }  # fmt: skip
    assert store.get(run).stage("quantize").error == "It broke."
    assert store.get(run).current == store.get(run).stage("quantize")


class TestRetry:
    def test_it_goes_on_after_what_is_done(self, store: Store) -> None:
        run = plant(store)
        store.claim("cpu")
        store.finish(run, "quantize", DONE)
        store.claim_next(run, "cpu")
        store.finish(run, "finetune", FAILED, error="It broke.", seconds=3.0)
        store.retry(run)
        assert statuses(store, run) == {
            "run": QUEUED, "quantize": DONE, "finetune": QUEUED, "optimize": QUEUED, "evaluate": QUEUED,
        }  # fmt: skip
        again = store.get(run).stage("finetune")
        assert (again.error, again.seconds, again.started) == (None, None, None)
        assert store.claim("cpu") == (run, "finetune")

    @pytest.mark.parametrize("status", [CANCELED, INTERRUPTED])
    def test_what_was_ended_from_outside_is_retried_too(self, store: Store, status: str) -> None:
        run = plant(store)
        store.claim("cpu")
        store.finish(run, "quantize", status)
        assert store.get(run).status == status
        store.retry(run)
        assert store.claim("cpu") == (run, "quantize")

    def test_only_a_run_that_ended_badly_is_retried(self, store: Store) -> None:
        run = plant(store)
        for expected in (QUEUED, RUNNING):
            with pytest.raises(LabError, match=f"is {expected}; only"):
                store.retry(run)
            store.claim("cpu")
        finish_all(store, other := plant(store))
        with pytest.raises(LabError, match="is done; only"):
            store.retry(other)


class TestCancel:
    def test_a_queued_run_ends_at_once(self, store: Store) -> None:
        run = plant(store)
        store.request_cancel(run)
        assert set(statuses(store, run).values()) == {CANCELED}
        assert store.claim("cpu") is None

    def test_a_running_run_is_left_to_the_worker(self, store: Store) -> None:
        run = plant(store)
        store.claim("cpu")
        store.request_cancel(run)
        assert (store.get(run).status, store.get(run).cancel_requested, store.cancels()) == (
            RUNNING,
            True,
            {run},
        )
        store.finish(run, "quantize", CANCELED)
        assert (store.get(run).status, store.cancels()) == (CANCELED, set())

    def test_between_stages_no_further_one_is_begun(self, store: Store) -> None:
        run = plant(store)
        store.claim("cpu")
        store.request_cancel(run)
        store.finish(run, "quantize", DONE)
        assert store.claim_next(run, "cpu") is None
        assert statuses(store, run)["run"] == CANCELED
        assert statuses(store, run)["quantize"] == DONE

    def test_a_run_that_finished_all_the_same_is_done(self, store: Store) -> None:
        run = one_stage(store)
        store.claim("cpu")
        store.request_cancel(run)
        store.finish(run, "quantize", DONE)
        assert store.claim_next(run, "cpu") is None
        assert (store.get(run).status, store.cancels()) == (DONE, set())

    def test_an_ended_run_has_nothing_to_cancel(self, store: Store) -> None:
        run = finish_all(store, plant(store)).id
        with pytest.raises(LabError, match=r"has already ended \(done\)"):
            store.request_cancel(run)

    def test_a_requeued_run_whose_end_was_asked_for_ends(self, store: Store) -> None:
        run = plant(store)
        store.claim("cpu")
        store.finish(run, "quantize", DONE)
        store.request_cancel(run)
        assert store.between_stages() == [run]
        store.requeue(run)
        assert (store.get(run).status, store.claim("cpu")) == (CANCELED, None)


class TestPublish:
    def test_a_publish_is_claimed_apart_from_the_runs(self, store: Store, finished: Run) -> None:
        assert store.add_publish(finished.id, {"to": "local"}) == "publish"
        assert store.add_publish(finished.id, {"to": "local"}) == "publish-2"
        assert store.waiting()
        assert store.claim("cpu") is None
        assert store.claim_publish() == (finished.id, "publish")
        assert store.running() == [(finished.id, "publish", None)]
        store.finish(finished.id, "publish", FAILED, error="No.")
        assert store.get(finished.id).status == DONE
        assert store.claim_publish() == (finished.id, "publish-2")
        assert [stage.kind for stage in store.get(finished.id).stages[-2:]] == ["publish", "publish"]

    def test_a_queued_one_can_be_canceled(self, store: Store, finished: Run) -> None:
        store.add_publish(finished.id, {"to": "local"})
        store.request_cancel(finished.id)
        assert store.get(finished.id).stage("publish").status == CANCELED
        assert (store.claim_publish(), store.get(finished.id).status) == (None, DONE)

    def test_a_running_one_can_be_canceled_and_what_waits_with_it(self, store: Store, finished: Run) -> None:
        store.add_publish(finished.id, {})
        store.claim_publish()
        store.add_publish(finished.id, {})
        store.request_cancel(finished.id)
        assert store.cancels() == {finished.id}
        store.finish(finished.id, "publish", CANCELED)
        assert statuses(store, finished.id)["publish-2"] == CANCELED
        assert (store.cancels(), store.get(finished.id).status) == (set(), DONE)


class TestGet:
    def test_beginning_or_end_of_an_id_is_enough(self, store: Store) -> None:
        run = plant(store)
        assert store.get(run[:9]).id == run
        assert store.get(run.rpartition("-")[2]).id == run

    @pytest.mark.parametrize("unknown", ["nope", "", "%", "_", "'; DROP TABLE runs; --"])
    def test_an_unknown_run_is_named(self, store: Store, unknown: str) -> None:
        plant(store)
        with pytest.raises(InputError, match="no such run"):
            store.get(unknown)

    def test_an_ambiguous_beginning_is_refused(self, store: Store) -> None:
        run = plant(store)
        plant(store)
        with pytest.raises(InputError, match="is the beginning of several runs"):
            store.get(run[:4])


def test_a_worker_is_wanted_while_anything_is_queued_or_marked_running(store: Store) -> None:
    """After a reboot a run marked running has nobody who looks after it: that too is work."""
    assert not store.waiting()
    run = plant(store)
    assert store.waiting()
    store.claim("cpu")
    assert store.waiting()
    store.finish(run, "quantize", FAILED)
    assert not store.waiting()


def test_many_processes_may_open_a_new_home_at_once(tmp_path: Path) -> None:
    code = "import sys, pathlib; from pipeline.store import Store; Store(pathlib.Path(sys.argv[1])).list()"
    for attempt in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / str(attempt))]
        opened = [subprocess.Popen(command, cwd=settings.ROOT, stderr=subprocess.PIPE) for _ in range(6)]
        assert [(p.communicate(timeout=180)[1], p.returncode) for p in opened] == [(b"", 0)] * 6


def test_a_newer_schema_is_refused(store: Store) -> None:
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(LabError, match="written by another version of Olive Lab"):
        Store(store.home)


def test_a_file_that_is_no_database_is_set_aside(home: Path) -> None:
    (home / "runs.db").write_text("hello " * 1000)
    store = Store(home)
    assert store.list() == []
    (aside,) = home.glob("runs.db.damaged-*")
    assert aside.read_text() == "hello " * 1000
    assert aside.name in (store.notice() or "")


def test_what_fails_in_the_middle_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(TypeError):
        store.add("x", {}, Path("/d"), {"quantize": {}, "finetune": {"bad": object()}})
    assert store.list() == []


def test_of_several_runs_all_are_queued_or_none(store: Store) -> None:
    good = New("x", {}, Path("/d"), {"quantize": {}})
    with pytest.raises(TypeError):
        store.add_all([good, good, good._replace(stages={"quantize": {"bad": object()}})])
    assert store.list() == []
    assert list((store.home / "runs").iterdir()) == []
    queued = store.add_all([good, good], "Ann")
    assert {run.id for run in store.list()} == set(queued)
    assert [run.owner for run in store.list()] == ["Ann", "Ann"]


def open_and_claim(home: Path, barrier: object, claimed: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    store = Store(home)
    while (taken := store.claim("cpu")) is not None:
        claimed.put((os.getpid(), taken))  # type: ignore[attr-defined]


def test_processes_that_open_a_new_home_at_once_all_can(home: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, claimed = fork.Barrier(6), fork.SimpleQueue()
    openers = [fork.Process(target=open_and_claim, args=(home, barrier, claimed)) for _ in range(6)]
    for process in openers:
        process.start()
    for process in openers:
        process.join(120)
    assert [process.exitcode for process in openers] == [0] * 6


def test_a_stage_is_never_claimed_by_two_processes(store: Store) -> None:
    runs = {plant(store, str(n)) for n in range(20)}
    fork = multiprocessing.get_context("fork")
    barrier, claimed = fork.Barrier(4), fork.SimpleQueue()
    workers = [fork.Process(target=open_and_claim, args=(store.home, barrier, claimed)) for _ in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0] * 4
    taken = [claimed.get()[1][0] for _ in runs]
    assert (sorted(taken), claimed.empty()) == (sorted(runs), True)


class TestOnlyWhatIsNeeded:
    """Records that a look does not need are not even parsed: here they are none that could be."""

    def spoil(self, store: Store) -> str:
        run = plant(store, "large", ["quantize"])
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute("UPDATE stages SET options = '{', metrics = '{' WHERE run = ?", (run,))
        return run

    def test_lists_of_some_runs_read_no_other(self, store: Store, finished: Run) -> None:
        run = self.spoil(store)
        group = plant(store, "measured", ["quantize"], group="scorecard-1")
        assert [found.id for found in store.list(artifact="onnx")] == [finished.id]
        assert store.list(to="local") == []
        assert [found.id for found in store.list(group="scorecard-")] == [group]
        assert [found for found, _ in store.newest(3)] == [group, run, finished.id]
        assert "starter" in store.models()

    def test_an_abbreviation_reads_no_run_that_it_does_not_mean(self, store: Store) -> None:
        runs = [self.spoil(store) for _ in range(3)]
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute("UPDATE runs SET notes = ?", ("x" * 1_000_000,))
        tracemalloc.start()
        with pytest.raises(InputError, match="is the beginning of several runs"):
            store.get(runs[0][:4])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000

    def test_with_its_whole_id_a_run_is_not_looked_for(self, store: Store, finished: Run) -> None:
        assert store.get(finished.id, whole=True) == finished
        for part in (finished.id[:-1], finished.id[-6:], ""):
            with pytest.raises(InputError, match="no such run"):
                store.get(part, whole=True)


def test_a_text_that_no_database_takes_is_kept_as_far_as_it_is_one(store: Store) -> None:
    run = store.add("a\ud800", {"name": "a\ud800"}, Path("/d"), {"quantize": {}}, owner="b\udcff")
    store.finish(run, "quantize", FAILED, error="c\ud800", metrics={"d\ud800": "e\ud800"})
    found = store.get(run)
    assert (found.name, found.owner, found.stages[0].error) == ("a\ufffd", "b\ufffd", "c\ufffd")
    assert found.stages[0].metrics == {"d\ud800": "e\ud800"}, "escaped, as JSON"
    with pytest.raises(LabError):
        store.get("\ud800")
