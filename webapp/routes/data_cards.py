"""Routes of data cards: the lines of findings as downloads, and the rows of the dataset a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pipeline.errors import InputError
from pipeline.inputs.data.card import findings
from pipeline.runs import check_pool
from pipeline.runs.data import data_card
from pipeline.system.files import to_json
from webapp.home import store
from webapp.routes.runs import NEW
from webapp.ui import choices

router = APIRouter(include_in_schema=False)
MOST = 2**53
AT_ONCE = 10_000  # lines


@router.get("/cards/{key}/{finding}.{kind}")
def lines(key: str, finding: str, kind: Literal["csv", "json"]) -> Response:
    """The lines of all rows that have a finding, as a download."""
    if finding not in findings.NAMES:
        raise HTTPException(404, "There is no such finding.")
    try:
        found = data_card.lines_with(store().home, key, [finding])
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{finding}.{kind}"'}
    if kind == "csv":
        return StreamingResponse(
            _pieces(found, "line\r\n", "\r\n", "\r\n"), media_type="text/csv", headers=headers
        )
    before = f'{{"finding": {to_json(finding)}, "lines": ['
    return StreamingResponse(
        _pieces(found, before, ", ", "]}\n"), media_type="application/json", headers=headers
    )


def _pieces(lines: Iterable[int], before: str, between: str, after: str) -> Iterator[str]:
    """Numbers as text, some thousand at a time."""
    yield before
    some: list[str] = []
    lead = ""
    for line in lines:
        some.append(str(line))
        if len(some) >= AT_ONCE:
            yield lead + between.join(some)
            some, lead = [], between
    yield lead * bool(some) + between.join(some) + after


@router.get("/cards/{key}/rows")
def rows(
    key: str,
    offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
    at: Annotated[int, Query(ge=1, le=MOST)] = 1,
    line: Annotated[int, Query(ge=1, le=MOST)] = 1,
    search: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Rows behind byte `offset`, where line `at` begins; from `line` on, with `search` in them."""
    try:
        card = data_card.kept(store().home, key)
        if card is None:
            raise InputError("This card is not kept any more; check the dataset again.")
        path = choices.known_data(store().home, card["path"])
        given = {"path": str(path), "offset": offset, "at": at, "search": search, "line": line}
        found = check_pool.answer("pipeline.runs.data.data_card:page", given)
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except OSError:
        raise HTTPException(404, "The dataset cannot be read any more.") from None
    return JSONResponse(found, headers=NEW)
