"""What goes wrong between two blocks: access that is renewed, logins, certificates, accounts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import login
from pipeline.publish.azure import publisher as azureml
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.transfer import blob_client, upload
from pipeline.publish.azure.transfer.blob_client import THREADS, Container
from pipeline.publish.azure.transfer.upload import Item
from pipeline.publish.azure.workspace import Workspace
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system.transfer_progress import Meter
from tests.helpers.azure import authority
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import Fault
from tests.helpers.azure.proxy import Spoil

BLOCK = 64 << 10
BLOCKS = r"^PUT .*comp=block&"
BUSY = {"Retry-After": "0"}
OPTIONS = azureml.Options(name="trips", check=False, patience=60.0)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_client, "BLOCK", BLOCK)


@pytest.fixture
def item(tmp_path: Path) -> Item:
    """A file of six blocks."""
    data = hashlib.shake_128(b"a").digest(6 * BLOCK)
    (tmp_path / "a.data").write_bytes(data)
    return Item("a.data", tmp_path / "a.data", len(data), hashlib.sha256(data).hexdigest())


def send(container: Container, item: Item, where: Place) -> None:
    with explained(where):
        upload.send(container, "olive-lab/some", [item], Meter(lambda *told, **facts: None, item.size))


def whole(bench: Bench, item: Item) -> bool:
    with bench.container() as container:
        data = container.download_blob("olive-lab/some/a.data").readall()
    return hashlib.sha256(data).hexdigest() == item.sha256


@pytest.mark.parametrize(("status", "times"), [(503, 5), (0, 2)])
def test_resource_manager_may_fail_while_access_is_asked_for_anew(
    bench: Bench, where: Place, item: Item, status: int, times: int
) -> None:
    """Its own client asks four times, or once where the line drops; the upload asks again."""
    fault = Fault("/listSecrets", status, "Unavailable", times=times, skip=1, headers=BUSY)
    bench.azure.faults.append(fault)
    bench.proxy.spoils.append(
        Spoil(BLOCKS, "status", skip=2, times=1, status=403, code="AuthenticationFailed")
    )
    send(Workspace(where).container("any", "1", 60.0), item, where)
    assert (fault.times, whole(bench, item)) == (0, True)
    assert bench.azure.count("listSecrets") == 1 + times + 1


def test_what_resource_manager_refuses_then_is_not_asked_again(
    bench: Bench, where: Place, item: Item
) -> None:
    # Twice for the first signature: the datastore, and its secrets.
    bench.azure.faults.append(Fault("/datastores/", 404, "ResourceNotFound", "was not found", skip=2))
    spoil = Spoil(BLOCKS, "status", skip=1, times=1, status=403, code="AuthenticationFailed")
    bench.proxy.spoils.append(spoil)
    with pytest.raises(LabError, match="Workspace travel-ws, or what is asked of it, does not exist"):
        send(Workspace(where).container("any", "1", 60.0), item, where)
    assert spoil.times == 0


def test_a_login_that_is_refused_the_storage_ends_at_once(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.azure.keys_allowed = False
    said = "ERROR: AADSTS50076: Due to a change made by your administrator, you must use multi-factor auth"
    good = (bench.folder / "bin" / "az").read_text().partition("\n")[2]
    bench.cli(f'case "$*" in *storage*) echo "{said}" >&2; exit 1;; esac\n{good}')
    began = time.monotonic()
    options = azureml.Options(name="trips", check=False, patience=300.0)
    with pytest.raises(
        LabError, match=r"Azure refused the login: .*AADSTS50076.*multi-factor.*Run `az login` again\."
    ):
        azureml.register(store.home, finished, options, report)
    assert time.monotonic() - began < options.patience / 2


def test_a_token_that_is_refused_in_the_middle_is_asked_for_anew(
    bench: Bench, where: Place, item: Item, tmp_path: Path
) -> None:
    bench.azure.keys_allowed = False
    path = bench.folder / "bin" / "az"
    bench.cli(f'echo "$*" >> {tmp_path}/asked\n{path.read_text().partition(chr(10))[2]}')
    bench.proxy.spoils.append(
        Spoil(BLOCKS, "status", skip=2, times=1, status=401, code="InvalidAuthenticationInfo")
    )
    send(Workspace(where).container("any", "1", 60.0), item, where)
    asked = (tmp_path / "asked").read_text().splitlines()
    # Once before and once after the refusal, by each thread that sends at the most.
    assert 2 <= sum("storage" in line for line in asked) <= 2 * THREADS
    assert (whole(bench, item), bench.proxy.count("sig=")) == (True, 0)


def test_an_azure_cli_that_hangs_is_named(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(login, "CLI_SECONDS", 1)
    bench.cli("exec sleep 100")
    with pytest.raises(
        LabError, match="The Azure CLI does not respond here; run `az account get-access-token"
    ):
        azureml.register(store.home, finished, OPTIONS, report)


def test_a_line_to_resource_manager_that_drops_is_a_sentence(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.azure.faults.append(Fault("/providers/", 0))
    with pytest.raises(LabError, match=r"Azure cannot be reached .*; check the network and the proxy, then"):
        azureml.register(store.home, finished, OPTIONS, report)
    assert bench.azure.models == {}


def test_a_drop_of_resource_manager_that_passes_is_outlasted(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    fault = Fault("/providers/.*/models/", 0, times=2)
    bench.azure.faults.append(fault)
    azureml.register(store.home, finished, OPTIONS, report)
    assert (fault.times, list(bench.azure.models["trips"])) == (0, ["1"])


def test_a_certificate_that_is_not_trusted_is_named_at_once(
    bench: Bench, where: Place, item: Item, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(where)
    other = tmp_path / "other"
    other.mkdir()
    authority.make(other)

    def opener() -> object:
        client = workspace.open_container()  # Resource Manager's certificate is trusted
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "ca.pem"))
        return client

    began = time.monotonic()
    with pytest.raises(LabError, match="certificate is not trusted here; name your proxy's authority in REQ"):
        send(Container(opener, 60.0), item, where)
    assert time.monotonic() - began < 30


def test_a_container_that_is_gone_is_named(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    with bench.container() as container:
        container.delete_container()
    with pytest.raises(LabError, match="The workspace's container in its storage account is gone"):
        azureml.register(store.home, finished, OPTIONS, report)
    assert bench.azure.models == {}


def test_an_account_that_is_disabled_is_named(
    bench: Bench, store: Store, finished: Run, where: Place, report: Callable[..., None]
) -> None:
    bench.proxy.spoils.append(Spoil("", "status", status=403, code="AccountIsDisabled"))
    with pytest.raises(LabError, match="The storage account is disabled; ask whoever runs the workspace"):
        azureml.register(store.home, finished, OPTIONS, report)
    assert bench.azure.models == {}
