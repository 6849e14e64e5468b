"""A dataset checked with its template and model: here, or where that takes long in a process of its own.

A page gives everybody a moment of its own time (`datasets.go_on`). What needs more is done from the beginning
by `python -m pipeline.runs.data_check`, which gets the question as JSON on its standard input, and writes a
line of JSON for each step and in the end the report, or what is wrong. Such a process can be ended at any
time, lets brief work of others go first, and there are only so many: they leave the page quick.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import Busy, InputError, LabError, TakesLong
from pipeline.inputs.data import datasets
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.models import architectures, base_models
from pipeline.inputs.prompts import templates
from pipeline.system import own_process

LONG = 6  # processes at a time
OLD_SECONDS = 30.0  # after which one makes room for another
MOST_SECONDS = 600.0
LOOK_SECONDS = 0.5  # how long `checking` may be silent
PIECE = 1 << 16
NICE = 10  # the kernel gives those that are not nice about ten times as much
WAITS = "A process of its own begins with this…"
BUSY = (
    f"This dataset takes a while to check, and {LONG} such checks have just started; try again in a minute,"
    " or use the command line ({command} check, and run)."
)
TOO_LONG = (
    f"Checking takes longer than {MOST_SECONDS / 60:.0f} minutes; use the command line"
    " ({command} check, and run), or a part of the file."
)
MADE_ROOM = (
    "Others wait to check their data, so this check was ended after {seconds:.0f} seconds; try again later,"
    " use the command line ({command} check, and run), or a part of the file."
)


def check(
    path: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
) -> datasets.Report:
    """Look for every fault of a dataset and its template; with a model, of its chat template too.

    Its report has notes, on rows of more than `max_length` tokens for example. Raises InputError with all
    faults, LabError if others take what it needs or it takes far too long.
    """
    if template.strip() == templates.CHAT and model is not None and model.chat is None:
        raise InputError(
            f"template: {model.id} has no chat template; write one like '{{prompt}} {{response}}'"
        )
    steps = checking(path, template, model, eval_fraction, seed, max_length)
    try:
        report = datasets.ended(steps)
    except OSError as error:
        raise InputError(f"{display.valid(str(path))}: cannot be read ({error.strerror})") from None
    if not report.good:
        raise InputError(report.messages())
    if report.rows < 2:
        raise InputError(datasets.too_few(path, report.rows))
    return report


def checking(
    path: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
) -> Generator[str, None, datasets.Report]:
    """`datasets.checking` with a model: its chat template, its tokenizer and what it can read.

    Where `datasets.go_on` raises TakesLong, or others keep what all share here busy, a process does it.
    Raises InputError if the file is not there or the template is faulty, OSError if it cannot be read,
    LabError if the process gets no place or has to leave it.
    """
    asked = _Question(path, template, model, eval_fraction, seed, max_length)
    try:
        return (yield from _here(asked))
    except (TakesLong, Busy):
        pass
    return (yield from _elsewhere(asked))


@dataclass(frozen=True)
class _Question:
    """What is to be checked, as `checking` is asked."""

    path: Path
    template: str
    model: base_models.Model | None
    eval_fraction: float
    seed: int
    max_length: int | None

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "path": os.fspath(self.path)})

    @classmethod
    def from_json(cls, text: str | bytes) -> _Question:
        given = json.loads(text)
        model = base_models.from_facts(given["model"]) if given["model"] else None
        return cls(**{**given, "path": Path(given["path"]), "model": model})


def _here(asked: _Question) -> Generator[str, None, datasets.Report]:
    """Check in this process. Raises what `go_on` does, and Busy."""
    model = asked.model
    checking = partial(
        datasets.checking, asked.path, asked.template, eval_fraction=asked.eval_fraction, seed=asked.seed
    )
    if model is None:
        return (yield from checking())
    home = settings.home()
    limits = Limits(asked.max_length, architectures.positions(model.config))
    parsed = templates.parse(asked.template, model.chat)
    with Lengths(
        lambda: base_models.tokenizer_folder(model, home), model.id, limits, lambda: parsed.stop
    ) as lengths:
        return (yield from checking(chat=model.chat, lengths=lengths))


def _elsewhere(asked: _Question) -> Generator[str, None, datasets.Report]:
    """Have a process of its own check. It ends with this generator. Raises LabError, OSError."""
    place = _Place.taken()
    try:
        step = WAITS
        yield step
        place.ask(asked)
        for answer in place.answers():
            if answer is not None and "step" not in answer:
                return _report(answer)
            step = answer["step"] if answer is not None else step
            yield step
        raise LabError(place.why_it_ended())
    finally:
        place.leave()


def _report(answer: dict[str, Any]) -> datasets.Report:
    """The report in a last line; what that says is wrong is raised."""
    if "problems" in answer:
        raise InputError(answer["problems"])
    if "unreadable" in answer:
        raise OSError(*answer["unreadable"])
    if "error" in answer:
        raise LabError(answer["error"])
    found = answer["report"]
    return datasets.Report(**{**found, "fields": tuple(found["fields"])})


@dataclass(eq=False)
class _Place:
    """One of the few processes, and who has it."""

    began: float = field(default_factory=time.monotonic)
    made_room: float | None = None  # after so many seconds

    def __post_init__(self) -> None:
        # Its environment is that of this process, secrets included: it may have to fetch the tokenizer of a
        # model that only this user sees. Somebody's templates and tokenizers run in processes without.
        words = ["-m", "pipeline.runs.data_check"]
        self.process = own_process.start_group(words, settings.child_environment())

    @classmethod
    def taken(cls) -> _Place:
        """A place; if none is free, that of the oldest, if this has had it for long. Raises LabError."""
        with _changing:
            if len(_places) >= LONG:
                oldest = _places[0]
                if oldest.seconds < OLD_SECONDS:
                    raise LabError(BUSY.format(command=settings.command()))
                oldest.made_room = oldest.seconds
                own_process.kill(oldest.process)
                _places.remove(oldest)
            place = cls()
            _places.append(place)
            return place

    @property
    def seconds(self) -> float:
        """How long it has been taken."""
        return time.monotonic() - self.began

    def ask(self, asked: _Question) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended, which `answers` sees
            self.process.stdin.write(asked.to_json().encode() + b"\n")
            self.process.stdin.flush()

    def answers(self) -> Iterator[dict[str, Any] | None]:
        """Its lines, until it ends; None where there is none for a moment. Raises LabError at last."""
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        received = bytearray()
        while True:
            if self.seconds > MOST_SECONDS:
                raise LabError(TOO_LONG.format(command=settings.command()))
            if not ready.poll(1000 * LOOK_SECONDS):
                yield None
                continue
            piece = os.read(pipe, PIECE)
            if not piece:
                return
            received += piece
            if b"\n" in piece:
                *lines, rest = received.split(b"\n")
                received = rest
                for line in lines:
                    yield json.loads(line)

    def why_it_ended(self) -> str:
        """A sentence for an end without an answer."""
        if self.made_room is not None:
            return MADE_ROOM.format(command=settings.command(), seconds=self.made_room)
        code = own_process.end(self.process)
        return f"The process that checks the data has ended (code {code}); try again."

    def leave(self) -> None:
        """End the process, and give the place to others."""
        own_process.end(self.process)
        with _changing:
            if self in _places:  # else another has it already
                _places.remove(self)


_changing = threading.Lock()
_places: list[_Place] = []  # the oldest first


def _main() -> int:
    """Answer the question on standard input. Ends when that does, with all that it has started."""
    os.nice(NICE)
    settings.keep_private()
    asked = _Question.from_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_who_asks, daemon=True).start()
    steps = _here(asked)
    try:
        while True:
            _say({"step": next(steps)})
    except StopIteration as end:
        _say({"report": dataclasses.asdict(end.value)})
    except InputError as error:
        _say({"problems": error.problems})
    except LabError as error:
        _say({"error": str(error)})
    except OSError as error:
        _say({"unreadable": error.args if error.filename is None else [*error.args, error.filename]})
    return 0


def _say(answer: dict[str, Any]) -> None:
    # Read by this program only, so a row's infinity may stay: standard JSON has none.
    print(json.dumps(answer), flush=True)


def _end_with_who_asks() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # the thread that waits for the end of standard input holds it, and Python would abort
