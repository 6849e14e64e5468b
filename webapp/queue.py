"""Routes of the queue: what runs and what waits, and what can be done about it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse

from pipeline import worker
from pipeline.errors import InputError, LabError
from webapp.home import known_run, store

router = APIRouter(include_in_schema=False)
NEW = {"Cache-Control": "no-store"}
MOST_SHOWN = 100


@router.get("/queue.json")
def queue() -> JSONResponse:
    """Whether the queue is paused, what runs, and the first of what waits, in its order."""
    return JSONResponse(_queue(), headers=NEW)


@router.post("/queue/{state}")
def pause(state: Literal["paused", "open"]) -> JSONResponse:
    """Pause the queue, or let runs begin again."""
    store().pause(state == "paused")
    worker.ensure(store().home)
    return JSONResponse(_queue(), headers=NEW)


@router.post("/runs/{run}/move/{where}")
def move(run: str, where: Literal["up", "down", "first", "last"]) -> JSONResponse:
    """Move a waiting run among those of its owner."""
    try:
        store().move(known_run(run).id, where)
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except LabError as error:
        return JSONResponse({"error": str(error)}, status_code=409, headers=NEW)
    return JSONResponse(_queue(), headers=NEW)


def _queue() -> dict[str, Any]:
    waiting = store().queue()
    running = [(store().get(run), stage) for run, stage, device in store().running() if device is not None]
    return {
        "paused": store().paused,
        "running": [
            {"id": run.id, "name": run.name, "owner": run.owner, "stage": stage} for run, stage in running
        ],
        "waiting": [
            {"id": run.id, "name": run.name, "owner": run.owner, "urgent": run.urgent}
            for run in waiting[:MOST_SHOWN]
        ],
        "more": max(len(waiting) - MOST_SHOWN, 0),
    }
