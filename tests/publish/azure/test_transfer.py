"""Bytes to the storage emulator and back through a proxy that drops, stalls, throttles and refuses."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobBlock, BlobProperties, ContentSettings

from pipeline.errors import LabError
from pipeline.exports import verify
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.transfer import blob_client, download, upload
from pipeline.publish.azure.transfer.blob_client import Container
from pipeline.publish.items import Item
from pipeline.system.transfer_progress import Meter
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.proxy import Spoil

BLOCK = 64 << 10
PREFIX = "olive-lab/some"
BLOCKS = r"^PUT .*comp=block&"
LISTS = r"^PUT .*comp=blocklist"
READS = r"^GET .*/olive-lab/some/"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_client, "BLOCK", BLOCK)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Whoever hangs is given up soon. Not elsewhere: who is only slow is then asked a second time."""

    def so(how: str) -> None:
        if how in ("deaf", "silent"):
            monkeypatch.setattr(blob_client, "STALL_SECONDS", 1.0)

    return so


@pytest.fixture
def opened(bench: Bench, where: Place) -> Callable[..., Container]:
    from pipeline.publish.azure.workspace import Workspace

    workspace = Workspace(where)
    return lambda patience=20.0: workspace.container("any", "1", patience)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Three files of five, two and no blocks."""
    made = []
    for name, size in (("a.data", 5 * BLOCK - 100), ("b/tokens.json", 2 * BLOCK), ("c.txt", 0)):
        data = hashlib.shake_128(name.encode()).digest(size)
        path = tmp_path / name.replace("/", "-")
        path.write_bytes(data)
        made.append(Item(name, path, size, hashlib.sha256(data).hexdigest()))
    return made


def send(container: Container, items: list[Item]) -> Meter:
    meter = Meter(lambda *told, **facts: None, sum(item.size for item in items))
    upload.send(container, PREFIX, items, meter)
    return meter


def stored(bench: Bench) -> dict[str, str]:
    with bench.container() as container:
        names = [blob.name for blob in container.list_blobs(f"{PREFIX}/")]
        return {
            name.removeprefix(f"{PREFIX}/"): hashlib.sha256(
                container.download_blob(name).readall()
            ).hexdigest()
            for name in names
        }


def sums(items: list[Item]) -> dict[str, str]:
    return {item.name: item.sha256 for item in items}


def fetch(container: Container, folder: Path) -> dict[str, str]:
    files = download.listed(container, PREFIX)
    meter = Meter(lambda *told, **facts: None, sum(remote.size for remote in files.values()))
    return download.fetch(container, files, folder, meter)


SPOILS = {
    "drops": Spoil(BLOCKS, "drop", times=5, skip=1),
    "429": Spoil(BLOCKS, "status", times=3, skip=1, status=429, code="ServerBusy"),
    "503": Spoil(BLOCKS, "status", times=3, skip=1),
    "500 of the list": Spoil(LISTS, "status", times=2, status=500, code="InternalError"),
    "deaf": Spoil(BLOCKS, "deaf", times=2, skip=2),
    "silent": Spoil(BLOCKS, "silent", times=2, skip=2),
    "silent to the list": Spoil(LISTS, "silent", times=1, skip=1),
}


@pytest.mark.parametrize("name", SPOILS)
def test_an_upload_outlasts(
    bench: Bench, opened: Callable[..., Container], items: list[Item], impatient: Callable[[str], None],
    name: str,
) -> None:  # fmt: skip
    spoil = SPOILS[name]
    impatient(spoil.how)
    bench.proxy.spoils.append(Spoil(**vars(spoil)))
    container = opened()
    began = time.monotonic()
    meter = send(container, items)
    assert stored(bench) == sums(items)
    assert container.retries >= spoil.times
    assert meter.moved == sum(item.size for item in items)
    assert time.monotonic() - began < 100  # those who hang do so for 120 seconds
    assert bench.proxy.spoils[0].times == 0


def test_a_wait_that_the_service_asks_for_is_kept(
    bench: Bench, opened: Callable[..., Container], items: list[Item]
) -> None:
    told = {"Retry-After": "2"}
    bench.proxy.spoils.append(Spoil(BLOCKS, "status", times=1, status=429, code="ServerBusy", headers=told))
    began = time.monotonic()
    send(opened(), items[1:])
    assert time.monotonic() - began >= 2


def test_a_signature_that_ends_on_the_way_is_asked_for_anew(
    bench: Bench, opened: Callable[..., Container], items: list[Item]
) -> None:
    bench.azure.sas_seconds = 2.0

    def end() -> None:
        """As long as it takes for the first signature to end; those after it last."""
        threading.Event().wait(3)
        bench.azure.sas_seconds = 3600.0

    bench.proxy.spoils.append(Spoil(BLOCKS, "call", skip=1, times=2, then=end))
    container = opened()
    send(container, items)
    assert stored(bench) == sums(items)
    assert bench.proxy.count("^PUT", 403) >= 1
    assert bench.azure.count("POST .*/listSecrets") >= 2
    assert bench.proxy.sent(BLOCKS) == sum(item.size for item in items)


def test_signatures_that_are_always_refused_end_it(
    bench: Bench, where: Place, opened: Callable[..., Container], items: list[Item]
) -> None:
    bench.proxy.spoils.append(Spoil("", "status", status=403, code="AuthenticationFailed"))
    with (
        pytest.raises(
            LabError, match="refuses its own access signature, also a new one; check this machine's"
        ),
        explained(where),
    ):
        send(opened(), items)
    assert bench.azure.count("POST .*/listSecrets") <= 2 + blob_client.MOST_REFUSALS


@pytest.mark.parametrize("how", ["deaf", "silent", "drop", "status"])
def test_what_never_gets_through_ends_in_time_with_a_sentence(
    bench: Bench, opened: Callable[..., Container], items: list[Item], impatient: Callable[[str], None],
    how: str,
) -> None:  # fmt: skip
    impatient(how)
    bench.proxy.spoils.append(Spoil(BLOCKS, how, skip=3))
    began = time.monotonic()
    with pytest.raises(LabError, match="Nothing got through to or from Azure for 3 seconds") as raised:
        send(opened(3.0), items)
    assert time.monotonic() - began < 100
    assert "sig=" not in str(raised.value).replace("sig=[removed]", "")
    assert stored(bench) == {}


def test_what_repeating_does_not_cure_is_not_repeated(
    bench: Bench, where: Place, opened: Callable[..., Container], items: list[Item]
) -> None:
    bench.proxy.spoils.append(Spoil(BLOCKS, "status", status=403, code="AuthorizationPermissionMismatch"))
    with pytest.raises(LabError, match="ask for the role Storage Blob Data Contributor"), explained(where):
        send(opened(), items[:1])
    assert bench.proxy.count(BLOCKS) <= blob_client.THREADS + 1


def test_finished_files_and_blocks_are_not_sent_again(
    bench: Bench, opened: Callable[..., Container], items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        blob_client, "THREADS", 1
    )  # so that the first three blocks are those that get through
    bench.proxy.spoils.append(
        Spoil(BLOCKS, "status", skip=3, status=403, code="AuthorizationPermissionMismatch")
    )
    from azure.core.exceptions import AzureError

    with pytest.raises(AzureError):
        send(opened(), items)
    done = bench.proxy.sent(BLOCKS)
    assert done == 3 * BLOCK
    bench.proxy.spoils.clear()
    meter = send(opened(), items)
    assert meter.moved == sum(item.size for item in items) - done
    assert bench.proxy.sent(BLOCKS) == sum(item.size for item in items)
    again = send(opened(), items)
    assert (again.moved, again.done) == (0, sum(item.size for item in items))
    assert stored(bench) == sums(items)


def test_a_file_that_changes_while_it_is_sent_never_becomes_a_blob(
    bench: Bench, opened: Callable[..., Container], items: list[Item]
) -> None:
    data = bytearray(items[0].source.read_bytes())  # type: ignore[union-attr]
    data[-1] ^= 1
    items[0].source.write_bytes(data)  # type: ignore[union-attr]
    with pytest.raises(LabError, match=r"a\.data changed while it was uploaded; nothing was registered"):
        send(opened(), items)
    assert stored(bench) == {}


def test_what_lies_there_besides_is_noticed(
    bench: Bench, opened: Callable[..., Container], items: list[Item]
) -> None:
    with bench.container() as container:
        container.upload_blob(f"{PREFIX}/theirs.txt", b"words")
    with pytest.raises(LabError, match=r"not of this model lie beside it in Azure \(theirs.txt\); remove"):
        send(opened(), items)
    assert bench.proxy.count(BLOCKS) == 0


def test_folders_that_the_service_keeps_as_files_are_not_in_the_way(
    bench: Bench, opened: Callable[..., Container], items: list[Item], tmp_path: Path
) -> None:
    send(opened(), items)
    with bench.container() as container:
        container.upload_blob(f"{PREFIX}/b", b"", metadata={"hdi_isfolder": "true"})
    assert send(opened(), items).moved == 0
    assert fetch(opened(), tmp_path / "new") == sums(items)


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_somebody_changed_there_is_sent_again_though_it_looks_the_same(
    bench: Bench, opened: Callable[..., Container], items: list[Item], number: int
) -> None:
    send(opened(), items)
    item = items[number]
    with bench.container() as container:
        kept = container.get_blob_client(f"{PREFIX}/{item.name}").get_blob_properties().metadata
        container.upload_blob(f"{PREFIX}/{item.name}", bytes(item.size), overwrite=True, metadata=kept)
    assert send(opened(), items).moved == item.size
    assert stored(bench) == sums(items)


def test_more_files_than_a_model_has_are_refused_before_all_are_listed(
    bench: Bench, opened: Callable[..., Container], items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(opened(), items)
    monkeypatch.setattr(download, "MOST_FILES", 3)
    assert len(download.listed(opened(), PREFIX)) == 3
    monkeypatch.setattr(download, "MOST_FILES", 2)
    for prefix, place in ((PREFIX, PREFIX), ("", "the top")):
        with pytest.raises(LabError, match=f"More than 2 files lie at {place} of the container, which no"):
            download.listed(opened(), prefix)


def test_what_verify_would_refuse_is_refused_before_it_is_fetched() -> None:
    """Of a container with very many files no more are listed than it takes to know so."""
    listed = 0

    class Many:
        def list_blobs(self, **_: Any) -> Iterator[Any]:
            nonlocal listed
            for number in range(100_000):
                listed += 1
                yield BlobProperties(name=f"{PREFIX}/{number}.onnx_adapter")

    with pytest.raises(LabError, match="More than 1,000 files lie at olive-lab/some of the container"):
        download.listed(Container(Many), PREFIX)
    assert listed == verify.MOST_FILES + 1


READ_SPOILS = {
    "drops": Spoil(READS, "drop", times=3, skip=1),
    "cut in the middle": Spoil(READS, "cut", times=3, skip=1),
    "503": Spoil(READS, "status", times=3, skip=1),
    "429": Spoil(READS, "status", times=2, skip=1, status=429),
    "silent": Spoil(READS, "silent", times=1, skip=1),
}


@pytest.mark.parametrize("name", READ_SPOILS)
def test_a_download_outlasts(
    bench: Bench, opened: Callable[..., Container], items: list[Item], impatient: Callable[[str], None],
    tmp_path: Path, name: str,
) -> None:  # fmt: skip
    send(opened(), items)
    impatient(READ_SPOILS[name].how)
    bench.proxy.spoils.append(Spoil(**vars(READ_SPOILS[name])))
    assert fetch(opened(), tmp_path / "new") == sums(items)
    for item in items:
        assert hashlib.sha256((tmp_path / "new" / item.name).read_bytes()).hexdigest() == item.sha256


def test_a_download_goes_on_where_it_was(
    bench: Bench,
    opened: Callable[..., Container],
    items: list[Item],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One read at a time: of several, the first can be the one that is refused, and nothing is kept.
    monkeypatch.setattr(blob_client, "THREADS", 1)
    send(opened(), items)
    bench.proxy.spoils.append(
        Spoil(READS, "status", skip=3, status=403, code="AuthorizationPermissionMismatch")
    )
    from azure.core.exceptions import AzureError

    with pytest.raises(AzureError):
        fetch(opened(), tmp_path / "new")
    assert not (tmp_path / "new" / "a.data").exists()
    bench.proxy.spoils.clear()
    bench.proxy.passed.clear()
    assert fetch(opened(), tmp_path / "new") == sums(items)
    assert bench.proxy.count(READS, 206) == 7 - 3
    assert list((tmp_path / "new").rglob(".*")) == []


def put_whole(bench: Bench, data: bytes) -> None:
    """A file without checksums, as other programs leave large ones."""
    with bench.container() as container:
        blob = container.get_blob_client(f"{PREFIX}/w.bin")
        blob.stage_block("0001", data)
        blob.commit_block_list([BlobBlock("0001")])


def test_what_says_that_it_is_packed_comes_as_it_lies_there(
    bench: Bench, opened: Callable[..., Container], tmp_path: Path
) -> None:
    """The client would unpack it: gigabytes from a megabyte, into memory and onto the disk."""
    packed = gzip.compress(bytes(50_000_000))
    with bench.container() as container:
        blob = container.get_blob_client(f"{PREFIX}/w.bin")
        blob.stage_block("0001", packed)
        blob.commit_block_list([BlobBlock("0001")], content_settings=ContentSettings(content_encoding="gzip"))
    fetch(opened(), tmp_path / "new")
    assert (tmp_path / "new" / "w.bin").read_bytes() == packed
    (remote,) = download.listed(opened(), PREFIX).values()
    assert download.small(opened(), remote) == packed


def test_a_file_that_changes_while_it_is_read_is_never_half_the_one_half_the_other(
    bench: Bench, opened: Callable[..., Container], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_client, "THREADS", 1)
    put_whole(bench, b"a" * (5 * BLOCK))
    new = b"b" * (5 * BLOCK)
    bench.proxy.spoils.append(Spoil(READS, "call", skip=2, times=1, then=lambda: put_whole(bench, new)))
    with pytest.raises(LabError, match=r"w\.bin was changed in Azure while it was downloaded; try again"):
        fetch(opened(), tmp_path / "new")
    assert fetch(opened(), tmp_path / "new") == {"w.bin": hashlib.sha256(new).hexdigest()}
    assert (tmp_path / "new" / "w.bin").read_bytes() == new
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.bin"]


def test_a_download_of_other_content_is_not_kept(
    bench: Bench, opened: Callable[..., Container], items: list[Item], tmp_path: Path
) -> None:
    send(opened(), items)
    with bench.container() as container:
        container.upload_blob(f"{PREFIX}/c.txt", b"x", overwrite=True, metadata={"sha256": items[2].sha256})
    with pytest.raises(LabError, match=r"c\.txt came out .* other content .* publish it again under a"):
        fetch(opened(), tmp_path / "new")
    assert not (tmp_path / "new" / "c.txt").exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../out.txt", "leads out of its folder"),
        ("a/../../out.txt", "leads out of its folder"),
        ("a\\..\\b", "leads out of its folder"),
        ("/etc/passwd", "leads out of its folder"),
        ("a\nb", "has letters that cannot be shown"),
        (f"a/{'n' * 256}", "is too long for a disk"),
        ("ü" * 128, "is too long for a disk"),
        (f"{download.ARRIVING}/a", "is kept for what is on its way"),
    ],
)
def test_names_that_no_folder_can_have_are_refused(name: str, why: str) -> None:
    class Client:
        def list_blobs(self, **given: Any) -> list[Any]:
            return [type("Blob", (), {"name": f"{PREFIX}/{name}", "metadata": {}, "size": 1, "etag": "e"})]

    with pytest.raises(LabError, match=f"{why}; it has to be registered without it"):
        download.listed(Container(Client), PREFIX)
