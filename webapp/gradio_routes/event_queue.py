"""Events that wait for their turn, those that are carried out, and answers that nobody has read yet.

It is used instead of Gradio's queue, which counts places, events and sessions apart from the tasks that have
them: a cancel or a burst of calls at the wrong moment lost places for good, or ended all events. Here an
event has a place for as long as its task is there, and nothing is awaited between a look and what follows
from it. All of it belongs to the event loop; only `show` may be called by threads.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import gradio as gr
from gradio import route_utils, utils
from gradio.block_function import BlockFunction
from gradio.data_classes import PredictBodyInternal
from gradio.routes import App
from gradio.server_messages import (
    CloseStreamMessage,
    EventMessage,
    HeartbeatMessage,
    LogMessage,
    ProcessCompletedMessage,
    ProcessGeneratingMessage,
    ProcessStartsMessage,
)

from webapp.handler_values import BROKEN

# Events that wait in each group of handlers that share threads (Gradio's `concurrency_id`), so that what is
# slow takes no places of what is quick. Each keeps its arguments, up to twice `guard.LARGEST_BODY`.
MOST_WAITING = 20
MOST_UNREAD = 12  # events of a session whose last answer has not been read
LARGEST_UNREAD = 4 << 20  # bytes of answers that a session has not read
SESSIONS = 400  # with events: more than can wait and run at once, so that one of them need not make room
UNREAD_SECONDS = 30.0  # after which a session that nobody reads is forgotten: a page asks for answers at once
HEARTBEAT_SECONDS = 15.0  # between messages of a stream, so that no tunnel takes it for dead
BUSY = "The lab has too many requests now; try again in a minute."
SLOW = "The lab has sent more answers than this page could read; reload the page and try again."
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Event:
    """A call of a handler, until its last answer has been read."""

    session: Session
    handler: BlockFunction
    group: Group
    call: PredictBodyInternal | None  # None when it is no longer needed
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    task: asyncio.Task[None] | None = None
    is_left: bool = False  # nobody waits for it, or it ends by itself
    is_over: bool = False  # its last answer is there


@dataclass(eq=False)
class Session:
    """An open page that has events."""

    name: str
    events: dict[str, Event] = field(default_factory=dict)
    unread: list[bytes] = field(default_factory=list)
    size: int = 0  # bytes of `unread`
    is_read: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> bytes:
        """All unread answers, which are read with that; so are the events that are over."""
        text, self.unread, self.size = b"".join(self.unread), [], 0
        self.events = {name: event for name, event in self.events.items() if not event.is_over}
        self.news.clear()
        return text


@dataclass(eq=False)
class Group:
    """Handlers that share places."""

    places: int
    waiting: list[Event] = field(default_factory=list)
    running: set[Event] = field(default_factory=set)


class EventQueue:
    """The events of a page of Gradio's, `app`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.blocks: gr.Blocks = app.get_blocks()
        self.handlers = {
            number: handler
            for number, handler in self.blocks.fns.items()
            if handler.fn and handler.queue is not False
        }
        self.groups = self._groups()
        self.sessions: dict[str, Session] = {}  # the oldest first
        self._loop: asyncio.AbstractEventLoop | None = None
        # Its own would look for events all the time, and its messages go to sessions that it doesn't have.
        setattr(self.blocks._queue, "start", lambda: None)  # noqa: B010 - a method, to mypy
        setattr(self.blocks._queue, "log_message", self.show)  # noqa: B010

    def join(self, call: PredictBodyInternal) -> str | None:
        """Have a session's call of one of `handlers` carried out: the name of the event.

        None if there is no place for it. If needed, others make room: the oldest session that nobody reads;
        and of events that wait, the oldest that nobody reads, else the newest of a session that has more.
        """
        assert call.session_hash is not None
        assert call.fn_index is not None
        handler, name = self.handlers[call.fn_index], call.session_hash
        group, session = self.groups[str(handler.concurrency_id)], self.sessions.get(name)
        full = session is None and len(self.sessions) >= SESSIONS
        crowded = len(group.waiting) >= MOST_WAITING
        forgotten = self._least_missed() if full else None
        dropped = _makes_room(group, name) if crowded else None
        if (full and forgotten is None) or (crowded and dropped is None):
            return None
        if session is not None and len(session.events) >= MOST_UNREAD:
            return None
        if forgotten is not None:
            self._forget(forgotten)
        if dropped is not None:
            self._leave(dropped, {"error": BUSY}, success=False)
        if session is None:
            session = self.sessions[name] = Session(name)
            asyncio.get_running_loop().call_later(UNREAD_SECONDS, self._forget_unread, session)
        event = Event(session, handler, group, call)
        session.events[event.id] = event
        group.waiting.append(event)
        self._fill(group)
        return event.id

    def cancel(self, session: str, event: str) -> None:
        """Have an event end whose page waits for it no longer, if it is there."""
        found = self.sessions[session].events.get(event) if session in self.sessions else None
        if found is not None:
            self._leave(found, {}, success=True)

    @contextmanager
    def reading(self, name: str) -> Iterator[AsyncIterator[bytes]]:
        """The answers to a session that is there, as server-sent events, until all events are over.

        When reading ends before, nobody waits for the rest.
        """
        session = self.sessions[name]
        session.is_read = True
        try:
            yield self._answers(session)
        finally:
            self._forget(session)

    def show(
        self,
        event_id: str,
        log: str,
        title: str,
        level: Literal["info", "warning", "success"],
        duration: float | None = 10,
        visible: bool = True,
    ) -> None:
        """Show a text on the page of an event, as `gr.Info` and `gr.Warning` in its handler ask for."""
        message = LogMessage(log=log, level=level, duration=duration, visible=visible, title=title)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._show, event_id, message)

    def _show(self, name: str, message: LogMessage) -> None:
        for group in self.groups.values():
            for event in group.running:
                if event.id == name:
                    self._send(event, message)

    def _groups(self) -> dict[str, Group]:
        """The groups by name, each with the fewest places that one of its handlers asks for."""
        found: dict[str, Group] = {}
        for handler in self.handlers.values():
            limit = handler.concurrency_limit
            places = self.blocks._queue.default_concurrency_limit if limit == "default" else limit
            assert isinstance(places, int), "no handler has endless places"
            group = found.setdefault(str(handler.concurrency_id), Group(places))
            group.places = min(group.places, places)
        return found

    def _least_missed(self) -> Session | None:
        """A session that nobody reads: the oldest whose events are over, else the oldest."""
        left = [session for session in self.sessions.values() if not session.is_read]
        return min(left, key=lambda one: any(not e.is_over for e in one.events.values()), default=None)

    def _forget_unread(self, session: Session) -> None:
        if not session.is_read:
            self._forget(session)

    def _fill(self, group: Group) -> None:
        """Start what waits, as far as there are places; first what somebody reads the answers of."""
        while group.waiting and len(group.running) < group.places:
            event = next((event for event in group.waiting if event.session.is_read), group.waiting[0])
            group.waiting.remove(event)
            group.running.add(event)
            event.task = asyncio.get_running_loop().create_task(self._carry_out(event))
            event.task.add_done_callback(partial(self._ended, event))

    def _ended(self, event: Event, task: asyncio.Task[None]) -> None:
        """Give a place back, however its task has ended: also one that was canceled before its first step."""
        event.group.running.discard(event)
        event.call = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("An event failed", exc_info=error)
        self._end(event, {"error": BROKEN}, success=False)
        self._fill(event.group)

    async def _carry_out(self, event: Event) -> None:
        """Call the handler, and send its answers until the last one or until nobody waits for them."""
        self._loop = asyncio.get_running_loop()
        answers = self._called(event)
        try:
            self._send(event, ProcessStartsMessage())
            async for output in answers:
                if not output["is_generating"]:
                    self._end(event, output, success=True)
                elif not event.is_left:
                    self._send(event, ProcessGeneratingMessage(output=output, success=True))
                if event.is_left:
                    break
        except gr.Error as error:
            refused = utils.error_payload(error, self.blocks.show_error)
            self._end(event, refused, success=False, title=error.title)
        finally:
            event.is_left = True  # so that no cancel comes while it tidies up
            await answers.aclose()

    async def _called(self, event: Event) -> AsyncGenerator[dict[str, Any], None]:
        """The outputs of a handler: of a generator several, and the last one again. Raises gradio.Error."""
        call, session = event.call, event.session.name
        assert call is not None
        assert call.request is not None
        state = self.app.state_holder[session]
        path = route_utils.get_api_call_path(request=call.request)
        given: dict[str, Any] = {
            "request": route_utils.Request(request=call.request, session_hash=session),
            "state": state,
            "session_hash": session,
            "event_id": event.id,
            "event_data": route_utils.prepare_event_data(state.blocks_config, call),
            "root_path": route_utils.get_root_url(call.request, path, self.app.root_path),
        }
        iterator = None
        try:
            while True:
                output = await self.blocks.process_api(event.handler, call.data, iterator=iterator, **given)
                iterator = output.pop("iterator")
                yield output
                if not output["is_generating"]:
                    return
        finally:
            if iterator is not None:
                self.blocks._drop_run_streams(session, iterator)
                await iterator.aclose()

    async def _answers(self, session: Session) -> AsyncIterator[bytes]:
        while session.events:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await session.news.wait()
            except TimeoutError:
                yield _sent(HeartbeatMessage())
                continue
            text = session.take()
            if not session.events:  # a call that comes from now on has a new stream
                self._forget(session)
                text += _sent(CloseStreamMessage())
            yield text

    def _send(self, event: Event, message: EventMessage) -> None:
        """Keep a message for the page of an event, unless it is over."""
        if event.is_over:
            return
        message.event_id = event.id
        text = _sent(message)
        event.session.unread.append(text)
        event.session.size += len(text)
        event.session.news.set()
        if event.session.size > LARGEST_UNREAD and isinstance(message, ProcessGeneratingMessage):
            self._leave(event, {"error": SLOW}, success=False)

    def _end(self, event: Event, output: dict[str, Any], *, success: bool, title: str | None = None) -> None:
        """Send the last answer of an event, if that has not been done."""
        self._send(event, ProcessCompletedMessage(output=output, success=success, title=title))
        event.is_over = True

    def _leave(self, event: Event, output: dict[str, Any], *, success: bool) -> None:
        """Have an event end, and its page know so now.

        One whose handler works in a thread ends with its next answer: its place is needed until then.
        """
        self._end(event, output, success=success)
        if event in event.group.waiting:
            event.group.waiting.remove(event)
            event.call = None
        elif event.task is not None and not event.is_left:
            event.is_left = True
            if inspect.isasyncgenfunction(event.handler.fn):
                event.task.cancel()

    def _forget(self, session: Session) -> None:
        """Forget a session, and let its events end."""
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]
        for event in session.events.values():
            self._leave(event, {}, success=True)


def _makes_room(group: Group, session: str) -> Event | None:
    """Which of the waiting events makes room for one of that session; None for none."""
    unread = next((event for event in group.waiting if not event.session.is_read), None)
    if unread is not None or not group.waiting:
        return unread
    many = Counter(event.session.name for event in group.waiting)
    left = max(reversed(group.waiting), key=lambda event: many[event.session.name])
    return left if many[left.session.name] > many[session] + 1 else None


def _sent(message: EventMessage) -> bytes:
    """A message as it is sent, with null for numbers that JSON lacks."""
    return f"data: {message.model_dump_json(fallback=str)}\n\n".encode()
