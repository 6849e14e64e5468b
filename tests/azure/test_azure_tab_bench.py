"""The page's handlers against the bench: what a person clicks, from the login to a pulled model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench import Bench
from fake_arm import GROUP, SUB, TENANT, WORKSPACE
from lab import until

from pipeline import settings, verify
from pipeline.azure import place
from pipeline.run import Run
from pipeline.store import Store

with settings.importing_gradio():
    import gradio as gr

    from webapp import registered
    from webapp.tabs import azure
    from webapp.tabs import registered as models


@pytest.fixture
def inputs() -> Any:
    with gr.Blocks():
        return azure.build().inputs


def values(inputs: Any, **changes: Any) -> list[Any]:
    pairs = zip(inputs.keys, inputs.inputs, strict=True)
    return [changes.get(name, component.value) for (_, name), component in pairs]


def test_the_login_and_its_workspace_are_found_and_remembered(
    bench: Bench, store: Store, inputs: Any
) -> None:
    _, (notice, facts) = azure.whoami(inputs, *values(inputs))
    assert ("Choose a workspace" in notice["text"], facts[0]) == (True, ["Name", "ann@example.org"])
    _, (notice, seen) = azure.find("cli")
    assert notice["text"] == "The login sees 1 workspace; choose one."
    ((_, chosen),) = seen["choices"]
    three = dict(zip(azure.WHERE, azure.pick(chosen), strict=True))
    _, (notice, facts) = azure.whoami(inputs, *values(inputs, **three))
    assert notice["kind"] == "good"
    assert ["Register models", "yes"] in facts
    assert place.recall(store.home) == {"login": "cli", **three, "registry": ""}


def test_a_run_is_published_listed_and_pulled(bench: Bench, store: Store, finished: Run, inputs: Any) -> None:
    three = dict(zip(azure.WHERE, (SUB, GROUP, WORKSPACE), strict=True))
    given = values(inputs, **three, name="trips")
    *_, (problems, summary, findings, _, _) = azure.check(inputs, finished.id, *given)
    assert (problems, summary["kind"]) == (None, "good")
    assert {row[0]["word"] for row in findings["rows"]} == {"Good", "Not known"}
    assert bench.azure.models == {}
    *_, stage = azure.publish(inputs, finished.id, *given)
    ended = ("done", "failed")
    until(lambda: store.get(finished.id).stage(stage["stage"]).status in ended, "the end", 60)
    assert store.get(finished.id).stage(stage["stage"]).error is None
    _, (notice, table, *_) = models.refresh(inputs, "azureml", *given)
    assert notice is None
    (chosen,), (row,) = table["ids"], table["rows"]
    assert (row[0]["word"], row[1:3], row[4]) == ("Yes", ["trips", "1"], finished.id)
    told = models.select("azureml", SimpleNamespace(_data={"id": chosen}))  # type: ignore[arg-type]
    assert told[2] == finished.id
    assert told[6]["href"].endswith(f"/workspaces/{WORKSPACE}&tid={TENANT}")

    async def pulled() -> list[Any]:
        return [said async for said in models.pull(inputs, "azureml", chosen, *given)]

    *_, (notice, command) = asyncio.run(pulled())
    folder = Path(command["value"].rpartition(" ")[2])
    assert folder == registered.folder(store.home, registered.one(store, "azureml", chosen))
    assert notice["kind"] == "good"
    assert {finding.status for finding in verify.whole(folder)} == {verify.OK}
