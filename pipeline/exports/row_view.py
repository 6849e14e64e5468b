"""One row as the ids that training reads and an exported folder reads, asked of a process (`row_tokens`).

The process is kept for the next question on the same tokenizer, which a person who looks through rows asks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import Busy, InputError, LabError
from pipeline.inputs.models import base_models
from pipeline.system import own_process
from pipeline.system.files import to_json

MOST = 4  # processes at a time
OLD_SECONDS = 5.0  # after which one makes room for somebody who waits
SECONDS = 90.0  # for an answer; the process itself ends sooner, where it is alive
LONGEST_ANSWER = 1 << 24  # bytes
PIECE = 1 << 16


def view(
    path: Path, template: str, model: base_models.Model, where: str, line: int, max_length: int
) -> dict[str, Any]:
    """What `row_tokens.Shower.shown` gives of a row, and its `line`; `where` is one of `one_row.WHERE`.

    Raises InputError for a row or a template that is faulty, Busy if many others look at rows just now, and
    LabError where the tokenizer cannot be had, or takes too long.
    """
    return asked(tokenizer(model, template), path, template, where, line, max_length)


def tokenizer(model: base_models.Model, template: str) -> dict[str, Any]:
    """What `asked` needs of a model: {folder, chat, whose}. It reads the model's files, or fetches them.

    Raises InputError if the template is a chat template that it has not, LabError.
    """
    if template.strip() == "chat" and model.chat is None:
        raise InputError(
            f"template: {model.id} has no chat template; write one like '{{prompt}} {{response}}'"
        )
    folder = base_models.tokenizer_folder(model, settings.home())
    chat = dataclasses.asdict(model.chat) if model.chat else None
    return {"folder": os.fspath(folder), "chat": chat, "whose": model.id}


def asked(
    reads: dict[str, Any], path: Path, template: str, where: str, line: int, max_length: int
) -> dict[str, Any]:
    """`view` with a `tokenizer`; this process reads neither the dataset nor a model."""
    question = {
        "path": os.fspath(path.absolute()), "template": template, "where": where, "line": line,
        "chat": reads["chat"], "most": max_length,
    }  # fmt: skip
    found = _asked(Path(reads["folder"]), question, reads["whose"])
    if "problems" in found:
        raise InputError(found["problems"])
    if "error" in found:
        raise LabError(found["error"])
    return found


def verdict(served: dict[str, Any]) -> str:
    """What `served` says, as a sentence."""
    if served["why"]:
        return f"What the exported folder will read is not known: {served['why']}"
    if served["equal"]:
        return f"The exported folder will read the same prompt: all {served['count']:,} ids are equal."
    return f"The exported folder will read another prompt: from id {served['at'] + 1:,} on they differ."


def close() -> None:
    """End all processes: whoever waits for one gets a sentence. For the end of the app."""
    with _changing:
        while _idle:
            _end(_idle.popitem()[1])
        for process in _processes:
            process.kill()


def _asked(folder: Path, question: dict[str, Any], whose: str) -> dict[str, Any]:
    folders = folder, Path(question["path"]).parent
    process = _taken(folders)
    good = False
    try:
        assert process.stdin is not None
        with suppress(OSError):  # it has ended, which its answer shows
            process.stdin.write(to_json(question).encode() + b"\n")
            process.stdin.flush()
        found: dict[str, Any] = json.loads(_line(process))
        good = True
        return found
    except ValueError:
        raise LabError(f"The tokenizer of {whose} cannot be used, or takes too long for this row.") from None
    finally:
        _left(folders, process, good)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The line that it says, b"" if it ends or is late. Raises what `own_process.still_wanted` does."""
    assert process.stdout is not None
    deadline = time.monotonic() + SECONDS
    received = bytearray()
    ready = select.poll()
    ready.register(process.stdout.fileno(), select.POLLIN)
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(received) > LONGEST_ANSWER:
            return b""
        own_process.still_wanted()
        if not ready.poll(1000 * min(left, own_process.LOOK_SECONDS)):
            continue
        piece = os.read(process.stdout.fileno(), PIECE)
        if not piece:
            return b""
        received += piece
    return bytes(received)


def _taken(folders: tuple[Path, Path]) -> subprocess.Popen[bytes]:
    """A process for the folders of a tokenizer and of a dataset: the one that is kept, or a new one, which
    reads no others. Raises Busy, LabError."""
    with _changing:
        kept = _idle.pop(folders, None)
        if kept is not None and kept.poll() is None:
            _processes[kept] = time.monotonic()
            return kept
        if kept is not None:
            _end(kept)
        while len(_processes) >= MOST and _idle:
            _end(_idle.pop(next(iter(_idle))))
        if len(_processes.keys() - _ending) >= MOST:
            _make_room()
        temporary = tempfile.mkdtemp(prefix="olive-lab-")
        try:
            process = own_process.start(
                ["-m", "pipeline.exports.row_tokens", *map(os.fspath, folders)],
                {**settings.bare_environment(), "HF_HUB_OFFLINE": "1", "TMPDIR": temporary},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _processes[process] = time.monotonic()
        _temporary[process] = temporary
        return process


def _make_room() -> None:
    """Have the oldest process end, which whoever waits for it sees. Raises Busy if that is not old."""
    oldest = min(_processes.keys() - _ending, key=lambda process: _processes[process])
    if time.monotonic() - _processes[oldest] < OLD_SECONDS:
        raise Busy("Many others look at rows just now; try again in a minute.")
    _ending.add(oldest)
    oldest.kill()


def _left(folders: tuple[Path, Path], process: subprocess.Popen[bytes], good: bool) -> None:
    """Keep a process for the next question, or end it."""
    with _changing:
        if good and folders not in _idle and process not in _ending:
            _idle[folders] = process
        else:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # what it was still to get
            pipe.close()
    shutil.rmtree(_temporary.pop(process), ignore_errors=True)
    del _processes[process]
    _ending.discard(process)


_changing = threading.Lock()
_processes: dict[subprocess.Popen[bytes], float] = {}  # with when each was last asked
_temporary: dict[subprocess.Popen[bytes], str] = {}  # where each has temporary files
_ending: set[subprocess.Popen[bytes]] = set()  # those of them that had to make room
_idle: dict[tuple[Path, Path], subprocess.Popen[bytes]] = {}
