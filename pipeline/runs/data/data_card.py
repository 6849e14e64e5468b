"""The card of a dataset, and a copy without the rows of some findings: made here, or in a process of its own.

`python -m pipeline.runs.data.data_card` gets a question as JSON on its standard input, writes a line of JSON
for each step, and in the end what was made or what is wrong. What is made is kept in `cards/` of the home,
the newest MOST_KEPT of them: a folder a card, named by all that it depends on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import Busy, InputError, LabError, sentence
from pipeline.inputs.data import datasets, paging
from pipeline.inputs.data.card import findings, leaving_out, making
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.store import scratch
from pipeline.system import files, locks, own_process
from pipeline.system.files import to_json

VERSION = 2  # of what a card finds: one that was made by another is made again
MOST_KEPT = 20
LINES_AT_ONCE = 10_000
AT_ONCE = 12  # as many as long checks, of which the oldest makes room: see `check_pool`
SECONDS = 1800.0
NICE = 10
CARD, LINES, FLAGS, COPY = "card.json", "lines.bin", "flags.bin", "left_out"
GONE = "Others have looked through many datasets meanwhile; check this one again."
BUSY = "Other datasets are being looked through just now; try again in a minute."


@dataclass(frozen=True)
class Question:
    """What a card is made of. Without a model, or where its tokenizer is not at hand, tokens are not counted.

    `leave_out` names findings; the answer is then a copy of the dataset without their rows.
    """

    path: Path
    template: str
    model: base_models.Model | None
    max_length: int
    eval_fraction: float = 0.1
    seed: int = 0
    leave_out: tuple[str, ...] = ()

    def to_json(self) -> str:
        return to_json({**dataclasses.asdict(self), "path": os.fspath(self.path)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Question:
        given = json.loads(text)
        model = base_models.from_facts(given["model"]) if given["model"] else None
        changed = {"path": Path(given["path"]), "model": model, "leave_out": tuple(given["leave_out"])}
        return cls(**{**given, **changed})

    def choice(self) -> str:
        """Names what is asked of a dataset, whichever it is."""
        model = self.model and [
            self.model.id,
            self.model.revision,
            self.model.chat and self.model.chat.source,
        ]
        given = [VERSION, self.template, model, self.max_length]
        more = [self.eval_fraction, self.seed, *self.leave_out]
        return hashlib.sha256(json.dumps([*given, *more], allow_nan=False).encode()).hexdigest()[:32]

    def key(self) -> str:
        """Names the answer: by the content of the dataset, and all that it is asked with. Raises OSError."""
        given = [datasets.sha256(self.path), self.path.name, self.choice()]
        return hashlib.sha256(to_json(given).encode()).hexdigest()[:32]


def making_card(asked: Question, only: Iterable[str] = findings.NAMES) -> Generator[str, None, making.Card]:
    """Make a card in this process; yields steps as sentences.

    Lines that are no rows are left to `data_check`. Raises InputError for a faulty template, OSError, Busy.
    """
    chat = asked.model.chat if asked.model else None
    parsed = templates.parse(asked.template, chat)
    rows, coming = datasets.readable(asked.path), (yield from datasets.about_how_many(asked.path))
    given: dict[str, Any] = {
        "eval_fraction": asked.eval_fraction, "seed": asked.seed, "only": only, "coming": coming,
    }  # fmt: skip
    has_text = asked.template.strip() != templates.CHAT or chat is not None
    if asked.model is None or not has_text or "cut" not in only:
        return (yield from making.making(rows, parsed, **given))
    home, model = settings.home(), asked.model
    counting = making.counter(asked.max_length, coming)
    with Lengths(
        lambda: base_models.tokenizer_folder(model, home), model.id, Limits(asked.max_length),
        lambda: parsed.stop, counting.note,
    ) as lengths:  # fmt: skip
        return (yield from making.making(rows, parsed, counting=counting, lengths=lengths, **given))


def kept(home: Path, key: str) -> dict[str, Any] | None:
    """A card that is kept, as `Card.to_page` has it, with its `key` and the `path` of its dataset."""
    folder = _folder(home, key)
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
        os.utime(folder)
        return found
    return None


def lines_with(home: Path, key: str, names: Sequence[str]) -> Iterator[int]:
    """The lines of a kept card's rows that have one of these findings. Raises InputError if there is none."""
    folder = _folder(home, key)
    pieces = _pieces(folder / LINES, folder / FLAGS)
    try:
        next(pieces)
    except OSError:
        raise InputError("This card is not kept any more; check the dataset again.") from None
    return findings.lines_with(pieces, names)


def write_lines(key: str, finding: str, kind: str, to: str) -> Generator[str, None, None]:
    """Write `lines_with` into an empty file, as CSV or JSON, as a process is asked for it: they may be many.

    Raises InputError, OSError.
    """
    yield "Writing the lines…"
    found = lines_with(settings.home(), key, [finding])
    csv = kind == "csv"
    between = "\r\n" if csv else ", "
    with Path(to).open("r+", encoding="utf-8", newline="") as file:  # who has left has removed it
        file.write("line" if csv else f'{{"finding": {to_json(finding)}, "lines": [')
        lead = between if csv else ""
        while some := between.join(map(str, islice(found, LINES_AT_ONCE))):
            file.write(lead + some)
            lead = between
        file.write("\r\n" if csv else "]}\n")


def card(asked: Question) -> Generator[str, None, dict[str, Any]]:
    """`kept` of a question, made by a process of its own where it is not there yet; yields steps.

    Raises InputError, LabError, OSError.
    """
    home, key = settings.home(), asked.key()
    found = kept(home, key)
    if found is None:
        yield from _apart(dataclasses.replace(asked, leave_out=()))
        found = kept(home, key)
    if found is None:
        raise LabError("The card was made, and is not there; check the dataset again.")
    return found


def shown(path: str, template: str, model: str, max_length: int) -> Generator[str, None, dict[str, Any]]:
    """`card` as a page has it asked by `check_pool`: a model by its id, none if it cannot be used."""
    try:
        base = base_models.resolve(model) if model else None
    except InputError:  # the check of the dataset says why
        base = None
    return (yield from card(Question(Path(path), template, base, max_length)))


def page(path: str, offset: int, at: int, search: str, line: int) -> Generator[str, None, dict[str, Any]]:
    """`paging.page` as the page's table has it asked of `check_pool`: a row's text may be hostile.

    {rows: [{line, cells}], next: {offset, at} or null}. Raises InputError, OSError.
    """
    yield "Reading rows…"
    found = paging.page(Path(path), paging.Place(offset, at), search=search, line=line)
    following = found.next and {"offset": found.next.offset, "at": found.next.line}
    return {"rows": [{"line": number, "cells": row} for number, row in found.rows], "next": following}


def without(asked: Question, work: Path) -> Generator[str, None, tuple[Path, int]]:
    """A copy of the dataset without the rows of `leave_out`, and how many went; made by a process of its own.

    The same dataset and question give the same copy, which stays as long as the folder `work` of the home.
    Raises InputError, LabError, OSError.
    """
    if _is_done(asked):
        return asked.path, 0
    home, key = settings.home(), asked.key()
    target = _folder(home, key) / COPY / display.file_name(asked.path.name)
    if not (_folder(home, key) / CARD).is_file():
        yield from _apart(asked)
    try:
        os.utime(_folder(home, key))  # in use again
        count = json.loads((_folder(home, key) / CARD).read_text("utf-8"))["left_out"]
        taken = work / COPY / target.name
        taken.parent.mkdir(mode=0o700)
        files.link_or_copy(target, taken)
    except FileNotFoundError:
        raise LabError(GONE) from None
    return taken, int(count)


def mark(copy: Path, choice: str) -> None:
    """Note beside a copy in the home by which choice rows were left out, so that it isn't made again."""
    (copy.parent / datasets.LEFT_OUT).write_text(choice, "utf-8")


def _is_done(asked: Question) -> bool:
    """Whether the dataset is one that `mark` has marked so. Else a repeated run would lose more rows each
    time: another split has other leaks."""
    with suppress(OSError, ValueError):
        return (asked.path.parent / datasets.LEFT_OUT).read_text("utf-8") == asked.choice()
    return False


def _folder(home: Path, key: str) -> Path:
    """The folder of a card. Raises InputError for what is no key: a browser may name any."""
    if len(key) != 32 or not set(key) <= set("0123456789abcdef"):
        raise InputError("There is no such card.")
    return home / "cards" / key


def _apart(asked: Question) -> Generator[str, None, None]:
    """Have a process of its own answer. It ends with this generator."""
    place = _place()
    try:
        process = own_process.start_group(
            ["-m", "pipeline.runs.data.data_card"], settings.child_environment()
        )
        watch = threading.Timer(SECONDS, own_process.kill, [process])
        try:
            own_process.start_thread(watch)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(asked.to_json().encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                answer = json.loads(line)
                if "step" in answer:
                    yield answer["step"]
                elif "problems" in answer:
                    raise InputError(answer["problems"])
                elif "error" in answer:
                    raise LabError(answer["error"])
                else:
                    return
            raise LabError("The process that looks through the data has ended; try again.")
        except BrokenPipeError:
            raise LabError("The process that looks through the data has ended; try again.") from None
        finally:
            watch.cancel()
            own_process.end(process)
    finally:
        os.close(place)


def _place() -> int:
    """One of AT_ONCE places, for all processes of the home: to be closed. Raises Busy."""
    for number in range(AT_ONCE):
        if (taken := locks.take(settings.home() / "cards" / f".{number}.lock")) is not None:
            return taken
    raise Busy(BUSY)


def _answer(asked: Question) -> Generator[str, None, None]:
    """Make what is asked, and keep it."""
    home, key = settings.home(), asked.key()
    target = _folder(home, key)
    part = scratch.room(target.parent) / f".{key}-{secrets.token_hex(4)}.part"
    part.mkdir(mode=0o700, parents=True)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            made = yield from making_card(asked, asked.leave_out or findings.NAMES)
            facts = {**made.to_page(), "key": key, "path": os.fspath(asked.path)}
            _write(part, made.found)
            if asked.leave_out:
                yield "Leaving rows out…"
                copy = part / COPY / display.file_name(asked.path.name)
                copy.parent.mkdir(mode=0o700)
                files.make_room(part, asked.path.stat().st_size)
                facts["left_out"] = leaving_out.write(
                    asked.path, copy, made.found.lines_with(asked.leave_out)
                )
            (part / CARD).write_text(to_json(facts), "utf-8")
            with suppress(OSError):  # another has made the same meanwhile
                part.rename(target)
    finally:
        _forget_old(target.parent)


def _write(folder: Path, found: findings.Found) -> None:
    """Keep which rows have which findings, for `lines_with`."""
    with (folder / LINES).open("xb") as numbers, (folder / FLAGS).open("xb") as bits:
        for lines, flags in found.pieces():
            lines.tofile(numbers)
            flags.tofile(bits)


def _pieces(lines: Path, flags: Path) -> Iterator[tuple[array[int], array[int]]]:
    """What `_write` has written, some at a time; first nothing, once both files are open."""
    with lines.open("rb") as numbers, flags.open("rb") as bits:
        yield array("I"), array("H")
        while piece := numbers.read(LINES_AT_ONCE * array("I").itemsize):
            yield array("I", piece), array("H", bits.read(LINES_AT_ONCE * array("H").itemsize))


def tidy(home: Path) -> None:
    """Remove the cards of datasets that are not there any more, and what killed processes have left."""
    for path in (home / "cards").glob("*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            left = path.name.endswith(".part") and time.time() - path.stat().st_mtime > SECONDS
            if left or not Path(json.loads((path / CARD).read_text("utf-8"))["path"]).is_file():
                shutil.rmtree(path, ignore_errors=True)


def _forget_old(folder: Path) -> None:
    """Keep the cards that were used last."""
    tidy(folder.parent)
    known = {}
    for path in folder.glob("[!.]*"):
        with suppress(FileNotFoundError):  # others forget, too
            if path.is_dir():
                known[path] = path.stat().st_mtime
    for path in sorted(known, key=known.__getitem__)[:-MOST_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def _main() -> int:
    """Answer the question on standard input. Ends when that does, with all that it has started."""
    os.nice(NICE)
    settings.keep_private()
    asked = Question.from_json(sys.stdin.buffer.readline())
    own_process.end_with_input()
    try:
        for step in _answer(asked):
            _say({"step": step})
        _say({"done": True})
    except InputError as error:
        _say({"problems": error.problems})
    except LabError as error:
        _say({"error": str(error)})
    except OSError as error:
        _say({"error": f"{display.valid(str(asked.path))}: cannot be read ({error.strerror})"})
    except Exception as error:  # nobody foresaw it
        _say({"error": files.with_traceback(sentence(error), traceback.format_exc())})
    return 0


def _say(answer: dict[str, Any]) -> None:
    own_process.answer(to_json(answer))


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # a library's thread would delay the exit, and somebody waits for it
