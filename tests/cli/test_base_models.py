"""`models` on the command line: what there is, what fits, fetching from a hub of our own, removing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.inputs.models import base_models
from pipeline.store import Store
from pipeline.system import capacity
from pipeline.system.capacity import Capacity
from tests.helpers.fake_hub import FakeHub, served
from tests.helpers.lab import CONFIG, cli
from tests.helpers.planted import plant

GB = 1000**3
NAME = "org--tiny-0123456789ab"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "of", lambda folder: Capacity(16 * GB, None, 500 * GB))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with served(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def cached(home: Path) -> Path:
    folder = home / "models" / NAME
    base_models.mark(folder)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 2000)
    return folder


def test_the_list_says_what_fits_and_what_is_here(
    home: Path, cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = cli(capsys, "models")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["Qwen/Qwen2.5-0.5B-Instruct"].split() == [
        "Qwen/Qwen2.5-0.5B-Instruct", "494", "M", "988.1", "MB", "Apache-2.0", "32,768", "no", "fits",
    ]  # fmt: skip
    assert "yes    needs about 25.1 GB of memory, and 14.4 GB" in lines["meta-llama/Llama-3.1-8B-Instruct"]
    assert lines[NAME].split() == [NAME, "2.0", "kB", "never", "whole"]
    code, out, _ = cli(capsys, "models", "--json")
    told = json.loads(out)
    assert told["machine"]["memory"] == 16 * GB
    assert [one["name"] for one in told["cached"]] == [NAME]
    assert {one["id"]: one["fits"] for one in told["models"]}["meta-llama/Llama-3.1-8B-Instruct"] is False


def test_any_model_is_shown(home: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "models", "show", model_folder)
    assert code == 0
    assert "license unknown" in out
    assert "This machine: fits, it needs about 1.0 GB of memory" in out
    code, out, _ = cli(capsys, "models", "show", model_folder, "--json")
    assert json.loads(out)["fits"] is True


def test_one_of_the_hub_is_shown_fetched_and_removed(
    hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": b"x" * 3000}
    revision = hub.put("org/tiny", {**files, "tokenizer_config.json": b"{}"})
    hub.repos["org/tiny"].gated, hub.repos["org/tiny"].card = "manual", {"license": "mit"}
    code, out, err = cli(capsys, "models", "show", "org/tiny")
    assert code == 0, err
    assert "3.0 kB · mit" in out
    assert "Before it can be fetched: accept its license at https://huggingface.co/org/tiny" in out
    code, out, err = cli(capsys, "models", "fetch", "org/tiny")
    assert code == 0, err
    folder = home / "models" / f"org--tiny-{revision[:12]}"
    assert "Downloading org/tiny: 100% of " in out
    assert out.splitlines()[-1] == f"org/tiny@{revision} is here: {folder}"
    code, out, _ = cli(capsys, "models", "remove", folder.name, "--yes")
    assert code == 0
    assert "are free again" in out
    assert not folder.exists()


def test_nothing_is_removed_unasked(home: Path, cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = cli(capsys, "models", "remove", NAME)
    assert (code, cached.is_dir()) == (2, True)
    assert err == f"{NAME}: nobody can be asked here; give --yes to remove it\n"


def test_one_in_use_stays(store: Store, cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = plant(store, model="org/tiny@0123456789abcdef")
    code, _, err = cli(capsys, "models", "remove", NAME, "--yes")
    assert (code, cached.is_dir()) == (1, True)
    assert f"is used by {run}" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show",), "models show: name a model"),
        (("list", "org/x"), "models list: takes no model"),
        (("remove", "../x", "--yes"), "../x: no such model in this lab"),
        (("show", "nonsense"), "`python -m pipeline models` lists well-known ones"),
    ],
)
def test_what_is_wrong_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    code, _, err = cli(capsys, "models", *words)
    assert code == 2
    assert said in err
