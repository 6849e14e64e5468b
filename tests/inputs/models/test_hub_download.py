"""Models from the hub by its real client, on a hub of our own: progress, interruptions, what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from pipeline.errors import InputError, LabError
from pipeline.inputs.models import base_models, hub_download
from pipeline.inputs.models.hub_download import Remote
from tests.helpers.fake_hub import FakeHub, Fault, Repo
from tests.inputs.models.conftest import WEIGHTS

WHOLE = ["README.md", "config.json", "model.safetensors", "tokenizer_config.json"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits a second before it asks again where a line broke."""
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda s: None, time=time.time))
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 1000
    )  # what of a chunk has come is lost with a line


def fetch(folder: Path, revision: str) -> list[tuple[str, float, dict[str, Any]]]:
    said: list[tuple[str, float, dict[str, Any]]] = []
    hub_download.download(
        "org/tiny", revision, folder, base_models.HUB_FILES, lambda m, f, **facts: said.append((m, f, facts))
    )
    return said


def refused(folder: Path, revision: str) -> str:
    with pytest.raises(LabError) as caught:
        fetch(folder, revision)
    return str(caught.value)


def test_what_a_model_needs_arrives_with_progress_and_nothing_else(
    hub: FakeHub, on_hub: str, tmp_path: Path
) -> None:
    said = fetch(tmp_path / "m", on_hub)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == WHOLE
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert said[-1][1] == 1.0
    assert said[-1][2]["bytes_done"] == said[-1][2]["bytes_total"] > len(WEIGHTS)


def test_a_file_that_broke_off_goes_on_where_it_was(hub: FakeHub, on_hub: str, tmp_path: Path) -> None:
    file = "GET .*/model.safetensors"
    hub.faults += [Fault(file, 206, after=6000, times=1), Fault(file, 500)]
    message = refused(tmp_path / "m", on_hub)
    assert message == (
        "org/tiny cannot be downloaded: the hub is busy or in trouble (500); what has arrived is kept, so"
        " start it again and it resumes in some minutes."
    )
    assert (tmp_path / "m" / ".model.safetensors.arriving").stat().st_size == 6000
    hub.faults.clear()
    before = hub.sent
    fetch(tmp_path / "m", on_hub)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent - before == len(WEIGHTS) - 6000


def test_content_that_is_not_the_hubs_is_not_kept(hub: FakeHub, on_hub: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / ".model.safetensors.arriving").write_bytes(b"x" * 100)
    assert "model.safetensors of org/tiny arrived with other content" in refused(tmp_path / "m", on_hub)
    fetch(tmp_path / "m", on_hub)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == WEIGHTS


def test_no_more_is_written_than_the_hub_has_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with path.open("r+b", buffering=0) as raw:
        file = hub_download._Counted(raw, lambda count: None, 10)
        file.write(b"1234567890")
        with pytest.raises(LabError, match="sends more than it named"):
            file.write(b"1")
        file.seek(0)
        file.truncate()
        file.write(b"anew 67890")
        file.close()
    assert path.read_bytes() == b"anew 67890"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("GET .*/resolve/", 403, headers={"X-Error-Code": "GatedRepo"}), "accept its license at https"),
        (
            Fault("/api/models", 404, headers={"X-Error-Code": "RepoNotFound"}),
            "it is not on the hub any more",
        ),
        (Fault("GET .*/resolve/", 0), "the connection to the hub was lost"),
    ],
)
def test_what_cannot_be_fetched_says_why(
    hub: FakeHub, on_hub: str, tmp_path: Path, fault: Fault, reason: str
) -> None:
    hub.faults.append(fault)
    message = refused(tmp_path / "m", on_hub)
    assert message.startswith(f"org/tiny cannot be downloaded: {reason}")
    assert hub.url not in message


def test_a_disk_without_room_is_told_before_anything_comes(
    hub: FakeHub, on_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "more of disk, and 1.0 kB are free; remove models" in refused(tmp_path / "m", on_hub)
    assert hub.sent == 0


def test_one_without_safetensors_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    revision = hub.put("org/tiny", {"config.json": b"{}", "pytorch_model.bin": b"code"})
    assert "org/tiny has no .safetensors files" in refused(tmp_path / "m", revision)


@pytest.mark.parametrize(
    "name", ["../x.json", "a/b.json", ".x.json", "a\\b.json", "a\n.json", "x" * 300 + ".json"]
)
def test_a_name_that_leads_elsewhere_is_left_out(name: str) -> None:
    files = [
        SimpleNamespace(rfilename=name, size=1, lfs=None),
        SimpleNamespace(rfilename="a.json", size=2, lfs=None),
    ]
    assert hub_download.listed(files, base_models.HUB_FILES) == [Remote("a.json", 2, "")]


@pytest.mark.parametrize("size", [None, -1, True, 1.5, 1 << 60])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(LabError, match=r"gives no size of a\.json"):
        hub_download.listed([SimpleNamespace(rfilename="a.json", size=size, lfs=None)], ["*.json"])


def test_a_repository_of_very_many_files_is_refused() -> None:
    files = [SimpleNamespace(rfilename=f"{i}.json", size=1, lfs=None) for i in range(1001)]
    with pytest.raises(LabError, match="has 1,001 files"):
        hub_download.listed(files, ["*.json"])


class TestResolving:
    def test_the_hub_says_licence_size_and_gate(self, hub: FakeHub, on_hub: str, home: Path) -> None:
        repo: Repo = hub.repos["org/tiny"]
        repo.gated, repo.card = "auto", {"license": "other", "license_name": "tiny\x1b-licence" + "x" * 1000}
        found = base_models.resolve("org/tiny")
        assert (found.revision, found.hub["gated"], found.hub["bytes"]) == (on_hub, True, len(WEIGHTS))
        assert found.hub["licence"].startswith("tiny\\u001b-licence")
        assert len(found.hub["licence"]) == base_models.LONGEST_LICENCE

    def test_a_gated_one_says_what_to_do(self, hub: FakeHub, on_hub: str, home: Path) -> None:
        hub.faults.append(Fault("/resolve/", 403, headers={"X-Error-Code": "GatedRepo"}))
        with pytest.raises(InputError, match=r"license must be accepted on the hub first; then log in with"):
            base_models.resolve("org/tiny")

    def test_a_stage_is_told_in_words(self, hub: FakeHub, on_hub: str, home: Path) -> None:
        said: list[str] = []
        folder = base_models.materialize(base_models.resolve("org/tiny"), home, said.append)
        assert sorted(path.name for path in folder.iterdir()) == WHOLE
        assert said[0] == "Downloading org/tiny"
        assert said[-1].startswith("Downloading org/tiny: 100% of 10.")
