"""The only way in for a file that a browser names: `taken`, which every event with a file uses.

Gradio stores an upload as `DIGEST/NAME` in its folder, equal bytes from two people in one place, and a
request may name any path. So a path is accepted only in exactly that form and without links on the way. Its
bytes are copied at once into a folder for this upload only. Handlers see the copy, and we delete only the
copy; Gradio deletes its own after `UPLOAD_AGE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradio.data_classes import FileData
from gradio.route_utils import GradioMultiPartParser
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.system import files
from webapp import guard

COPIES = ".copies"  # beside Gradio's folders, whose names are digests
DIGEST = r"[0-9a-f]{64}"
LONGEST_FILE_NAME = 200  # bytes; file systems allow 255, and the home adds some
MOST_FILES = 20  # of one upload
PIECE = 1 << 20  # bytes copied at a time
AT_ONCE = 8  # times the largest file: what all uploads together may take
FORM = 1 << 20  # bytes that the form adds to the file
LEAST_FILE = 4096  # bytes that a small one takes on a disk
QUIET_SECONDS = 300.0  # in which nobody has read an upload, after which it makes room for others
FULL = "There is no room for more uploads now; try again in some minutes."
NOT_HERE = "This file is not among the uploads of this page, or not any more; upload it again."
_read: dict[str, float] = {}  # by their folders: when uploads were last read
_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty() -> None:
    """Remove what an earlier app left behind. Called at start, before anybody can upload."""
    shutil.rmtree(settings.uploads(), ignore_errors=True)
    settings.uploads()


def tidy(older_than: float) -> None:
    """Remove partial files of lost connections, older than `older_than` seconds."""
    for digest in list(_read):
        if not (settings.uploads() / digest).exists():
            _read.pop(digest, None)
    for path in settings.uploads().iterdir():
        with suppress(FileNotFoundError):  # it has just been completed
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode) and time.time() - facts.st_mtime > older_than:
                path.unlink()


@contextmanager
def taken(named: object, *, most_bytes: int, ending: str = "") -> Iterator[Path]:
    """A temporary copy of the upload that a request names.

    Raises InputError for what is not an upload, is larger than `most_bytes`, or has another ending; the
    sentence is the same whether or not the file exists elsewhere.
    """
    digest, name = _place(named)
    if not name.lower().endswith(ending):
        raise InputError(f"This is not a {ending} file; choose another one.")
    above = settings.uploads() / COPIES
    above.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=above))
    try:
        copy = folder / name
        with _opened(digest, name) as source:
            _copy(source, copy, most_bytes)
        yield copy
    finally:
        shutil.rmtree(folder)


def known(named: object) -> str:
    """The path of an existing upload, for Gradio. Raises InputError for any other path."""
    digest, name = _place(named)
    with _opened(digest, name):
        return str(settings.uploads() / digest / name)


def named(component: object, upload: FileData) -> str:
    """The value of a file box for a handler. Gradio's own code would leave an empty file for each event."""
    return upload.path


def _place(named: object) -> tuple[str, str]:
    """The folder and the name of an upload, judged by the text alone. Raises InputError."""
    top = f"{settings.uploads()}/"
    if isinstance(named, str) and named.startswith(top) and "\0" not in named:
        digest, _, name = named.removeprefix(top).partition("/")
        with suppress(UnicodeEncodeError):  # no file name has half a surrogate pair
            fits = 0 < len(name.encode()) <= LONGEST_FILE_NAME and name not in (".", "..") and "/" not in name
            if fits and re.fullmatch(DIGEST, digest):
                return digest, name
    raise InputError(NOT_HERE)


@contextmanager
def _opened(digest: str, name: str) -> Iterator[int]:
    """The upload's file, opened without following links; a regular file with a single name."""
    opened: list[int] = []
    try:
        try:
            opened.append(os.open(settings.uploads(), _NO_LINK | os.O_DIRECTORY))
            opened.append(os.open(digest, _NO_LINK | os.O_DIRECTORY, dir_fd=opened[-1]))
            opened.append(os.open(name, _NO_LINK | os.O_NONBLOCK, dir_fd=opened[-1]))  # a pipe would block
        except OSError:
            raise InputError(NOT_HERE) from None
        facts = os.fstat(opened[-1])
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise InputError(NOT_HERE)
        _read[digest] = time.monotonic()
        yield opened[-1]
    finally:
        for number in reversed(opened):
            os.close(number)


def _copy(source: int, target: Path, most_bytes: int) -> None:
    """Copy an open file. Raises InputError if it is larger than allowed, OSError if the disk is full."""
    left = most_bytes
    with target.open("xb") as file:  # in a folder that is private to us
        while piece := os.read(source, PIECE):
            left -= len(piece)
            if left < 0:
                raise InputError(f"This file is larger than the {most_bytes:,} bytes allowed here.")
            file.write(piece)


class FilesOnly(GradioMultiPartParser):
    """Gradio's parser of uploads, without its faults: it would keep other fields in memory without limit, and
    partial files of broken uploads forever."""

    def __init__(self, *given: Any, **options: Any) -> None:
        """Allow few files per upload: all stay open until the last one."""
        super().__init__(*given, **{**options, "max_files": MOST_FILES, "max_fields": 0})

    def on_headers_finished(self) -> None:
        """Start a part. Raises MultiPartException for anything but a file with a name."""
        super().on_headers_finished()
        part = self._current_part
        if part.file is None or not part.file.filename or part.field_name != "files":
            raise MultiPartException("An upload may only contain files, each with a name.")

    async def parse(self) -> FormData:
        """Read the request completely, or leave nothing. Raises MultiPartException, ClientDisconnect."""
        try:
            return await super().parse()
        except BaseException as error:
            for file in self._files_to_close_on_error:
                file.close()
                Path(file.name).unlink(missing_ok=True)
            if isinstance(error, (ValueError, KeyError, AssertionError)):
                raise MultiPartException("This upload cannot be read.") from None
            raise


class Room:
    """ASGI middleware: an upload may start and continue only if it fits beside the others and leaves space
    for runs. Only bytes that have arrived count: anybody can state a size and send nothing.

    Where there is no more room, uploads that nobody has read for a while make some, the longest unread first:
    who has read all of one keeps nothing in its box, and who left would close uploads to all others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.arrived = 0  # bytes of all uploads so far
        self.used = 0  # bytes of uploads at the last check, plus what has arrived since

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not guard.UPLOAD.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        size = int(length) if length.isdecimal() and len(length) < 20 else None
        await self._look()
        refused = _refusal(size, self.used)
        if refused is not None and refused[1] == FULL:
            quiet = await asyncio.to_thread(lambda: sum(size for _, _, size in _quiet()))
            refused = _refusal(size, self.used - quiet)  # they go as its bytes arrive

        async def counted() -> Message:
            nonlocal refused
            message = await receive()
            arrived = len(message.get("body", b""))
            if arrived and refused is None:
                refused = await self._take(arrived)
            return {"type": "http.disconnect"} if refused else message  # so that the reader keeps nothing

        async def unless_refused(message: Message) -> None:
            if refused is None:  # else Gradio's app would answer 500
                await send(message)

        if refused is None:
            try:
                await self.app(scope, counted, unless_refused)
            except ClientDisconnect:
                if refused is None:
                    raise
            else:
                return
        assert refused is not None
        await PlainTextResponse(refused[1] + "\n", status_code=refused[0])(scope, receive, send)

    async def _look(self) -> None:
        before = self.arrived
        there = await asyncio.to_thread(_used)
        self.used = there + self.arrived - before

    async def _take(self, arrived: int) -> tuple[int, str] | None:
        """Count a piece of an upload; as `_refusal`."""
        refused = _refusal(arrived, self.used)
        if refused:  # other uploads may have been deleted since
            if refused[1] == FULL:
                await asyncio.to_thread(_make_way, arrived)
            await self._look()
            refused = _refusal(arrived, self.used)
        if refused is None:
            self.arrived += arrived
            self.used += arrived
        return refused


def _refusal(size: int | None, others: int) -> tuple[int, str] | None:
    """The status and the sentence that refuse an upload, or a piece of it, of this size; None if it fits."""
    most = settings.max_upload_bytes()
    if size is None:
        return 411, "An upload has to state its size; upload it with a browser."
    if size > most + FORM:
        return 413, f"This file is larger than the {most:,} bytes allowed here."
    if others + size > _most():
        return 413, FULL
    try:
        files.make_room(settings.uploads(), size)
    except LabError as error:
        return 507, str(error)
    return None


def _most() -> int:
    """Bytes that all uploads together may take."""
    return AT_ONCE * (settings.max_upload_bytes() + FORM)


def _used(folder: Path | None = None) -> int:
    """Bytes of all existing uploads, or of one."""
    return sum(max(LEAST_FILE, file.st_size) for file in files.stats([folder or settings.uploads()]))


def _quiet() -> list[tuple[float, Path, int]]:
    """Uploads that nobody has read for a while: for how many seconds, the longest first, folder and bytes."""
    found = []
    for folder in settings.uploads().iterdir():
        with suppress(OSError):  # it has just gone
            if re.fullmatch(DIGEST, folder.name) and not folder.is_symlink():
                times = [path.lstat().st_mtime for path in (folder, *folder.iterdir())]
                read = time.monotonic() - _read.get(folder.name, -math.inf)
                since = min(read, time.time() - max(times))
                if since > QUIET_SECONDS:
                    found.append((since, folder, _used(folder)))
    return sorted(found, reverse=True)


def _make_way(size: int) -> None:
    """Remove quiet uploads until so many bytes are free, or more: all have to be looked at each time."""
    left = max(size, _most() // 32) + _used() - _most()
    for _, folder, taken in _quiet():
        if left <= 0:
            break
        shutil.rmtree(folder, ignore_errors=True)
        left -= taken
