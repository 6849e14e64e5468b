"""One app for all routes that ask nothing of Gradio's: its page takes longer to make than most tests take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from webapp import local_models
from webapp.app import create


@pytest.fixture(scope="session")
def routes(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Our routes look up the home at each question, so that it matters to none of them which one this is."""
    home = tmp_path_factory.mktemp("routes") / "home"
    home.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLIVE_LAB_HOME", str(home))
        patch.setenv("GRADIO_TEMP_DIR", str(home / ".gradio-uploads"))
        return create()


@pytest.fixture
def client(home: Path, routes: FastAPI) -> Iterator[TestClient]:
    """The app begins and ends with each test, in the home of the test."""
    local_models.offer([])
    with TestClient(routes, base_url="http://localhost:7860") as client:
        yield client


@pytest.fixture
def own_client(home: Path) -> Iterator[TestClient]:
    """An app that was made over the home of the test, as Gradio keeps to the folder that it was made for."""
    with TestClient(create(), base_url="http://localhost:7860") as client:
        yield client
