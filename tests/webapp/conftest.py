"""The real app over a home of the test's own, whose worker's lock the test holds: nothing runs for real."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.system import locks

# As the app's own start does it, but without making the default home.
os.environ.update({**settings.QUIET, **settings.GRADIO, "HF_HUB_OFFLINE": "1"})

with settings.gradio_without_stubs():
    import gradio as gr

    from webapp import local_models
    from webapp.app import create
    from webapp.tabs import lab
    from webapp.ui import form


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(home / ".gradio-uploads"))
    lock = locks.take(home / "worker.lock")
    assert lock is not None
    yield home
    os.close(lock)
    local_models.offer([])


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with TestClient(create(), base_url="http://localhost:7860") as client:
        yield client


@pytest.fixture(scope="module")
def lasting_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for all that a module asks."""
    folder = tmp_path_factory.mktemp("lab") / "home"
    folder.mkdir(mode=0o700)
    lock = locks.take(folder / "worker.lock")
    assert lock is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLIVE_LAB_HOME", str(folder))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / ".gradio-uploads"))
        yield folder
    os.close(lock)


@pytest.fixture(scope="module")
def lasting_client(lasting_home: Path) -> Iterator[TestClient]:
    """One page for it: an app takes a second to make."""
    with TestClient(create(), base_url="http://localhost:7860") as client:
        yield client


@pytest.fixture
def uploaded(home: Path) -> Any:
    """Put a file where Gradio puts an upload; returns its path."""

    def put(data: bytes, name: str = "mine.jsonl") -> str:
        folder = home / ".gradio-uploads" / hashlib.sha256(data).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return str(folder / name)

    return put


@pytest.fixture
def inputs(home: Path) -> Any:
    """The form of the Lab tab."""
    with gr.Blocks():
        made = form.Form()
        lab._first_steps(made)
        lab._all_options(made)
    return made
