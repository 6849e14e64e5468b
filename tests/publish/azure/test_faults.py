"""Every error that the client raises becomes one sentence that says what to do, and nothing is registered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import ask
from pipeline.publish.azure import publisher as azureml
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import Fault
from tests.helpers.azure.proxy import Spoil

OPTIONS = azureml.Options(name="trips", check=False, patience=60.0)
NO_RIGHT = (
    "The client 'ann' does not have authorization to perform action 'Microsoft.X/models/write' over scope"
)


BUSY = "Another operation is in progress on this resource."
FAULTS = {
    "401": (
        Fault("/workspaces/", 401, "AuthenticationFailed"),
        r"Azure no longer takes the login. Run `az login` again\.",
    ),
    "403 on reading": (
        Fault("^GET .*/models/", 403, "AuthorizationFailed", NO_RIGHT),
        r"The login may not do Microsoft.X/models/write; ask for the role AzureML Data Scientist on worksp",
    ),
    "403 on registering": (
        Fault("^PUT .*/models/", 403, "AuthorizationFailed", NO_RIGHT),
        r"The login may not do Microsoft.X/models/write; ask for the role",
    ),
    "no workspace": (
        Fault("/datastores/", 404, "ResourceNotFound", "The Resource 'travel-ws' was not found."),
        r"Workspace travel-ws, or what is asked of it, does not exist, or the login cannot see it",
    ),
    "version taken, 400": (
        Fault("^PUT .*/models/", 400, "UserError", "exists"),
        "already exists with other content",
    ),
    "version taken, 409": (
        Fault("^PUT .*/models/", 409, "Conflict", "exists"),
        "already exists with other content",
    ),
    "429 for good": (
        Fault("^PUT .*/models/", 429, "TooManyRequests", headers={"Retry-After": "0"}),
        r"too many requests \(429\); try again in some minutes: what was uploaded stays",
    ),
    "503 for good": (
        Fault("^PUT .*/models/", 503, "Unavailable", headers={"Retry-After": "0"}),
        r"problems of its own \(503\); try again in some minutes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_resource_manager(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], name: str
) -> None:
    fault, sentence = FAULTS[name]
    bench.azure.faults.append(dataclasses.replace(fault))
    with pytest.raises(LabError, match=sentence):
        azureml.register(store.home, finished, OPTIONS, report)
    assert bench.azure.models == {}


@pytest.mark.parametrize("status", [429, 503])
def test_a_fault_that_passes_is_outlasted(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], status: int
) -> None:
    bench.azure.faults.append(Fault("^PUT .*/models/", status, "Busy", times=2, headers={"Retry-After": "0"}))
    assert azureml.register(store.home, finished, OPTIONS, report)["version"] == "1"
    assert bench.azure.faults[0].times == 0


@pytest.mark.parametrize("to", [OPTIONS, dataclasses.replace(OPTIONS, registry="ours")])
def test_a_conflict_that_passes_is_outlasted(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], to: azureml.Options
) -> None:
    bench.azure.faults.append(Fault("^PUT .*/models/[^/]+/versions/1$", 409, "Conflict", BUSY, times=2))
    published = azureml.register(store.home, finished, to, report)
    assert (published["version"], list(bench.azure.models["trips"])) == ("1", ["1"])
    assert bench.azure.faults[0].times == 0


def test_a_conflict_that_stays_is_said_to_be_one(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.azure.faults.append(Fault("^PUT .*/models/", 409, "Conflict", BUSY))
    with pytest.raises(LabError) as raised:
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, patience=1.0), report)
    assert str(raised.value) == (
        f"Azure is busy with another operation on this ({BUSY.rstrip('.')}); try again in some"
        " minutes: what was uploaded stays, and publishing again continues from there."
    )


@pytest.mark.parametrize(
    ("login", "match"),
    [
        ("identity", "^PUT .*/models/"),
        ("environment", "^PUT .*/models/"),
        ("cli", "^PUT .*/models/"),
        ("cli", "^GET .*/datastores/"),
        ("cli", "/listSecrets"),
        ("cli", "^GET .*/models/"),
    ],
)
def test_a_token_that_is_refused_once_is_renewed(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], login: Any,
    match: str,
) -> None:  # fmt: skip
    bench.azure.faults.append(Fault(match, 401, "AuthenticationFailed", "The token has ended.", times=1))
    options = dataclasses.replace(OPTIONS, login=login)
    assert azureml.register(store.home, finished, options, report)["version"] == "1"
    assert bench.azure.faults[0].times == 0


def test_a_token_is_new_for_the_second_try(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    """A managed identity's credential keeps its token for an hour."""
    bench.azure.faults.append(Fault("^PUT .*/models/", 401, "AuthenticationFailed"))
    with pytest.raises(LabError, match=r"^Azure no longer takes the login\. Check the managed identity"):
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, login="identity"), report)
    assert bench.azure.count("^PUT .*/models/") == 2
    last = [line for line in bench.azure.asked if "/msi/token" in line or line.startswith("PUT ")]
    assert "/msi/token" in last[-2]


def test_a_login_that_ended(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.az(None)
    with pytest.raises(
        LabError, match=r"The Azure CLI is not logged in here; run `az login` \(`az login --use-dev"
    ):
        azureml.register(store.home, finished, OPTIONS, report)


def test_no_cli(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="The Azure CLI is not installed here; install it and run `az login`"):
        azureml.register(store.home, finished, OPTIONS, report)


def test_no_identity_and_no_service_principal(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    with pytest.raises(LabError, match="The service principal is not set; set AZURE_TENANT_ID"):
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, login="environment"), report)
    bench.azure.faults.append(Fault("/msi/token", 400, "identity_not_found"))
    with pytest.raises(LabError, match="No managed identity responds here; enable one for this compute inst"):
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, login="identity"), report)


def test_a_wrong_secret_is_named_and_not_shown(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "very-secret-words")
    with pytest.raises(
        LabError, match=r"Azure refused the login: .*Invalid client secret.*AZURE_CLIENT_SECRET\."
    ):
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, login="environment"), report)
    assert "very-secret-words" not in "".join(capfd.readouterr())


STORAGE = {
    "KeyBasedAuthenticationNotPermitted": "allows no keys, and the login itself may not",
    "AuthorizationPermissionMismatch": "ask for the role Storage Blob Data Contributor on it",
    "AuthorizationFailure": "refuses this machine, most likely its firewall",
    "AuthenticationFailed": "refuses its own access signature, also a new one",
}


@pytest.mark.parametrize("code", STORAGE)
def test_a_fault_of_the_storage(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None], code: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bench.proxy.spoils.append(Spoil("", "status", status=403, code=code))
    with pytest.raises(LabError, match=STORAGE[code]):
        azureml.register(store.home, finished, OPTIONS, report)
    assert bench.azure.models == {}
    written = "".join(capfd.readouterr())
    assert "sig=" not in written.replace("sig=[removed]", "")


def test_a_line_that_is_cut_for_good(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.proxy.spoils.append(Spoil("", "drop"))
    with pytest.raises(LabError, match="Nothing got through to or from Azure for 4 seconds"):
        azureml.register(store.home, finished, dataclasses.replace(OPTIONS, patience=4.0), report)
    assert bench.azure.models == {}


def test_the_dry_run_says_what_is_good_and_what_it_cannot_know(
    bench: Bench, store: Store, finished: Run, where: Place
) -> None:
    found = ask.preflight(store.home, finished.id, {"name": "trips", "tags": "team=walkers"})
    assert found["good"] is True
    status = {row["check"]: row["status"] for row in found["findings"]}
    asked = (
        "name",
        "files",
        "ignore files",
        "adapter",
        "disk",
        "login",
        "workspace",
        "permissions",
        "datastore",
        "version",
    )
    assert {status[name] for name in asked} == {"ok"}
    assert {status["time"], status["not known"]} == {"unknown"}
    assert "--tags team=walkers" in found["plan"]["command"]
    assert (bench.azure.count("^PUT"), bench.proxy.count("^PUT")) == (0, 0)
    assert [stage.name for stage in store.get(finished.id).stages if stage.kind == "publish"] == []


def test_the_dry_run_stops_asking_at_what_is_bad(
    bench: Bench, store: Store, finished: Run, where: Place
) -> None:
    bench.azure.actions = ["Microsoft.MachineLearningServices/workspaces/*/read"]
    ignored = Path(str(finished.artifact("onnx"))) / ".gitignore"
    ignored.write_text("*.data\n")
    found = ask.preflight(store.home, finished.id, {"name": "trips"})
    rows = {row["check"]: row for row in found["findings"]}
    assert found["good"] is False
    assert rows["permissions"]["message"].startswith("the login may not register models")
    assert (rows["datastore"]["status"], rows["version"]["status"]) == ("skipped", "skipped")
    assert "uploads every file all the same" in rows["ignore files"]["message"]
    bench.azure.actions = ["*"]
    bench.az(None)
    rows = {
        row["check"]: row for row in ask.preflight(store.home, finished.id, {"name": "trips"})["findings"]
    }
    assert (rows["login"]["status"], rows["workspace"]["status"]) == ("failed", "skipped")
    assert "run `az login`" in rows["login"]["message"]


def test_the_dry_run_knows_a_version_that_is_taken(
    bench: Bench, store: Store, finished: Run, where: Place
) -> None:
    bench.azure._put("trips", "4", {"properties": {"modelUri": "azureml://theirs"}}, None)
    rows = ask.preflight(store.home, finished.id, {"name": "trips", "version": "4"})["findings"]
    (row,) = (row for row in rows if row["check"] == "version")
    assert (row["status"], "already has a version 4" in row["message"]) == ("failed", True)
    rows = ask.preflight(store.home, finished.id, {"name": "trips"})["findings"]
    assert "the next one is 5" in json.dumps(rows)


def test_what_is_asked_for_the_page_ends_with_the_sentence(bench: Bench, store: Store, where: Place) -> None:
    bench.az(None)
    with pytest.raises(LabError, match="run `az login`"):
        ask.models(store.home)
