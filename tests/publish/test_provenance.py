"""What leaves the lab says where it is from, wherever it goes: licence, adapter, data and verdict."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.inputs.models import licence_text
from pipeline.publish import local
from pipeline.publish.azure import publisher as azure
from pipeline.publish.foundry import version_folder
from pipeline.publish.hub import publisher as hub
from pipeline.publish.zip_file import Takeaway
from pipeline.runs import kept_datasets
from pipeline.store import Store
from pipeline.store.run import Run

Files = Mapping[str, str]
APACHE = (licence_text.TEXTS / "apache-2.0.txt").read_text()
SAID = "Better: the loss is lower on 19 of 20 rows."


def zipped(store: Store, run: Run) -> Files:
    with Takeaway(store.home, run) as made, zipfile.ZipFile(io.BytesIO(b"".join(made))) as archive:
        return {name: archive.read(name).decode("utf-8", "replace") for name in archive.namelist()}


def locally(store: Store, run: Run) -> Files:
    folder = Path(local.publish(store.home, run, local.Options(name="trips"), lambda *_: None)["path"])
    return {path.name: path.read_text("utf-8", "replace") for path in folder.iterdir() if path.is_file()}


def in_azure(store: Store, run: Run) -> Files:
    return azure._written(store.home, run, azure.Options(name="trips"))


def on_hub(store: Store, run: Run) -> Files:
    return hub._written(store.home, run, hub.Options(name="trips"))


def in_foundry_local(store: Store, run: Run) -> Files:
    return version_folder.texts(store.home, run, Path(str(run.shipped)), "trips", "1", "")


@pytest.fixture
def told(dataset: Path) -> Callable[[Store, Run], Run]:
    """A run whose data the home has, and with a verdict."""

    def tell(store: Store, run: Run) -> Run:
        last = replace(run.stages[-1], metrics={"verdict": {"outcome": "better", "text": SAID}})
        copy = kept_datasets.keep(store.home, dataset)
        return replace(run, data=str(copy), stages=(*run.stages[:-1], last))

    return tell


@pytest.mark.parametrize("publish", [zipped, locally, in_azure, on_hub, in_foundry_local])
@pytest.mark.parametrize("kind", ["finished", "finished_bound"])
def test_every_place_has_licence_adapter_data_and_verdict(
    request: pytest.FixtureRequest,
    store: Store,
    dataset: Path,
    told: Callable[[Store, Run], Run],
    publish: Callable[[Store, Run], Files],
    kind: str,
) -> None:
    run = told(store, request.getfixturevalue(kind))
    files = publish(store, run)
    card = files["README.md"].replace("\\", "")
    adapter = Path(str(run.artifact("onnx_adapter")))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (adapter, dataset)]
    assert "- Licence of the base: Apache-2.0, its text is in LICENSE-base-model.txt\n" in card
    assert files["LICENSE-base-model.txt"].endswith(APACHE)
    assert f"- Adapter: adapter_weights.onnx_adapter, SHA-256 {digests[0]}\n" in card
    assert f"- Data: travel.jsonl, 20 rows, SHA-256 {digests[1]}\n" in card
    assert f"## Is the adapter better?\n\n{SAID}" in card
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    assert [row for row in rows if any(text in card for text in row.values())] == []


def test_of_a_merged_one_the_adapter_is_the_one_that_was_trained(store: Store, finished: Run) -> None:
    weights = store.home / "artifacts" / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"trained")
    merged = [
        {"name": "merged adapter", "kind": "merged", "path": "merged.json", "bytes": 1},
        {"name": "adapter", "kind": "adapter", "path": str(weights.parent), "bytes": 7},
    ]
    stages = [
        replace(
            stage, artifacts=[each for each in stage.artifacts if each["kind"] != "onnx_adapter"] + merged
        )
        for stage in finished.stages
    ]
    card = in_azure(store, replace(finished, stages=tuple(stages)))["README.md"].replace("\\", "")
    digest = hashlib.sha256(b"trained").hexdigest()
    assert f"- Adapter: adapter_model.safetensors, SHA-256 {digest}\n" in card
    assert "## Is the adapter better?\n\nThere is no verdict" in card


def test_a_licence_of_the_model_s_own_goes_along(store: Store, finished: Run, model_folder: Path) -> None:
    run = replace(finished, recipe={**finished.recipe, "model": str(model_folder)})
    files = in_azure(store, run)
    assert "LICENSE-base-model.txt" not in files
    assert "not stated, its text was not at hand: see the page of the base model\n" in files["README.md"]
    (model_folder / "LICENSE").write_text("Ask me first.\n")
    files = in_azure(store, run)
    assert files["LICENSE-base-model.txt"] == "Ask me first.\n"
    assert "- Licence of the base: Ask me first., its text is in LICENSE-base-model" in files["README.md"]
