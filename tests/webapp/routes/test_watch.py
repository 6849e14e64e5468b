from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import InputError
from pipeline.runs.preflight import report
from pipeline.stages.costs.cost import Cost
from tests.helpers import planted
from tests.helpers.lab import until
from webapp.routes import watch


def test_many_who_ask_at_once_cost_one_look(store, home, monkeypatch):
    run = planted.running(store)
    monkeypatch.setattr(watch, "RUN_SECONDS", 60)
    made = watch.Watch(store)
    asked = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda run, **how: asked.append(run) or get(run, **how))
    threads = [threading.Thread(target=made.look_now, args=(run,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [run]


def test_a_look_is_soon_too_old_and_after_an_action_at_once(store, home):
    run = planted.queued(store)
    made = watch.Watch(store)
    assert made.look_now(run).run.status == "queued"
    store.request_cancel(run)
    assert made.look_now(run, refresh=True).run.status == "canceled"
    store.retry(run)
    until(lambda: made.look_now(run).run.status == "queued", "a look that is new")


class Counted:
    """A lock that knows who has come to it."""

    def __init__(self, lock):
        self.lock, self.came = lock, []

    def __enter__(self):
        self.came.append(1)
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


def test_what_must_be_new_is_made_once_for_all_who_wait_for_it():
    kept, makes, first, go = watch.Remembered(60), [], threading.Event(), threading.Event()
    kept._lock = Counted(kept._lock)

    def make():
        makes.append(len(makes))
        first.set()
        assert go.wait(60)
        return makes[-1]

    with ThreadPoolExecutor(21) as pool:
        early = pool.submit(kept.get, "a", make, refresh=True)
        assert first.wait(60)
        asked = [pool.submit(kept.get, "a", make, refresh=True) for _ in range(20)]
        until(lambda: len(kept._lock.came) == 21, "all to wait")
        go.set()
    assert early.result() == 0
    # What was being made when they came may be older than what they have changed.
    assert ({one.result() for one in asked}, makes) == ({1}, [0, 1])
    assert kept.get("a", make) == 1


def test_the_place_of_a_waiting_run_costs_one_look_at_the_queue_for_all(store, home, monkeypatch):
    runs = [planted.queued(store) for _ in range(5)]
    monkeypatch.setattr(watch, "QUEUE_SECONDS", 60)
    made, asked, queue = watch.Watch(store), [], store.queue
    monkeypatch.setattr(store, "queue", lambda: asked.append(1) or queue())
    assert [made.look_now(run).status["ahead"] for run in runs] == [0, 1, 2, 3, 4]
    assert len(asked) == 1
    store.move(runs[4], "first")
    made.queue_now()
    assert made.look_now(runs[4], refresh=True).status["ahead"] == 0


def test_names_of_scorecards_that_somebody_made_up_share_their_looks(store, home, monkeypatch):
    group = planted.scorecard(store)
    made, listed, all_runs = watch.Watch(store), [], store.list
    monkeypatch.setattr(store, "list", lambda **which: listed.append(1) or all_runs(**which))
    monkeypatch.setattr(made._scorecards, "seconds", 60)

    async def ask():
        names = (f"scorecard-{number}" for number in range(20))
        return await asyncio.gather(*(made.scorecard(name) for name in (*names, group)))

    *unknown, rows = asyncio.run(ask())
    assert (unknown, [row.algorithm for row in rows]) == ([[]] * 20, ["rtn", "awq", "gptq"])
    assert len(listed) <= 3


def test_what_must_be_new_begins_after_who_waits_for_it_came():
    """Several who come while it is made share the next one."""
    kept, makes, first, go = watch.Remembered(60), [], threading.Event(), threading.Event()

    def make():
        makes.append(len(makes))
        first.set()
        assert go.wait(60)
        return makes[-1]

    async def ask(pool):
        early = asyncio.create_task(kept.shared("a", make, pool))
        assert await asyncio.to_thread(first.wait, 60)
        late = [asyncio.create_task(kept.shared("a", make, pool, refresh=True)) for _ in range(20)]
        await asyncio.sleep(0)  # all have come
        go.set()
        return await early, {await one for one in late}, await kept.shared("a", make, pool)

    with ThreadPoolExecutor(2) as pool:
        assert asyncio.run(ask(pool)) == (0, {1}, 1)
    assert makes == [0, 1]


def test_the_history_is_as_it_is_now(store, home):
    run = planted.queued(store)
    made = watch.Watch(store)
    assert [one.status for one in made.history(False)] == ["queued"]
    store.request_cancel(run)
    assert [one.status for one in made.history(False)] == ["canceled"]
    store.delete(run)
    assert ([*made.history(False)], [one.id for one in made.history(True)]) == ([], [run])


def test_only_whole_ids_are_known(store, home):
    run = planted.queued(store)
    with pytest.raises(InputError, match="no such run"):
        watch.Watch(store).look_now(run[:-2])


def test_what_nobody_asks_for_is_forgotten(monkeypatch):
    kept = watch.Remembered(10)
    monkeypatch.setattr(watch, "FORGET_SECONDS", 0)
    for name in "abc":
        assert kept.get(name, lambda name=name: name) == name
    assert list(kept._values) == ["c"]


def test_an_error_is_not_remembered():
    kept = watch.Remembered(10)

    def fail():
        raise InputError("no")

    with pytest.raises(InputError):
        kept.get("a", fail)
    assert kept.get("a", lambda: 1) == 1
    assert kept.fresh("a") == 1
    assert kept.fresh("b") is None


def test_many_who_wait_on_the_loop_take_one_thread():
    kept = watch.Remembered(60)
    made = []
    threads = ThreadPoolExecutor(8)
    go = threading.Event()

    def make():
        go.wait(60)
        made.append(threading.current_thread().name)
        return "value"

    async def all_of_them():
        waiting = [asyncio.ensure_future(kept.shared("a", make, threads)) for _ in range(50)]
        await asyncio.sleep(0)
        assert threads._work_queue.qsize() + len(threads._threads) == 1
        waiting[0].cancel()  # who goes away leaves the others waiting
        go.set()
        return await asyncio.gather(*waiting[1:])

    assert asyncio.run(all_of_them()) == ["value"] * 49
    assert len(made) == 1


def test_an_error_is_told_to_all_who_wait_and_the_next_one_asks_again():
    kept = watch.Remembered(60)
    answers = [InputError("no"), "yes"]
    threads = ThreadPoolExecutor(1)

    def make():
        answer = answers.pop(0)
        if isinstance(answer, InputError):
            raise answer
        return answer

    async def all_of_them():
        waiting = (kept.shared("a", make, threads) for _ in range(3))
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        return failed, await kept.shared("a", make, threads)

    failed, found = asyncio.run(all_of_them())
    assert [str(error) for error in failed] == ["no"] * 3
    assert found == "yes"


def test_the_first_run_of_a_home_ends_when_its_preflight_says(store, home):
    run = planted.running(store)
    made = watch.Watch(store)
    before = made.look_now(run).status["progress"]
    assert before["eta_seconds"] is None
    costs = {
        name: Cost.of(1.0, None, 1.0, seconds).to_dict()
        for name, seconds in (("optimize", 1000.0), ("evaluate", 500.0))
    }
    report.keep(store, run, {"stages": costs})
    after = watch.Watch(store).look_now(run).status["progress"]
    assert after["eta_seconds"] == pytest.approx(before["at_least_seconds"] + 1500, abs=60)
