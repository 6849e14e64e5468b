"""Every route of the app that is ours is on the reference page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from docs import make_reference


def test_the_routes_page_has_every_route_of_the_app(lasting_client: TestClient) -> None:
    documented = {route.path for route in make_reference.our_routes()}
    served = set(_paths(lasting_client.app.routes))  # type: ignore[attr-defined]
    assert "/queue.json" in served
    assert served == documented


def _paths(routes: Iterable[Any]) -> Iterator[str]:
    """Of the app and of the routers it includes; what is mounted, such as Gradio's page, is not ours."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route.path
        elif hasattr(route, "original_router"):
            yield from _paths(route.original_router.routes)
