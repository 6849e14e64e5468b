"""Models of Azure's catalogue as a base: plain and as MLflow keeps them, resumed, without a person."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.models import base_models
from pipeline.publish.azure import catalogue
from pipeline.publish.azure.transfer import blob_client
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.proxy import Spoil

URI = "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/4"
TOKENIZER = {"tokenizer_config.json", "tokenizer.json"}
PLAIN = {
    name: name for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
}
LAYOUTS: dict[str, dict[str, str]] = {
    "plain": PLAIN,
    "in a folder": {name: f"Phi/{name}" for name in PLAIN},
    "mlflow": {
        name: f"components/tokenizer/{name}" if name in TOKENIZER else f"model/{name}" for name in PLAIN
    },
    "mlflow with data": {
        name: f"data/tokenizer/{name}" if name in TOKENIZER else f"data/model/{name}" for name in PLAIN
    },
    "mlflow in a folder": {
        name: f"mlflow_model_folder/{'components/tokenizer' if name in TOKENIZER else 'model'}/{name}"
        for name in PLAIN
    },
}
BESIDE = {
    "MLmodel": b"flavors: {}",
    "conda.yaml": b"",
    "code/run.py": b"import os",
    "model/modeling_phi3.py": b"import os",
}


@pytest.fixture
def files(model_folder: Path) -> dict[str, bytes]:
    (model_folder / "tokenizer.json").write_text("{}")
    return {name: (model_folder / name).read_bytes() for name in PLAIN}


def offer(bench: Bench, files: dict[str, bytes], layout: dict[str, str], more: dict[str, bytes]) -> None:
    with bench.container() as container:
        for name, data in files.items():
            container.upload_blob(f"catalogue/phi/{layout[name]}", data)
        for name, data in more.items():
            container.upload_blob(f"catalogue/phi/{name}", data)
    bench.azure.catalogue["Phi-3.5-mini-instruct", "4"] = {"prefix": "catalogue/phi", "type": "custom_model"}


def test_a_model_of_the_catalogue_is_a_base(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    """Asked and fetched as a run does, by processes of their own."""
    offer(bench, files, LAYOUTS["mlflow"], BESIDE)
    model = base_models.resolve(URI)
    assert model == catalogue.describe(store.home, URI)
    assert base_models.fingerprint(model, store.home) == f"azureml {URI} 4"
    said: list[str] = []
    folder = base_models.materialize(model, store.home, said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert said[-1].endswith("100% of the model")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_a_model_makes_the_same_folder(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes], name: str
) -> None:
    offer(
        bench,
        files,
        LAYOUTS[name],
        BESIDE if "mlflow" in name else {"README.md": b"---\nlicense: mit\n---\n"},
    )
    model = catalogue.describe(store.home, URI)
    assert (model.kind, model.id, model.revision, model.pinned) == ("azureml", URI, "4", URI)
    assert model.config == json.loads(files["config.json"])
    assert model.chat is not None
    said: list[str] = []
    folder = store.home / "part"
    catalogue.fetch(store.home, URI, folder, said.append)
    there = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".md"}
    assert there == files
    assert said[-1].endswith("100% of the model")


def test_a_model_that_is_open_to_everybody_is_fetched_without_a_login_to_the_storage(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    offer(bench, files, PLAIN, {})
    bench.azure.open_to_all = True
    with bench.container() as container:
        container.set_container_access_policy({}, public_access="container")
    folder = store.home / "part"
    catalogue.fetch(store.home, URI, folder, lambda text: None)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"a":' * 800 + "1" + "}" * 800),  # can be read, but hardly be handed on
        ("tokenizer_config.json", "[" * 100_000),
    ],
)
def test_a_config_nested_without_end_is_refused(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes], name: str, text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    offer(bench, {**files, name: text.encode()}, PLAIN, {})
    assert catalogue._described(URI) == 2
    refused = r"^.*config\.json (is nested deeper than any real one|cannot be read).*\n$"
    assert re.match(refused, capsys.readouterr().err)


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    offer(bench, files, PLAIN, {})
    with bench.container() as container:
        container.get_blob_client("catalogue/phi/more.safetensors").create_page_blob(4 << 40)
    bench.proxy.passed.clear()
    # Where the check is broken this fails at the first read, and fills no disk.
    bench.proxy.spoils.append(
        Spoil("^GET .*/catalogue/phi/", "status", status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError, match=r"The model needs 4398\.\d GB more of disk, and .* are free; free"):
        catalogue.fetch(store.home, URI, store.home / "part", lambda text: None)
    assert bench.proxy.count("^GET .*/catalogue/phi/") == 0


def test_what_was_fetched_needs_no_azure(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    offer(bench, files, PLAIN, {})
    base_models.materialize(catalogue.describe(store.home, URI), store.home, lambda text: None)
    bench.az(None)
    bench.azure.asked.clear()
    assert base_models.resolve(URI).config == json.loads(files["config.json"])
    assert bench.azure.asked == []


def test_a_download_that_was_cut_goes_on(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_client, "BLOCK", 64 << 10)
    files["model.safetensors"] = files["model.safetensors"] + os.urandom(8 * (64 << 10))
    offer(bench, files, PLAIN, {})
    part = store.home / "part"
    bench.proxy.passed.clear()
    reads = r"^GET .*/model\.safetensors"
    bench.proxy.spoils.append(
        Spoil(reads, "status", skip=6, status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError, match="Storage Blob Data Contributor"):
        catalogue.fetch(store.home, URI, part, lambda text: None)
    bench.proxy.spoils.clear()
    bench.proxy.passed.clear()
    catalogue.fetch(store.home, URI, part, lambda text: None)
    assert (part / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert bench.proxy.count(reads, 206) < 9
    assert bench.proxy.count(r"^GET .*/tokenizer\.json") <= 1


def test_why_a_download_ended_is_the_sentence_of_its_process(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    offer(bench, files, PLAIN, {})
    model = catalogue.describe(store.home, URI)
    bench.proxy.spoils.append(
        Spoil(r"^GET .*/model\.safetensors", "status", status=403, code="AuthorizationPermissionMismatch")
    )
    with pytest.raises(LabError, match="Storage Blob Data Contributor"):
        base_models.materialize(model, store.home, lambda text: None)
    assert not model.folder(store.home).is_dir()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model.safetensors": None, "pytorch_model.bin": b"x"},
            "has no .safetensors file; other weight formats",
        ),
        ({"config.json": None}, "has no config.json beside its weights"),
        ({"tokenizer_config.json": None}, "has no tokenizer"),
        (
            {"config.json": None, "model.safetensors": None, "genai_config.json": b"{}"},
            "is an exported ONNX model, which cannot be trained further; take its run's recipe instead",
        ),
    ],
)
def test_what_cannot_be_a_base_is_refused(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes], change: dict[str, Any], sentence: str
) -> None:
    kept = {name: data for name, data in {**files, **change}.items() if data is not None}
    offer(bench, {}, {}, kept)
    with pytest.raises(LabError, match=sentence):
        catalogue.describe(store.home, URI)


def test_why_a_model_cannot_be_a_base_is_the_sentence_of_its_process(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes]
) -> None:
    offer(bench, {}, {}, {"config.json": files["config.json"]})
    with pytest.raises(InputError, match=r"has no \.safetensors file; other weight formats"):
        base_models.resolve(URI)


def test_a_recipe_is_refused_where_the_model_is_not_there(
    bench: Bench, store: Store, where: Place, dataset: Path
) -> None:
    chosen = recipe.build({"name": "trip", "model": URI, "data": str(dataset)}, Path.cwd())
    with pytest.raises(InputError, match="does not exist, or the login cannot see it"):
        submit.check(chosen)
    bench.az(None)
    with pytest.raises(InputError, match="The Azure CLI is not logged in here; run `az login`"):
        submit.check(chosen)


def test_a_recipe_is_queued_with_the_whole_address(
    bench: Bench, store: Store, where: Place, dataset: Path, files: dict[str, bytes], no_worker: list[Path]
) -> None:
    offer(bench, files, PLAIN, {})
    chosen = recipe.build({"name": "trip", "model": URI, "data": str(dataset)}, Path.cwd())
    run = store.get(submit.submit(store, chosen))
    assert run.recipe["model"] == URI
    assert no_worker == [store.home]


def test_a_model_of_the_own_workspace_is_named_in_short(
    bench: Bench, store: Store, where: Place, files: dict[str, bytes], model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from azure.ai.ml.entities import Model

    from pipeline.publish.azure.workspace import Workspace

    monkeypatch.setenv("TQDM_DISABLE", "1")
    Workspace(where).client.models.create_or_update(Model(name="tiny", version="7", path=str(model_folder)))
    model = base_models.resolve("azureml:tiny:7")
    assert model.pinned.endswith("/workspaces/travel-ws/models/tiny/versions/7")
    folder = base_models.materialize(model, store.home, lambda text: None)
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
