"""The page's handlers against the bench: what a person clicks, from the login to a pulled model."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline import settings
from pipeline.exports import verify
from pipeline.exports.chat import chat_processes
from pipeline.exports.findings import Status
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import publisher as azureml
from pipeline.runs import pulls
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import GROUP, SUB, TENANT, WORKSPACE
from tests.helpers.azure.proxy import Spoil
from tests.helpers.lab import until

with settings.importing_gradio():
    import gradio as gr

    from webapp.tabs import azure
    from webapp.tabs import versions as models
    from webapp.tabs.comparing import prompting
    from webapp.ui import version_tables


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
    *_, (notice, facts) = azure.whoami(inputs, *values(inputs))
    assert ("Choose a workspace" in notice["text"], facts[0]) == (True, ["Name", "ann@example.org"])
    *_, (notice, seen) = azure.find("cli")
    assert notice["text"] == "The login sees 1 workspace; choose one."
    ((_, chosen),) = seen["choices"]
    three = dict(zip(azure.WHERE, azure.pick(chosen), strict=True))
    *_, (notice, facts) = azure.whoami(inputs, *values(inputs, **three))
    assert notice["kind"] == "good"
    assert ["Register models", "yes"] in facts
    assert azure_workspace.recall(store.home) == {"login": "cli", **three, "registry": ""}


def test_a_run_is_published_and_listed(bench: Bench, store: Store, finished: Run, inputs: Any) -> None:
    three = dict(zip(azure.WHERE, (SUB, GROUP, WORKSPACE), strict=True))
    given = values(inputs, **three, name="trips")
    *_, (problems, summary, findings, _, _) = azure.check(inputs, finished.id, *given)
    assert (problems, summary["kind"]) == (None, "good")
    assert {row[0]["word"] for row in findings["rows"]} == {"Good", "Unknown"}
    assert bench.azure.models == {}
    *_, stage = azure.publish(inputs, finished.id, *given)
    ended = ("done", "failed")
    until(lambda: store.get(finished.id).stage(stage["stage"]).status in ended, "the end", 180)
    assert store.get(finished.id).stage(stage["stage"]).error is None
    *_, (notice, table, *_rest) = models.refresh(inputs, "azureml", *given)
    assert notice is None
    (chosen,), (row,) = table["ids"], table["rows"]
    assert (row[0]["word"], row[1:3], row[4]) == ("Yes", ["trips", "1"], finished.id)
    told = models.select("azureml", SimpleNamespace(_data={"id": chosen}))  # type: ignore[arg-type]
    assert (told[7], told[9]["visible"]) == (finished.id, True)  # in Compare its run, until it is pulled
    assert told[5]["href"].endswith(f"/workspaces/{WORKSPACE}&tid={TENANT}")


@pytest.fixture
def version(bench: Bench, store: Store, finished: Run, where: Place) -> dict[str, Any]:
    """One that was registered from here, as the page lists it."""
    azureml.register(store.home, finished, azureml.Options(name="trips", check=False), lambda *a, **k: None)
    (found,) = version_tables.ask_azure(store.home, where)
    return found


def facts(store: Store, key: str) -> dict[str, Any]:
    found = pulls.facts(store.home, key)
    assert found is not None
    return found


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_pull_that_is_ended_goes_on_and_what_it_brings_answers_in_compare(
    bench: Bench, store: Store, version: dict[str, Any], inputs: Any, how: str
) -> None:
    come, over = threading.Event(), bench.proxy.over
    bench.proxy.passed.clear()
    bench.proxy.spoils.append(Spoil(r"^GET .*/tokenizer\.json", "call", then=lambda: (come.set(), over.wait(60))))  # noqa: E501  # fmt: skip
    notice, *_, told, _ = models.pull(inputs, "azureml", version["id"], *values(inputs))
    key = told["pulled"]
    assert (notice, come.wait(60)) == (None, True)
    if how == "kill":
        (process,) = (p for p in psutil.process_iter(["cmdline"]) if key in (p.info["cmdline"] or []))
        process.kill()
    else:
        pulls.stop(store.home, key)
    left = {"kill": "interrupted", "stop": "canceled"}[how]
    until(lambda: facts(store, key)["status"] == left, "the end")
    bench.proxy.spoils.clear()
    over.set()
    assert bench.proxy.count(r"^GET .*/model\.onnx\?", 206) == 1
    bench.proxy.passed.clear()
    models.pull(inputs, "azureml", version["id"], *values(inputs))
    until(lambda: facts(store, key)["status"] != "running", "the model", 180)
    assert (facts(store, key)["status"], facts(store, key)["message"]) == (
        "done", "It is the same as was published.",
    )  # fmt: skip
    assert bench.proxy.count(r"^GET .*/model\.onnx\?") == 0  # it was here already
    folder = pulls.folder(store.home, key)
    assert {finding.status for finding in verify.whole(folder)} == {Status.OK}
    assert asked(f"pulled/{key}")


def asked(chosen: str) -> list[str]:
    """What both sides answer on the Compare tab."""

    async def answers() -> list[Any]:
        try:
            return [
                shown
                async for shown in prompting.compare(chosen, [], "a-name-of-22-letters-x", "Hello", 8, 0, 0)
            ]
        finally:
            await chat_processes.shutdown()

    base, adapter, *_, notice = asyncio.run(answers())[-1]
    assert notice is None
    assert base != adapter
    return [base, adapter]
