"""The workspace: its models and its container, through azure-ai-ml; and questions it has no verb for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import faults, login
from pipeline.publish.azure.login import credential, manager
from pipeline.publish.azure.transfer import blob_client
from pipeline.publish.azure.transfer.blob_client import Container

T = TypeVar("T")
STORE = "workspaceblobstore"
PATIENCE: dict[str, Any] = {"connection_timeout": 20, "read_timeout": 60}  # seconds; the client's own are 300
MOST_MODELS = 100  # whose versions are asked for together: one request each
MOST_LISTED = 500
TOGETHER = 8  # questions to Resource Manager at a time


class Taken(LabError):
    """A version is there, with other content."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(
            f"{name} already has a version {version} with other content; leave it empty for the next one."
        )


class Workspace:
    """A workspace with an open client. Raises whatever the azure packages raise: see `faults.explained`."""

    def __init__(self, place: Place) -> None:
        quiet()
        self.place = place
        self.credential = credential(place.login)
        self.client = self._connect()
        self._lock = threading.Lock()

    def ask(self, question: Callable[[Any], T]) -> T:
        """What `question` returns for the client; asked again with a new login where the token is refused.

        A token may end, or be taken back, between two requests; both client and credential keep theirs.
        """
        from azure.core.exceptions import HttpResponseError

        client = self.client
        try:
            return question(client)
        except HttpResponseError as error:
            if error.status_code != 401:
                raise
            with self._lock:
                if self.client is client:  # else another thread has seen to that
                    self.credential = credential(self.place.login)
                    self.client = self._connect()
            return question(self.client)

    def _connect(self) -> Any:
        from azure.ai.ml import MLClient

        place = self.place
        # show_progress must stay on: without it a failing upload of the client's own waits for ever.
        return MLClient(
            self.credential, place.subscription, place.resource_group, place.workspace or None,
            enable_telemetry=False, show_progress=True, **PATIENCE,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """The workspace's name and region."""
        found = self.ask(lambda client: client.workspaces.get(self.place.workspace))
        return {"workspace": found.name, "location": found.location, "id": found.id}

    def permissions(self) -> list[dict[str, Any]]:
        """What the login may do in the workspace, as roles say it."""
        path = f"{self.place.path}/providers/Microsoft.Authorization/permissions?api-version=2022-04-01"
        with _manager(self.credential) as manager:
            return list(_pages(manager, path))

    def names(self) -> list[str]:
        """All models, those that changed last first."""

        def changed(model: Any) -> str:
            context = model.creation_context
            return str(getattr(context, "last_modified_at", None) or getattr(context, "created_at", None))

        found = self.ask(lambda client: list(client.models.list()))
        return [str(model.name) for model in sorted(found, key=changed, reverse=True)]

    def models(self, names: list[str]) -> list[dict[str, Any]]:
        """Every version of these models, newest first."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            asked = list(pool.map(self._versions, names))
        found = [facts(self.place, model) for versions in asked for model in versions]
        return sorted(found, key=lambda model: str(model["created"]), reverse=True)

    def _versions(self, name: str) -> list[Any]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self.ask(lambda client: list(client.models.list(name=name)))
        except ResourceNotFoundError:
            return []

    def model(self, name: str, version: str) -> Any | None:
        """A version of a model, None if it is not there."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self.ask(lambda client: client.models.get(name, version=version))
        except ResourceNotFoundError:
            return None

    def next_version(self, name: str) -> str:
        """The number that the service would give; it knows archived versions too, which are not listed."""
        from azure.ai.ml._utils._asset_utils import _get_next_version_from_container

        def asked(client: Any) -> Any:
            models = client.models
            return _get_next_version_from_container(
                name=name, container_operation=models._model_container_operation, asset_plural="models",
                resource_group_name=models._resource_group_name, workspace_name=models._workspace_name,
                registry_name=models._registry_name, registry_service_client=models._registry_service_client,
            )  # fmt: skip

        return str(self.ask(asked))

    def register(self, name: str, version: str, path: str, patience: float, **about: Any) -> None:
        """Make a version of files that lie in the container already; the service copies nothing.

        `about` is description, tags, properties.
        """
        from azure.ai.ml.entities import Model

        def asked(client: Any) -> None:
            # Anew each time: the client writes into what it is given.
            model = Model(name=name, version=version, path=path, type="custom_model", **about)
            self._create(client, model, patience)

        self.ask(asked)

    def _create(self, client: Any, model: Any, patience: float) -> None:
        client.models.create_or_update(model)

    def container(self, name: str, version: str, patience: float = blob_client.PATIENCE_SECONDS) -> Container:
        """Where the files of a version go: the workspace's own datastore, whichever version it is."""
        return Container(self.open_container, patience)

    def path(self, prefix: str, name: str, version: str) -> str:
        """How a version names its files."""
        return self.place.datastore(prefix)

    def open_container(self, name: str = STORE) -> Any:
        """A client with a signature for an hour, or where there are no keys, with the login itself."""
        from azure.ai.ml._azure_environments import _get_storage_endpoint_from_metadata
        from azure.ai.ml.entities import NoneCredentialConfiguration
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import ContainerClient

        store = self.ask(lambda client: client.datastores.get(name))
        if not hasattr(store, "container_name"):
            raise LabError(f"{name} of the workspace is no blob container; the lab uses those only.")
        key = None
        try:
            # What the client's own upload asks; it has no public verb that also takes signatures.
            if not isinstance(store.credentials, NoneCredentialConfiguration):
                secrets = self.ask(
                    lambda client: client.datastores._list_secrets(name, expirable_secret=True)
                )
                key = getattr(secrets, "sas_token", None) or getattr(secrets, "key", None)
        except HttpResponseError as error:
            if error.status_code != 403:
                raise
        url = f"https://{store.account_name}.blob.{_get_storage_endpoint_from_metadata()}"
        # The credential keeps a token that the storage may have refused: a new client gets a new one.
        return ContainerClient(
            url, store.container_name, credential=key or credential(self.place.login),
            **blob_client.client_options(),
        )  # fmt: skip


def facts(place: Place, model: Any) -> dict[str, Any]:
    """A version of a model as plain data."""
    context = model.creation_context
    created: Any = getattr(context, "created_at", None)
    return {
        "name": model.name,
        "version": str(model.version),
        "description": model.description or "",
        "tags": dict(model.tags or {}),
        "properties": dict(model.properties or {}),
        "created": created.isoformat() if hasattr(created, "isoformat") else created,
        "created_by": getattr(context, "created_by", None),
        "path": str(model.path),
        "portal": place.page(model.name, str(model.version)),
    }


def workspaces(login: str) -> tuple[list[Place], list[str]]:
    """Every workspace that the login sees, and a sentence for each subscription that does not tell.

    Raises LabError if none tells.
    """
    with _manager(credential(login)) as manager, ThreadPoolExecutor(TOGETHER) as pool:
        subscriptions = list(_pages(manager, "/subscriptions?api-version=2022-12-01"))
        answers = list(pool.map(partial(_workspaces_in, manager, login), subscriptions))
    refused = [answer for answer in answers if isinstance(answer, str)]
    if refused and len(refused) == len(answers):
        raise LabError(refused[0])
    return [place for answer in answers if not isinstance(answer, str) for place in answer], refused


def _workspaces_in(manager: Any, login: str, subscription: dict[str, Any]) -> list[Place] | str:
    """The workspaces of one subscription, or a sentence that says why it does not tell them."""
    from azure.core.exceptions import AzureError

    where = Place(login, subscription["subscriptionId"])
    path = f"/subscriptions/{where.subscription}/providers/Microsoft.MachineLearningServices/workspaces"
    try:
        parts = [row["id"].split("/") for row in _pages(manager, f"{path}?api-version=2024-04-01")]
    except AzureError as error:
        name = subscription.get("displayName", "")
        return f"Subscription {name} ({where.subscription}): {faults.sentence(error, where)}"
    return [Place(login, part[2], part[4], part[-1]) for part in parts]


def quiet() -> None:
    """Only errors of the azure packages go into the log: their warnings name addresses, and help nobody."""
    logging.getLogger("azure").setLevel(logging.ERROR)


def _manager(credential: Any) -> Any:
    """A client of Resource Manager for what azure-ai-ml does not ask; threads may share it, and its token."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy

    policies = [RetryPolicy(), BearerTokenCredentialPolicy(credential, login.scope())]
    return PipelineClient(manager(), policies=policies, **PATIENCE)


def _pages(client: Any, path: str) -> Iterator[dict[str, Any]]:
    """The values of a list in Resource Manager, page by page."""
    from azure.core.rest import HttpRequest

    address: str | None = manager() + path
    while address:
        response = client.send_request(HttpRequest("GET", address))
        response.raise_for_status()
        page = response.json()
        yield from page["value"]
        address = page.get("nextLink")
