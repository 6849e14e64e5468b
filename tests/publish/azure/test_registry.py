"""A registry that workspaces share takes versions as a workspace does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import ask, lineage, pull
from pipeline.publish.azure import publisher as azureml
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.azure.bench import Bench

OPTIONS = azureml.Options(name="trips", registry="ours")
OURS = Place("cli", registry="ours")


def test_a_version_is_made_checked_and_pulled(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None], tmp_path: Path
) -> None:
    planned = azureml.plan(store.home, finished, OPTIONS)
    assert (planned["target"], "--registry-name ours" in planned["command"]) == ("registry ours", True)
    published = azureml.register(store.home, finished, OPTIONS, report)
    assert (published["version"], published["verified"]) == ("1", True)
    made = bench.azure.models["trips"]["1"]["properties"]
    assert made["tags"]["verified"] == "true"
    assert made["modelUri"].endswith(
        f"{bench.azure.container}/olive-lab/{made['properties'][lineage.CONTENT]}"
    )
    assert "sig=" not in made["modelUri"]
    assert azure_workspace.recall(store.home) == {}
    uri = "azureml://registries/ours/models/trips/versions/1"
    pulled = pull.pull(store.home, OURS, uri, tmp_path / "here", report)
    assert pulled["compared"] == "the same as was published"
    (listed,) = ask.models(store.home, "trips", OURS)
    assert (listed["version"], listed["tags"]["run"]) == ("1", finished.id)


def test_the_same_version_again_is_fine_and_other_content_is_not(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None]
) -> None:
    options = dataclasses.replace(OPTIONS, version="3", check=False)
    azureml.register(store.home, finished, options, report)
    bench.proxy.passed.clear()
    azureml.register(store.home, finished, options, report)
    assert bench.proxy.count("^PUT") == 0
    with pytest.raises(LabError, match="trips already has a version 3 with other content"):
        azureml.register(store.home, finished, dataclasses.replace(options, description="Other."), report)
    checked = azureml.register(store.home, finished, OPTIONS, report)
    assert (checked["version"], list(bench.azure.models["trips"])) == ("3", ["3"])
    assert bench.azure.models["trips"]["3"]["properties"]["tags"]["verified"] == "true"
    assert (
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, check=False), report)["version"]
        == "4"
    )


def test_the_dry_run_asks_what_a_registry_can_say(bench: Bench, store: Store, finished: Run) -> None:
    found = ask.preflight(store.home, finished.id, {"name": "trips", "registry": "ours"})
    status = {row["check"]: row["status"] for row in found["findings"]}
    assert (found["good"], status["login"], status["version"]) == (True, "ok", "ok")
    assert "datastore" not in status
