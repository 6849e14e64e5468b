"""The only way in for a file that a browser names: `taken`, which every event with a file uses.

Gradio stores an upload as `DIGEST/NAME` in its folder, equal bytes from two people in one place, and a
request may name any path. So a path is accepted only in exactly that form and without links on the way. Its
bytes are copied at once into a folder for this upload only. Handlers see the copy, and we delete only the
copy; Gradio deletes its own after `UPLOAD_AGE_SECONDS`.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio.data_classes import FileData
from gradio.route_utils import GradioMultiPartParser, GradioUploadFile
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.system import files
from webapp import guard, threads
from webapp.upload_count import COPIES, DIGEST, LEAST_FILE, Count, Held

LONGEST_FILE_NAME = 200  # bytes; file systems allow 255, and the home adds some
MOST_FILES = 20  # of one upload
PIECE = 1 << 20  # bytes copied at a time
AT_ONCE = 8  # times the largest file: what all uploads together may take
FORM = 1 << 20  # bytes that the form adds to the file
MOST_UPLOADS = 2000  # files of all uploads together: looking at many thousands takes seconds
QUIET_SECONDS = 300.0  # in which nobody has read an upload, after which it makes room for others
# After which it does so even if it is read again and again: a client could do that for as long as it likes.
STAY_SECONDS = 900.0
NOTHING = Held()
FULL = "There is no room for more uploads now; try again in some minutes."
NOT_HERE = "This file is not among the uploads of this page, or not any more; upload it again."
_read: dict[str, float] = {}  # by their folders: when uploads were last read
_count = Count()
_making_way = threading.Lock()
_taking_place = threading.Lock()
_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty() -> None:
    """Remove what an earlier app left behind. Called at start, before anybody can upload."""
    shutil.rmtree(settings.uploads(), ignore_errors=True)
    settings.uploads()
    _count.forget()


def tidy(older_than: float) -> None:
    """Remove partial files of lost connections, and folders that Gradio has emptied, older than `older_than`
    seconds."""
    for digest in list(_read):
        if not (settings.uploads() / digest).exists():
            _read.pop(digest, None)
    for path in settings.uploads().iterdir():
        with suppress(FileNotFoundError):  # it has just been completed
            facts = path.lstat()
            if time.time() - facts.st_mtime <= older_than:
                continue
            if stat.S_ISREG(facts.st_mode):
                path.unlink()
            elif re.fullmatch(DIGEST, path.name):
                with suppress(OSError):  # it is not empty
                    path.rmdir()
                    _count.measure([path.name])


@contextmanager
def taken(named: object, *, most_bytes: int, ending: str = "") -> Iterator[Path]:
    """A temporary copy of the upload that a request names.

    Raises InputError for what is not an upload, is larger than `most_bytes`, or has another ending; the
    sentence is the same whether or not the file exists elsewhere. Raises LabError or OSError if the disk is
    full.
    """
    digest, name = _place(named)
    if not name.lower().endswith(ending):
        raise InputError(f"This is not a {ending} file; choose another one.")
    above = settings.uploads() / COPIES
    above.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=above))
    size = 0
    try:
        copy = folder / name
        with _opened(digest, name) as source:
            _read[digest] = time.monotonic()
            size = max(LEAST_FILE, min(os.fstat(source).st_size, most_bytes))
            _count.copy(size)
            _copy(source, copy, most_bytes)
        yield copy
    finally:
        shutil.rmtree(folder)
        _count.copy(-size)


def known(named: object) -> str:
    """The path of an existing upload, for Gradio. Raises InputError for any other path.

    Naming an upload is not reading it, and does not let it stay: a request that is refused may name any.
    """
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
        yield opened[-1]
    finally:
        for number in reversed(opened):
            os.close(number)


def _copy(source: int, target: Path, most_bytes: int) -> None:
    """Copy an open file. Raises InputError if it is larger than allowed, LabError or OSError if the disk is
    full.

    Its place is taken before a byte is written, one copy after the other: else many that begin together would
    each find what is free, and fill the disk beside runs.
    """
    size = os.fstat(source).st_size
    if size > most_bytes:
        raise InputError(f"This file is larger than the {most_bytes:,} bytes allowed here.")
    with target.open("xb") as file:  # in a folder that is private to us
        with _taking_place:
            files.make_room(target.parent, size)
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
        while piece := os.read(source, PIECE):
            file.write(piece)


@dataclass
class _Arriving:
    """A request with an upload: bytes and files so far, where they are, and the folders that they go to."""

    size: int = 0
    files: int = 0
    read: bool = False  # whole
    parts: list[Path] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    refused: tuple[int, str] | None = None

    def add(self, size: int, files: int = 0) -> None:
        self.size += size
        self.files += files
        _count.arrive(size, files)

    def end(self) -> None:
        """Remove the parts that have not become uploads, and count those that have."""
        for part in self.parts:
            part.unlink(missing_ok=True)
        for digest in self.digests:
            with suppress(OSError):  # as it has to be, it is not empty
                (settings.uploads() / digest).rmdir()
        _count.measure(self.digests)


_request: ContextVar[_Arriving | None] = ContextVar("_request", default=None)


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
        if (request := _request.get()) is not None:
            if _count.files >= MOST_UPLOADS:
                request.refused = 413, FULL
                raise MultiPartException(FULL)
            request.add(0, 1)

    async def parse(self) -> FormData:
        """Read the request completely, or leave nothing. Raises MultiPartException, ClientDisconnect."""
        try:
            form = await super().parse()
            ended = [file for _, file in form.multi_items() if isinstance(file, GradioUploadFile)]
            if len(ended) < len(self._files_to_close_on_error):
                raise ValueError("a file has no end")  # which Gradio would keep
            if (request := _request.get()) is not None:
                request.parts = [Path(file.name) for file in self._files_to_close_on_error]
                request.read = True
                request.digests = {file.sha.hexdigest() for file in ended}
            return form
        except BaseException as error:
            for file in self._files_to_close_on_error:
                file.close()
                Path(file.name).unlink(missing_ok=True)
            if isinstance(error, (ValueError, KeyError, AssertionError)):
                raise MultiPartException("This upload cannot be read.") from None
            raise


class Room:
    """ASGI middleware: an upload may start and continue only if it fits beside the others and leaves space
    for runs. Only what has arrived counts: anybody can state a size and send nothing.

    Where there is no more room, for bytes or for files, uploads make some that nobody has read for a while,
    or that are old, the longest unread first: who has read all of one keeps nothing in its box, and who left,
    or reads many again and again, would close uploads to all others. Who reads one just then has a copy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        _count.forget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not guard.UPLOAD.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        size = int(length) if length.isdecimal() and len(length) < 20 else None
        request = _Arriving(refused=await _refused_at_first(size))
        if request.refused is None:
            await self._pass(request, scope, receive, send)
        if request.refused is not None:
            status, said = request.refused
            await PlainTextResponse(said + "\n", status_code=status)(scope, receive, send)

    async def _pass(self, request: _Arriving, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app read a request, as long as it fits; `request` says why it no longer does."""
        answered = 0

        async def counted() -> Message:
            message = await receive()
            arrived = len(message.get("body", b""))
            if arrived and request.refused is None:
                request.refused = await _take(request, arrived)
            return {"type": "http.disconnect"} if request.refused else message  # so the reader keeps nothing

        async def unless_refused(message: Message) -> None:
            nonlocal answered
            if request.refused is None:  # else Gradio's app would answer 500
                answered = message.get("status", answered)
                await send(message)

        token = _request.set(request)
        try:
            await self.app(scope, counted, unless_refused)
        except ClientDisconnect:
            if request.refused is None:
                raise
        finally:
            _request.reset(token)
            try:
                if request.read:
                    await threads.run(threads.UPLOADS, request.end)
                elif answered == 200:
                    _count.leave(request.size)
            finally:
                _count.arrive(-request.size, -request.files)


async def _refused_at_first(size: int | None) -> tuple[int, str] | None:
    """As `_refusal`, for an upload of which nothing has arrived: others make room as it comes."""
    await _count.known()
    refused = _refusal(size)
    if refused is not None and refused[1] == FULL:
        refused = _refusal(size, _count.quiet(_sum_of_quiet))
    if refused is not None and refused[1] == FULL:  # some may have gone without our doing
        await _count.anew()
        refused = _refusal(size, _count.quiet(_sum_of_quiet))
    return refused


async def _take(request: _Arriving, arrived: int) -> tuple[int, str] | None:
    """Count a piece of an upload; as `_refusal`."""
    refused = _refusal(arrived)
    full = refused is not None and refused[1] == FULL
    few = not request.size and _count.files + MOST_FILES > MOST_UPLOADS
    if (full or few) and _count.quiet(_sum_of_quiet).files:
        await threads.run(threads.UPLOADS, _make_way, arrived)
        refused = _refusal(arrived)
    if refused is not None and refused[1] == FULL:
        await _count.anew()
        refused = _refusal(arrived)
    if refused is None:
        request.add(arrived)
    return refused


def _refusal(size: int | None, without: Held = NOTHING) -> tuple[int, str] | None:
    """The status and the sentence that refuse an upload, or a piece of it, of this size; None if it fits
    `without` some of the others."""
    most = settings.max_upload_bytes()
    if size is None:
        return 411, "An upload has to state its size; upload it with a browser."
    if size > most + FORM:
        return 413, f"This file is larger than the {most:,} bytes allowed here."
    if _count.size - without.size + size > _most() or _count.files - without.files >= MOST_UPLOADS:
        return 413, FULL
    try:
        files.make_room(settings.uploads(), size)
    except LabError as error:
        return 507, str(error)
    return None


def _most() -> int:
    """Bytes that all uploads together may take."""
    return AT_ONCE * (settings.max_upload_bytes() + FORM)


def _quiet() -> list[tuple[float, str, Held]]:
    """Uploads that make room for others: for how many seconds nobody has read them, and their folders."""
    found = []
    monotonic, now = time.monotonic(), time.time()
    for digest, held in _count.folders():
        age = now - held.changed
        since = min(monotonic - _read.get(digest, -math.inf), age)
        if since > QUIET_SECONDS or age > STAY_SECONDS:
            found.append((since, digest, held))
    return found


def _sum_of_quiet() -> Held:
    quiet = [held for _, _, held in _quiet()]
    return Held(sum(held.size for held in quiet), sum(held.files for held in quiet))


def _make_way(size: int) -> None:
    """Remove the longest unread uploads until so many bytes are free, and some files, or more of both."""
    with _making_way:
        for _, digest, held in sorted(_quiet(), key=lambda one: one[0], reverse=True):
            bytes_left = max(size, _most() // 32) + _count.size - _most()
            files_left = max(MOST_FILES, MOST_UPLOADS // 32) + _count.files - MOST_UPLOADS
            if bytes_left <= 0 and files_left <= 0:
                break
            folder = settings.uploads() / digest
            with suppress(FileNotFoundError):  # Gradio has removed it
                if folder.lstat().st_mtime <= held.changed:  # else the same bytes have come again
                    shutil.rmtree(folder, ignore_errors=True)
            _count.measure([digest])
