"""Routes of a run's examples: a page of the table, one example whole, and all of them as a download."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from pipeline.errors import InputError
from pipeline.evaluation.examples import rows
from pipeline.evaluation.examples.export import Kind
from pipeline.evaluation.examples.pages import Sort
from webapp import threads
from webapp.home import known_run
from webapp.routes import asking, sending
from webapp.routes.runs import NEW

router = APIRouter(include_in_schema=False)
MOST = 2**53
EXAMPLES = "pipeline.evaluation.examples"
NONE = "This run has no examples: its evaluation has not ended, or was left out."
TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


@router.get("/runs/{run}/examples.json")
async def examples(
    request: Request,
    run: str,
    sort: Sort = "worst",
    worse: bool = False,
    search: Annotated[str, Query(max_length=200)] = "",
    start: Annotated[int, Query(ge=0, le=MOST)] = 0,
) -> JSONResponse:
    """Some examples of a run, with `search` in them, from `start` on; `worse` are those with a higher loss
    with the adapter."""
    given = {"sort": sort, "worse": worse, "search": search, "start": start}
    return JSONResponse(await _asked(request, run, "pages:page", given), headers=NEW)


@router.get("/runs/{run}/examples/{number}.json")
async def example(request: Request, run: str, number: int) -> JSONResponse:
    """One example of a run with its texts whole."""
    found = await _asked(request, run, "pages:whole", {"number": number})
    return JSONResponse(found, headers=NEW)


@router.get("/runs/{run}/examples.{kind}")
async def download(request: Request, run: str, kind: Kind) -> Response:
    """All examples of a run as CSV or JSON lines."""
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{run}-examples.{kind}"'}
    with _told():
        asked = await threads.run(threads.LOOKUPS, question, run, {"kind": kind})
        return await sending.download(request, f"{EXAMPLES}.export:write", asked, headers, TYPES[kind])


def question(run: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a process is asked about a run, whose files it reads. Raises InputError, LabError."""
    sources = rows.of_run(known_run(run))
    if not sources.any:
        raise InputError(NONE)
    return {"sources": dataclasses.asdict(sources), **given}


async def _asked(request: Request, run: str, function: str, given: dict[str, Any]) -> Any:
    with _told():
        asked = await threads.run(threads.LOOKUPS, question, run, given)
        return await asking.answered(request, asking.PAGES, f"{EXAMPLES}.{function}", asked)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever cannot be found or read is not there."""
    try:
        yield
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except OSError:
        raise HTTPException(404, "The files of this run cannot be read any more.") from None
