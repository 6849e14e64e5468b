"""Which of Gradio's own routes are open, and to which requests: those that the page sends.

Gradio accepts any JSON with the right keys, even one that it cannot answer, or a session name of megabytes,
which it keeps. And it serves any number of streams and keeps any number of unread answers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

import gradio as gr
from gradio import routes
from gradio.queueing import Event, Queue
from gradio.server_messages import ProcessCompletedMessage, UnexpectedErrorMessage
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
CALLS = re.compile(rf"/gradio_api/(queue/join|run/[A-Za-z0-9_]{{1,64}}|reset)/?|{CANCELS.pattern}")
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
# Events that wait in each group of handlers that share threads (Gradio's `concurrency_id`), so that what is
# slow takes no places of what is quick. Each keeps its arguments, up to twice `guard.LARGEST_BODY`.
MOST_WAITING = 20
MOST_UNREAD = 12  # events of a session whose answers nobody has read
SESSIONS = 100  # sessions with unread or read answers; each has one stream
BUSY = "The lab has too many requests now; try again in a minute."


class Call(NamedTuple):
    """A call that a page could send: the name of its session, the number of its handler, and the name of the
    event that it is about; names are "" for none."""

    session: str
    handler: int | None
    event: str


class Door:
    """ASGI app in front of Gradio's. `blocks` is its page, which has the queue."""

    def __init__(self, app: ASGIApp, blocks: gr.Blocks) -> None:
        self.app = app
        self.kept = Kept(app)
        self.queue = blocks._queue
        self.groups = groups(blocks)
        self.inputs = {number: len(fn.inputs) for number, fn in blocks.fns.items()}
        self.streams: set[str] = set()  # sessions whose events are being sent
        self.ending: set[str] = set()  # those of them that are being ended to make room
        self.joins: list[Call] = []  # that are on their way: they count as if they waited already
        self.bars = 0  # streams of progress
        self.named: deque[str] = deque()  # uploads and streams of progress that have ended
        # Gradio's loop over all that waits ends for good where a session has none.
        self.queue.send_message = partial(_send, self.queue, self.queue.send_message)  # type: ignore[method-assign]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not ROUTES.fullmatch(scope["path"]):
            await _say("There is no such page.", 404)(scope, receive, send)
        elif scope["method"] == "POST" and CALLS.fullmatch(scope["path"]):
            await self._call(scope, receive, send)
        elif EVENTS.fullmatch(scope["path"]):
            await self._events(scope, receive, send)
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
        """Pass on a call as the page sends them."""
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
            await _say(UNFIT, 422)(scope, receive, send)
        elif CANCELS.fullmatch(scope["path"]):
            await self._cancel(call)
            await JSONResponse({"success": True})(scope, receive, send)
        else:
            await self._pass_on(call, body, scope, receive, send)

    async def _pass_on(self, call: Call, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a sound call, one for the queue only if there is room for it."""
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        if "/queue/join" not in scope["path"]:
            await self.app(scope, again, send)
            return
        self.joins.append(call)
        try:
            if await self._has_room(call.session) and await self._has_place(call):
                await self.app(scope, again, send)
                return
        finally:
            self.joins.remove(call)
        await _say(BUSY, 503)(scope, receive, send)

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request for the events of a session, which are answered until all are read."""
        session = QueryParams(scope["query_string"]).get("session_hash", "")
        if session not in self.queue.pending_messages_per_session:
            await _no_session()(scope, receive, send)
        elif session in self.streams:  # a page has one; two would each get only some events
            await _say(BUSY, 503)(scope, receive, send)
        else:
            self.streams.add(session)
            try:
                await self.app(scope, receive, send)
            finally:
                self.streams.discard(session)
                has_events = any(e.session_hash == session for e in self.queue.event_ids_to_events.values())
                if session in self.ending and has_events:  # one has come since it was chosen to make room
                    self.ending.discard(session)
                elif session in self.ending or session not in self.queue.pending_messages_per_session:
                    self._forget(session)

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

    async def _cancel(self, call: Call) -> None:
        """End an event of the session that the call names, once.

        Gradio cancels all tasks of a session and a handler, as often as it is asked to. A task that is
        canceled before its first step, or while it tidies up, never gives back its place, of which all share
        a few.
        """
        event = self.queue.event_ids_to_events.get(call.event)
        if event is None or event.session_hash != call.session or not event.alive:
            return
        messages = self.queue.pending_messages_per_session.get(call.session)
        if messages is not None and call.event in self.queue.pending_event_ids_session.get(call.session, ()):
            messages.put_nowait(ProcessCompletedMessage(output={}, success=True, event_id=call.event))
        event.alive = False  # enough for one that has not started yet
        await self.queue.remove_from_queue(call.event)
        if [event] in self.queue.active_jobs:  # else it never began, or is tidying up
            for task in self.queue._asyncio_tasks:
                if task.get_name().endswith(f"<gradio-sep>{call.event}") and _has_begun(task):
                    task.cancel()

    async def _has_place(self, call: Call) -> bool:
        """Whether one more event may wait for its handler. If needed, another one makes room: the oldest of
        those whose answers nobody reads, else the newest of a session that has more of them than this one.

        Gradio counts all that wait, so whoever fills the queue of one slow handler would stop all others.
        """
        kind = self.groups.get(call.handler, "")
        group = self.queue.event_queue_per_concurrency_id.get(kind)
        waiting = [] if group is None else list(group.queue)
        coming = [self.groups.get(other.handler, "") for other in self.joins].count(kind) - 1
        if len(waiting) + coming < MOST_WAITING:
            return True
        if not waiting:
            return False
        left = next((event for event in waiting if event.session_hash not in self.streams), None)
        if left is None:
            many = Counter(event.session_hash for event in waiting)
            left = max(reversed(waiting), key=lambda event: many[event.session_hash])
            if many[left.session_hash] <= many[call.session] + 1:
                return False
        await self._drop(left)
        return True

    async def _drop(self, event: Event) -> None:
        """Let an event wait no more, and tell its page, if there is one."""
        await self.queue.remove_from_queue(event._id)
        messages = self.queue.pending_messages_per_session.get(event.session_hash)
        if event._id not in self.queue.event_ids_to_events and messages is not None:  # else it has just begun
            said = ProcessCompletedMessage(output={"error": BUSY}, success=False, event_id=event._id)
            messages.put_nowait(said)

    async def _has_room(self, session: str) -> bool:
        """Whether one more answer can be kept. If needed, a session makes room: the oldest that has read all
        its answers, else the oldest that is not reading, and at last one whose events nobody waits for.

        Gradio itself would forget the oldest session, even one that is reading or has running events.
        """
        kept, unread = self.queue.pending_messages_per_session, self.queue.pending_event_ids_session
        self.ending.discard(session)
        joins = [call.session for call in self.joins]
        others = {*kept, *joins} - self.ending - {session}
        if session in kept or len(others) < SESSIONS:
            return len(unread.get(session, ())) + joins.count(session) - 1 < MOST_UNREAD
        busy = {event.session_hash for event in self.queue.event_ids_to_events.values()} | self.ending
        busy.update(joins)
        reading = {name for name in self.streams if unread.get(name)}
        free = [name for name in kept if name not in busy | reading]
        if not free:
            left = next((name for name in kept if name not in {*self.streams, *self.ending, *joins}), None)
            if left is None:
                return False
            await self.queue.clean_events(session_hash=left)  # as Gradio does when a page is closed
            self._forget(left)
            return True
        oldest = min(free, key=lambda name: (bool(unread.get(name)), name in self.streams))
        if oldest in self.streams:
            # As Gradio does for canceled events: it says that the stream is over, and a page opens another
            # one at its next event. A page whose stream just breaks off would reload itself.
            self.ending.add(oldest)
            unread.setdefault(oldest, set())
            kept[oldest].put_nowait(ProcessCompletedMessage(output={}, success=True, event_id="none"))
        else:
            self._forget(oldest)
        return True

    def _forget(self, session: str) -> None:
        self.ending.discard(session)
        self.queue.pending_messages_per_session.pop(session, None)
        self.queue.pending_event_ids_session.pop(session, None)


def _send(queue: Queue, send: Callable[[Event, Any], None], event: Event, message: Any) -> None:
    """Send a message to the session of an event, if it is still known."""
    if event.session_hash in queue.pending_messages_per_session:
        send(event, message)


def groups(blocks: gr.Blocks) -> dict[int | None, str]:
    """The group that each handler waits in, of those that wait."""
    waits = {number: fn for number, fn in blocks.fns.items() if fn.fn and fn.queue is not False}
    return {number: str(fn.concurrency_id) for number, fn in waits.items()}


def sound(body: bytes, inputs: Mapping[int, int]) -> Call | None:
    """The call in a body; None if no page would send it.

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
    session, event = (name or "" for name in names)
    return Call(session, given.get("fn_index"), event) if fits else None


def _is_filled(given: dict[str, Any], inputs: Mapping[int, int]) -> bool:
    """Whether a call has as many values as its handler takes. Which handler it is may stand in its path."""
    data = given.get("data", [])
    return isinstance(data, list) and len(data) <= inputs.get(given.get("fn_index", -1), MOST_VALUES)


def _has_begun(task: asyncio.Task[Any]) -> bool:
    work = task.get_coro()
    return inspect.iscoroutine(work) and inspect.getcoroutinestate(work) != inspect.CORO_CREATED


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def _say(text: str, status: int) -> Response:
    return PlainTextResponse(text + "\n", status_code=status)


def _no_session() -> Response:
    """Gradio's answer to a request for the events of an unknown session, without its hundred lines of log."""
    said = UnexpectedErrorMessage(message="404: Not Found", session_not_found=True).model_dump_json()
    return Response(f"data: {said}\n\n", media_type="text/event-stream")
