"""What a verb imports decides how soon it answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline import settings
from pipeline.store import Store
from tests.helpers.planted import plant

HEAVY = {"asyncio", "jinja2", "yaml", "psutil", "importlib.metadata", "concurrent.futures", "ssl", "zipfile"}


@pytest.mark.parametrize("verb", ["list", "show", "logs"])
def test_looking_at_runs_imports_nothing_heavy(store: Store, verb: str) -> None:
    run = plant(store)
    given = ["list"] if verb == "list" else [verb, run]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *given],
        cwd=settings.ROOT, env=settings.child_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sqlite3" in imported
    assert imported & HEAVY == set()


def test_canceling_imports_neither_templates_nor_recipes(store: Store) -> None:
    run = plant(store)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", "cancel", run],
        cwd=settings.ROOT, env=settings.child_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pipeline.worker.loop" in imported
    assert imported & {"asyncio", "jinja2", "yaml"} == set()
