"""The one way in for a file that a browser names."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.system import files
from webapp import upload_count, uploads


def take(named, **more):
    with uploads.taken(named, **{"most_bytes": 100, **more}) as path:
        return path, path.read_bytes(), path.parent.stat().st_mode & 0o777


def test_handlers_get_a_copy_in_a_folder_of_this_upload_alone(home, uploaded):
    named = uploaded(b"rows")
    one, other = take(named), take(named)
    assert one[1:] == (b"rows", 0o700)
    assert one[0].name == "mine.jsonl"
    assert one[0].parent != other[0].parent
    assert not one[0].parent.exists()


def test_the_copy_goes_though_the_handler_fails_and_the_upload_stays(home, uploaded):
    named = uploaded(b"rows")
    with pytest.raises(RuntimeError), uploads.taken(named, most_bytes=100) as path:
        raise RuntimeError
    assert not path.parent.exists()
    assert uploads.known(named) == named


def test_a_file_that_is_too_large_or_of_another_kind_is_refused(home, uploaded):
    with pytest.raises(InputError, match="larger than the 3 bytes"):
        take(uploaded(b"rows"), most_bytes=3)
    with pytest.raises(InputError, match=r"not a \.json file"):
        take(uploaded(b"rows"), ending=".json")
    assert take(uploaded(b"{}", "Config.JSON"), ending=".json")[1] == b"{}"
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_a_copy_leaves_space_for_runs_and_has_its_place_before_it_is_written(home, uploaded, monkeypatch):
    named, places = uploaded(b"row" * 9000), []
    read = os.read

    def noted(source: int, size: int) -> bytes:
        (copy,) = (home / ".gradio-uploads" / uploads.COPIES).glob("*/*")
        places.append(copy.stat().st_blocks * 512)
        return read(source, size)

    monkeypatch.setattr(uploads.os, "read", noted)
    assert take(named, most_bytes=30_000)[1] == b"row" * 9000
    assert places[0] >= 27_000
    free = files.KEPT_FREE + 26_999
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(LabError, match="nearly full"):
        take(named, most_bytes=30_000)
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_the_sentence_is_the_same_whether_or_not_there_is_a_file(home, tmp_path):
    (tmp_path / "there").touch()
    said = set()
    for named in (
        str(tmp_path / "there"),
        str(tmp_path / "none"),
        None,
        f"{home}/.gradio-uploads/{'0' * 64}/x",
    ):
        with pytest.raises(InputError) as refused:
            take(named)
        said.add(str(refused.value))
    assert said == {uploads.NOT_HERE}


async def send_upload(app, size, pieces=(b"",), **scope):
    """The status and the body that an upload that states this size is answered with. An event among the
    pieces is waited for; and their end too, as what comes from a client may stop."""
    sent = []
    headers = [] if size is None else [(b"content-length", b"%d" % size)]
    coming, left = iter(pieces), [size or 0]

    async def send(message):
        sent.append(message)

    async def receive():
        piece = next(coming, None)
        if piece is None:
            await asyncio.Event().wait()
        if isinstance(piece, asyncio.Event):
            await piece.wait()
            piece = next(coming)
        left[0] -= len(piece)
        return {"type": "http.request", "body": piece, "more_body": left[0] > 0}

    headers += scope.pop("headers", [])
    base = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "query_string": b""}
    await app({**base, "headers": headers, **scope}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def keep(scope, receive, send):
    """An app that keeps as many bytes as are stated, unless the client goes."""
    left = int(dict(scope["headers"])[b"content-length"])
    with tempfile.NamedTemporaryFile(dir=settings.uploads()) as file:
        while left:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            left -= len(message["body"])
            file.truncate(file.tell() + len(message["body"]))
            file.seek(0, os.SEEK_END)
        os.link(file.name, f"{file.name}-whole")
    await send({"type": "http.response.start", "status": 200})


@pytest.fixture
def small(home, monkeypatch):
    """The largest body that an upload may have, which is small here."""
    monkeypatch.setenv("OLIVE_LAB_MAX_UPLOAD_MB", "1")
    return settings.max_upload_bytes() + uploads.FORM


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/upload/"])
def test_uploads_that_come_together_share_their_room(small, path):
    half = bytes(small // 2)

    async def run():
        room = uploads.Room(keep)
        several = [send_upload(room, small, [half] * 2, path=path) for _ in range(uploads.AT_ONCE + 2)]
        return [status for status, _ in await asyncio.gather(*several)]

    statuses = asyncio.run(run())
    assert set(statuses) == {200, 413}
    there = list(settings.uploads().iterdir())
    assert len(there) == statuses.count(200) <= uploads.AT_ONCE, "of the others nothing is left"


def test_what_is_stated_and_does_not_come_takes_no_room(small):
    async def run():
        room = uploads.Room(keep)
        slow = [asyncio.create_task(send_upload(room, small, [b"x"])) for _ in range(uploads.AT_ONCE * 3)]
        while len(list(settings.uploads().iterdir())) < len(slow):
            await asyncio.sleep(0)
        found = await send_upload(room, small, [bytes(small)])
        for task in slow:
            task.cancel()
        return found

    assert asyncio.run(run())[0] == 200


def test_what_has_gone_takes_no_room(small, monkeypatch):
    monkeypatch.setattr(upload_count, "LOOK_SECONDS", 0.0)

    async def run():
        room = uploads.Room(keep)
        for _ in range(uploads.AT_ONCE * 2):
            assert (await send_upload(room, small, [bytes(small)]))[0] == 200
            for path in settings.uploads().iterdir():
                path.unlink()

    asyncio.run(run())


def read(named):
    """As a check does."""
    with uploads.taken(named, most_bytes=1 << 30):
        pass


def age(named, seconds=2 * uploads.QUIET_SECONDS):
    """Make an upload older."""
    path = Path(named)
    for one in (path, path.parent):
        os.utime(one, times=(time.time() - seconds,) * 2)


@pytest.fixture
def full(small, uploaded, monkeypatch):
    """Uploads that take all room: the one named first was read just now, the others are older and older."""
    monkeypatch.setattr(uploads, "_read", {})
    put = [uploaded(b"%d" % n, "large.jsonl") for n in range(uploads.AT_ONCE)]
    for n, named in enumerate(put):
        os.truncate(named, small - 2 * uploads.LEAST_FILE)
        age(named, uploads.QUIET_SECONDS + 60 * (n + 1))
    read(put[0])
    return put


def test_where_there_is_no_room_those_that_nobody_reads_make_some(full, small):
    """Else who fills it closes uploads to everybody for an hour."""
    size = Path(full[0]).stat().st_size
    for there in (full[:-1], full[:-2]):
        assert asyncio.run(send_upload(uploads.Room(keep), size, [bytes(size)]))[0] == 200
        assert [named for named in full if Path(named).exists()] == there, "the longest unread goes"
    for named in full[1:-2]:
        read(named)
    status, said = asyncio.run(send_upload(uploads.Room(keep), size, [bytes(size)]))
    assert (status, said.decode().strip()) == (413, uploads.FULL)
    assert [named for named in full if Path(named).exists()] == full[:-2], "all that is read stays"


def test_naming_an_upload_does_not_let_it_stay(full, small):
    """A call that is refused may name any number, and would keep all others out for as long as it is made."""
    for named in full:
        assert uploads.known(named) == named
        with pytest.raises(InputError):
            take(named, ending=".json")
    size = Path(full[0]).stat().st_size
    assert asyncio.run(send_upload(uploads.Room(keep), size, [bytes(size)]))[0] == 200
    assert [named for named in full if Path(named).exists()] == full[:-1]


def test_nor_does_reading_it_again_and_again(full, small):
    *young, second, first = full
    for named in full:
        age(named, uploads.STAY_SECONDS + (-60 if named in young else 60))
    for named in (first, second, *young):
        read(named)
    size = Path(first).stat().st_size
    for there in ([*young, second], young):
        assert asyncio.run(send_upload(uploads.Room(keep), size, [bytes(size)]))[0] == 200
        assert [named for named in full if Path(named).exists()] == there, "what was read first goes"
    status, said = asyncio.run(send_upload(uploads.Room(keep), size, [bytes(size)]))
    assert (status, said.decode().strip()) == (413, uploads.FULL)
    assert [named for named in full if Path(named).exists()] == young


def test_only_what_arrives_has_others_make_room(full, small):
    """Anybody can state a size and send nothing."""

    async def run():
        room = uploads.Room(keep)
        slow = asyncio.create_task(send_upload(room, small, []))
        while not any(path.is_file() for path in settings.uploads().iterdir()):
            assert not slow.done()
            await asyncio.sleep(0)
        there = [named for named in full if Path(named).exists()]
        slow.cancel()
        return there

    assert asyncio.run(run()) == full


def test_what_has_gone_is_not_remembered(home, uploaded):
    named = uploaded(b"rows")
    read(named)
    assert Path(named).parent.name in uploads._read
    shutil.rmtree(Path(named).parent)
    uploads.tidy(3600)
    assert Path(named).parent.name not in uploads._read


@pytest.fixture
def many(monkeypatch, uploaded):
    """As many small uploads as there may be, the first the oldest, and all unread for a while."""
    monkeypatch.setattr(uploads, "MOST_UPLOADS", 64)
    monkeypatch.setattr(uploads, "_read", {})
    put = [uploaded(b"%d" % n) for n in range(uploads.MOST_UPLOADS)]
    for n, named in enumerate(put):
        age(named, uploads.QUIET_SECONDS + len(put) - n)
    return put


def sent(client, *contents):
    """The status, the sentence and the paths of an upload of several files."""
    files = [("files", (f"{n}.jsonl", content)) for n, content in enumerate(contents)]
    reply = client.post("/gradio_api/upload", files=files)
    return reply.status_code, reply.text.strip(), reply.json() if reply.status_code == 200 else []


def test_too_many_uploads_make_room_as_too_many_bytes_do(client, many):
    """A million small ones would fit into the bytes; and who asks for all of them would wait."""
    status, _, new = sent(client, b"new")
    assert status == 200
    assert [named for named in many if Path(named).exists()] == many[uploads.MOST_FILES :], "the oldest go"
    kept = [*many[uploads.MOST_FILES :], *new]
    for named in kept:
        read(named)
    left = uploads.MOST_UPLOADS - len(kept)
    assert sent(client, *(b"more %d" % n for n in range(left)))[0] == 200
    assert sent(client, b"one too many")[:2] == (413, uploads.FULL)
    assert all(Path(named).exists() for named in kept), "all that is read stays"

    async def never(scope, receive, send):
        raise AssertionError("it is refused before anything is read")

    assert asyncio.run(send_upload(uploads.Room(never), 10))[0] == 413


def test_who_reads_an_upload_reads_it_to_its_end(client, many):
    for named in many:
        age(named, 2 * uploads.STAY_SECONDS)
    with ExitStack() as reading:
        copies = [reading.enter_context(uploads.taken(named, most_bytes=100)) for named in many]
        assert sent(client, b"new")[0] == 200
        assert not Path(many[0]).exists()
        assert [copy.read_bytes() for copy in copies] == [b"%d" % n for n in range(len(many))]


def test_the_files_of_one_upload_do_not_pass_the_limit(client, many):
    for named in many:
        read(named)
    for named in many[:3]:
        shutil.rmtree(Path(named).parent)
    assert sent(client, *(b"new %d" % n for n in range(4)))[:2] == (413, uploads.FULL)
    assert len([path for path in settings.uploads().iterdir() if path.name != uploads.COPIES]) == 61
    assert sent(client, *(b"new %d" % n for n in range(3)))[0] == 200
    assert sent(client, b"one more")[:2] == (413, uploads.FULL)


def test_an_upload_of_more_files_than_are_left_has_others_make_room(client, many):
    shutil.rmtree(Path(many.pop()).parent)
    assert sent(client, *(b"new %d" % n for n in range(uploads.MOST_FILES)))[0] == 200
    assert [Path(named).exists() for named in many] == [False] * (uploads.MOST_FILES - 1) + [True] * 44


def test_folders_that_gradio_has_emptied_go_after_a_while(home, uploaded):
    old, new, full = (Path(uploaded(word)).parent for word in (b"old", b"new", b"full"))
    for folder in (old, new):
        (folder / "mine.jsonl").unlink()
    for folder in (old, full):
        os.utime(folder, times=(time.time() - 7200,) * 2)
    uploads.tidy(3600)
    assert [folder.exists() for folder in (old, new, full)] == [False, True, True]


def test_an_upload_that_no_longer_fits_ends_in_the_middle(home, client, uploaded):
    body = form([(GOOD, "x" * 200_000)])
    room = uploads.AT_ONCE * (settings.max_upload_bytes() + uploads.FORM)
    os.truncate(uploaded(b"rows"), room - 350_000)
    there = set(settings.uploads().iterdir())

    async def run():
        half, whole = asyncio.Event(), asyncio.Event()

        def pieces():
            yield body[:100_000]
            half.set()
            yield whole
            yield body[100_000:]

        def send(pieces):
            headers = [(b"host", b"localhost:7860"), (b"content-type", b"multipart/form-data; boundary=b")]
            return send_upload(client.app, len(body), pieces, headers=headers, http_version="1.1")

        async with asyncio.timeout(60):
            slow = asyncio.create_task(send(pieces()))
            await half.wait()
            other = await send([body])
            whole.set()
            return other, await slow

    (good, _), (status, said) = asyncio.run(run())
    assert (good, status, said.decode().strip()) == (200, 413, uploads.FULL)
    left = set(settings.uploads().iterdir()) - there
    assert [path.is_dir() for path in left] == [True], "the other's"


def test_an_upload_is_refused_before_it_is_written(home, uploaded, monkeypatch):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    def status(size):
        return asyncio.run(send_upload(uploads.Room(app), size))[0]

    most = settings.max_upload_bytes()
    assert [status(size) for size in (1, most, None, 2 * most)] == [200, 200, 411, 413]
    with monkeypatch.context() as nearly_full:
        nearly_full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=files.KEPT_FREE + 99))
        assert [status(99), status(100)] == [200, 507]
    os.truncate(uploaded(b"rows"), uploads.AT_ONCE * (most + uploads.FORM) - 1000)
    assert [status(1), status(most)] == [200, 413]


def test_the_page_says_that_there_is_no_room(home, client, uploaded):
    os.truncate(uploaded(b"rows"), uploads.AT_ONCE * (settings.max_upload_bytes() + uploads.FORM))
    reply = client.post("/gradio_api/upload", files={"files": ("a.jsonl", b"{}")})
    assert (reply.status_code, reply.text.strip()) == (413, uploads.FULL)
    assert client.get("/").status_code == 200


def test_what_a_lost_connection_left_goes_after_a_while(home, uploaded):
    whole = uploaded(b"rows")
    for name, age in (("tmpold", 7200), ("tmpnew", 0)):
        part = settings.uploads() / name
        part.write_bytes(b"half of a fi")
        os.utime(part, times=(part.stat().st_mtime - age,) * 2)
    uploads.tidy(3600)
    assert sorted(path.name for path in settings.uploads().iterdir() if path.is_file()) == ["tmpnew"]
    assert uploads.known(whole)


def form(parts, boundary="b"):
    """A body of parts, each a header line and its content."""
    lines = [
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n{text}\r\n" for head, text in parts
    ]
    return "".join([*lines, f"--{boundary}--\r\n"]).encode()


FORM = "multipart/form-data"
GOOD = 'name="files"; filename="a.jsonl"'


@pytest.mark.parametrize(
    "parts",
    [
        [('name="files"', "x" * 100)],  # Gradio keeps it in memory, however much it is
        [('name="files"; filename=""', "x")],
        [("name=\"files\"; filename*=UTF-8''a.jsonl", "x")],
        [(GOOD, "x"), ('name="more"', "y")],
        [(GOOD, "x"), ('name="other"; filename="b.jsonl"', "y")],
        [(GOOD.replace("a.", f"{i}."), "x") for i in range(21)],  # each stays open until the last is there
        [('filename="a.jsonl"', "x")],
        [],
    ],
)
def test_an_upload_holds_files_alone(client, capfd, parts):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = client.post("/gradio_api/upload", content=form(parts), headers=kind)
    assert reply.status_code in (400, 422) or (not parts and reply.json() == [])
    assert [path.name for path in settings.uploads().iterdir()] == []
    assert "Traceback" not in capfd.readouterr().err
    assert client.post("/gradio_api/upload", content=form([(GOOD, "x")]), headers=kind).status_code == 200


@pytest.mark.parametrize("whole", [[], [(GOOD, "whole")]])
def test_a_file_without_an_end_takes_no_place(client, whole):
    """Such a request is complete by its length, and the parts of very many would keep all others out."""
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    body = form([*whole, (GOOD, "x")]).removesuffix(b"\r\n--b--\r\n")
    assert client.post("/gradio_api/upload", content=body, headers=kind).status_code == 400
    assert [path for path in settings.uploads().iterdir() if path.is_file()] == []
    assert uploads._count.files == 0
    assert client.post("/gradio_api/upload", content=form([]), headers=kind).json() == []
    assert uploads._count.files == 0


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 60_000}", "a"]
)
def test_a_form_that_is_none_is_a_sentence(client, capfd, kind):
    reply = client.post("/gradio_api/upload", content=form([(GOOD, "x")]), headers={"Content-Type": kind})
    assert reply.status_code in (400, 422)
    assert "Traceback" not in capfd.readouterr().err


def test_an_upload_that_breaks_off_leaves_nothing(home):
    async def stream():
        yield form([(GOOD, "x" * 5000)])[:-2000]
        assert any(path.is_file() for path in settings.uploads().iterdir())
        raise ClientDisconnect

    headers = Headers({"Content-Type": "multipart/form-data; boundary=b"})
    reader = uploads.FilesOnly(headers, stream(), upload_dir=settings.uploads(), max_file_size=1 << 20)
    with pytest.raises(ClientDisconnect):
        asyncio.run(reader.parse())
    assert list(settings.uploads().iterdir()) == []
