"""Downloads that are written first: few files at a time, whatever their readers do, and none is left over."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import Response
from starlette.types import Message

from pipeline.errors import InputError, LabError
from pipeline.runs import check_pool
from pipeline.system import files
from tests.webapp.routes.test_asking import ended_by, request, turned
from webapp.routes import sending

TEXT = "line\r\n" * 50_000


@pytest.fixture(autouse=True)
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the files lie: on the disk of the home."""
    found = home / "files"
    found.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found))
    yield found
    assert (sending._held, [*found.iterdir()]) == ([], [])


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(function: str, given: dict[str, Any]) -> Iterator[str]:
        yield "Writing…"
        if function == "wrong":
            raise InputError("There is nothing.")
        Path(given["to"]).write_bytes(TEXT.encode())

    monkeypatch.setattr(check_pool, "ask", ask)


class Reader:
    """A client that takes the first piece of an answer, and the rest after `go`."""

    def __init__(self, response: Response) -> None:
        self.go = asyncio.Event()
        self.got: list[Message] = []
        self.task = asyncio.create_task(response({"type": "http"}, self._receive, self._send))

    async def _receive(self) -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: Message) -> None:
        self.got.append(message)
        if len(self.got) > 1:
            await self.go.wait()

    @property
    def is_whole(self) -> bool:
        return not self.got[-1].get("more_body", True)


async def download(function: str = "lines") -> Response:
    return await sending.download(request(), function, {}, {}, "text/csv")


async def full() -> list[Reader]:
    """As many slow readers as there may be files."""
    readers = [Reader(await download()) for _ in range(sending.MOST)]
    for reader in readers:
        await turned(lambda reader=reader: len(reader.got) > 1)
    return readers


async def all_of(readers: list[Reader]) -> None:
    for reader in readers:
        reader.go.set()
        await reader.task
        assert reader.is_whole
        assert dict(reader.got[0]["headers"])[b"content-length"] == str(len(TEXT)).encode()
        assert b"".join(message["body"] for message in reader.got[1:]) == TEXT.encode()


def test_a_file_more_than_there_may_be_is_refused(folder: Path) -> None:
    async def work() -> None:
        readers = await full()
        with pytest.raises(LabError, match="try again in a minute"):
            await download()
        assert len([*folder.iterdir()]) == sending.MOST
        await all_of(readers)
        await all_of([Reader(await download())])

    ended_by(work)


def test_the_oldest_of_slow_readers_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "OLD_SECONDS", -1.0)

    async def work() -> None:
        oldest, *others = await full()
        response = await download()
        await turned(oldest.task.done)
        await oldest.task  # without an error, which would be logged as one of ours
        assert not oldest.is_whole, "so its connection is closed, and nobody takes it for all"
        assert len([*folder.iterdir()]) == sending.MOST
        await all_of([*others, Reader(response)])

    ended_by(work)


def test_what_could_not_be_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        for _ in range(sending.MOST + 1):
            with pytest.raises(InputError, match="There is nothing"):
                await download("wrong")

    ended_by(work)
    monkeypatch.setattr(files, "KEPT_FREE", 1 << 62)
    with pytest.raises(LabError, match="disk is nearly full"):
        ended_by(download)


def test_the_end_of_the_server_ends_it_quietly() -> None:
    async def work() -> None:
        reader, *others = await full()
        reader.task.cancel()
        await reader.task
        assert not reader.is_whole
        await all_of(others)

    ended_by(work)


def test_a_file_that_grows_while_it_is_sent_is_sent_as_far_as_it_was(tmp_path: Path) -> None:
    """Else it is longer than was said, which cuts the download and fills the log."""
    (log := tmp_path / "log.txt").write_bytes(TEXT.encode())

    async def work() -> None:
        response = sending.Growing(log, {}, "text/plain")
        with log.open("ab") as file:
            file.write(b"more")
        await all_of([Reader(response)])

    ended_by(work)
