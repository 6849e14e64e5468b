"""Which of Gradio's own routes are open, and to which requests: those that the page sends.

Gradio accepts any JSON with the right keys, even one that it cannot answer, or a session name of megabytes,
which it keeps. And it serves any number of streams of progress. Events that wait are not left to it at all.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from gradio import routes
from gradio.data_classes import PredictBodyInternal
from gradio.routes import App
from gradio.server_messages import UnexpectedErrorMessage
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webapp.gradio_routes.event_queue import BUSY, EventQueue
from webapp.gradio_routes.gradio_page import Kept
from webapp.handler_values import UNFIT

NAME = r"[A-Za-z0-9_-]{1,64}"  # of a session or an event; the page's are of 11 and 32 letters
# Routes that the page needs. The others serve uploads to anybody who knows the name, fetch any address, write
# session data to the disk, or belong to features that are off. Gradio's heartbeat is not among them: a page
# without state needs none.
EVENTS = re.compile(r"/gradio_api/queue/data/?")
UPLOAD = re.compile(r"/gradio_api/upload/?")
PROGRESS = re.compile(r"/gradio_api/upload_progress/?")
CANCELS = re.compile(r"/gradio_api/cancel/?")
JOINS = re.compile(r"/gradio_api/queue/join/?")
CALLS = re.compile(rf"/gradio_api/(run/[A-Za-z0-9_]{{1,64}}|reset)/?|{CANCELS.pattern}|{JOINS.pattern}")
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"
    r"|/(static|assets|svelte)(/[^/\x00-\x1f]{1,150}){1,8}"
    r"|/gradio_api/(startup-events|info|app_id)/?"
    rf"|{UPLOAD.pattern}|{EVENTS.pattern}|{PROGRESS.pattern}|{CALLS.pattern}"
)
UNUSED = ("page", "deep_link")  # queries for features that are off; Gradio looks them up unchecked
KEYS = {"data", "event_data", "event_id", "fn_index", "session_hash", "trigger_id"}  # of a call
# Lists and objects in a call, brackets in texts included. Each takes a hundred bytes, and Gradio walks
# through them several times while nothing else runs. A form has less than a hundred, a long prompt some
# thousands.
MOST_NESTED = 10_000
MOST_VALUES = 200
MOST_PROGRESS = 40  # streams of upload progress; without one a page shows no bar
NAMED_UPLOADS = 200  # whose progress is kept once they have ended, for streams that come late


class Door:
    """ASGI app in front of Gradio's, whose queue it answers for."""

    def __init__(self, app: App) -> None:
        self.app: ASGIApp = app
        self.kept = Kept(app)
        self.events = EventQueue(app)
        self.inputs = {number: len(fn.inputs) for number, fn in app.get_blocks().fns.items()}
        self.bars = 0  # streams of progress
        self.named: deque[str] = deque()  # uploads and streams of progress that have ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not ROUTES.fullmatch(scope["path"]):
            await _say("There is no such page.", 404)(scope, receive, send)
        elif scope["method"] == "POST" and CALLS.fullmatch(scope["path"]):
            await self._call(scope, receive, send)
        elif scope["method"] == "GET" and EVENTS.fullmatch(scope["path"]):
            await self._answers(scope, receive, send)
        elif not _is_name(QueryParams(scope["query_string"]).get("upload_id", "none")):
            await _say(UNFIT, 422)(scope, receive, send)
        elif PROGRESS.fullmatch(scope["path"]) or UPLOAD.fullmatch(scope["path"]):
            await self._upload(scope, receive, send)
        elif self.kept.holds(scope):
            await self.kept(scope, receive, send)
        else:
            given = QueryParams(scope["query_string"]).multi_items()
            kept = urlencode([pair for pair in given if pair[0] not in UNUSED])
            await self.app({**scope, "query_string": kept.encode()}, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call as the page sends them, or let Gradio do it: one outside the queue."""
        body = b""
        while True:  # the guard limits its size
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        call = sound(body, self.inputs)
        if call is None:
            await _refuse(UNFIT, 422)(scope, receive, send)
        elif JOINS.fullmatch(scope["path"]):
            await self._join(call, Request(scope))(scope, receive, send)
        elif "/run/" in scope["path"]:
            await self.app(scope, _again(body, receive), send)
        else:
            if CANCELS.fullmatch(scope["path"]):
                self.events.cancel(call.get("session_hash") or "", call.get("event_id") or "")
            await JSONResponse({"success": True})(scope, receive, send)

    def _join(self, call: dict[str, Any], request: Request) -> Response:
        """Have an event carried out, if there is such a handler and a place for it."""
        if call.get("fn_index") not in self.events.handlers:
            return _refuse(UNFIT, 404)
        if not call.get("session_hash"):
            return _refuse(UNFIT, 422)
        event = self.events.join(PredictBodyInternal(**{"data": []} | call, request=request))
        return _refuse(BUSY, 503) if event is None else JSONResponse({"event_id": event})

    async def _answers(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers to the events of a session until all are read."""
        name = QueryParams(scope["query_string"]).get("session_hash", "")
        session = self.events.sessions.get(name)
        if session is None:
            await _no_session()(scope, receive, send)
        elif session.is_read:  # a page has one stream; two would each get only some of the answers
            await _say(BUSY, 503)(scope, receive, send)
        else:
            with self.events.reading(name) as answers:
                await StreamingResponse(answers, media_type="text/event-stream")(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an upload, or a request for its progress if not too many of these are being answered.

        Gradio keeps the progress of each upload that has a name, and of each name that is asked for.
        """
        asks = PROGRESS.fullmatch(scope["path"]) is not None
        if asks and self.bars >= MOST_PROGRESS:
            await _say(BUSY, 503)(scope, receive, send)
            return
        self.bars += asks
        try:
            await self.app(scope, receive, send)
        finally:
            self.bars -= asks
            self.named.append(QueryParams(scope["query_string"]).get("upload_id", ""))
            while len(self.named) > NAMED_UPLOADS:
                oldest = self.named.popleft()
                routes.file_upload_statuses.stop_tracking(oldest)
                routes.file_upload_statuses._signals.pop(oldest, None)


def sound(body: bytes, inputs: Mapping[int, int]) -> dict[str, Any] | None:
    """The call in a body, by KEYS; None if no page would send it.

    `inputs` says how many values each handler takes.
    """
    if body.count(b"[") + body.count(b"{") > MOST_NESTED:
        return None
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    names = [given.get(name) for name in ("session_hash", "event_id")]
    numbers = [given.get(name) for name in ("fn_index", "trigger_id")]
    fits = all(value is None or _is_name(value) for value in names)
    fits = fits and all(value is None or (type(value) is int and 0 <= value < 1 << 31) for value in numbers)
    fits = fits and given.keys() <= KEYS and _is_filled(given, inputs)
    return given if fits else None


def _is_filled(given: dict[str, Any], inputs: Mapping[int, int]) -> bool:
    """Whether a call has as many values as its handler takes. Which handler it is may stand in its path."""
    data = given.get("data", [])
    return isinstance(data, list) and len(data) <= inputs.get(given.get("fn_index", -1), MOST_VALUES)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body once more that was received, and then what else comes."""
    bodies = [body]

    async def again() -> Message:
        return (
            {"type": "http.request", "body": bodies.pop(), "more_body": False} if bodies else await receive()
        )

    return again


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def _say(text: str, status: int) -> Response:
    return PlainTextResponse(text + "\n", status_code=status)


def _refuse(text: str, status: int) -> Response:
    """The answer to a call, as Gradio's script can read and show it."""
    return JSONResponse({"detail": text}, status_code=status)


def _no_session() -> Response:
    """Gradio's answer to a request for the events of an unknown session, without its hundred lines of log."""
    said = UnexpectedErrorMessage(message="404: Not Found", session_not_found=True).model_dump_json()
    return Response(f"data: {said}\n\n", media_type="text/event-stream")
