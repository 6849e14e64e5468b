"""Routes of the queue: show, pause and reorder it."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse, Response

from pipeline.errors import InputError, LabError
from pipeline.worker import loop
from webapp import threads
from webapp.home import known_run, store
from webapp.routes.watch import watch

router = APIRouter(include_in_schema=False)
NEW = {"Cache-Control": "no-store"}


@router.get("/queue.json")
async def queue() -> Response:
    """Whether the queue is paused, the running jobs, and the first waiting runs in order."""
    return _json(await watch().queue())


@router.post("/queue/{state}")
async def pause(state: Literal["paused", "open"]) -> Response:
    """Pause or resume the queue."""
    return await threads.run(threads.STORE, _pause, state)


def _pause(state: str) -> Response:
    store().pause(state == "paused")
    loop.ensure(store().home)
    return _now()


@router.post("/runs/{run}/move/{where}")
async def move(run: str, where: Literal["up", "down", "first", "last"]) -> Response:
    """Move a waiting run ahead of or behind other runs of its owner."""
    return await threads.run(threads.STORE, _move, run, where)


def _move(run: str, where: str) -> Response:
    try:
        store().move(known_run(run).id, where)
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except LabError as error:
        return JSONResponse({"error": str(error)}, status_code=409, headers=NEW)
    return _now()


def _now() -> Response:
    return _json(watch().queue_now())


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers=NEW)
