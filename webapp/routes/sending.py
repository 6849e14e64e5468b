"""Downloads that a process of ours writes into a file first: few at a time, as each takes disk until sent."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fastapi.responses import Response, StreamingResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pipeline import settings
from pipeline.errors import LabError
from pipeline.system import files
from webapp import threads
from webapp.routes import asking

MOST = 8  # files that are written or not sent yet
OLD_SECONDS = 60.0  # after which one that is being sent makes room for another
PIECE = 1 << 16
MANY = "Other such downloads are being prepared or sent just now; try again in a minute."
log = logging.getLogger(__name__)


class Held:
    """A temporary file from before it is written until it is sent."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.sending: asyncio.Task[None] | None = None
        self.began = 0.0  # to be sent

    @property
    def is_old(self) -> bool:
        """Whether its reader has had his time."""
        return self.sending is not None and time.monotonic() - self.began > OLD_SECONDS

    def end(self) -> None:
        """Stop sending it; its connection is closed then."""
        if self.sending is not None:
            self.sending.cancel()
        self.close()

    def close(self) -> None:
        """Remove the file, and give its place back."""
        if self in _held:
            _held.remove(self)
        if self.file is not None:
            self.file.close()


class Download(StreamingResponse):
    """Such a file as an answer. It is removed however that ends."""

    def __init__(self, held: Held, headers: dict[str, str], media_type: str) -> None:
        assert held.file is not None
        size = os.fstat(held.file.fileno()).st_size  # so that a browser sees whether it is whole
        headers = {**headers, "Content-Length": str(size)}
        super().__init__(_pieces(held.file, size), headers=headers, media_type=media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = self._held
        held.began = time.monotonic()
        held.sending = asyncio.create_task(super().__call__(scope, receive, send))
        try:
            await asyncio.wait([held.sending])
        except asyncio.CancelledError:  # by the server, at its end
            held.sending.cancel()
            return
        finally:
            held.close()
        if held.sending.cancelled():
            log.warning("A download made room for another after %.0f seconds.", time.monotonic() - held.began)
        else:
            held.sending.result()


class Growing(StreamingResponse):
    """A file as far as it is written now. Closed however that ends. Raises OSError."""

    def __init__(self, path: Path, headers: dict[str, str], media_type: str) -> None:
        self._file = path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        headers = {**headers, "Content-Length": str(size)}
        super().__init__(_pieces(self._file, size), headers=headers, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


async def download(
    request: Request, function: str, given: dict[str, Any], headers: dict[str, str], media_type: str
) -> Response:
    """What a process writes with `module:function`, given also `to`, a file that is there, as an answer.

    Raises what `asking.answered` does, and LabError if too many files are not sent yet, or the disk is full.
    """
    held = _taken()
    try:
        held.file = await threads.run(threads.LOOKUPS, _new)
        await asking.answered(request, asking.ROWS, function, {**given, "to": held.file.name})
        return Download(held, headers, media_type)
    except BaseException:
        held.close()
        raise


def _taken() -> Held:
    """A place for a file. Raises LabError."""
    if len(_held) >= MOST:
        oldest = next((held for held in _held if held.is_old), None)
        if oldest is None:
            raise LabError(MANY)
        oldest.end()
    held = Held()
    _held.append(held)
    return held


def _new() -> IO[bytes]:
    folder = Path(tempfile.gettempdir())
    if folder.stat().st_dev == settings.home().stat().st_dev:
        files.make_room(folder, 0)
    return tempfile.NamedTemporaryFile("rb", prefix="olive-lab-")


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while piece := file.read(min(PIECE, size)):
        size -= len(piece)
        yield piece


_held: list[Held] = []  # the oldest first; only the thread of the app's loop changes it
