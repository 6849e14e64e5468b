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


@pytest.mark.chain
@pytest.mark.parametrize(
    ("module", "why"),
    [
        (
            "raise OSError('libfoundry_local.so: no such thing')",
            "(OSError: libfoundry_local.so: no such thing)",
        ),
        ("import signal; signal.pause()", "(it did not start within 1 seconds)"),
    ],
)
def test_a_package_that_does_not_run_here_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, module: str, why: str
) -> None:
    def install(part: Path, say: environment.Say) -> None:
        (packages,) = (part / "lib").glob("python3*/site-packages")
        (packages / "foundry_local_sdk.py").write_text(module)

    monkeypatch.setattr(environment, "_install", install)
    monkeypatch.setattr(environment, "IMPORT_SECONDS", 1.0)
    where = home / "foundry-local" / "environment"
    with pytest.raises(LabError) as caught:
        environment.make(where, print)
    assert str(caught.value) == (
        f"Foundry Local's package does not run on this machine {why}; it is for Linux with glibc 2.28 or"
        " newer: publish to this lab, and register the folder on the device itself."
    )
    assert [path.name for path in where.parent.iterdir()] == [".environment.lock"]


def test_an_install_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho Collecting much\nexec sleep 60\n")
    python.chmod(0o700)
    monkeypatch.setattr(environment, "INSTALL_SECONDS", 1.0)
    said: list[str] = []
    with pytest.raises(
        LabError, match=r"^Foundry Local's package is not installed after 0 minutes; see that"
    ):
        environment._install(tmp_path, said.append)
    assert said == ["Collecting much"]


def test_an_environment_that_cannot_be_made_in_time_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "CREATE_SECONDS", 0.01)
    where = home / "foundry-local" / "environment"
    with pytest.raises(LabError, match=r"^Python made no environment within 0 seconds; retry\.$"):
        environment.make(where, print)
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
