"""What is asked of many subscriptions and many models: side by side, with bounds, and blaming nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure.workspace import MOST_LISTED, MOST_MODELS, workspaces
from pipeline.store import Store
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import GROUP, SUB, WORKSPACE, Fault
from tests.helpers.lab import cli

with settings.importing_gradio():
    import gradio as gr

    from webapp.tabs import azure

DEAD = "dead0000-1111-2222-3333-444444444444"
NO_RIGHT = "does not have authorization to perform action 'Microsoft.X/workspaces/read' over scope"


def test_a_subscription_that_refuses_is_left_out_and_named(
    bench: Bench, store: Store, where: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.azure.subscriptions = [DEAD, SUB]
    bench.azure.faults.append(Fault(f"/{DEAD}/", 403, "AuthorizationFailed", NO_RIGHT))
    left_out = (
        f"Subscription Travel ({DEAD}): The login may not do Microsoft.X/workspaces/read; ask for the role"
        " Reader on the subscription."
    )
    *_, (notice, seen) = azure.find("cli")
    assert (notice["kind"], notice["note"]) == ("good", f"Left out: {left_out}")
    assert len(seen["choices"]) == 1
    _, shown, _ = cli(capsys, "azure", "workspaces")
    assert shown.splitlines() == [f"{WORKSPACE}  {GROUP}  {SUB}", f"Left out: {left_out}"]


def test_when_all_refuse_the_remembered_workspace_is_not_blamed(
    bench: Bench, store: Store, where: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for match in (f"/{SUB}/providers", "/subscriptions$"):
        bench.azure.faults[:] = [Fault(match, 403, "AuthorizationFailed", NO_RIGHT)]
        code, _, said = cli(capsys, "azure", "workspaces")
        assert (code, "ask for the role Reader on the subscription." in said) == (1, True)
        assert WORKSPACE not in said


def test_many_subscriptions_are_asked_side_by_side(bench: Bench, store: Store, tmp_path: Path) -> None:
    bench.azure.subscriptions = [SUB] * 40
    bench.azure.meeting = "/workspaces$"
    log = tmp_path / "logins"
    path = bench.folder / "bin" / "az"
    bench.cli(f"echo x >> {log}\n{path.read_text().partition(chr(10))[2]}")
    found, left_out = workspaces("cli")
    assert (len(found), left_out) == (40, [])
    assert bench.azure.most_at_once >= 2
    assert bench.azure.count("/workspaces$") == 40
    assert log.read_text() == "x\n"


def test_hundreds_of_models_are_listed_with_a_bound_that_is_said(
    bench: Bench, store: Store, where: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(700):
        bench.azure._put(f"m{number}", "1", {"properties": {"modelUri": where.datastore("x")}}, None)
    bench.azure._put("m5", "2", {"properties": {"modelUri": where.datastore("y")}}, None)
    bench.azure.asked.clear()
    bench.azure.meeting = "/models/[^/]+/versions$"
    bench.azure.most_at_once = 0
    _, shown, said = cli(capsys, "azure", "models", "--json")
    names = [model["name"] for model in json.loads(shown)]
    assert set(names) == {"m5", *(f"m{number}" for number in range(601, 700))}
    assert (len(names), MOST_MODELS) == (101, 100)
    assert (
        f"These are the newest {MOST_LISTED} versions at most, of the {MOST_MODELS} models that changed"
        " last; name a model to see its own."
    ) in said.splitlines()
    assert bench.azure.count("/workspaces/.*/models") == 1 + MOST_MODELS
    assert bench.azure.most_at_once >= 2
    _, shown, said = cli(capsys, "azure", "models", "m3", "--json")
    assert ([model["name"] for model in json.loads(shown)], "Listed are" in said) == (["m3"], False)


def test_a_workspace_that_is_not_there_is_not_remembered(
    bench: Bench, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--subscription={SUB}", f"--resource-group={GROUP}", "--workspace=travel-wz", "--remember"]
    code, _, said = cli(capsys, "azure", "whoami", *words)
    assert (code, "Workspace travel-wz, or what is asked of it, does not exist" in said) == (1, True)
    assert azure_workspace.recall(store.home) == {}


@pytest.fixture
def inputs() -> Any:
    with gr.Blocks():
        return azure.build().inputs


def test_a_key_to_the_storage_is_not_asked_for_where_it_is_not_needed(
    bench: Bench, store: Store, where: Place, inputs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.azure.actions = [
        "Microsoft.MachineLearningServices/workspaces/*/read",
        "Microsoft.MachineLearningServices/workspaces/models/versions/write",
    ]
    *_, (notice, facts) = azure.whoami(inputs, *(component.value for component in inputs.inputs))
    assert (notice["kind"], "may do all that publishing" in notice["text"]) == ("good", True)
    assert "because keys are not allowed" in notice["note"]
    assert "Storage Blob Data Contributor" in notice["note"]
    assert ["Get a key to the storage", "no"] in facts
    _, said, _ = cli(capsys, "azure", "whoami")
    assert "may not get a key to the storage" in said
    assert "Storage Blob Data Contributor" in said
