"""Which version a publish becomes: races with others, a registry that takes its time, what is kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.core.polling.base_polling import LROBasePolling

from pipeline.errors import LabError
from pipeline.exports.findings import Finding, Status
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import lineage, preflight
from pipeline.publish.azure import publisher as azureml
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import Fault
from tests.helpers.azure.proxy import Spoil

TO = {"workspace": azureml.Options(name="trips"), "registry": azureml.Options(name="trips", registry="ours")}
UNCHECKED = {name: dataclasses.replace(options, check=False) for name, options in TO.items()}


def tags(bench: Bench, version: str) -> dict[str, str]:
    found: dict[str, str] = bench.azure.models["trips"][version]["properties"]["tags"]
    return found


def test_a_version_of_a_registry_that_somebody_takes_is_followed_by_the_next_one(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None]
) -> None:
    def take(name: str, version: str) -> None:
        bench.azure.on_put = None
        bench.azure._put(name, version, {"properties": {"modelUri": "https://theirs"}}, None)

    bench.azure.on_put = take
    assert azureml.register(store.home, finished, UNCHECKED["registry"], report)["version"] == "2"
    made = {version: model["properties"] for version, model in bench.azure.models["trips"].items()}
    assert (made["1"]["modelUri"], "tags" in made["1"]) == ("https://theirs", False)
    assert made["2"]["tags"]["run"] == finished.id


@pytest.mark.parametrize("to", TO)
def test_two_that_publish_at_the_same_moment_become_two_versions(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], to: str
) -> None:
    both = threading.Barrier(2)

    def meet(name: str, version: str) -> None:
        if version == "1":
            both.wait(60)

    bench.azure.on_put = meet

    def publish(description: str) -> Any:
        options = dataclasses.replace(UNCHECKED[to], description=description)
        return azureml.register(store.home, finished, options, report)

    with ThreadPoolExecutor() as pool:
        published = list(pool.map(publish, ["One card.", "Another card."]))
    assert sorted(one["version"] for one in published) == ["1", "2"]
    for one in published:
        properties = bench.azure.models["trips"][one["version"]]["properties"]["properties"]
        assert properties[lineage.CONTENT] == one["content"]
    assert published[0]["content"] != published[1]["content"]


def test_a_version_that_was_asked_for_and_taken_meanwhile_is_said_to_be(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    def take(name: str, version: str) -> None:
        bench.azure.on_put = None
        bench.azure._put(name, version, {"properties": {"modelUri": "azureml://theirs"}}, None)

    bench.azure.on_put = take
    options = dataclasses.replace(UNCHECKED["workspace"], version="7")
    with pytest.raises(LabError, match="trips already has a version 7 with other content"):
        azureml.register(store.home, finished, options, report)


def test_a_registry_that_does_not_get_a_version_done_ends_in_time(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = bench.azure.answer

    def creating(method: str, path: str, *given: Any) -> tuple[int, Any]:
        status, body = answer(method, path, *given)
        if path.endswith("/models/trips/versions/1") and status < 300:
            body = {**body, "properties": {**body["properties"], "provisioningState": "Creating"}}
        return status, body

    options = dataclasses.replace(UNCHECKED["registry"], patience=2.0)
    over = threading.Event()
    with monkeypatch.context() as changed:
        changed.setattr(bench.azure, "answer", creating)
        # It asks every half a minute, and would once more when this test is long over.
        changed.setattr(LROBasePolling, "_sleep", lambda self, seconds: over.wait(seconds))
        with pytest.raises(LabError, match="registry ours has not made trips version 1 within 2 seconds; lo"):
            azureml.register(store.home, finished, options, report)
    over.set()
    for thread in threading.enumerate():
        if thread.name == "registering":
            thread.join(60)
    again = azureml.register(store.home, finished, UNCHECKED["registry"], report)
    assert (again["version"], list(bench.azure.models["trips"])) == ("1", ["1"])


def version_row(store: Store, run: Run, **options: Any) -> Finding:
    found = preflight.preflight(store.home, run, azureml.Options(name="trips", **options))
    (row,) = (row for row in found if row.check == "version")
    return row


def test_the_dry_run_says_the_version_that_is_made_then(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    options = UNCHECKED["workspace"]
    azureml.register(store.home, finished, options, report)
    row = version_row(store, finished)
    assert row.message.startswith("it resumes 1, which has this content and was not fully checked")
    same = version_row(store, finished, version="1")
    assert same.message == "1 is there already with the same content; it is registered again"
    assert version_row(store, finished, version="1", description="Another card.").status == Status.FAILED
    assert azureml.register(store.home, finished, options, report)["version"] == "1"
    bench.azure.models["trips"]["1"]["properties"]["tags"]["verified"] = "true"
    assert version_row(store, finished).message == "the next one is 2"
    assert azureml.register(store.home, finished, options, report)["version"] == "2"


def test_tags_that_others_set_stay(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    azureml.register(store.home, finished, UNCHECKED["workspace"], report)
    tags(bench, "1")["stage"] = "production"

    def promote() -> None:
        tags(bench, "1").update(owner="ann")

    # What was registered is downloaded to be checked, and only then.
    bench.proxy.spoils.append(Spoil(r"^GET .*/olive-lab/[^?]+\?(?!comp=)", "call", times=1, then=promote))
    options = dataclasses.replace(TO["workspace"], version="1", tags="team=walkers")
    azureml.register(store.home, finished, options, report)
    found = tags(bench, "1")
    assert (found["stage"], found["owner"], found["team"]) == ("production", "ann", "walkers")
    assert found["verified"] == "true"


def test_a_version_that_comes_back_whole_but_does_not_answer_is_not_verified(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    folder = Path(str(finished.artifact("onnx")))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    checksums.write(folder)
    with pytest.raises(LabError, match="trips version 1 is registered, but not verified"):
        azureml.register(store.home, finished, TO["workspace"], report)
    assert (list(bench.azure.models["trips"]), tags(bench, "1")["verified"]) == (["1"], "false")
    assert not any((store.home / "checked").iterdir())


def test_a_registry_refuses_with_the_role_to_ask_for(
    bench: Bench, store: Store, finished: Run, report: Callable[..., None]
) -> None:
    said = "does not have authorization to perform action 'Microsoft.X/registries/assets/write' over scope"
    bench.azure.faults.append(Fault("^PUT .*/models/", 403, "AuthorizationFailed", said))
    with pytest.raises(LabError, match="ask for the role AzureML Registry User on registry ours"):
        azureml.register(store.home, finished, UNCHECKED["registry"], report)
