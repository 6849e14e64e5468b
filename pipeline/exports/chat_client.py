"""Ask an exported model: `stream` is how the page and the command line get answers.

It starts a process for a model, see `chat_server`, when needed, and keeps it for the next prompt.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import stat
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, serving_ids
from pipeline.exports.verifying import adapter_files
from pipeline.inputs.options import coerce, describe, option
from pipeline.inputs.prompts import templates
from pipeline.store.run import DONE, Run
from pipeline.system import own_process
from pipeline.system.files import to_json

SIDES = ("base", "adapter")
NO_TURNS: Mapping[str, Sequence[tuple[str, str]]] = {}
MOST_PROCESSES = 2
MOST_FAILED = 50  # models that did not load, of which the reason is kept
MOST_SLOW = 1000  # folders of which it is known that their models load slowly
MOST_ASKED = 8  # questions that a model answers at a time
OLD_SECONDS = 15.0  # after which a question makes room for another,
TURN_SECONDS = 30.0  # and a model for another one, whatever it is asked
LOOK_SECONDS = 0.2
SLOW_SECONDS = 10.0  # after which a model that is being loaded lets the next one start
START_SECONDS = 120.0
RETRY_SECONDS = 300.0  # for which one that has not loaded by then is refused
LINE_LIMIT = 4 * 1024 * 1024  # bytes: a whole answer, each of its letters escaped, has less
# Of a lab.json: bytes, and lists and mappings. It names each added token, of which Gemma 3 has 6,400; most
# models have some hundred, which is less than 30 kB.
LARGEST_LAB = 1 << 19
MOST_PARTS = 10_000
BUSY = "Many others are being answered just now; try again in a minute."
ENDED = "The inference process ended while it loaded the model."
WAITS = "Another model is being loaded; this one waits for its turn…"
UNREADABLE = "The inference process said what cannot be read; export the model again, then ask again."
MADE_ROOM = "Others wait to be answered, so this answer was ended; try again later, or ask for fewer tokens."


class _TakesLong(Exception):
    """A model loads slowly, and another one that does is being loaded."""


class Refused(LabError):
    """The model cannot be asked this; it can be asked something else."""


@dataclass(frozen=True)
class Answering:
    """How an answer is drawn."""

    seed: int = option(0, "The same seed draws the same answer", min=0, max=2**31 - 1)
    max_new_tokens: int = option(128, "The longest answer", min=1, max=1_000_000)
    temperature: float = option(0.0, "0 always picks the most likely token", min=0, max=100)


SEED, TOKENS, TEMPERATURE = describe(Answering)


@dataclass(frozen=True)
class Source:
    """An exported model that can answer: its name in messages, its folder, and its adapter, if that is a file
    of its own; `merged` if it is in the weights or the graph.

    `others` are adapters that are loaded as well, each asked by its file's name without suffix."""

    name: str
    folder: Path
    adapter: Path | None
    merged: bool
    others: tuple[Path, ...] = ()

    def words(self) -> list[str]:
        """The source as arguments for a process."""
        merged = "merged" if self.merged else ""
        return [self.name, str(self.folder), str(self.adapter or ""), merged, *map(str, self.others)]

    @classmethod
    def from_words(cls, name: str, folder: str, adapter: str, merged: str, *others: str) -> Source:
        """A source from `words`."""
        own = Path(adapter) if adapter else None
        return cls(name, Path(folder), own, bool(merged), tuple(map(Path, others)))

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of "base" and "adapter" can answer."""
        if self.merged:
            return ("adapter",)
        return SIDES if self.adapter else ("base",)

    @property
    def bound(self) -> bool:
        """Whether the adapter is a part of the graph."""
        return self.merged and (self.folder / contract.BOUND).is_file()

    @property
    def missing_side(self) -> str | None:
        """Why only one side can answer; None if both can."""
        if self.bound:
            return (
                f"The adapter of {self.name} is a part of its graph;"
                " the folder that it was bound from has its base."
            )
        if self.merged:
            return f"The adapter of {self.name} is merged into its weights; there is no base to compare with."
        return None if self.adapter else f"There is no adapter in {self.name}; its base answers alone."


def of_run(run: Run) -> Source:
    """What a run exported. Raises LabError if it cannot answer."""
    folder, adapter = run.artifact("onnx"), run.artifact("onnx_adapter")
    if folder is None and run.artifact("workflow"):
        raise LabError(f"Run {run.id} has a workflow and no model: its export is not run here.")
    if run.status != DONE and folder is None:
        raise LabError(f"Run {run.id} is {run.status}; it can answer once its optimize stage is done.")
    if folder is None or not Path(folder).is_dir():
        raise LabError(
            f"Run {run.id} has no exported model; its recipe leaves optimize out, or it was deleted."
        )
    merged = run.artifact("merged") is not None
    return Source(f"run {run.id}", Path(folder), Path(adapter) if adapter else None, merged)


def of_folder(folder: Path, name: str) -> Source:
    """Any exported folder. Of several adapters, the one with the name that our exports use, else the first.

    Raises InputError if there is no such folder, or if it has more adapters than one is asked with.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    merged = (folder / contract.MERGED).is_file() or (folder / contract.BOUND).is_file()
    return Source(name, folder, adapter_files.usual_adapter(folder), merged)


def with_adapter(source: Source, given: str) -> Source:
    """The source with another adapter: the name of a file in its folder, suffix optional, or a path.

    Raises InputError, listing the folder's adapters, if there is none, or if the adapter is merged.
    """
    if source.merged:
        where = "a part of its graph" if source.bound else "merged into its weights"
        raise InputError(f"The adapter of {source.name} is {where}; it takes no other.")
    return replace(source, adapter=adapter_files.named_adapter(source.folder, given))


@dataclass(frozen=True)
class Asks:
    """What an exported model's folder says of its prompts: their fields, and whether a system text may be
    there."""

    fields: tuple[str, ...] = ("prompt",)
    system: bool = False


def takes_system(source: Source) -> bool:
    """Whether the prompts of an exported model can have a system text, as far as its folder says."""
    return _asks(source).system


def prompt_fields(source: Source) -> tuple[str, ...]:
    """The fields that a prompt of an exported model has, as far as its folder says; else one, `prompt`."""
    return _asks(source).fields


def _asks(source: Source) -> Asks:
    """What lab.json says; the least if there is none that can be read, which asking the model reports."""
    file = source.folder / serving_ids.LAB
    try:
        there = file.stat()
    except (OSError, ValueError):
        return Asks()
    if not stat.S_ISREG(there.st_mode) or there.st_size > LARGEST_LAB:
        return Asks()
    return _read_asks(file, there.st_ino, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=64)
def _read_asks(file: Path, _inode: int, _changed: int, _size: int) -> Asks:
    """The same of a file, which is parsed once until it changes: anybody can have brought it, and the page
    asks for it at each event."""
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST_LAB + 1)
        if len(text) > LARGEST_LAB or text.count(b"[") + text.count(b"{") > MOST_PARTS:
            return Asks()
        lab = json.loads(text.decode())
    except (OSError, ValueError, RecursionError):
        return Asks()
    if not isinstance(lab, dict):
        return Asks()
    optional, fields = lab.get("optional", ["system"]), lab.get("fields")
    system = lab.get("template") == templates.CHAT and isinstance(optional, list) and "system" in optional
    if not (isinstance(fields, list) and 0 < len(fields) <= templates.MOST_FIELDS):
        return Asks(system=system)
    if not all(map(_is_name, fields)):
        return Asks(system=system)
    return Asks(tuple(dict.fromkeys(fields)), system)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= templates.LONGEST_FIELD and display.valid(name) == name


@dataclass
class _Asked:
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
class _Server:
    """One inference process and the questions that wait for its answers, oldest first."""

    process: asyncio.subprocess.Process
    answers: dict[int, _Asked] = field(default_factory=dict)
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


_servers: dict[Source, _Server] = {}
_numbers = itertools.count(1)
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


async def stream(
    home: Path,
    source: Source,
    prompt: str,
    sides: tuple[str, ...] | None = None,
    seed: int = 0,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    system: str = "",
    turns: Mapping[str, Sequence[tuple[str, str]]] = NO_TURNS,
    gather_seconds: float = 0.0,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield pieces of the answers as they are generated, `sides` interleaved; closing the iterator cancels.

    A piece has the text of one token, or of what is generated in `gather_seconds`, the first one excepted;
    each takes time of this process.
    `system` goes before the prompt where the model's chat template takes one; `turns` are earlier questions
    and answers by side. `temperature` 0 always picks the most likely token. The last piece of a side has
    done, tokens, cut (by `max_new_tokens` or by what the model reads), tokens_per_second,
    first_token_seconds, and SHA-256 of the files that answered: adapter (None for none) and graph, by name.
    Questions are answered by turns; where a model has too many, the oldest one ends. Raises LabError if the
    model cannot answer or has no turn left, InputError for a number out of bounds.
    """
    for value, known in ((seed, SEED), (max_new_tokens, TOKENS), (temperature, TEMPERATURE)):
        coerce(known, value, known.name)
    request = {
        "prompt": prompt, "sides": list(sides or source.sides), "seed": seed,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "system": system,
        "turns": {side: [list(turn) for turn in said] for side, said in turns.items()},
        "gather_seconds": gather_seconds,
    }  # fmt: skip
    if not prompt.strip():
        raise InputError("The prompt is empty; type a question first.")
    texts = "".join((prompt, system, *(text for said in turns.values() for turn in said for text in turn)))
    if display.valid(texts) != texts:
        raise InputError("The prompt has half of a character; type it again.")
    async with aclosing(exchange(home, source, request)) as pieces:
        async for piece in pieces:
            yield piece


async def probe(home: Path, source: Source) -> dict[str, Any]:
    """What the model's process says of its files, and of logits with its adapter and without: see
    `detaching`. A source without an adapter is probed in a process of its own, which ends.

    Raises LabError if it cannot be asked.
    """
    fresh = source.adapter is None
    asked = replace(source, name=f"{source.name}, probed") if fresh else source  # shared with nobody
    try:
        async with aclosing(exchange(home, asked, {"probe": True})) as pieces:
            async for piece in pieces:
                if "probe" in piece:
                    return dict(piece["probe"])
        raise LabError("The model did not answer the probe; try again.")
    finally:
        if fresh:
            await unload(asked)


def waits(source: Source) -> bool:
    """Whether a model that is asked now is loaded after another one."""
    queue = _starting_slowly if source.folder in _slow else _starting
    return _loaded(source) is None and source not in _loading and queue.locked()


async def load(home: Path, source: Source) -> None:
    """Have a model loaded before it is asked. Raises LabError if that fails."""
    await _server(home, source)


async def unload(source: Source) -> None:
    """End a model's process, and all that it answers; the next question starts another one."""
    if source in _servers:
        await _end(source)


async def exchange(
    home: Path, source: Source, request: dict[str, Any], most: int | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces that a model's process answers a request with, as `chat_server` describes; closing it ends
    the answer. Where the model answers `most` others, by default MOST_ASKED, the oldest makes room.

    Raises LabError, a Refused where the request itself is at fault.
    """
    server = await _server(home, source)
    _make_room_for_one(server, most or MOST_ASKED)
    number = next(_numbers)
    asked = server.answers[number] = _Asked()
    finished = False
    try:
        await _send(server, {"id": number, **request})
        while True:
            answer = await asked.answer.get()
            if "error" in answer:
                finished = "left" not in answer
                raise (Refused if answer.get("refused") else LabError)(answer["error"])
            if answer.get("end"):
                finished = True
                return
            yield {key: value for key, value in answer.items() if key != "id"}
    finally:
        server.answers.pop(number, None)
        if not finished and server.process.returncode is None:
            with suppress(LabError):
                await _send(server, {"cancel": number})


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


async def _server(home: Path, source: Source) -> _Server:
    """The process that serves this model, started if needed; the longest idle one is ended to make room.

    A loaded one is returned at once. Nothing is awaited between finding it and using it, so that nobody can
    end it in between.
    """
    server = _loaded(source)
    if server is None:
        server = await _in_turn(home, source)
    server.used = time.monotonic()
    return server


async def _in_turn(home: Path, source: Source) -> _Server:
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


async def _load(home: Path, source: Source, came: float, queue: asyncio.Lock) -> _Server:
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


async def _started(home: Path, source: Source, turn: _Turn) -> _Server:
    """`_start`, which keeps why it failed for those who wait for the same."""
    try:
        return await _start(home, source, turn)
    except LabError as error:
        for oldest in [*_failed][: -MOST_FAILED + 1]:
            del _failed[oldest]
        _failed[source] = time.monotonic(), str(error)
        raise


def _loaded(source: Source) -> _Server | None:
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


def _make_room_for_one(server: _Server, most: int) -> None:
    """End the oldest question of a model that answers too many. Raises LabError if all are young."""
    if len(server.answers) < most:
        return
    number, asked = next(iter(server.answers.items()))
    if not asked.old:
        raise LabError(BUSY)
    del server.answers[number]
    asked.make_room()


async def _start(home: Path, source: Source, turn: _Turn) -> _Server:
    with (home / "inference.log").open("ab") as log:
        words = ["-m", "pipeline.exports.chat_server", *source.words()]
        environment = settings.local_environment(OLIVE_LAB_HOME=str(home))
        process = await own_process.converse(words, environment, stderr=log, longest_line=LINE_LIMIT)
    started = time.monotonic()
    assert process.stdout is not None
    try:
        line = await _first_line(source, process.stdout, turn)
        ready = json.loads(line) if line else {"error": ENDED}
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            _remember_slow(source, refused_for=RETRY_SECONDS)
            raise LabError(_late(source)) from None
        if isinstance(error, ValueError):  # no JSON, or a line longer than LINE_LIMIT
            raise LabError(UNREADABLE) from None
        raise
    if "error" in ready:
        await process.wait()
        raise LabError(ready["error"])
    if time.monotonic() - started < _seconds():  # it may have been slow for want of memory
        _slow.pop(source.folder, None)
    server = _Server(process)
    server.reader = asyncio.create_task(_read(server))
    return server


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


async def _read(server: _Server) -> None:
    """Pass each answer to the request that waits for it; tell all requests if the process ends."""
    assert server.process.stdout is not None
    try:
        while line := await server.process.stdout.readline():
            answer = json.loads(line)
            asked = server.answers.get(answer.get("id"))
            if asked is not None:
                asked.answer.put_nowait(answer)
    except ValueError:  # longer than any answer of ours
        server.process.kill()
    await server.process.wait()
    for asked in server.answers.values():
        asked.answer.put_nowait({"error": "The inference process ended; memory may have run out. Try again."})


async def _send(server: _Server, request: dict[str, Any]) -> None:
    assert server.process.stdin is not None
    server.process.stdin.write(to_json(request).encode() + b"\n")
    try:
        await server.process.stdin.drain()
    except ConnectionError:
        raise LabError("The inference process has ended; try again.") from None


async def _end(key: Source) -> None:
    server = _servers.pop(key)
    if server.process.returncode is None:
        server.process.kill()
    await server.process.wait()
    if server.reader is not None:
        await server.reader
