"""Routes of the blind vote: a row that names no side, a vote, and for who has revealed them the result.

Reading answers and counting votes is asked of a process (`check_pool`). A judge is named by the operator at
the start of the page; a browser can only ask that one, and is not told where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Query
from fastapi.responses import FileResponse, JSONResponse, Response

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.runs import check_pool
from pipeline.runs.voting import blind_rows, judging
from pipeline.runs.voting.judge_client import Judge
from pipeline.store.run import Run
from webapp import handler_values
from webapp.home import known_run, store
from webapp.routes.runs import NEW

router = APIRouter(include_in_schema=False)
MOST = 2**53
LONGEST = 200  # characters of a name; those of more than a voter's may have are refused with a sentence
Name = Annotated[str, Query(max_length=LONGEST)]
Given = Annotated[
    Any, Body()
]  # anything: FastAPI's own refusal of half a surrogate pair is an error of its own


NO_JUDGE = "No judge is named here; start the page with --judge and --judge-model to name one."
_named: list[Judge] = []  # by the operator, for this process


def name_judge(judge: Judge | None) -> None:
    """Offer this judge on the page, or none."""
    _named[:] = [judge] if judge else []


@router.get("/votes/{run}.json")
def state(
    run: str, voter: Name = "", row: Annotated[int | None, Query(ge=0, le=MOST)] = None
) -> JSONResponse:
    """A row to vote on: the one asked for, or the first without a vote of this voter. It names no side."""
    return _answered(lambda: _asked("state", run, voter=voter, row=row))


@router.post("/votes/{run}")
def vote(run: str, ballot: Given) -> JSONResponse:
    """Record a vote: voter, row, choice, and `seen`, the mark of what was displayed; give the next row."""

    def ask() -> dict[str, Any]:
        texts = {name: _text(ballot, name) for name in ("voter", "choice", "seen")}
        return _asked("vote", run, row=_row(ballot), **texts)

    return _answered(ask)


@router.post("/votes/{run}/reveal")
def reveal(run: str, who: Given) -> JSONResponse:
    """Close the vote of a voter, and answer with the result."""
    return _answered(lambda: _asked("reveal", run, voter=_text(who, "voter")))


@router.get("/votes/{run}/result.json")
def result(run: str, voter: Name = "") -> JSONResponse:
    """The result, for a voter whose vote is closed."""
    return _answered(lambda: _asked("result", run, voter=voter))


@router.get("/votes/{run}/pairs.jsonl")
def pairs(run: str, voter: Name = "") -> Response:
    """Preference pairs as a download (prompt, chosen, rejected), for a voter whose vote is closed."""
    found: dict[str, Any] = {}

    def ask() -> dict[str, Any]:
        found.update(_asked("pairs", run, voter=voter))
        return found

    refused = _answered(ask)
    if not found:
        return refused
    headers = {**NEW, "X-Pairs": str(found["pairs"]), "X-Ties-Left-Out": str(found["ties"])}
    return FileResponse(
        found["path"], media_type="application/jsonl", filename=f"{run}-pairs.jsonl", headers=headers
    )


@router.get("/votes/{run}/judge.json")
def judge(run: str) -> JSONResponse:
    """The judge that may be asked, if one is named, and how far it is."""
    return _answered(lambda: _judge(run))


@router.post("/votes/{run}/judge")
def ask_judge(run: str) -> JSONResponse:
    """Ask the judge about the rows of a run."""

    def start() -> dict[str, Any]:
        found = _known(run)
        if not _named:
            raise InputError(NO_JUDGE)
        judging.start(store(), found.id, _named[0])
        return _judge(run)

    return _answered(start)


@router.post("/votes/{run}/judge/stop")
def stop_judge(run: str) -> JSONResponse:
    """Stop the judge; what it has judged is kept."""

    def stop() -> dict[str, Any]:
        judging.stop(store().folder(_known(run).id))
        return _judge(run)

    return _answered(stop)


def _text(given: Any, name: str) -> str:
    """A short text of a request. Raises InputError."""
    value = given.get(name) if isinstance(given, dict) else None
    if not isinstance(value, str) or len(value) > LONGEST:
        raise InputError(handler_values.UNFIT)
    return display.valid(value)


def _row(given: Any) -> int:
    """The number of a row in a request. Raises InputError."""
    value = given.get("row") if isinstance(given, dict) else None
    if type(value) is not int or not 0 <= value <= MOST:
        raise InputError(handler_values.UNFIT)
    return value


def _judge(run: str) -> dict[str, Any]:
    facts = judging.facts(store().folder(_known(run).id))
    return {"model": _named[0].model if _named else None, "facts": facts}


def _known(run: str) -> Run:
    try:
        return known_run(run)
    except InputError as error:
        raise HTTPException(404, str(error)) from None


def _asked(question: str, run: str, **given: Any) -> dict[str, Any]:
    """The answer of a process to one of the questions of `booth`. Raises InputError, LabError, OSError."""
    found = _known(run)
    answers = str(blind_rows.recorded(found))
    where = {"run": str(store().folder(found.id)), "answers": answers}
    told: dict[str, Any] = check_pool.answer(f"pipeline.runs.voting.booth:{question}", {**where, **given})
    return told


def _answered(ask: Callable[[], dict[str, Any]]) -> JSONResponse:
    """An answer, or one sentence with status 409 on why there is none."""
    try:
        return JSONResponse(ask(), headers=NEW)
    except (LabError, OSError) as error:
        return JSONResponse({"error": sentence(error)}, status_code=409, headers=NEW)
