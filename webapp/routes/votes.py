"""Routes of the blind vote: a row that names no side, a vote, and for who has revealed them the result.

Reading answers and counting votes is asked of a process (`check_pool`). A judge is named by the operator at
the start of the page; a browser can only ask that one, and is not told where it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.runs.voting import blind_rows, judging
from pipeline.runs.voting.judge_client import Judge
from pipeline.store.run import Run
from webapp import handler_values, threads
from webapp.home import known_run, store
from webapp.routes import asking, sending
from webapp.routes.runs import NEW

router = APIRouter(include_in_schema=False)
MOST = 2**53
BOOTH = "pipeline.runs.voting.booth"
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
async def state(
    request: Request, run: str, voter: Name = "", row: Annotated[int | None, Query(ge=0, le=MOST)] = None
) -> JSONResponse:
    """A row to vote on: the one asked for, or the first without a vote of this voter. It names no side."""
    return await _answered(_asked(request, "state", run, voter=voter, row=row))


@router.post("/votes/{run}")
async def vote(request: Request, run: str, ballot: Given) -> JSONResponse:
    """Record a vote: voter, row, choice, and `seen`, the mark of what was displayed; give the next row."""

    async def ask() -> dict[str, Any]:
        texts = {name: _text(ballot, name) for name in ("voter", "choice", "seen")}
        return await _asked(request, "vote", run, to_its_end=True, row=_row(ballot), **texts)

    return await _answered(ask())


@router.post("/votes/{run}/reveal")
async def reveal(request: Request, run: str, who: Given) -> JSONResponse:
    """Close the vote of a voter, and answer with the result."""

    async def ask() -> dict[str, Any]:
        return await _asked(request, "reveal", run, to_its_end=True, voter=_text(who, "voter"))

    return await _answered(ask())


@router.get("/votes/{run}/result.json")
async def result(request: Request, run: str, voter: Name = "") -> JSONResponse:
    """The result, for a voter whose vote is closed."""
    return await _answered(_asked(request, "result", run, voter=voter))


@router.get("/votes/{run}/pairs.jsonl")
async def pairs(request: Request, run: str, voter: Name = "") -> Response:
    """Preference pairs as a download (prompt, chosen, rejected), for a voter whose vote is closed."""
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{run}-pairs.jsonl"'}
    try:
        given = {**await threads.run(threads.LOOKUPS, _where, run), "voter": voter}
        return await sending.download(request, f"{BOOTH}:pairs", given, headers, "application/jsonl")
    except (LabError, OSError) as error:
        return _refused(error)


@router.get("/votes/{run}/judge.json")
async def judge(run: str) -> JSONResponse:
    """The judge that may be asked, if one is named, and how far it is."""
    return await threads.run(threads.LOOKUPS, _told, lambda: _judge(run))


@router.post("/votes/{run}/judge")
async def ask_judge(run: str) -> JSONResponse:
    """Ask the judge about the rows of a run."""

    def start() -> dict[str, Any]:
        found = _known(run)
        if not _named:
            raise InputError(NO_JUDGE)
        judging.start(store(), found.id, _named[0])
        return _judge(run)

    return await threads.run(threads.STORE, _told, start)


@router.post("/votes/{run}/judge/stop")
async def stop_judge(run: str) -> JSONResponse:
    """Stop the judge; what it has judged is kept."""

    def stop() -> dict[str, Any]:
        judging.stop(store().folder(_known(run).id))
        return _judge(run)

    return await threads.run(threads.STORE, _told, stop)


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


async def _asked(
    request: Request, question: str, run: str, *, to_its_end: bool = False, **given: Any
) -> dict[str, Any]:
    """The answer of a process to one of the questions of `booth`. Raises InputError, LabError, OSError."""
    where = await threads.run(threads.LOOKUPS, _where, run)
    told: dict[str, Any] = await asking.answered(
        request, asking.PAGES, f"{BOOTH}:{question}", {**where, **given}, to_its_end=to_its_end
    )
    return told


def _where(run: str) -> dict[str, str]:
    """The folder of a run, and its recorded answers. Raises InputError, LabError."""
    found = _known(run)
    return {"run": str(store().folder(found.id)), "answers": str(blind_rows.recorded(found))}


async def _answered(asked: Awaitable[dict[str, Any]]) -> JSONResponse:
    """An answer, or one sentence with status 409 on why there is none."""
    try:
        return JSONResponse(await asked, headers=NEW)
    except (LabError, OSError) as error:
        return _refused(error)


def _told(find: Callable[[], dict[str, Any]]) -> JSONResponse:
    """`_answered`, where no process is asked."""
    try:
        return JSONResponse(find(), headers=NEW)
    except (LabError, OSError) as error:
        return _refused(error)


def _refused(error: LabError | OSError) -> JSONResponse:
    return JSONResponse({"error": sentence(error)}, status_code=409, headers=NEW)
