"""Small files of hub models: what is fetched of them, how much, and where it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from pipeline.errors import InputError, LabError
from pipeline.inputs.models import base_models, hub_download, hub_models
from pipeline.inputs.models.base_models import Model
from tests.helpers.fake_hub import FakeHub, Fault, Tree
from tests.helpers.lab import CONFIG

SMALL: Tree = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer_config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "tokenizer.model": b"",
}
MORE: Tree = {
    "model.safetensors": b"x",
    "pytorch_model.bin": b"code",
    "README.md": b"",
    "onnx/config.json": b"{}",
    "a/b/c.json": b"{}",
    ".hidden.json": b"{}",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's own cache, as this process and those it starts have it."""
    folder = tmp_path / "hf" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return folder


def on(hub: FakeHub, files: Tree) -> Model:
    return Model("org/name", "hub", hub.put("org/name", files, private=False), {}, None)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nothing_of_ours_stays_in_the_hubs_own_cache(
    hub: FakeHub, home: Path, tmp_path: Path, cache: Path
) -> None:
    """Nobody tidies it: names on the page and runs filled it without an end."""
    model = on(hub, {**SMALL, **MORE})
    found = base_models.resolve("org/name")
    assert (found.revision, found.chat and found.chat.source) == (model.revision, "{{ messages }}")
    assert names(hub_models.without_weights(model, home, tmp_path / "small", pytest.fail))
    tokenizer = base_models.tokenizer_folder(model, home)
    assert names(tokenizer) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    base_models.materialize(model, home, lambda _: None)
    assert names(cache) == []
    assert names(home / "models" / ".tokenizers" / f"org--name-{model.revision}") == names(tokenizer)


def test_small_files_come_alone_and_only_those_at_the_top(hub: FakeHub, home: Path, tmp_path: Path) -> None:
    model, into = on(hub, {**SMALL, **MORE}), tmp_path / "small"
    assert hub_models.without_weights(model, home, into, pytest.fail) == into
    assert names(into) == sorted(SMALL)
    model.folder(home).mkdir(parents=True)
    (model.folder(home) / "model.safetensors").touch()
    hub.asked.clear()
    assert hub_models.without_weights(model, home, into, pytest.fail) == model.folder(home), "all is here"
    assert hub.asked == []


@pytest.mark.parametrize("trouble", ["no answer", "too large", "no room"])
def test_where_they_cannot_be_had_the_whole_is_fetched(
    hub: FakeHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def download(name: str, revision: str, folder: Path, *rest: Any) -> None:
        folder.mkdir()
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(hub_download, "download", download)
    model, into = on(hub, {**SMALL, "vocab.json": b" " * 900}), tmp_path / "small"
    if trouble == "no answer":
        hub.faults.append(Fault("GET /api/models", 403))
    elif trouble == "too large":  # none of them is, but all together
        monkeypatch.setattr(hub_models, "LARGEST_SMALL", 1000)
    else:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=hub_download.SPARE))
    assert hub_models.without_weights(model, home, into, lambda _: None) == model.folder(home)
    assert (hub.sent, into.exists()) == (0, False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_what_no_model_has_so_large_is_refused_before_it_comes(hub: FakeHub, home: Path, name: str) -> None:
    most, said = hub_models.LARGEST[name], "16.8" if name == "tokenizer_config.json" else "4.2"
    on(hub, {**SMALL, name: b" " * (most + 1)})
    with pytest.raises(InputError, match=f"model: org/name: {name} is larger than any real one .{said} MB"):
        base_models.resolve("org/name")
    assert hub.sent == 0


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("adapter_model.safetensors", "so it is an adapter; choose the model that it was trained on"),
        ("model.safetensors", "so an adapter would be added to its weights; if it is merged into them"),
        ("model.safetensors.index.json", "so an adapter would be added to its weights"),
    ],
)
def test_an_adapter_is_refused_before_its_gigabytes_come(
    hub: FakeHub, home: Path, weights: str, reason: str
) -> None:
    on(hub, {**SMALL, "adapter_config.json": b"{}", weights: b"x"})
    with pytest.raises(InputError, match=f"model: org/name: has adapter_config.json, {reason}"):
        base_models.resolve("org/name")
    assert hub.sent == 0


def test_many_small_files_have_one_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_models, "LARGEST_SMALL", 100)
    listed = [SimpleNamespace(rfilename=f"{i}.json", size=30, lfs=None) for i in range(4)]
    with pytest.raises(LabError, match=r"larger together than any real ones \(100 B\)"):
        hub_models._fetch_small("org/name", "main", listed, ["*.json"], tmp_path)


def test_weights_of_no_possible_size_have_none() -> None:
    listed = [SimpleNamespace(rfilename=f"{i}.safetensors", size=hub_download.LARGEST) for i in range(2)]
    info = SimpleNamespace(siblings=listed, card_data=None, gated=False)
    assert hub_models._told(info)["bytes"] is None
    assert hub_models._told(SimpleNamespace(**{**vars(info), "siblings": listed[:1]}))["bytes"] == 1 << 50


@pytest.mark.parametrize("card", [["x"], "text", 7])
def test_a_card_that_is_no_mapping_says_nothing(hub: FakeHub, home: Path, card: Any) -> None:
    on(hub, SMALL)
    hub.repos["org/name"].card = card
    assert base_models.resolve("org/name").hub["licence"] is None
