"""A run becomes a version in the workspace: by the real client, into the real storage emulator."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import Status
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import ask, lineage
from pipeline.publish.azure import publisher as azureml
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.worker import loop
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import GROUP, SUB, WORKSPACE, Fault
from tests.helpers.azure.proxy import Spoil
from tests.helpers.lab import until

Said = list[tuple[str, float, dict[str, Any]]]


def registered(bench: Bench, name: str, version: str) -> dict[str, Any]:
    found: dict[str, Any] = bench.azure.models[name][version]["properties"]
    return found


def test_a_version_is_whole_verified_and_says_where_it_came_from(
    bench: Bench, store: Store, finished: Run, where: Place, said: Said, report: Callable[..., None]
) -> None:
    options = azureml.Options(name="trips", description="Knows the valley.", tags="team=walkers")
    published = azureml.publish(store.home, finished, options, report)
    assert (published["name"], published["version"], published["verified"]) == ("trips", "1", True)
    made = registered(bench, "trips", "1")
    assert made["description"] == "Knows the valley."
    assert made["modelType"] == "custom_model"
    tags, properties = made["tags"], made["properties"]
    assert (tags["verified"], tags["run"], tags["team"]) == ("true", finished.id, "walkers")
    assert properties["finetune_eval_loss_after"] == "1.25"
    assert properties["base_model"].startswith("starter@0")
    prefix = f"olive-lab/{properties[lineage.CONTENT]}"
    assert made["modelUri"].endswith(f"/datastores/workspaceblobstore/paths/{prefix}/")
    with bench.container() as container:
        stored = {blob.name.removeprefix(f"{prefix}/"): blob.size for blob in container.list_blobs(prefix)}
    plan = azureml.plan(store.home, finished, options)
    sizes = {file["path"]: file["bytes"] for file in plan["files"]}
    assert {name: size for name, size in stored.items() if name != "SHA256SUMS"} == sizes
    assert sizes.keys() >= {"model.onnx", "model.onnx.data", "README.md", "recipe.yaml", "sub/vocab.txt"}
    fractions = [fraction for _, fraction, _ in said]
    assert fractions == sorted(fractions)
    totals = {facts["bytes_total"] for _, _, facts in said if "bytes_total" in facts}
    assert totals == {sum(stored.values())}
    assert not (store.home / "checked" / "trips-1").exists()


def test_what_the_client_itself_downloads_verifies(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], tmp_path: Path
) -> None:
    from pipeline.publish.azure.workspace import Workspace

    azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    Workspace(where).client.models.download("trips", version="1", download_path=str(tmp_path / "new"))
    (folder,) = {path.parent for path in (tmp_path / "new").rglob("model.onnx")}
    assert {finding.status for finding in verify.static(folder)} == {Status.OK}
    assert verify.checksums.intact(folder)


def test_the_same_content_is_not_sent_again_and_gets_the_next_version(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    options = azureml.Options(name="trips")
    first = azureml.register(store.home, finished, options, report)
    bench.proxy.passed.clear()
    second = azureml.register(store.home, finished, options, report)
    assert (first["version"], second["version"]) == ("1", "2")
    assert (bench.proxy.count("^PUT"), second["bytes_sent"]) == (0, 0)
    again = dataclasses.replace(options, version="1", check=False)
    assert azureml.register(store.home, finished, again, report)["version"] == "1"
    assert registered(bench, "trips", "1")["tags"]["verified"] == "true"
    assert sorted(bench.azure.models["trips"]) == ["1", "2"]


@pytest.mark.parametrize("keys", [True, False])
def test_another_card_sends_the_card_alone(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], keys: bool
) -> None:
    bench.azure.keys_allowed = keys
    options = azureml.Options(name="trips", description="Nose the valley.", check=False, patience=10.0)
    first = azureml.register(store.home, finished, options, report)
    bench.proxy.passed.clear()
    better = dataclasses.replace(options, description="Knows the valley.", check=True)
    second = azureml.register(store.home, finished, better, report)
    assert (second["version"], second["verified"]) == ("2", True)
    assert first["content"] != second["content"]
    assert second["bytes_sent"] == bench.proxy.sent(r"comp=block(&|$)") < 20_000 < first["bytes_sent"]
    sent = {line.partition("?")[0].rpartition("/")[2] for line, _, size in bench.proxy.passed
            if line.startswith("PUT") and "comp=block&" in f"{line}&"}  # fmt: skip
    assert sent == {"README.md", "SHA256SUMS"}


@pytest.mark.parametrize("how", ["gone", "refused", "changed"])
def test_what_cannot_be_copied_is_sent(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], how: str
) -> None:
    options = azureml.Options(name="trips", description="One card.", check=False, patience=10.0)
    first = azureml.register(store.home, finished, options, report)
    data = f"olive-lab/{first['content']}/model.onnx.data"

    def spoil() -> None:
        with bench.container() as container:
            if how == "gone":
                container.delete_blob(data)
            if how == "changed":
                blob = container.get_blob_client(data)
                known = blob.get_blob_properties()
                blob.upload_blob(b"x" * known.size, overwrite=True, metadata=known.metadata)

    spoil()
    if how == "refused":
        copies = r"^PUT [^?]*model\.onnx\.data(\?(?!.*comp=)|$)"
        bench.proxy.spoils.append(Spoil(copies, "status", status=403, code="CannotVerifyCopySource"))
    # Reading it all again takes seconds; of the three only a copy of other bytes needs it.
    check = how == "changed"
    other = azureml.Options(name="trips", description="Another card.", check=check, patience=10.0)
    second = azureml.register(store.home, finished, other, report)
    assert (second["version"], second["verified"]) == ("2", check)
    assert bench.proxy.sent(rf"^PUT [^?]*{second['content']}/model\.onnx\.data\?.*comp=block(&|$)") > 0


def test_a_version_with_other_content_is_refused_before_anything_is_sent(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    bench.proxy.passed.clear()
    changed = azureml.Options(name="trips", version="1", description="Another card, other content.")
    with pytest.raises(LabError, match="trips already has a version 1 with other content; leave it empty"):
        azureml.register(store.home, finished, changed, report)
    assert bench.proxy.count("^PUT") == 0


@pytest.mark.parametrize("status", [400, 409])
def test_a_version_that_somebody_takes_at_the_same_moment_costs_nothing(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], status: int
) -> None:
    azure = bench.azure

    def take(name: str, version: str) -> None:
        azure.on_put = None
        azure._put(name, version, {"properties": {"modelUri": "azureml://theirs"}}, None)

    azure.on_put, azure.conflict = take, status
    published = azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    assert published["version"] == "2"
    assert registered(bench, "trips", "1")["modelUri"] == "azureml://theirs"


def test_what_comes_back_different_is_not_verified(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    def spoil(name: str, version: str) -> None:
        bench.azure.on_put = None
        with bench.container() as container:
            (blob,) = (b for b in container.list_blobs() if b.name.endswith("vocab.txt"))
            old = container.get_blob_client(blob.name).get_blob_properties().metadata
            container.upload_blob(blob.name, b"WORDS", overwrite=True, metadata=old)

    bench.azure.on_put = spoil
    with pytest.raises(LabError, match="came out of Azure with other content than it has there"):
        azureml.publish(store.home, finished, azureml.Options(name="trips"), report)
    assert registered(bench, "trips", "1")["tags"]["verified"] == "false"


def test_a_check_that_did_not_get_through_goes_on_with_its_version(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    options = azureml.Options(name="trips")
    azureml.register(store.home, finished, dataclasses.replace(options, check=False), report)
    published = azureml.register(store.home, finished, options, report)
    assert (published["version"], list(bench.azure.models["trips"])) == ("1", ["1"])
    assert registered(bench, "trips", "1")["tags"]["verified"] == "true"


@pytest.mark.parametrize("keys", [False, None])
def test_where_keys_are_not_allowed_the_login_itself_is_used(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], keys: bool | None
) -> None:
    bench.azure.keys_allowed = keys
    azureml.register(store.home, finished, azureml.Options(name="trips", check=False), report)
    assert "trips" in bench.azure.models
    assert bench.proxy.count("sig=") == 0


@pytest.mark.parametrize(
    ("login", "who"), [("identity", "identity"), ("environment", "app-of-ann"), ("cli", "ann@")]
)
def test_each_login_is_used_when_it_is_chosen(
    bench: Bench, store: Store, where: Place, login: str, who: str
) -> None:
    found = ask.whoami(store.home, dataclasses.replace(where, login=login))
    assert found["login"] == login
    assert found["name"].startswith(who)
    assert found["may"] == {"see models": True, "register models": True, "get a key to the storage": True}


def test_the_worker_publishes_and_the_events_have_the_bytes(
    bench: Bench, store: Store, finished: Run, where: Place
) -> None:
    stage = submit.publish(store, finished, "azureml", azureml.Options(name="trips"))
    until(lambda: store.get(finished.id).stage(stage).status in ("done", "failed"), "the end", 180)
    ended = store.get(finished.id).stage(stage)
    folder = store.folder(finished.id, stage)
    log = (folder / "log.txt").read_text()
    assert (ended.status, ended.error) == ("done", None), log
    assert ended.metrics["verified"] is True
    assert ended.metrics["path"] == "azureml:trips:1"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert max(event.get("bytes_done", 0) for event in events) == max(
        event.get("bytes_total", 0) for event in events
    )
    assert "sig=" not in log.replace("sig=[removed]", "")
    assert "Warning" not in log


def test_workspaces_and_models_are_listed(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    seen = [dataclasses.asdict(Place("cli", SUB, GROUP, WORKSPACE))]
    assert ask.workspaces(store.home) == {"workspaces": seen, "left_out": []}
    assert ask.models(store.home) == []
    for name in ("trips", "walks"):
        azureml.register(store.home, finished, azureml.Options(name=name, check=False), report)
    listed = azureml.versions(store.home)
    assert sorted((model["name"], model["version"]) for model in listed) == [("trips", "1"), ("walks", "1")]
    assert listed[0]["portal"].startswith("https://ml.azure.com/model/")
    assert [model["name"] for model in ask.models(store.home, "walks")] == ["walks"]
    assert ask.models(store.home, "none") == []
    assert yaml.safe_load(ask.recipe(store.home, "walks:1"))["name"] == finished.name


def test_the_command_line_publishes_and_remembers(
    bench: Bench, store: Store, finished: Run, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"subscription_id": SUB, "resource_group": GROUP, "workspace_name": WORKSPACE})
    )
    command = [
        settings.python(),
        "-m",
        "pipeline",
        "publish",
        finished.id,
        "--to",
        "azureml",
        "--name",
        "trips",
    ]
    refused = subprocess.run(
        command, capture_output=True, text=True, cwd=settings.ROOT, env=settings.child_environment()
    )
    assert refused.returncode == 2
    assert "workspace: is not known; give it, or the config.json" in refused.stderr
    done = subprocess.run(
        [*command, "--config", str(config)],
        capture_output=True, text=True, cwd=settings.ROOT, env=settings.child_environment(),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Published to azureml:trips:1\n")
    expected = f"--resource-group {GROUP} --workspace-name {WORKSPACE}"
    assert expected in done.stdout
    assert azure_workspace.recall(store.home)["workspace"] == WORKSPACE
    assert (store.home / azure_workspace.FILE).stat().st_mode & 0o777 == 0o600
    for process in loop._workers:
        process.wait()


def test_a_fault_of_the_worker_slot_is_a_sentence(
    bench: Bench, store: Store, finished: Run, where: Place
) -> None:
    bench.azure.faults.append(Fault("^PUT .*/models/", 403, "AuthorizationFailed", "does not have authorization to perform action 'a/b/write' over"))  # noqa: E501  # fmt: skip
    stage = submit.publish(store, finished, "azureml", azureml.Options(name="trips"))
    until(lambda: store.get(finished.id).stage(stage).status in ("done", "failed"), "the end", 180)
    assert store.get(finished.id).stage(stage).error == (
        "The login may not do a/b/write; ask for the role AzureML Data Scientist on workspace travel-ws."
    )
    assert bench.azure.models == {}


def test_without_a_workspace_nothing_is_queued(bench: Bench, store: Store, finished: Run) -> None:
    with pytest.raises(InputError, match="subscription: is not known; give it"):
        submit.publish(store, finished, "azureml", azureml.Options(name="trips"))
