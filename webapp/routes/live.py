"""What the page polls: a run with its newest log and events, and which runs have ended.

Files are read from a byte offset, so that a page that was away catches up.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import JSONResponse, Response

from pipeline.errors import InputError
from pipeline.store.run import ENDED, QUEUED, Run
from pipeline.system.files import to_json
from webapp.routes import tail
from webapp.routes.runs import NEW, stage_file
from webapp.routes.watch import Look, watch

router = APIRouter(include_in_schema=False)
Offset = Annotated[int, Query(ge=-tail.MOST_BYTES)]


@router.get("/runs/{run}.json")
async def status(run: str) -> Response:
    """A run, its stages, and the latest facts of each running stage."""
    return _json((await _look(run)).text)


@router.get("/runs/{run}/live")
async def live(
    run: str, stage: str = "", log: Offset = -tail.MOST_BYTES, events: str | None = None
) -> Response:
    """The same, with a piece of a stage's log and pieces of its stages' events.

    Without `stage`, the log is that of the current stage. `events` is `STAGE:OFFSET,...`; without it, the
    events of all started stages are sent from their beginning.
    """
    look = await _look(run)
    shown = stage or str(look.status["current"])
    offsets = _begun(look.run) if events is None else _offsets(events)
    told = {"stage": shown, **_piece(look.run, shown, "log.txt", log)}
    pieces = {name: _piece(look.run, name, "events.jsonl", offset) for name, offset in offsets.items()}
    rest = to_json({"log": told, "events": pieces}, ensure_ascii=False)
    return _json(b'{"run":' + look.text + b"," + rest.encode()[1:])


@router.get("/runs/{run}/{stage}/log")
async def earlier(run: str, stage: str, before: Annotated[int, Query(ge=0)]) -> JSONResponse:
    """The piece of a stage's log that ends at byte `before`."""
    piece = tail.before(stage_file((await _look(run)).run, stage, "log.txt"), before)
    return JSONResponse(_told(piece), headers=NEW)


@router.get("/activity.json")
async def activity(after: str = "", were: str = "") -> JSONResponse:
    """Runs that have ended since the last request, and the parameters for the next one.

    These are the newest run that the page knew, `after`, and those that had not ended, `were`, joined by
    commas, so that the server need not remember anything. The first request, without them, returns no runs.
    """
    runs = await watch().runs()
    known = [run.id for run in runs]
    fresh = set(known[: known.index(after)]) if after in known else set()
    wanted = fresh | set(were.split(","))
    ended = [
        {"id": run.id, "name": run.name, "status": run.status}
        for run in reversed(runs)
        if run.status in ENDED and run.id in wanted
    ]
    active = [run.id for run in runs if run.status not in ENDED]
    return JSONResponse({"newest": known[0] if known else "", "active": active, "ended": ended}, headers=NEW)


async def _look(run: str) -> Look:
    try:
        return await watch().look(run)
    except InputError as error:
        raise HTTPException(404, str(error)) from None


def _begun(run: Run) -> dict[str, int]:
    return {stage.name: 0 for stage in run.stages if stage.status != QUEUED}


def _offsets(text: str) -> dict[str, int]:
    """Offsets by stage, parsed from the query of `live`."""
    pairs = [part.rpartition(":") for part in text.split(",") if part]
    if not all(offset.isdecimal() and len(offset) < 19 for _, _, offset in pairs):
        raise HTTPException(422, "events: STAGE:OFFSET, joined by commas")
    return {stage: int(offset) for stage, _, offset in pairs}


def _piece(run: Run, stage: str, name: str, offset: int) -> dict[str, Any]:
    path = stage_file(run, stage, name)
    ends = tail.LOG_ENDS if name == "log.txt" else tail.LINE_ENDS
    return _told(tail.read(path, offset, ends=ends, ended=run.stage(stage).status in ENDED))


def _told(piece: tail.Piece) -> dict[str, Any]:
    text = piece.data.decode("utf-8", "replace")
    return {"start": piece.start, "next": piece.next, "size": piece.size, "text": text}


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json", headers=NEW)
