"""A run that Foundry Local can run, its real runtime, and stand-ins for a runtime that fails."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.publish.foundry import environment
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers import exports
from tests.helpers.foundry import installed
from tests.helpers.planted import finish_all, plant

Planted = Callable[..., Run]


@pytest.fixture(scope="session")
def merged_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exports.write(tmp_path_factory.mktemp("merged") / "export", merged=True)


@pytest.fixture
def planted(store: Store, merged_export: Path, tmp_path: Path) -> Planted:
    """A finished run with an export: the small merged one, or a folder."""

    def make(folder: Path | None = None, *prompts: str) -> Run:
        found: list[dict[str, Any]] = [
            {"name": "model", "kind": "onnx", "path": str(folder or merged_export), "bytes": 1}
        ]
        results: dict[str, dict[str, Any]] = {"optimize": {"artifacts": found}}
        if prompts:
            answers = tmp_path / "answers.json"
            answers.write_text(json.dumps({"rows": [{"prompt": prompt} for prompt in prompts]}))
            told = {"name": "answers", "kind": "answers", "path": str(answers), "bytes": 1}
            results["evaluate"] = {"artifacts": [told]}
        return finish_all(store, plant(store), results)

    return make


@pytest.fixture
def real(pytestconfig: pytest.Config) -> Path:
    """The interpreter of the real environment."""
    return installed(pytestconfig)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An environment whose interpreter runs a program of the test instead of the runtime."""

    def make(program: str) -> Path:
        folder = tmp_path / "stand-in"
        (folder / "bin").mkdir(parents=True)
        (folder / environment.REQUIREMENTS.name).write_text(environment.REQUIREMENTS.read_text())
        python = folder / "bin" / "python"
        python.write_text(f"#!{settings.python()}\nimport sys\nwork = sys.argv[-1]\n{program}\n")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("OLIVE_LAB_FOUNDRY_LOCAL", str(folder))
        return python

    return make
