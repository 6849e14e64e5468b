"""The whole app: our routes first, Gradio's page behind them, the guard in front of everything."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import mimetypes
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from gradio import processing_utils, route_utils
from gradio.blocks import Block
from gradio.route_utils import FnIndexInferError
from gradio.routes import App
from starlette.routing import Mount

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.exports import row_view
from pipeline.exports.chat import chat_processes
from pipeline.inputs.data import lengths
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import rendering
from pipeline.runs import check_pool, disk
from pipeline.runs.voting.judge_client import Judge
from pipeline.serving import connections
from pipeline.store.run import ENDED
from pipeline.system import own_process
from pipeline.worker import loop
from webapp import guard, handler_values, local_models, servers, talks, threads, uploads
from webapp.gradio_routes import gradio_requests, page_states
from webapp.home import store
from webapp.routes import data_cards, examples, live, queue, votes
from webapp.routes.runs import router
from webapp.tabs import compare, data, lab, models, publish, runs, versions, vote
from webapp.tabs.comparing import comparison
from webapp.tabs.evaluating import prompt_file
from webapp.tabs.serving import panel
from webapp.tabs.tuning import tune
from webapp.ui import choices, parts, theme

TITLE = "Olive Lab"
TABS = ("data", "lab", "tune", "compare", "vote", "runs", "publish")
TEND_SECONDS = 3.0
PURGE_SECONDS = 3600.0
UPLOAD_AGE_SECONDS = 3600
AT_ONCE = 20
SESSIONS = 200  # open pages whose choices are kept; each takes 30 KB
log = logging.getLogger(__name__)


def create(
    names: Iterable[str] = (),
    models: Iterable[Path] = (),
    *,
    hub_login: bool = False,
    shared_models: bool = False,
    judge: Judge | None = None,
) -> FastAPI:
    """The app for `settings.home()`, ready to be served to localhost, to IP addresses and to these names.

    It offers the models of the home and of the folders `models`, with `shared_models` also those that other
    users may change, with `hub_login` what only the operator may read on the hub, and the judge of answers,
    if one is named. Raises InputError if one of the folders has no model to offer.
    """
    local_models.offer(models, hub_login=hub_login, shared=shared_models)
    votes.name_judge(judge)
    uploads.empty()
    app = FastAPI(title=TITLE, lifespan=_lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(uploads.Room)
    app.add_middleware(handler_values.Refusals)
    app.add_middleware(connections.Bodies)
    app.add_middleware(guard.Guard, names=names)
    app.add_exception_handler(LabError, unusable)
    app.include_router(router)
    app.include_router(live.router)
    app.include_router(queue.router)
    app.include_router(data_cards.router)
    app.include_router(examples.router)
    app.include_router(votes.router)
    app.mount("/lab", StaticFiles(directory=theme.ASSETS))
    mimetypes.add_type("text/javascript", ".js")  # on some systems it is plain text, which browsers reject
    _keep_signatures()
    blocks = page()
    blocks.queue(default_concurrency_limit=AT_ONCE, api_open=False)
    blocks.state_session_capacity = SESSIONS
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        app_kwargs={"openapi_url": None},
        pwa=False,
        ssr_mode=False,
        favicon_path=str(theme.ASSETS / "olive.svg"),
        max_file_size=settings.max_upload_bytes(),
        theme=theme.theme(),
        css_paths=[theme.CSS],
        head=theme.HEAD,
    )
    _close(mounted, blocks)
    return mounted


def _keep_signatures() -> None:
    """Have each kind of component keep the signature of its constructor.

    Gradio asks for it each time it describes a component, and working it out anew took a third of the time
    that the page takes to be made.
    """
    kinds: list[type[Block]] = [Block]
    for kind in kinds:
        kinds += kind.__subclasses__()
        init = kind.__init__
        if "__signature__" not in vars(init):
            setattr(init, "__signature__", inspect.signature(init))  # noqa: B010 - unknown to mypy


def _close(app: FastAPI, blocks: gr.Blocks) -> None:
    """Close what Gradio leaves open when it is mounted in another app."""
    # Gradio checks where a file is only if these are set, as its own server does at start.
    blocks.has_launched = blocks.is_running = True
    # An upload's folder is named by a digest of this and its bytes, so that the bytes alone don't reveal it.
    processing_utils.hash_seed = secrets.token_bytes(32)
    setattr(route_utils, "GradioMultiPartParser", uploads.FilesOnly)  # noqa: B010 - a type, to mypy
    for component in handler_values.FILES:
        setattr(component, "_process_single_file", uploads.named)  # noqa: B010 - a method, to mypy
    mount = next(route for route in app.routes if isinstance(route, Mount) and isinstance(route.app, App))
    assert isinstance(mount.app, App)
    mount.app.add_exception_handler(FnIndexInferError, handler_values.unnamed)
    blocks.default_config.fns = handler_values.Handlers(blocks.fns)
    page_states.keep(mount.app)
    mount.app = gradio_requests.Door(mount.app)


def page() -> gr.Blocks:
    """The page: the welcome of an empty home, and the tabs."""
    blocks: gr.Blocks
    with handler_values.Page(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, UPLOAD_AGE_SECONDS)
    ) as blocks:
        parts.fixed(_HEADER, js_on_load=f"({parts.live('nameField', 'queue.js')})(element);")
        _notice(blocks)
        with gr.Column(visible=False, elem_id="welcome") as welcome:
            parts.fixed(_WELCOME)
            sample = gr.Button("Run the sample lab", variant="primary", elem_id="run-sample", scale=0)
            problems = parts.drawn("problems")
        with gr.Tabs(selected="data", elem_id="tabs"):
            chosen, made, history = _tabs(sample, problems)
        place = [
            gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label=label) for label in ("Tab", "Run")
        ]
        blocks.load(arrive, None, [welcome, made.new, made.data, made.asked, *place], **parts.QUICK).then(
            None, place, None, js=parts.live("arrive"), **parts.IN_PAGE
        )
        inputs = made.inputs.inputs
        again = gr.Button(
            "Restore the form", visible="hidden", elem_classes=parts.HIDDEN, elem_id="restore-now"
        )
        again.click(
            None, inputs, inputs, js=made.with_ids(parts.live("restore", "draft.js")), **parts.IN_PAGE
        )
        first = blocks.load(data.arrive, None, chosen.shown, **parts.QUICK)
        for done in (first.then, first.failure):  # the first is not called after an error
            done(None, None, None, js=parts.live("firstLooked"), **parts.IN_PAGE)
        # Without `compare` in the address nothing changes, and so nothing waits in the queue.
        blocks.load(comparison.arrive, None, history.compared, **parts.QUICK)
        made.run.change(lambda: gr.update(visible=False), None, welcome, **parts.QUICK)
    return blocks


async def unusable(request: Request, error: Exception) -> PlainTextResponse:
    """The answer of our routes when the store cannot be used, or no process: a locked database, a full disk.

    A coroutine: anything else would need a thread, and there may be none.
    """
    return PlainTextResponse(f"{error}\n", status_code=503, headers={"Retry-After": "5"})


def told() -> tuple[Any, ...]:
    """The notice about the store, until somebody dismisses it."""
    text = store().notice()
    return gr.update(visible=text is not None), {"text": text} if text else None


def dismiss() -> Any:
    """Dismiss the notice, for everybody."""
    store().dismiss()
    return gr.update(visible=False)


def _notice(blocks: gr.Blocks) -> None:
    with gr.Row(visible=False, elem_id="store-notice", elem_classes="bar") as row:
        text = parts.drawn("notice")
        read = gr.Button("Dismiss", size="sm", scale=0, elem_id="dismiss")
    blocks.load(told, None, [row, text], **parts.QUICK)
    read.click(dismiss, None, row, **parts.QUICK)


def _tabs(sample: gr.Button, problems: gr.HTML) -> tuple[data.Data, lab.Lab, runs.Runs]:
    """Build the tabs and connect them: Data passes a dataset to Lab, and Runs a recipe."""
    made: dict[str, gr.Tab] = {}
    for name in TABS:
        made[name] = gr.Tab(name.capitalize(), id=name, elem_id=f"tab-{name}")
        made[name].select(None, None, None, js=f"() => ({parts.live('tab')})({name!r})", **parts.IN_PAGE)
    with made["data"]:
        chosen = data.build()
    with made["lab"]:
        lab_tab = lab.build(sample, problems)
        models.build(lab_tab.model, lab_tab.new)
    with made["tune"]:
        tune.build(made["tune"], lab_tab)
    with made["compare"]:
        asked = compare.build(made["compare"])
        panel.build(made["compare"], asked[0])
    with made["vote"]:
        vote.build(made["vote"])
    with made["runs"]:
        history = runs.build(made["runs"])
    with made["publish"]:
        published = publish.build(made["publish"])
    history.examples.select(
        compare.take, history.chosen, asked, trigger_mode="multiple", **parts.CHECKS
    ).then(None, None, None, js=f"() => ({parts.live('go')})('compare')", **parts.IN_PAGE)
    history.judged.drawing.select(
        compare.take_both, [history.chosen, history.judged.picker], asked, trigger_mode="multiple",
        **parts.CHECKS,
    ).then(None, None, None, js=f"() => ({parts.live('go')})('compare')", **parts.IN_PAGE)  # fmt: skip
    history.view.click(lambda: gr.update(open=False), None, lab_tab.new, **parts.QUICK)
    for name, model in (("data", chosen.model), ("lab", lab_tab.model)):
        made[name].select(lambda: gr.update(choices=choices.models()), None, model, **parts.QUICK)
    # Once more after a choice, which may be newer than the list that is on its way.
    listed = [made["data"].select, chosen.picked.change]
    gr.on(listed, data.refresh, None, chosen.picked, trigger_mode="always_last", **parts.QUICK)
    made["lab"].select(lab.offer, lab_tab.data, lab_tab.data, **parts.QUICK)
    # Without the choice: an upload may have changed it by the time of the answer.
    made["lab"].select(lambda: prompt_file.refresh(None), None, lab_tab.asked, **parts.QUICK)
    # What does not fit may do so now: space on the disk was freed on another tab.
    made["lab"].select(None, None, None, js=f"() => ({parts.live('soon')})('preview-now')", **parts.IN_PAGE)
    chosen.use.click(
        lab.take,
        [chosen.picked, chosen.template, chosen.model, chosen.leave_out, lab_tab.preset[0]],
        [
            lab_tab.data,
            lab_tab.template,
            lab_tab.model,
            lab_tab.leave_out,
            lab_tab.new,
            *lab_tab.preset,
            *(lab_tab.inputs.input("finetune", name) for name in lab.SUITED),
        ],
        **parts.QUICK,
    ).then(None, None, None, js=f"() => ({parts.live('go')})('lab')", **parts.IN_PAGE)
    history.use.click(
        partial(lab.again, lab_tab.inputs),
        history.chosen,
        [*lab_tab.inputs.inputs, lab_tab.new],
        **parts.QUICK,
    ).then(None, None, None, js=f"() => ({parts.live('go')})('lab')", **parts.IN_PAGE)
    published.models.use.click(
        versions.base,
        [published.where, published.models.chosen],
        [lab_tab.model, lab_tab.new],
        **parts.QUICK,
    ).then(None, None, None, js=f"() => ({parts.live('go')})('lab')", **parts.IN_PAGE)
    return chosen, lab_tab, history


def arrive(request: gr.Request) -> tuple[Any, ...]:
    """What a page shows first: the run and tab in its address, else the running run, else the form."""
    found = store().newest(200)
    active = [run for run, status in found if status not in ENDED]
    run = request.query_params.get("run") or next(reversed(active), "")
    tab = request.query_params.get("tab")
    if tab not in TABS:
        tab = "lab" if run or found else "data"
    empty = not found and lab.sample_is_there()
    files = lab.refresh(None), prompt_file.refresh(None)
    return gr.update(visible=empty), gr.update(open=not run), *files, tab, run


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """While the app is up, keep a worker for queued runs and end idle models. Runs outlive the app."""
    check_pool.open_up(local_models.hub_login())
    task = asyncio.create_task(_tend(settings.home()))
    try:
        yield
    finally:
        task.cancel()
        check_pool.close()
        own_process.close()
        lengths.close()
        row_view.close()
        rendering.close()  # else rendering threads could delay the exit
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await chat_processes.shutdown()


async def _tend(home: Path) -> None:
    """Do each chore again and again; what is wrong with one keeps no other."""
    often: dict[str, Callable[[], Awaitable[object]]] = {
        "start a worker": partial(threads.run, threads.UPKEEP, _see_to_worker, home),
        "end idle models": chat_processes.release_idle,
        "end idle servers": partial(threads.run, threads.UPKEEP, servers.end_idle),
    }
    hourly: dict[str, Callable[[], Awaitable[object]]] = {
        "remove deleted runs": lambda: threads.run(threads.UPKEEP, disk.purge, store()),
        "remove old prompts": lambda: threads.run(threads.UPKEEP, disk.tidy_prompts, store()),
        "remove unused tokenizers": partial(threads.run, threads.UPKEEP, base_models.tidy_tokenizers, home),
        "remove old uploads": partial(threads.run, threads.UPKEEP, uploads.tidy, UPLOAD_AGE_SECONDS),
        "remove old conversations": partial(threads.run, threads.UPKEEP, talks.tidy, home),
    }
    hour = time.monotonic()
    said: dict[str, str] = {}
    await _chore("start a worker", partial(threads.run, threads.UPKEEP, _warm_up, home), said)
    while True:
        due = often
        if time.monotonic() >= hour:
            hour, due = time.monotonic() + PURGE_SECONDS, {**often, **hourly}
        for what, chore in due.items():
            await _chore(what, chore, said)
        await asyncio.sleep(TEND_SECONDS)


async def _chore(what: str, chore: Callable[[], Awaitable[object]], said: dict[str, str]) -> None:
    """Do it; what keeps it from that, such as a full disk, is logged once until it is over."""
    try:
        await chore()
        said.pop(what, None)
    except Exception as error:
        if said.get(what) != (now := sentence(error)):
            known = isinstance(error, (LabError, OSError))
            log.error("Could not %s: %s", what, now, exc_info=None if known else error)
            said[what] = now


def _warm_up(home: Path) -> None:
    """At the app's start: so the first run is fast."""
    if settings.imports_ahead():
        loop.ensure(home, ahead=True)


def _see_to_worker(home: Path) -> None:
    """See that there is a worker where one is needed."""
    if store().waiting():
        loop.ensure(home, **({"ahead": True} if settings.imports_ahead() else {}))


_HEADER = f"""
<header class='lab-header'><h1>{TITLE}</h1>
<label>Your name <input id="you" autocomplete="nickname" placeholder="for your runs"></label>
</header>
"""

_WELCOME = """
<h2>Welcome</h2>
<p>Teach a small language model your data: quantize it, fine-tune an adapter, export both for ONNX Runtime,
and compare the answers. The sample lab does all of it on this machine in a few minutes.</p>
"""
