"""Whoever of the page or its routes waits for a process can be left, or is one of a few that are named here.

An event or a route whose own thread waits keeps a place that everybody needs for as long as a hub, a dataset
or a model takes, also when nobody waits for it any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi.routing import APIRoute

from tests.helpers.call_graph import reaching
from webapp.app import page
from webapp.routes import data_cards, examples, live, queue, runs, votes

PROCESSES = (
    "pipeline.runs.check_pool.ask", "pipeline.system.own_process.run", "pipeline.system.own_process.follow",
    "pipeline.system.own_process.lines", "pipeline.exports.row_view.asked",
)  # fmt: skip
# Events that wait in their own thread, and why they may.
EVENTS = {
    "webapp.tabs.lab.launch_sample": "of the starter's own sample, once on an empty page",
    "webapp.tabs.azure.publish": "what was planned is queued to its end",
    "webapp.tabs.publish.publish": "what was planned is queued to its end",
    "webapp.tabs.hub.publish": "what was planned is queued to its end",
    "webapp.tabs.devices.foundry_local.publish": "what was planned is queued to its end",
    "webapp.tabs.hub.check": "publishing.check takes a turn with what it is given",
    "webapp.tabs.devices.foundry_local.check": "publishing.check takes a turn with what it is given",
    "webapp.tabs.compare.arrive": "held_out: two at a time, once a run",
    "webapp.tabs.compare.chosen": "held_out: two at a time, once a run",
}
# Routes that do so; all others ask by `asking.answered`, whose thread is given up by who leaves.
ROUTES = {
    "webapp.routes.runs.model": "facts of a dataset that are kept, in a thread of the ZIP",
    "webapp.routes.runs.score": "best_ways: a thread of its own",
}


def named(handler: Any) -> str:
    """A handler as the source names it."""
    function = getattr(handler, "func", handler)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"


def endpoints() -> Iterator[str]:
    for module in (data_cards, examples, live, queue, runs, votes):
        yield from (named(route.endpoint) for route in module.router.routes if isinstance(route, APIRoute))


def test_no_event_waits_where_it_cannot_be_left() -> None:
    handlers = {named(fn.fn) for fn in page().fns.values()}
    assert "webapp.tabs.runs.retry" in handlers
    assert handlers & reaching(PROCESSES) == EVENTS.keys()


def test_no_route_waits_where_it_cannot_be_left() -> None:
    routes = {*endpoints()}
    assert "webapp.routes.runs.retry" in routes & reaching(PROCESSES)
    assert routes & reaching(PROCESSES, but=["webapp.routes.asking.answered"]) == ROUTES.keys()


def test_what_reaches_a_process_is_seen() -> None:
    """Through functions, methods and imports; not through what a thread is given."""
    found = reaching(PROCESSES)
    assert "pipeline.runs.submit.one_prompt" in found
    assert "pipeline.runs.cached_models.looking" in found
    assert "webapp.tabs.learned._found" in found
    assert "webapp.tabs.learned.look" not in found
