"""Routes of data cards: the lines of findings as downloads, and the rows of the dataset a page at a time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from pipeline.errors import InputError
from pipeline.inputs.data.card import findings
from pipeline.runs.data import data_card
from webapp import threads
from webapp.home import store
from webapp.routes import asking, sending
from webapp.routes.runs import NEW
from webapp.ui import choices

router = APIRouter(include_in_schema=False)
MOST = 2**53
CARDS = "pipeline.runs.data.data_card"
TYPES = {"csv": "text/csv", "json": "application/json"}


@router.get("/cards/{key}/{finding}.{kind}")
async def lines(request: Request, key: str, finding: str, kind: Literal["csv", "json"]) -> Response:
    """The lines of all rows that have a finding, as a download."""
    if finding not in findings.NAMES:
        raise HTTPException(404, "There is no such finding.")
    given = {"key": key, "finding": finding, "kind": kind}
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{finding}.{kind}"'}
    try:
        return await sending.download(request, f"{CARDS}:write_lines", given, headers, TYPES[kind])
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except OSError:
        raise HTTPException(404, "The lines cannot be read any more.") from None


@router.get("/cards/{key}/rows")
async def rows(
    request: Request,
    key: str,
    offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
    at: Annotated[int, Query(ge=1, le=MOST)] = 1,
    line: Annotated[int, Query(ge=1, le=MOST)] = 1,
    search: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Rows behind byte `offset`, where line `at` begins; from `line` on, with `search` in them."""
    try:
        given: dict[str, Any] = {"offset": offset, "at": at, "search": search, "line": line}
        given["path"] = await threads.run(threads.LOOKUPS, _dataset, key)
        found = await asking.answered(request, asking.PAGES, f"{CARDS}:page", given)
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except OSError:
        raise HTTPException(404, "The dataset cannot be read any more.") from None
    return JSONResponse(found, headers=NEW)


def _dataset(key: str) -> str:
    """The path of a card's dataset. Raises InputError."""
    card = data_card.kept(store().home, key)
    if card is None:
        raise InputError("This card is not kept any more; check the dataset again.")
    return str(choices.known_data(store().home, card["path"]))
