"""Routes for actions on a run, downloads, scorecards, and Plotly. `live` has more."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.types import Receive, Scope, Send

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.publish import zip_file
from pipeline.publish.report.as_html import POLICY
from pipeline.publish.report.files import Format
from pipeline.runs import cached_models, pulls
from pipeline.runs.comparing import scorecard
from pipeline.store.run import Run
from pipeline.worker import loop
from webapp import local_models, threads
from webapp.home import known_run, store
from webapp.routes import asking, best_ways, sending
from webapp.routes.watch import watch
from webapp.ui import views

router = APIRouter(include_in_schema=False)
NEW = {"Cache-Control": "no-store"}
MOST_KEPT = 8  # texts of downloads, some hundred kilobytes each
_kept: dict[str, Any] = {}  # by what the store says of the run
_keeping = threading.Lock()
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}


@router.get("/runs/{run}/{stage}/log.txt")
async def whole_log(run: str, stage: str) -> Response:
    """A stage's whole log as a download."""
    return await threads.run(threads.LOOKUPS, _log, run, stage)


def _log(run: str, stage: str) -> Response:
    path = stage_file(_run(run), stage, "log.txt")
    if not path.is_file():
        raise HTTPException(404, "This stage has written no log yet.")
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{run}-{stage}.txt"'}
    return sending.Growing(path, headers, "text/plain")


@router.get("/runs/{run}/recipe.yaml")
async def recipe(run: str) -> Response:
    """The recipe of a run as a download."""
    found = await threads.run(threads.LOOKUPS, _run, run)
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{found.id}.yaml"'}
    return PlainTextResponse(views.recipe_yaml(found.recipe), headers=headers)


class Sent(StreamingResponse):
    """A ZIP sent piece by piece from threads. Its files are closed however that ends."""

    def __init__(self, zipped: zip_file.Takeaway, name: str) -> None:
        headers = {
            **NEW,
            "Content-Length": str(zipped.size),
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        super().__init__(zipped, media_type="application/zip", headers=headers)
        self.zipped = zipped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.zipped:
            await super().__call__(scope, receive, send)


@router.get("/runs/{run}/model.zip")
async def model(request: Request, run: str, rows: bool = False) -> Response:
    """A finished run's exported model as a download, with rows of its data only if `rows`. If a file was cut
    short, the connection is closed."""
    found = await threads.run(threads.LOOKUPS, _run, run)
    texts = await _texts(request, found, rows) if zip_file.exported(found) else None
    return await threads.run(threads.LOOKUPS, _sent, found, texts)


def _sent(run: Run, texts: Any) -> Sent:
    try:
        return Sent(zip_file.Takeaway(store().home, run, texts), zip_file.file_name(run))
    except InputError as error:
        raise HTTPException(404, str(error)) from None
    except OSError:  # each holds all files of its export open
        raise HTTPException(
            503, "Many models are being downloaded just now; try again in a minute."
        ) from None


async def _texts(request: Request, run: Run, rows: bool) -> Any:
    """The small texts of a download. Those of the last runs are kept, without rows, for as long as nothing
    that the store says of the run has changed."""
    told = repr(run)
    with _keeping:
        if not rows and told in _kept:
            return _kept[told]
    texts = await _written(request, "zip_file:asked", run=run.id, rows=rows)
    if not rows:
        with _keeping:
            _kept[told] = texts
            for oldest in [*_kept][:-MOST_KEPT]:
                del _kept[oldest]
    return texts


@router.get("/runs/{run}/report.{kind}")
async def report(request: Request, run: str, kind: Format, rows: bool = False) -> Response:
    """The report of a run, with examples from its data only if `rows`."""
    found = await threads.run(threads.LOOKUPS, _run, run)
    text = await _written(request, "report.files:asked", run=found.id, kind=kind, rows=rows)
    if kind == "html":
        return HTMLResponse(text, headers={**NEW, "Content-Security-Policy": f"sandbox; {POLICY}"})
    headers = {**NEW, "Content-Disposition": f'attachment; filename="{found.id}-report.md"'}
    return Response(text, media_type="text/markdown", headers=headers)


async def _written(request: Request, function: str, *, rows: bool, **given: Any) -> Any:
    """What a process of ours writes, as it reads the data for a card or report; this one does not."""
    places = asking.ROWS if rows else asking.TEXTS
    try:
        return await asking.answered(request, places, f"pipeline.publish.{function}", {**given, "rows": rows})
    except OSError:
        raise HTTPException(404, "The files of this run cannot be read any more.") from None


@router.post("/runs/{run}/cancel")
async def cancel(run: str) -> JSONResponse:
    """Cancel a run."""
    return await threads.run(threads.STORE, _act, run, store().request_cancel)


@router.post("/runs/{run}/retry")
async def retry(request: Request, run: str) -> JSONResponse:
    """Queue a run again from the stage that did not finish, if its model may be used from the page."""
    found = await threads.run(threads.LOOKUPS, _run, run)
    try:
        if model := await threads.run(threads.LOOKUPS, local_models.to_look_up, found):
            await asking.answered(request, asking.MODELS, f"{cached_models.__name__}:look", {"model": model})
    except LabError as error:
        return _refused(error)
    return await threads.run(threads.STORE, _act, run, store().retry)


@router.get("/scorecards/{group}.json")
async def score(group: str) -> JSONResponse:
    """A scorecard as far as it is measured."""
    rows = await watch().scorecard(group)
    if not rows:
        raise HTTPException(404, f"{display.line(group)}: no such scorecard")
    return JSONResponse(await threads.run(threads.LOOKUPS, _score, group, rows), headers=NEW)


@router.get("/pulled/{key}.json")
async def pulled_facts(key: str) -> JSONResponse:
    """Progress of a pull, in the form of a stage."""
    return JSONResponse(await threads.run(threads.LOOKUPS, _pulled, key), headers=NEW)


@router.post("/pulled/{key}/cancel")
async def pulled_cancel(key: str) -> JSONResponse:
    """Cancel a pull."""
    return await threads.run(threads.STORE, _cancel_pull, key)


def _cancel_pull(key: str) -> JSONResponse:
    _pulled(key)
    try:
        pulls.stop(store().home, key)
    except LabError as error:
        return _refused(error)
    return JSONResponse(_pulled(key), headers=NEW)


@router.get("/plotly.min.js")
async def plotly() -> Response:
    """Plotly from its Python package: the page asks no other host for anything."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise HTTPException(404, "plotly is not installed.")
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return FileResponse(path, media_type="text/javascript", headers=KEPT)


def _run(run: str) -> Run:
    try:
        return known_run(run)
    except InputError as error:
        raise HTTPException(404, str(error)) from None


def _score(group: str, rows: list[scorecard.Row]) -> dict[str, Any]:
    return views.scorecard(rows, best_ways.of(group, rows))


def _pulled(key: str) -> dict[str, Any]:
    """The facts of a pull."""
    known = pulls.facts(store().home, key)
    if known is None:
        raise HTTPException(404, f"{display.line(key)}: no such model was pulled")
    names = ("message", "progress", "bytes_done", "bytes_total", "eta_seconds")
    told = {name: known[name] for name in names if name in known}
    return {"status": known["status"], "error": known["error"], "facts": told}


def stage_file(run: Run, stage: str, name: str) -> Path:
    """A file of a stage the store knows. No path comes from the URL."""
    if stage not in {known.name for known in run.stages}:
        raise HTTPException(404, f"Run {run.id} has no stage {display.value(stage)}.")
    return store().folder(run.id, stage) / name


def _refused(error: LabError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=409, headers=NEW)


def _act(run: str, action: Any) -> JSONResponse:
    found = _run(run)
    try:
        action(found.id)
    except LabError as error:
        return _refused(error)
    loop.ensure(store().home)
    watch().queue_now()  # so that the next request sees the change
    return JSONResponse(watch().look_now(found.id, refresh=True).status, headers=NEW)
