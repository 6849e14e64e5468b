"""What uploads take, counted as they come and go."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import settings
from webapp import upload_count, uploads
from webapp.upload_count import LEAST_FILE, Count

REQUESTS = 40


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folder once for each look at all uploads."""
    found: list[Path] = []
    everything = upload_count._everything

    def noted(top: Path) -> Any:
        found.append(top)
        return everything(top)

    monkeypatch.setattr(upload_count, "_everything", noted)
    return found


def measured(count: Count) -> tuple[int, int]:
    return count.size, count.files


def on_disk() -> tuple[int, int]:
    """What a new count finds."""
    count = Count()
    asyncio.run(count.known())
    return measured(count)


def send(client: TestClient, *named: tuple[str, bytes]) -> tuple[int, str]:
    reply = client.post("/gradio_api/upload", files=[("files", one) for one in named])
    return reply.status_code, reply.text


def test_uploads_are_counted_as_they_come_and_go_and_not_looked_at(
    client: TestClient, looks: list[Path]
) -> None:
    count = uploads._count
    for n in range(6):
        status, _ = send(client, ("a.jsonl", b"%d" % n), ("b.jsonl", b"x" * 5000), ("c.jsonl", b"x" * 5000))
        assert status == 200
    assert len(looks) == 1
    assert measured(count) == on_disk() == (6 * LEAST_FILE + 2 * 5000, 8), "equal bytes share a folder"
    [first, *_] = (name for name, _ in count.folders())
    with uploads.taken(str(next((settings.uploads() / first).iterdir())), most_bytes=5000):
        assert count.size > on_disk()[0], "a copy takes room as well"
    shutil.rmtree(settings.uploads() / first)
    count.measure([first])
    assert measured(count) == on_disk()


@pytest.mark.parametrize("sent", [[("..", b"x")], [("a", b"x"), ("..", b"y")], [("", b"x")]])
def test_an_upload_that_is_refused_leaves_nothing(client: TestClient, sent: list[tuple[str, bytes]]) -> None:
    assert send(client, ("good.jsonl", b"x"))[0] == 200
    before = on_disk()
    status, _ = send(client, *sent)
    assert status == 400
    assert [path for path in settings.uploads().iterdir() if path.is_file()] == []
    assert measured(uploads._count) == on_disk()
    assert on_disk()[1] <= before[1] + 1


def test_requests_at_once_wait_for_one_look(home: Path, uploaded: Any, looks: list[Path]) -> None:
    uploaded(b"rows")

    async def run() -> Count:
        count = Count()
        await asyncio.gather(*(count.known() for _ in range(REQUESTS)))
        return count

    assert measured(asyncio.run(run())) == (LEAST_FILE, 1)
    assert len(looks) == 1


def test_what_goes_without_our_doing_is_noticed_after_a_while(
    home: Path, uploaded: Any, looks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, empty, _ = (Path(uploaded(word)) for word in (b"gone", b"emptied", b"stays"))
    (settings.uploads() / "tmpleft").write_bytes(b"half")
    count = Count()
    asyncio.run(count.known())
    assert measured(count) == (4 * LEAST_FILE, 4)
    shutil.rmtree(gone.parent)
    empty.unlink()
    (settings.uploads() / "tmpleft").unlink()
    asyncio.run(count.anew())
    assert (measured(count), len(looks)) == ((4 * LEAST_FILE, 4), 1), "the last look was just now"
    monkeypatch.setattr(upload_count, "LOOK_SECONDS", 0.0)
    asyncio.run(count.anew())
    assert (measured(count), len(looks)) == ((2 * LEAST_FILE, 2), 2)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens when a look has just read all."""
    todo: list[Callable[[], object]] = []
    everything = upload_count._everything

    def slow(top: Path) -> Any:
        found = everything(top)
        for one in todo:
            one()
        return found

    monkeypatch.setattr(upload_count, "_everything", slow)
    monkeypatch.setattr(upload_count, "LOOK_SECONDS", 0.0)
    return todo


def test_what_changes_during_a_look_is_not_lost(
    home: Path, uploaded: Any, meanwhile: list[Callable[[], object]]
) -> None:
    count, old = Count(), Path(uploaded(b"old"))

    def change() -> None:
        new = Path(uploaded(b"new" * 4000))
        shutil.rmtree(old.parent)
        count.measure([new.parent.name, old.parent.name])

    meanwhile.append(change)
    asyncio.run(count.known())
    meanwhile.clear()
    assert measured(count) == on_disk() == (12_000, 1)


def test_a_look_of_an_app_that_has_ended_changes_nothing(
    home: Path, uploaded: Any, meanwhile: list[Callable[[], object]]
) -> None:
    count = Count()
    uploaded(b"of another home")
    meanwhile.append(count.forget)
    asyncio.run(count.known())
    assert measured(count) == (0, 0)


def test_a_look_that_fails_is_tried_again(home: Path, meanwhile: list[Callable[[], object]]) -> None:
    def fail() -> None:
        raise OSError("Input/output error")

    count = Count()
    meanwhile.append(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            asyncio.run(count.known())
    meanwhile.clear()
    asyncio.run(count.known())
    assert count._looked is not None


def test_parts_that_still_arrive_count_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_count, "LOOK_SECONDS", 0.0)
    count = Count()
    (settings.uploads() / "tmppart").write_bytes(b"x" * 9000)
    count.arrive(9000, 1)
    asyncio.run(count.known())
    assert measured(count) == (9000, 1)
    count.arrive(-9000, -1)
    asyncio.run(count.anew())
    assert measured(count) == (9000, 1), "what a request has left behind"


def test_what_is_unread_is_summed_once_a_second(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer with each upload, and each request that is refused asks for it."""
    count, asked = Count(), []

    def ask() -> upload_count.Held:
        asked.append(1)
        return upload_count.Held(len(asked))

    monkeypatch.setattr(upload_count, "QUIET_SECONDS", 1e9)
    assert [count.quiet(ask).size for _ in range(3)] == [1, 1, 1]
    monkeypatch.setattr(upload_count, "QUIET_SECONDS", -1.0)
    assert [count.quiet(ask).size for _ in range(2)] == [2, 3]
