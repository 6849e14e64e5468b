"""Chat templates, rendered in other processes, where they may hang, crash or run out of memory harmlessly.

A chat template is a program from a model's folder. A few `sandbox` processes run such programs for this
process; they are started when needed and end when they have been idle for a while, or with this process.
They render many texts per message, so that a large dataset is not slow. A template that exceeds a limit is
refused with one sentence, and the next one gets a new process.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline import settings
from pipeline.errors import Busy, LabError
from pipeline.system import own_process
from pipeline.system.files import to_json

SECONDS = 2.0  # CPU time of one text
MEMORY = 256 << 20  # bytes that a template may use
CHARACTERS = 4 << 20  # of one text
ROW_SECONDS = 0.02  # CPU time of a text on average, over many
SPARE_SECONDS = 20.0  # what may be used beyond that
ROW_CHARACTERS = 1 << 15  # that a template adds to a text on average, over many: long instructions, say
SPARE_CHARACTERS = 1 << 25  # what may be added beyond that
STUCK_SECONDS = 120.0  # without an answer; only for a process that uses no CPU time
IDLE_SECONDS = 60.0
WAIT_SECONDS = 10.0  # until a process is free,
BRIEF_SECONDS = 2.0  # where
MANY = 12  # threads wait already: the page has 40 for everything
PROCESSES = 3  # one of them is kept for templates that have been rendered before
MOST_JOBS = 512  # of one message,
MOST_TEXT = 1 << 20  # and about how many characters
REMEMBERED = 256  # templates that have been rendered before
OUT_OF_MEMORY = 3  # the exit code of `sandbox`
RECEIVE_BYTES = 1 << 18
LOOK_SECONDS = 0.25  # how soon a waiting thread notices that the process ends
NAME = "template: the model's chat template"
OTHER = "write a template of your own, or choose another model"
HALF = re.compile("[\ud800-\udfff]")
LENGTH = struct.Struct(">I")

# Messages, add_generation_prompt, and tools where there are any.
Job = tuple[list[dict[str, Any]], bool] | tuple[list[dict[str, Any]], bool, list[dict[str, Any]]]


class Refused(NamedTuple):
    """Why a text could not be rendered, as a sentence."""

    sentence: str


Text = str | Refused


class Program:
    """A chat template for as long as it is used for one purpose, such as the rows of a dataset.

    Once it has exceeded a limit it is not run again: many rows would take many times the limit.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._source = source
        self._tokens = dict(tokens)
        self._digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
        self._pool = _pool
        self._broken: Text | None = None
        self._one_by_one = False
        self._seconds, self._texts, self._added = 0.0, 0, 0

    def texts(self, jobs: Sequence[Job]) -> Iterator[Text]:
        """The text of each job.

        Raises Busy if all processes are busy, LabError if none starts or `close` was called.
        """
        done = 0
        while done < len(jobs):
            found = self._some(_message(jobs, done)) if self._broken is None else [self._broken]
            done += len(found)
            yield from found

    def _some(self, jobs: Sequence[Job]) -> list[Text]:
        """The texts of the first few of these jobs."""
        request = {
            "source": self._source, "tokens": self._tokens, "jobs": jobs, "one_by_one": self._one_by_one,
        }  # fmt: skip
        found: list[Text] = []
        with self._pool.process(self._digest) as process:
            try:
                for answer in process.ask(request):
                    if "faulty" in answer:
                        self._broken = Refused(f"{NAME} is faulty: {answer['faulty']}; {OTHER}")
                    elif "seconds" in answer:
                        self._spend(answer["seconds"], len(found))
                    else:
                        found.append(_text(answer))
                        self._added += max(len(answer.get("text", "")) - _characters(jobs[len(found) - 1]), 0)
            except _Ended as end:
                self._pool.go_on()
                self._pool.distrust(self._digest)
                if found and not self._one_by_one:
                    self._one_by_one = True  # answers to jobs before the fatal one may be lost
                elif end.code != 0:  # with code 0, it ended because it was idle just before the request
                    self._broken = _text({"limit": end.reason()})
                return found
        self._pool.trust(self._digest)
        return found

    def _spend(self, seconds: float, texts: int) -> None:
        """Count what texts cost together: just within the limits for one is too much for a large dataset."""
        self._seconds += seconds
        self._texts += texts
        if self._seconds > SPARE_SECONDS + ROW_SECONDS * self._texts:
            self._broken = _text({"limit": f"it takes more than {1000 * ROW_SECONDS:g} milliseconds a text"})
        elif self._added > SPARE_CHARACTERS + ROW_CHARACTERS * self._texts:
            self._broken = _text({"limit": f"it adds more than {ROW_CHARACTERS:,} characters to a text"})


def close() -> None:
    """End all processes, even if other threads use them; a new Program starts a new one."""
    global _pool
    closed, _pool = _pool, _Pool()
    closed.close()


def _text(answer: dict[str, str]) -> Text:
    """The answer to one job: `text`, an `error` the template raised, or the `limit` it exceeded."""
    if "text" in answer:
        if HALF.search(answer["text"]):
            return Refused(f"{NAME} writes half of a character, which is no text; {OTHER}")
        return answer["text"]
    reason = answer["error"] if "error" in answer else f"{answer['limit']}; {OTHER}"
    return Refused(f"{NAME} cannot be rendered: {reason}")


def _message(jobs: Sequence[Job], start: int) -> Sequence[Job]:
    """The jobs from `start` that go into one message, at least one."""
    text = 0
    for at in range(start, min(len(jobs), start + MOST_JOBS)):
        text += _characters(jobs[at])
        if text > MOST_TEXT:
            return jobs[start : max(at, start + 1)]
    return jobs[start : start + MOST_JOBS]


def _characters(job: Job) -> int:
    """Of what the template is given, all that is not a message's content as JSON."""
    texts = sum(len(message.get("content") or "") for message in job[0])
    others = [message for message in job[0] if len(message) > 2]  # beside role and content
    return texts + sum(len(json.dumps(other)) for other in [*others, *job[2:]])


class _Ended(Exception):
    """A process has ended instead of answering; `code` is its exit code, negative for a signal."""

    def __init__(self, code: int, stuck: bool = False) -> None:
        super().__init__(code)
        self.code = code
        self._stuck = stuck

    def reason(self) -> str:
        if self.code == -signal.SIGPROF:
            return f"it takes more than {SECONDS:g} seconds"
        if self._stuck:
            return f"there was no answer for {STUCK_SECONDS:g} seconds"
        if self.code == OUT_OF_MEMORY:
            return f"it needs more than {MEMORY >> 20:,} MB of memory"
        return "it ends the process that renders it" + (f" (signal {-self.code})" if self.code < 0 else "")


class _Process:
    """A process of `sandbox`, and the channel to it. One thread at a time may use it."""

    def __init__(self) -> None:
        limits = {
            "seconds": SECONDS,
            "memory": MEMORY,
            "characters": CHARACTERS,
            "idle_seconds": IDLE_SECONDS,
            "most_seconds": IDLE_SECONDS + STUCK_SECONDS,
        }
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(STUCK_SECONDS)
        with theirs:
            self._process = own_process.start(
                ["-m", "pipeline.inputs.prompts.sandbox", to_json(limits)],
                settings.bare_environment(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._received = bytearray()

    def greet(self) -> None:
        """Wait until it is ready. Raises LabError if it cannot be."""
        try:
            self._frame()
        except _Ended as end:
            raise LabError(
                f"The process that renders templates does not start (it ended with code {end.code});"
                " install the requirements again."
            ) from None

    @property
    def living(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The answers to a request as they come. Raises _Ended where the process ends instead."""
        text = to_json(request).encode()
        try:
            self._channel.sendall(LENGTH.pack(len(text)) + text)
        except OSError as error:
            raise self._end(error) from None
        answers: list[dict[str, Any]] = [{}]
        while not answers[-1].keys() & {"seconds", "faulty"}:
            answers = self._frame()
            yield from answers

    def _frame(self) -> list[dict[str, Any]]:
        length = LENGTH.unpack(self._take(LENGTH.size))[0]
        found: list[dict[str, Any]] = json.loads(self._take(length))
        return found

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            try:
                piece = self._channel.recv(RECEIVE_BYTES)
            except OSError as error:
                raise self._end(error) from None
            if not piece:
                raise self._end()
            self._received += piece
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _end(self, error: OSError | None = None) -> _Ended:
        stuck = isinstance(error, TimeoutError)
        if stuck:
            self.end()
        self._channel.close()
        return _Ended(self._process.wait(), stuck)

    def end(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """End it and free its resources. Called by the thread that uses it."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Called in a fork: leave the process to the parent."""
        self._channel.close()
        self._process.returncode = 0  # it is not a child of this process, so don't wait for it


class _Pool:
    """The `sandbox` processes of this process. Threads share them, each for one message at a time.

    Templates that were never rendered here may not take the last one, so that a slow unknown template cannot
    delay the known good ones.
    """

    def __init__(self) -> None:
        self._trusted: dict[bytes, None] = {}
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._processes: list[_Process] = []
        self._free: list[_Process] = []
        self._busy = self._waiting = 0
        self._closed = False

    @contextmanager
    def process(self, digest: bytes) -> Iterator[_Process]:
        """A process for the template with that digest. Raises Busy if none is free in time."""
        process = self._taken(digest)
        try:
            if process is None:
                process = _Process()
                self._processes.append(process)
                try:
                    process.greet()
                finally:
                    self.go_on()
            yield process
        except BaseException:
            if process is not None:  # it may have stopped in the middle of an answer
                process.close()
            raise
        finally:
            with self._changed:
                self._busy -= 1
                if process is not None and process.living and not self._closed:
                    self._free.append(process)
                elif process is not None:
                    self._drop(process)
                self._changed.notify_all()

    def _taken(self, digest: bytes) -> _Process | None:
        """A free process, or None if a new one is to be started; either counts as busy from now on."""
        with self._changed:
            self._wait(PROCESSES - (digest not in self._trusted))
            self._busy += 1
            while self._free:
                process = self._free.pop()
                if process.living:
                    return process
                self._drop(process)
        return None

    def _wait(self, most: int) -> None:
        """Wait until fewer than that many processes are busy. Raises Busy."""
        deadline = time.monotonic() + (WAIT_SECONDS if self._waiting < MANY else BRIEF_SECONDS)
        self._waiting += 1
        try:
            while self._busy >= most:
                if time.monotonic() > deadline:
                    raise Busy("template: other templates are being rendered; try again in a minute")
                self._changed.wait(LOOK_SECONDS)
                self.go_on()
            self.go_on()
        finally:
            self._waiting -= 1

    def _drop(self, process: _Process) -> None:
        process.close()
        if process in self._processes:  # else all have been closed meanwhile
            self._processes.remove(process)

    def trust(self, digest: bytes) -> None:
        with self._changed:
            self._trusted.pop(digest, None)
            self._trusted[digest] = None
            while len(self._trusted) > REMEMBERED:
                del self._trusted[next(iter(self._trusted))]

    def distrust(self, digest: bytes) -> None:
        with self._changed:
            self._trusted.pop(digest, None)

    def go_on(self) -> None:
        """Raises LabError if the process is about to end, so that rendering threads end too.

        When its main thread has ended, the interpreter waits for the others.
        """
        if self._closed or not threading.main_thread().is_alive():
            raise LabError("This process is about to end.")

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for process in self._processes:
                process.end()  # the thread that uses it sees that
            while self._free:
                self._drop(self._free.pop())
            self._changed.notify_all()

    def forget(self) -> None:
        """Called in a fork: the processes, and the threads that hold locks, belong to the parent."""
        for process in self._processes:
            process.forget()
        self._reset()


def _forked() -> None:
    _pool.forget()


_pool = _Pool()
os.register_at_fork(after_in_child=_forked)
atexit.register(close)
