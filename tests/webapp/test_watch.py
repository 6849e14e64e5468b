from __future__ import annotations

import threading

import planted
import pytest
from lab import until

from pipeline.errors import InputError
from webapp import watch


def test_many_who_ask_at_once_cost_one_look(store, home, monkeypatch):
    run = planted.running(store)
    monkeypatch.setattr(watch, "RUN_SECONDS", 60)
    made = watch.Watch(store)
    asked = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda run: asked.append(run) or get(run))
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
    assert made.look_now(run, anew=True).run.status == "canceled"
    store.retry(run)
    until(lambda: made.look_now(run).run.status == "queued", "a look that is new")


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
