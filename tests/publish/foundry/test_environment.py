"""The environment is made whole or not at all, and nobody's folder is taken for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.__main__ import main
from pipeline.errors import LabError
from pipeline.publish.foundry import environment


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip gets an index that nobody answers for, and asks once."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")


def test_it_is_where_it_was_installed_or_in_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLIVE_LAB_FOUNDRY_LOCAL", raising=False)
    monkeypatch.setattr(sys, "prefix", str(home / "packages"))
    assert environment.folder(home) == home / "foundry-local" / "environment"
    beside = home / "packages" / "foundry-local"
    beside.mkdir(parents=True)
    (beside / "requirements.txt").write_text("foundry-local-sdk==0.1\n")  # another release's
    assert environment.folder(home) == home / "foundry-local" / "environment"
    (beside / "requirements.txt").write_text(environment.REQUIREMENTS.read_text())
    assert environment.folder(home) == beside
    monkeypatch.setenv("OLIVE_LAB_FOUNDRY_LOCAL", "~/elsewhere")
    assert environment.folder(home) == Path.home() / "elsewhere"


@pytest.mark.chain
def test_an_install_that_cannot_be_had_leaves_nothing(home: Path, no_registry: None) -> None:
    said: list[str] = []
    where = home / "foundry-local" / "environment"
    with pytest.raises(LabError) as caught:
        environment.make(where, said.append)
    text = str(caught.value)
    assert text.startswith("Foundry Local's package cannot be installed (No matching distribution found for ")
    assert text.endswith(f"then run `{settings.command()} foundry-local --install`.")
    assert said[0].startswith("Making an environment for Foundry Local, once: about 3")
    assert [path.name for path in where.parent.iterdir()] == [".environment.lock"]


def test_a_folder_of_somebody_s_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(LabError, match="is there and no environment of Python; name another folder"):
        environment.make(tmp_path / "mine", print)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_the_command_says_where_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLIVE_LAB_FOUNDRY_LOCAL", str(home / "there"))
    assert main(["foundry-local", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"environment": str(home / "there"), "installed": False, "versions": []}
    assert main(["foundry-local"]) == 0
    assert "is not installed: " in capsys.readouterr().out


def test_every_version_is_exact() -> None:
    lines = [line.split("#")[0].strip() for line in environment.REQUIREMENTS.read_text().splitlines()]
    assert [line for line in lines if line and "==" not in line] == []
