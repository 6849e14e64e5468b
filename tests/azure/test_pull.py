"""A registered version comes back whole, also where somebody else registered it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from proxy import Spoil

from pipeline import settings, verify
from pipeline.azure import pull
from pipeline.azure.faults import explained
from pipeline.azure.place import Place
from pipeline.errors import InputError, LabError
from pipeline.publishers import azureml
from pipeline.run import Run
from pipeline.store import Store

Said = list[tuple[str, float, dict[str, Any]]]


@pytest.fixture
def published(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], said: Said
) -> dict[str, Any]:
    made = azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    said.clear()
    return made


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
    assert {finding.status for finding in verify.whole(tmp_path / "here")} == {verify.OK}
    again = subprocess.run(
        command, capture_output=True, text=True, cwd=settings.ROOT, env=settings.child_environment()
    )
    assert (again.returncode, "is there already; give another folder with --to" in again.stderr) == (2, True)


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

    from pipeline.azure.workspace import Workspace

    monkeypatch.setenv("TQDM_DISABLE", "1")
    client = Workspace(where).client
    client.models.create_or_update(Model(name="theirs", version="1", path=str(export), type="custom_model"))
    client.models.create_or_update(
        Model(name="one-file", version="1", path=str(export / "genai_config.json"), type="custom_model")
    )
    pulled = pull.pull(store.home, where, "azureml:theirs:1", tmp_path / "here", report)
    assert pulled["compared"] == "as its SHA256SUMS says"
    assert {finding.status for finding in verify.static(tmp_path / "here")} == {verify.OK}
    pulled = pull.pull(store.home, where, "azureml:one-file:1", tmp_path / "single", report)
    assert (pulled["files"], pulled["compared"]) == (1, "without checksums to compare with; sizes agree")
    assert (tmp_path / "single" / "genai_config.json").read_bytes() == (
        export / "genai_config.json"
    ).read_bytes()


def test_what_is_not_there_and_what_is_no_name(
    bench: Bench, store: Store, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(LabError, match="is not there, or the login cannot see it"), explained(where):
        pull.pull(store.home, where, "azureml:none:1", tmp_path / "here", report)
    for wrong in ("azureml:none", "trips:1", "azureml://registries/r/models/m", "azureml:a:1/../.."):
        with pytest.raises(InputError, match="is not a model in Azure; one looks like azureml:NAME:VERSION"):
            pull.pull(store.home, where, wrong, tmp_path / "here", report)
