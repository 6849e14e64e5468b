"""The processes that answer for exported models, see `chat_server`: started when needed, one model at a time,
and ended to make room for others.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.exports.chat.sources import Source
from pipeline.system import files, own_process
from pipeline.system.files import to_json

MOST_PROCESSES = 2
MOST_FAILED = 50  # models that did not load, of which the reason is kept
MOST_SLOW = 1000  # folders of which it is known that their models load slowly
OLD_SECONDS = 15.0  # after which a question makes room for another,
TURN_SECONDS = 30.0  # and a model for another one, whatever it is asked
LOOK_SECONDS = 0.2
SLOW_SECONDS = 10.0  # after which a model that is being loaded lets the next one start
START_SECONDS = 120.0
RETRY_SECONDS = 300.0  # for which one that has not loaded by then is refused
LINE_LIMIT = 4 * 1024 * 1024  # bytes: a whole answer, each of its letters escaped, has less
ENDED = "The inference process ended while it loaded the model."
WAITS = "Another model is being loaded; this one waits for its turn…"
UNREADABLE = "The inference process said what cannot be read; export the model again, then ask again."
MADE_ROOM = "Others wait to be answered, so this answer was ended; try again later, or ask for fewer tokens."


class _TakesLong(Exception):
    """A model loads slowly, and another one that does is being loaded."""


@dataclass
class Asked:
    """A question: since when it is asked, in seconds of the monotonic clock, and its answer as it comes."""

    began: float = field(default_factory=time.monotonic)
    answer: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)

    @property
    def old(self) -> bool:
        return time.monotonic() - self.began >= OLD_SECONDS

    def make_room(self) -> None:
        """End it for another's sake."""
        self.answer.put_nowait({"error": MADE_ROOM, "left": True})


@dataclass
class Server:
    """One inference process, what is removed at its end, and the questions that wait for its answers, oldest
    first."""

    process: asyncio.subprocess.Process
    made: ExitStack = field(default_factory=ExitStack)
    answers: dict[int, Asked] = field(default_factory=dict)
    reader: asyncio.Task[None] | None = None
    used: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def stays(self) -> float:
        """Until when it makes no room for another model, in seconds of the monotonic clock; 0 when idle."""
        if not self.answers:
            return 0.0
        newest = max(asked.began for asked in self.answers.values())
        return min(newest + OLD_SECONDS, self.began + TURN_SECONDS)


_servers: dict[Source, Server] = {}
_loading: set[Source] = set()
_starting = asyncio.Lock()  # one model is loaded at a time,
_starting_slowly = asyncio.Lock()  # and one of those that load slowly, which wait for each other only
_asked: WeakValueDictionary[Source, asyncio.Lock] = WeakValueDictionary()  # one of them waits for all
_failed: dict[Source, tuple[float, str]] = {}  # when and why a model did not load
_slow: dict[Path, float] = {}  # folders whose model loads slowly, and until when it is refused


@dataclass
class _Turn:
    """The turn of a model that is being loaded, in one of the two queues."""

    queue: asyncio.Lock

    async def __aenter__(self) -> _Turn:
        await self.queue.acquire()
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.queue.release()

    @property
    def slow(self) -> bool:
        return self.queue is _starting_slowly

    async def slow_down(self) -> None:
        """Let the next model start. Raises _TakesLong if one that loads slowly has its turn already."""
        try:
            async with asyncio.timeout(0):  # if nobody has that turn, nothing is waited for
                await _starting_slowly.acquire()
        except TimeoutError:
            raise _TakesLong from None
        self.queue.release()
        self.queue = _starting_slowly


def waits(source: Source) -> bool:
    """Whether a model that is asked now is loaded after another one."""
    queue = _starting_slowly if source.folder in _slow else _starting
    return _loaded(source) is None and source not in _loading and queue.locked()


async def load(home: Path, source: Source) -> None:
    """Have a model loaded before it is asked. Raises LabError if that fails."""
    await server(home, source)


async def unload(source: Source) -> None:
    """End a model's process, and all that it answers; the next question starts another one."""
    if source in _servers:
        await _end(source)


async def release_idle(seconds: float = 300.0) -> None:
    """End processes that have been idle for that long: a loaded model holds memory."""
    for key, server in list(_servers.items()):
        unused = not server.answers and time.monotonic() - server.used > seconds
        if unused and _servers.get(key) is server:
            await _end(key)


async def shutdown() -> None:
    """End all inference processes that this process started."""
    for key in list(_servers):
        await _end(key)


async def server(home: Path, source: Source) -> Server:
    """The process that serves this model, started if needed; the longest idle one is ended to make room.

    A loaded one is returned at once. Nothing is awaited between finding it and using it, so that nobody can
    end it in between.
    """
    server = _loaded(source)
    if server is None:
        server = await _in_turn(home, source)
    server.used = time.monotonic()
    return server


async def _in_turn(home: Path, source: Source) -> Server:
    """Load a model when it has its turn. One that took long is no longer among those that load in seconds, so
    that whoever asks such models again and again makes others wait only once, for seconds."""
    came = time.monotonic()
    async with _asked.setdefault(source, asyncio.Lock()):
        if (server := _loaded(source)) is not None:
            return server
        _check_not_refused(source, came)
        if source.folder not in _slow:
            with suppress(_TakesLong):
                return await _load(home, source, came, _starting)
        return await _load(home, source, came, _starting_slowly)


async def _load(home: Path, source: Source, came: float, queue: asyncio.Lock) -> Server:
    """Wait in a queue, then load the model. Raises _TakesLong if it has to wait in the other one."""
    async with _Turn(queue) as turn:
        _check_not_refused(source, came)
        if source.folder in _slow and not turn.slow:  # it was found while this one waited
            raise _TakesLong
        await _make_room()
        _loading.add(source)
        try:
            server = _servers[source] = await _started(home, source, turn)
        finally:
            _loading.discard(source)
        return server


def _check_not_refused(source: Source, came: float) -> None:
    """Raises LabError if the model was not loaded in time lately, or failed to load after somebody `came`."""
    failed, why = _failed.get(source, (came, ""))
    if failed > came:  # while this one waited: others have waited long enough for it
        raise LabError(why)
    if _slow.get(source.folder, 0.0) > time.monotonic():
        raise LabError(_late(source))


def _late(source: Source) -> str:
    left = display.about(_slow[source.folder] - time.monotonic())
    late = f"The model of {source.name} did not load within {START_SECONDS:.0f} seconds."
    return f"{late} It can be tried again in {left}."


async def _started(home: Path, source: Source, turn: _Turn) -> Server:
    """`_start`, which keeps why it failed for those who wait for the same."""
    try:
        return await _start(home, source, turn)
    except LabError as error:
        for oldest in [*_failed][: -MOST_FAILED + 1]:
            del _failed[oldest]
        _failed[source] = time.monotonic(), str(error)
        raise


def _loaded(source: Source) -> Server | None:
    server = _servers.get(source)
    return server if server is not None and server.process.returncode is None else None


async def _make_room() -> None:
    """End processes until one more may start: idle ones first. Waits for TURN_SECONDS at most.

    A model that is being loaded counts: two queues take no more memory than one.
    """
    while _servers and len(_servers) + len(_loading) >= MOST_PROCESSES:
        chosen = min(_servers, key=lambda key: (_servers[key].stays, _servers[key].used))
        if (left := _servers[chosen].stays - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_SECONDS))  # it may be done before
            continue
        for asked in _servers[chosen].answers.values():
            asked.make_room()
        await _end(chosen)


async def _start(home: Path, source: Source, turn: _Turn) -> Server:
    words = ["-m", "pipeline.exports.chat.chat_server", *source.words()]
    with ExitStack() as made:
        environment = made.enter_context(
            own_process.temporary(settings.local_environment(OLIVE_LAB_HOME=str(home)))
        )
        with files.log(home / "inference.log") as log:
            process = await own_process.converse(words, environment, stderr=log, longest_line=LINE_LIMIT)
        await _ready(source, process, turn)
        server = Server(process, made.pop_all())
    server.reader = asyncio.create_task(_read(server))
    return server


async def _ready(source: Source, process: asyncio.subprocess.Process, turn: _Turn) -> None:
    """Wait until a process has loaded its model. Raises LabError if it has not, and what `slow_down` raises;
    then it has ended.
    """
    started = time.monotonic()
    assert process.stdout is not None
    try:
        line = await _first_line(source, process.stdout, turn)
        ready = json.loads(line) if line else {"error": ENDED}
    except BaseException as error:
        await _ended(process)
        if isinstance(error, TimeoutError):
            _remember_slow(source, refused_for=RETRY_SECONDS)
            raise LabError(_late(source)) from None
        if isinstance(error, ValueError):  # no JSON, or a line longer than LINE_LIMIT
            raise LabError(UNREADABLE) from None
        raise
    if "error" in ready:
        await _ended(process)  # it has said all, and a runtime may not come to an end
        raise LabError(ready["error"])
    if time.monotonic() - started < _seconds():  # it may have been slow for want of memory
        _slow.pop(source.folder, None)


async def _first_line(source: Source, lines: asyncio.StreamReader, turn: _Turn) -> bytes:
    """What a process says once it has loaded its model. Raises TimeoutError, and what `slow_down` raises."""
    end = time.monotonic() + START_SECONDS
    with suppress(TimeoutError):
        async with asyncio.timeout(_seconds()):
            return await lines.readline()
    _remember_slow(source)
    if not turn.slow:
        await turn.slow_down()
    async with asyncio.timeout(end - time.monotonic()):
        return await lines.readline()


def _seconds() -> float:
    """How long a model takes at most that is not slow: two that are loaded at once share the processor."""
    return min(SLOW_SECONDS * len(_loading), START_SECONDS)


def _remember_slow(source: Source, refused_for: float = 0.0) -> None:
    """By its folder: with another adapter, or under another name, it loads as slowly."""
    _slow.pop(source.folder, None)
    for oldest in [*_slow][: -MOST_SLOW + 1]:
        del _slow[oldest]
    _slow[source.folder] = time.monotonic() + refused_for


async def _read(server: Server) -> None:
    """Pass each answer to the request that waits for it; tell all requests if the process ends."""
    assert server.process.stdout is not None
    try:
        while line := await server.process.stdout.readline():
            answer = json.loads(line)
            asked = server.answers.get(answer.get("id"))
            if asked is not None:
                asked.answer.put_nowait(answer)
    except ValueError:  # longer than any answer of ours
        await _ended(server.process)
    await server.process.wait()
    server.made.close()
    for asked in server.answers.values():
        asked.answer.put_nowait({"error": "The inference process ended; memory may have run out. Try again."})


async def send(server: Server, request: dict[str, Any]) -> None:
    assert server.process.stdin is not None
    server.process.stdin.write(to_json(request).encode() + b"\n")
    try:
        await server.process.stdin.drain()
    except ConnectionError:
        raise LabError("The inference process has ended; try again.") from None


async def _end(key: Source) -> None:
    server = _servers.pop(key)
    await _ended(server.process)
    if server.reader is not None:
        await server.reader


async def _ended(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it has just ended by itself
        process.kill()
    await process.wait()
