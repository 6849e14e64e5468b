"""What the page shows on arrival, and what the app does by itself while it runs."""

from __future__ import annotations

import asyncio
import inspect

import gradio as gr
import pytest

from pipeline.errors import LabError
from tests.helpers import planted
from tests.helpers.page import SAMPLE
from webapp import app


def test_the_app_sees_to_the_worker_and_to_idle_models_again_and_again(home, monkeypatch):
    done = []

    async def release_idle():
        done.append("models")
        if len(done) > 4:
            raise asyncio.CancelledError
        if len(done) < 3:
            raise OSError("for once")

    monkeypatch.setattr(app, "TEND_SECONDS", 0)
    monkeypatch.setattr(app, "_see_to_worker", lambda home: done.append("worker"))
    monkeypatch.setattr(app.chat_processes, "release_idle", release_idle)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(app._tend(home), 20))
    assert done == ["worker", "models"] * 3


def test_a_worker_is_there_before_the_first_run_unless_that_is_not_wanted(home, monkeypatch):
    asked = []

    async def release_idle():
        raise asyncio.CancelledError

    monkeypatch.setattr(app.loop, "ensure", lambda home, ahead=False: asked.append(ahead))
    monkeypatch.setattr(app.chat_processes, "release_idle", release_idle)
    for wanted in ("1", "0"):
        monkeypatch.setenv("OLIVE_LAB_AHEAD", wanted)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(asyncio.wait_for(app._tend(home), 20))
    assert asked == [True]


def test_a_full_disk_is_logged_once_until_it_is_over(home, monkeypatch, caplog):
    faults = iter(
        [LabError("no space"), LabError("no space"), None, LabError("no space"), OSError(28, "full")]
    )

    def see_to_worker(home):
        fault = next(faults, asyncio.CancelledError())
        if fault:
            raise fault

    monkeypatch.setattr(app, "TEND_SECONDS", 0)
    monkeypatch.setattr(app, "_see_to_worker", see_to_worker)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(app._tend(home), 20))
    told = [record.message.removeprefix("Could not start a worker: ") for record in caplog.records]
    assert told[:2] == ["no space"] * 2
    assert len(told) == 3
    assert all(record.exc_info is None for record in caplog.records)


def test_what_is_wrong_with_one_chore_keeps_no_other(home, monkeypatch, caplog):
    done = []

    def fails(*_):
        raise KeyError("of ours")

    def tidied(home):
        done.append(home)
        raise asyncio.CancelledError

    for module, name in ((app, "_see_to_worker"), (app.disk, "purge"), (app.uploads, "tidy")):
        monkeypatch.setattr(module, name, fails)
    monkeypatch.setattr(app.talks, "tidy", tidied)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(app._tend(home), 20))
    assert done == [home]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "Could not start a worker",
        "Could not remove deleted runs",
        "Could not remove old uploads",
    ]
    assert all(record.exc_info for record in caplog.records), "nobody foresaw it"


def test_the_signature_of_a_component_is_worked_out_once(home):
    app.create()
    assert inspect.signature(gr.Textbox.__init__) is inspect.signature(gr.Textbox.__init__)


class Arriving:
    """The part of a request that says with which address the page was opened."""

    def __init__(self, **query):
        self.query_params = query


def test_an_empty_home_welcomes(home):
    welcome, new, dataset, asked, tab, run = app.arrive(Arriving())
    assert (welcome["visible"], new["open"], dataset["value"], tab, run) == (True, True, SAMPLE, "data", "")
    assert [value for _, value in asked["choices"]] == ["", SAMPLE]


def test_a_page_without_an_address_shows_the_run_that_is_on(store):
    run = planted.running(store)
    planted.queued(store, "later")
    welcome, new, _, _, tab, shown = app.arrive(Arriving())
    assert (welcome["visible"], new["open"], tab, shown) == (False, False, "lab", run)


def test_an_address_is_followed(store):
    run = planted.finished(store)
    planted.running(store)
    assert app.arrive(Arriving(run=run, tab="runs"))[4:] == ("runs", run)
    assert app.arrive(Arriving(run=run, tab="<b>"))[4:] == ("lab", run)
