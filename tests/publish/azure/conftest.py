"""One bench for all tests with Azure, emptied before each."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.store import Store
from tests.helpers.azure import bench as benches

from tests.helpers.azure.fake_arm import GROUP, SUB, WORKSPACE  # isort: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "running" in getattr(item, "fixturenames", ()):
            item.add_marker("azure")


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[benches.Bench]:
    if why := benches.missing():
        # Whoever asks for these tests by name is told; in a run of everything they are only left out.
        (pytest.fail if "azure" in pytestconfig.getoption("markexpr") else pytest.skip)(why)
    made = benches.Bench(tmp_path_factory.mktemp("azure"))
    yield made
    made.close()


@pytest.fixture
def bench(running: benches.Bench, monkeypatch: pytest.MonkeyPatch) -> benches.Bench:
    """Azure as new, and this process and its children led to it."""
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    # The client writes it; set first, so that it is taken out afterwards as well.
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", "none")
    monkeypatch.delenv("AZUREML_CURRENT_CLOUD")
    ask = socket.getaddrinfo

    def near(host: Any, *given: Any, **named: Any) -> Any:
        return ask("127.0.0.1" if str(host).endswith(".localhost") else host, *given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", near)
    running.forget()
    return running


@pytest.fixture
def where(store: Store) -> Place:
    """The workspace, remembered in the home."""
    found = Place("cli", SUB, GROUP, WORKSPACE)
    azure_workspace.remember(store.home, found)
    return found


@pytest.fixture
def said() -> list[tuple[str, float, dict[str, Any]]]:
    return []


@pytest.fixture
def report(said: list[tuple[str, float, dict[str, Any]]]) -> Callable[..., None]:
    return lambda text, fraction, **facts: said.append((text, fraction, facts))
