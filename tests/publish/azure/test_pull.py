"""A registered version comes back whole, also where somebody else registered it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobBlock

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import Status
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import publisher as azureml
from pipeline.publish.azure import pull
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.transfer import download
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers.azure import fake_arm
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.proxy import Spoil

Said = list[tuple[str, float, dict[str, Any]]]


@pytest.fixture
def published(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], said: Said
) -> dict[str, Any]:
    made = azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    said.clear()
    return made


def register(bench: Bench, where: Place, prefix: str, files: dict[str, str], version: str = "1") -> str:
    """Somebody else's model, of files that have no checksums with them."""
    from pipeline.publish.azure.workspace import Workspace

    with bench.container() as container:
        for name, text in files.items():
            blob = container.get_blob_client(f"{prefix}/{name}" if prefix else name)
            blob.stage_block("0001", text.encode())
            blob.commit_block_list([BlobBlock("0001")])
    workspace = Workspace(where)
    workspace.register("theirs", version, workspace.path(prefix, "theirs", version), 60.0)
    return f"azureml:theirs:{version}"


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def blob_of(bench: Bench, ending: str) -> str:
    with bench.container() as container:
        (name,) = (blob.name for blob in container.list_blobs() if blob.name.endswith(ending))
    return str(name)


def test_the_command_line_pulls_what_verifies(
    bench: Bench, store: Store, published: dict[str, Any], tmp_path: Path
) -> None:
    command = [
        settings.python(),
        "-m",
        "pipeline",
        "pull",
        "azureml:trips:1",
        "--to",
        str(tmp_path / "here"),
        "--json",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=settings.ROOT, env=settings.child_environment()
    )
    assert done.returncode == 0, done.stderr
    pulled = json.loads(done.stdout)
    assert (pulled["compared"], pulled["folder"]) == ("the same as was published", str(tmp_path / "here"))
    assert {finding.status for finding in verify.whole(tmp_path / "here")} == {Status.OK}
    again = subprocess.run(
        command, capture_output=True, text=True, cwd=settings.ROOT, env=settings.child_environment()
    )
    assert (again.returncode, "already exists; give another folder with --to" in again.stderr) == (2, True)


def test_a_pull_that_was_cut_goes_on(
    bench: Bench, store: Store, published: dict[str, Any], where: Place, report: Callable[..., None],
    said: Said, tmp_path: Path,
) -> None:  # fmt: skip
    bench.proxy.spoils.append(Spoil(r"^GET .*model\.onnx\?", "status", status=403, code="AuthorizationPermissionMismatch"))  # noqa: E501  # fmt: skip
    with pytest.raises(LabError, match="Storage Blob Data Contributor"), explained(where):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    assert not (tmp_path / "here").exists()
    bench.proxy.spoils.clear()
    bench.proxy.passed.clear()
    pulled = pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    assert bench.proxy.count(r"^GET .*genai_config\.json") == 0
    assert bench.proxy.count(r"^GET .*model\.onnx\?", 206) == 1
    assert pulled["bytes"] == said[-1][2]["bytes_total"] == said[-1][2]["bytes_done"]
    assert list(tmp_path.glob(".here*")) == []


def test_what_was_cut_of_one_version_is_never_taken_for_another(
    bench: Bench, where: Place, store: Store, report: Callable[..., None], tmp_path: Path
) -> None:
    first = {"a.json": "v1", "only-in-1.json": "x", "w.bin": "1" * 50}
    second = {"a.json": "v2", "w.bin": "2" * 50}
    cut = register(bench, where, "m/1", first, "1")
    bench.proxy.spoils.append(
        Spoil(r"^GET .*w\.bin", "status", status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError), explained(where):
        pull.pull(store.home, where, cut, tmp_path / "here", report)
    bench.proxy.spoils.clear()
    (tmp_path / ".here.part" / "stray").write_text("from elsewhere")
    pulled = pull.pull(
        store.home, where, register(bench, where, "m/2", second, "2"), tmp_path / "here", report
    )
    assert contents(tmp_path / "here") == second
    assert (pulled["files"], list(tmp_path.glob(".here*"))) == (2, [])


def test_what_was_kept_of_a_pull_that_was_cut_is_checked_again(
    bench: Bench, store: Store, published: dict[str, Any], where: Place, report: Callable[..., None],
    tmp_path: Path,
) -> None:  # fmt: skip
    bench.proxy.spoils.append(
        Spoil(r"^GET .*vocab\.txt", "status", status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError), explained(where):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    bench.proxy.spoils.clear()
    largest = max((tmp_path / ".here.part").glob("*/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))  # as a disk leaves it that lost its power
    with pytest.raises(LabError, match="came out of Azure with other content than it has there; try again"):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    pulled = pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    assert pulled["compared"] == "the same as was published"


def test_publishing_again_heals_what_was_changed_there(
    bench: Bench, store: Store, finished: Run, published: dict[str, Any], where: Place,
    report: Callable[..., None], tmp_path: Path,
) -> None:  # fmt: skip
    name = blob_of(bench, "vocab.txt")
    with bench.container() as container:
        kept = container.get_blob_client(name).get_blob_properties()
        container.upload_blob(name, bytes(kept.size), overwrite=True, metadata=kept.metadata)
    with pytest.raises(LabError, match=r"vocab\.txt came out of Azure with other content"):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    again = azureml.register(store.home, finished, azureml.Options(name="trips"), report)
    assert (again["version"], again["verified"], again["bytes_sent"]) == ("1", True, kept.size)
    pulled = pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    assert pulled["compared"] == "the same as was published"


def test_a_file_that_was_changed_there_is_noticed(
    bench: Bench, store: Store, published: dict[str, Any], where: Place, report: Callable[..., None],
    tmp_path: Path,
) -> None:  # fmt: skip
    with bench.container() as container:
        container.upload_blob(blob_of(bench, "vocab.txt"), b"WORDS", overwrite=True)
    with pytest.raises(
        LabError, match=r"sub/vocab\.txt: not as SHA256SUMS of the model says; it was changed"
    ):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)
    assert not (tmp_path / "here").exists()


def test_a_file_too_many_is_noticed(
    bench: Bench, store: Store, published: dict[str, Any], where: Place, report: Callable[..., None],
    tmp_path: Path,
) -> None:  # fmt: skip
    with bench.container() as container:
        container.upload_blob(blob_of(bench, "vocab.txt").replace("vocab", "more"), b"more")
    with pytest.raises(LabError, match="The files are not those that were published as azureml://"):
        pull.pull(store.home, where, "azureml:trips:1", tmp_path / "here", report)


def test_what_the_client_itself_registered_is_pulled(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], export: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from azure.ai.ml.entities import Model

    from pipeline.publish.azure.workspace import Workspace

    monkeypatch.setenv("TQDM_DISABLE", "1")
    client = Workspace(where).client
    client.models.create_or_update(Model(name="theirs", version="1", path=str(export), type="custom_model"))
    client.models.create_or_update(
        Model(name="one-file", version="1", path=str(export / "genai_config.json"), type="custom_model")
    )
    pulled = pull.pull(store.home, where, "azureml:theirs:1", tmp_path / "here", report)
    assert pulled["compared"] == "as its SHA256SUMS says"
    assert {finding.status for finding in verify.static(tmp_path / "here")} == {Status.OK}
    pulled = pull.pull(store.home, where, "azureml:one-file:1", tmp_path / "single", report)
    assert (pulled["files"], pulled["compared"]) == (1, "without checksums to compare with; sizes agree")
    assert (tmp_path / "single" / "genai_config.json").read_bytes() == (
        export / "genai_config.json"
    ).read_bytes()


@pytest.mark.parametrize("prefix", ["LocalUpload/h/footpaths", "paths/paths", ""])
def test_a_folder_may_have_any_name_or_be_the_whole_container(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path, prefix: str
) -> None:
    files = {"config.json": "{}", "sub/paths/w.bin": "w"}
    uri = register(bench, where, prefix, files)
    pull.pull(store.home, where, uri, tmp_path / "here", report)
    assert contents(tmp_path / "here") == files


def test_a_resource_group_may_have_any_name(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_arm, "W", fake_arm.W.replace(fake_arm.GROUP, "footpaths-rg"))
    azure_workspace.remember(store.home, Place("cli", fake_arm.SUB, "footpaths-rg", fake_arm.WORKSPACE))
    assert azureml.register(store.home, finished, azureml.Options(name="trips"), report)["verified"]


WORDS = hashlib.sha256(b"words").hexdigest()


@pytest.mark.parametrize(
    ("sums", "compared"),
    [
        (f"SHA256 (a.bin) = {WORDS}\n", "as its SHA256SUMS says"),
        (f"{WORDS}  ./a.bin\n", "as its SHA256SUMS says"),
        (f"{WORDS.upper()} *a.bin\n", "as its SHA256SUMS says"),
        ("the sums are in the wiki\n", "without checksums to compare with; sizes agree"),
    ],
)
def test_checksums_of_others_are_compared_where_they_can_be_read(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path, sums: str,
    compared: str,
) -> None:  # fmt: skip
    uri = register(bench, where, "m/1", {"a.bin": "words", "SHA256SUMS": sums})
    assert pull.pull(store.home, where, uri, tmp_path / "here", report)["compared"] == compared


def test_checksums_that_somebody_made_huge_end_the_pull(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(checksums, "LARGEST", 20)
    uri = register(bench, where, "m/1", {"a.bin": "words", "SHA256SUMS": "\n" * 21})
    with pytest.raises(LabError, match=r"^Its SHA256SUMS is larger than any real one"):
        pull.pull(store.home, where, uri, tmp_path / "here", report)


def test_checksums_of_others_that_differ_are_said_and_the_file_is_brought_anew(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    uri = register(bench, where, "m/1", {"a.bin": "wordz", "SHA256SUMS": f"SHA256 (./a.bin) = {WORDS}\n"})
    for _ in range(2):
        with pytest.raises(LabError, match=r"a\.bin: not as SHA256SUMS of the model says; it was changed"):
            pull.pull(store.home, where, uri, tmp_path / "here", report)
    assert bench.proxy.count(r"^GET .*a\.bin", 206) == 2
    assert bench.proxy.count(r"^GET .*SHA256SUMS", 206) == 1


def test_a_file_that_is_a_folder_as_well_and_the_longest_name(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    both = register(bench, where, "m/1", {"a": "x", "a/b": "y"}, "1")
    with pytest.raises(LabError, match=r"a file named 'a/b', which is in a folder that is a file as well"):
        pull.pull(store.home, where, both, tmp_path / "here", report)
    files = {"n" * 255: "x", f"sub/{'m' * 255}": "y"}
    pull.pull(store.home, where, register(bench, where, "m/2", files, "2"), tmp_path / "here", report)
    assert contents(tmp_path / "here") == files


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    uri = register(bench, where, "m/1", {"a.bin": "words"})
    with bench.container() as container:
        container.get_blob_client("m/1/large.bin").create_page_blob(4 << 40)
    # Where the check is broken this fails at the first read, and fills no disk.
    bench.proxy.spoils.append(
        Spoil("^GET .*/m/1/", "status", status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError, match=r"The model needs 4398\.\d GB more of disk, and .* are free; free"):
        pull.pull(store.home, where, uri, tmp_path / "here", report)
    assert bench.proxy.count(r"^GET .*/m/1/") == 0


def test_a_disk_that_fills_up_meanwhile_ends_it_with_that_reason(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uri = register(bench, where, "m/1", {"a.bin": "words", "b.bin": "more"})
    spare, more_than_there_is = download.SPARE, 1 << 62

    def fill() -> None:
        monkeypatch.setattr(download, "SPARE", more_than_there_is)

    bench.proxy.spoils.append(Spoil(r"^GET .*/b\.bin", "call", times=1, then=fill))
    with pytest.raises(LabError, match="The disk is full; free some room and try again"):
        pull.pull(store.home, where, uri, tmp_path / "here", report)
    monkeypatch.setattr(download, "SPARE", spare)
    bench.proxy.passed.clear()
    assert pull.pull(store.home, where, uri, tmp_path / "here", report)["files"] == 2
    assert bench.proxy.count(r"^GET .*/a\.bin") == 0


def test_two_do_not_pull_into_one_folder_at_once(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    uri = register(bench, where, "m/1", {"a.bin": "words"})
    refused = []

    def second() -> None:
        with pytest.raises(LabError, match="here: is being pulled already; wait for that, or give another"):
            pull.pull(store.home, where, uri, tmp_path / "here", report)
        refused.append(True)

    bench.proxy.spoils.append(Spoil(r"^GET .*/a\.bin", "call", times=1, then=second))
    pull.pull(store.home, where, uri, tmp_path / "here", report)
    assert refused
    assert [path.name for path in tmp_path.glob("*here*")] == ["here"]


@pytest.mark.parametrize("linked", [".here.part", ".here.part/a.bin"])
def test_what_was_started_with_links_is_no_download_of_ours(
    linked: str, bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    """The current folder may be somebody else's archive: what a link names would be written or removed."""
    uri = register(bench, where, "m/1", {"a.bin": "words"})
    (theirs := tmp_path / "theirs").mkdir()
    (theirs / "file").write_text("theirs")
    (tmp_path / linked).parent.mkdir(exist_ok=True)
    (tmp_path / linked).symlink_to(theirs if linked == ".here.part" else theirs / "file")
    with pytest.raises(InputError, match=r"here\.part: has links, so it is no download of this lab"):
        pull.pull(store.home, where, uri, tmp_path / "here", report)
    assert [(path.name, path.read_text()) for path in theirs.iterdir()] == [("file", "theirs")]


def test_what_is_not_there_and_what_is_no_name(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(LabError, match="does not exist, or the login cannot see it"), explained(where):
        pull.pull(store.home, where, "azureml:none:1", tmp_path / "here", report)
    assert list(tmp_path.glob("*here*")) == []
    for wrong in ("azureml:none", "trips:1", "azureml://registries/r/models/m", "azureml:a:1/../.."):
        with pytest.raises(InputError, match="is not a model in Azure; one looks like azureml:NAME:VERSION"):
            pull.pull(store.home, where, wrong, tmp_path / "here", report)
