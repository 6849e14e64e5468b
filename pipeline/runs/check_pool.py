"""Processes that stand ready to look at what somebody brings, so that the page itself never does.

A single call on hostile text can hold Python's interpreter for a minute, and with it everybody's page,
however many threads there are. So whatever reads datasets is done by `python -m pipeline.runs.check_pool`: it
gets questions as lines of JSON on its standard input, each the name of a function of ours and what that is
given, and writes a line for each step and at last the answer, or what is wrong. A few are kept warm.

What is answered at once costs nobody anything. What takes longer gets one of some places and lets others go
first; the oldest one makes room. Whoever leaves ends the process that worked for him. None may take more than
its share of the memory. What a process was making when it ended goes with its `scratch`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs.data import datasets, telling
from pipeline.store import scratch
from pipeline.system import files, own_process
from pipeline.system.peak_memory import memory_now

WARM = 2  # processes that are kept ready, while the app runs
MOST = 40  # processes at a time
BRIEF_SECONDS = 2.0  # after which a question counts as a long one,
LONG = 12  # of which there are so many at a time
SHARE = 3  # of these places, for questions that name a share
OLD_SECONDS = 15.0  # after which a long one makes room for another
MOST_SECONDS = 600.0  # for one question; see `disk.QUIET`
LOOK_SECONDS = 0.5  # how long `ask` may be silent
USE_SECONDS = 2.0  # after which a question that is being answered uses its datasets again
PIECE = 1 << 16
LONGEST_ANSWER = 1 << 26  # bytes
GROWN = 400 << 20  # bytes of memory, after which a process answers no further question
MEMORY = 1 << 30  # bytes that a process may take
NICE = 10  # the kernel gives those that are not nice about ten times as much
BUSY = (
    "This dataset takes a while to check, and many such checks have just started; try again in a minute,"
    " or use the command line ({command} check, and run)."
)
MANY = "Many others check data just now; try again in a minute."
TOO_LONG = (
    f"Checking takes longer than {MOST_SECONDS / 60:.0f} minutes; use the command line"
    " ({command} check, and run), or a part of the file."
)
NO_MEMORY = (
    "Checking takes more memory than one check may; use the command line ({command} check, and run), or a"
    " part of the file."
)
TOO_MUCH = "What was found is too much to show; use a part of the file."
MADE_ROOM = (
    "Others wait to check their data, so this check was ended after {seconds:.0f} seconds; try again later,"
    " use the command line ({command} check, and run), or a part of the file."
)


def open_up(hub_login: bool = False) -> None:
    """Keep processes warm from now on, until `close`, and have `ask` ask them.

    Without `hub_login` they read no private model on the hub, whoever is logged in there.
    """
    scratch.clear(settings.home())
    with _changing:
        _state.open, _state.hub_login = True, hub_login
        _top_up()


def answer(function: str, given: dict[str, Any], share: str = "") -> Any:
    """`ask` to its end."""
    return telling.ended(ask(function, given, share))


def close() -> None:
    """End all processes; who waits for one is told so."""
    with _changing:
        _state.open = False
        for process in _state.idle:
            process.end()
        _state.idle.clear()
        for process in _state.busy:
            own_process.kill(process.process)


def ask(function: str, given: dict[str, Any], share: str = "") -> Generator[str, None, Any]:
    """What `module:function` returns for `given`, asked of a process, which ends where this is left.

    Where no app runs, as for the command line, the function is carried out here. It is a generator of
    sentences, yielded as they come, the last one again where there is none for LOOK_SECONDS; its answer has
    to fit into JSON, NaN and infinity included. Questions of one `share` that take long make room for each
    other, so that they keep few of the places that wait for them. Raises what it does of InputError, LabError
    and OSError, what `own_process.still_wanted` does, and LabError if there is no place or it has to be left.
    """
    _note_use(given, f"{settings.home() / 'datasets'}/")
    if not _state.open:
        return (yield from _named(function)(**given))
    process = _taken(share)
    again = False
    try:
        process.put({"function": function, "given": given})
        step, noted = "", process.began
        for said in process.lines():
            _see_to(process)
            if time.monotonic() - noted >= USE_SECONDS:  # of a crowd, those used last stay
                _note_use(given, f"{settings.home() / 'datasets'}/")
                noted = time.monotonic()
            if said is not None and "step" not in said:
                again = not said["last"]
                return _answer(said)
            step = said["step"] if said is not None else step
            own_process.still_wanted()
            yield step
        raise LabError(process.why_it_ended())
    finally:
        _left(process, again)


def _note_use(given: Any, kept: str) -> None:
    """Note that the datasets of the home `kept` that a question names, however deep, are used.

    Each question does: an event asks several one after the other, of which each may take MOST_SECONDS.
    """
    if isinstance(given, str):
        if given.startswith(kept) and ".." not in Path(given).parts:  # a browser may have named it
            datasets.use(Path(given))
    elif isinstance(given, dict | list):
        for one in given.values() if isinstance(given, dict) else given:
            _note_use(one, kept)


class _Process:
    """One process. `began` is when it was asked, or when it was ready, if that was later."""

    def __init__(self) -> None:
        # Its environment is that of this process, secrets included: it may have to fetch the tokenizer of a
        # gated model. Somebody's templates and tokenizers run in processes without.
        words = ["-m", "pipeline.runs.check_pool"]
        limits = {} if _state.hub_login else {"OLIVE_LAB_PUBLIC_ONLY": "1"}
        self._scratch = scratch.Scratch(settings.home())
        given = settings.child_environment(**limits, **self._scratch.environment)
        try:
            self.process = own_process.start_group(words, given)
        except BaseException:
            self._scratch.remove()
            raise
        self.began = time.monotonic()
        self.is_long = False
        self.share = ""
        self.made_room: float | None = None  # after so many seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def put(self, question: dict[str, Any]) -> None:
        """Ask; where it has ended already, `lines` sees that."""
        self.began = time.monotonic()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()

    def lines(self) -> Iterator[dict[str, Any] | None]:
        """What it says, until it ends; None where that is nothing for a moment. Raises LabError."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        received = bytearray()
        while True:
            if not ready.poll(1000 * LOOK_SECONDS):
                yield None
                continue
            piece = os.read(pipe, PIECE)
            if not piece:
                return
            received += piece
            if len(received) > LONGEST_ANSWER:
                raise LabError(TOO_MUCH)
            if b"\n" in piece:
                *lines, rest = received.split(b"\n")
                received = rest
                for line in map(json.loads, lines):
                    if line == READY:
                        self.began = time.monotonic()
                    else:
                        yield line

    def let_others_go_first(self) -> None:
        nice = min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
        with suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PGRP, self.process.pid, nice)

    def why_it_ended(self) -> str:
        """A sentence for an end without an answer."""
        if self.made_room is not None:
            return MADE_ROOM.format(command=settings.command(), seconds=self.made_room)
        return f"The process that checks the data has ended (code {self.end()}); try again."

    def end(self) -> int:
        code = own_process.end(self.process)
        self._scratch.remove()
        return code


class _State:
    """All processes; changed only under the lock `_changing`."""

    def __init__(self) -> None:
        self.open = False
        self.hub_login = False
        self.idle: list[_Process] = []
        self.busy: list[_Process] = []
        self.long: list[_Process] = []  # of the busy ones, the oldest first


def _taken(share: str = "") -> _Process:
    """A process to be asked. Raises LabError."""
    with _changing:
        if len(_state.busy) >= MOST:
            raise LabError(MANY)
        while _state.idle:
            process = _state.idle.pop()
            if process.process.poll() is None:
                break
            process.end()
        else:
            process = _Process()
        _state.busy.append(process)
        process.share = share
        return process


def _see_to(process: _Process) -> None:
    """Have a process that takes longer make way for others. Raises LabError if it has to end."""
    if process.seconds > MOST_SECONDS:
        raise LabError(TOO_LONG.format(command=settings.command()))
    if process.is_long or process.seconds <= BRIEF_SECONDS:
        return
    with _changing:
        alike = [each for each in _state.long if process.share and each.share == process.share]
        if len(_state.long) >= LONG or len(alike) >= SHARE:
            oldest = alike[0] if len(alike) >= SHARE else _state.long[0]
            if oldest.seconds < OLD_SECONDS:
                raise LabError(BUSY.format(command=settings.command()))
            oldest.made_room = oldest.seconds
            own_process.kill(oldest.process)
            _state.long.remove(oldest)
        process.is_long = True
        _state.long.append(process)
        _top_up()
    process.let_others_go_first()


def _left(process: _Process, again: bool) -> None:
    """Keep a process for the next question, or end it."""
    with _changing:
        _state.busy.remove(process)
        if process in _state.long:  # else another has its place already
            _state.long.remove(process)
        kept = again and not process.is_long and _state.open and len(_state.idle) < WARM
        if kept:
            _state.idle.append(process)
    if not kept:
        process.end()
    with _changing:
        _top_up()  # which a full disk prevents


def _top_up() -> None:
    while _state.open and len(_state.idle) + len(_state.busy) - len(_state.long) < WARM:
        _state.idle.append(_Process())


def _answer(said: dict[str, Any]) -> Any:
    """The answer in a last line; what that says is wrong is raised."""
    if "problems" in said:
        raise InputError(said["problems"])
    if "unreadable" in said:
        raise OSError(*said["unreadable"])
    if "error" in said:
        raise LabError(said["error"])
    return said["answer"]


_changing = threading.Lock()
_state = _State()
READY = {"ready": True}
FIRST = "pipeline.runs.data.data_check"  # what nearly every question needs


def _main() -> int:
    """Answer the questions on standard input. Ends when that does, with all that it has started."""
    settings.keep_private()
    questions: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=[questions], daemon=True).start()
    importlib.import_module(FIRST)
    # Of what it takes itself. Processes that it starts have limits of their own.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _say(READY)
    while True:
        said = _carried_out(json.loads(questions.get()))
        last = memory_now() > GROWN
        _say({**said, "last": last})
        if last:
            return 0


def _named(function: str) -> Any:
    """The function of ours that `module:function` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _carried_out(question: dict[str, Any]) -> dict[str, Any]:
    """The last line for a question."""
    try:
        steps = _named(question["function"])(**question["given"])
        while True:
            _say({"step": next(steps)})
    except StopIteration as end:
        return {"answer": end.value}
    except InputError as error:
        return {"problems": error.problems}
    except LabError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": NO_MEMORY.format(command=settings.command())}
    except OSError as error:
        return {"unreadable": error.args if error.filename is None else [*error.args, error.filename]}
    except Exception as error:  # nobody foresaw it
        return {"error": files.with_traceback(sentence(error), traceback.format_exc())}


def _say(answer: dict[str, Any]) -> None:
    # Read by this program only, so a row's infinity may stay: standard JSON has none.
    print(json.dumps(answer), flush=True)


def _receive(questions: SimpleQueue[bytes]) -> None:
    """Pass the questions on; when nobody can ask any more, end all that was started here."""
    for line in sys.stdin.buffer:
        questions.put(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # the thread that reads standard input holds it, and Python would abort
