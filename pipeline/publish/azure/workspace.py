"""The workspace: its models and container, through azure-ai-ml and, where that has no call, directly."""

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
MOST_MODELS = 100  # whose versions are listed at a time: one request each
MOST_LISTED = 500
TOGETHER = 8  # requests to Resource Manager at a time


class Taken(LabError):
    """A version exists with other content."""

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
        """The result of `question` for the client; repeated with a new login if the token is refused.

        A token may expire or be revoked between two requests, and both client and credential cache theirs.
        """
        from azure.core.exceptions import HttpResponseError

        client = self.client
        try:
            return question(client)
        except HttpResponseError as error:
            if error.status_code != 401:
                raise
            with self._lock:
                if self.client is client:  # else another thread has done so
                    self.credential = credential(self.place.login)
                    self.client = self._connect()
            return question(self.client)

    def _connect(self) -> Any:
        from azure.ai.ml import MLClient

        place = self.place
        # show_progress must stay on: without it, a failing upload by the client waits forever.
        return MLClient(
            self.credential, place.subscription, place.resource_group, place.workspace or None,
            enable_telemetry=False, show_progress=True, **PATIENCE,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """The workspace's name and region."""
        found = self.ask(lambda client: client.workspaces.get(self.place.workspace))
        return {"workspace": found.name, "location": found.location, "id": found.id}

    def permissions(self) -> list[dict[str, Any]]:
        """The login's permissions in the workspace, as in role definitions."""
        path = f"{self.place.path}/providers/Microsoft.Authorization/permissions?api-version=2022-04-01"
        with _manager(self.credential) as manager:
            return list(_pages(manager, path))

    def names(self) -> list[str]:
        """All models, the most recently changed first."""

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
        """The next number, from the service; it also knows archived versions, which are not listed."""
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
        """Create a version of files that are already in the container; the service copies nothing.

        `about` is description, tags, properties.
        """
        from azure.ai.ml.entities import Model

        def asked(client: Any) -> None:
            # Made anew each time: the client modifies its arguments.
            model = Model(name=name, version=version, path=path, type="custom_model", **about)
            self._create(client, model, patience)

        self.ask(asked)

    def _create(self, client: Any, model: Any, patience: float) -> None:
        client.models.create_or_update(model)

    def container(self, name: str, version: str, patience: float = blob_client.PATIENCE_SECONDS) -> Container:
        """The container for a version's files: the workspace's datastore, for any version."""
        return Container(self.open_container, patience)

    def path(self, prefix: str, name: str, version: str) -> str:
        """The path of a version's files."""
        return self.place.datastore(prefix)

    def open_container(self, name: str = STORE) -> Any:
        """A client with a signature for an hour or, if there are no keys, with the login itself."""
        from azure.ai.ml._azure_environments import _get_storage_endpoint_from_metadata
        from azure.ai.ml.entities import NoneCredentialConfiguration
        from azure.core.exceptions import HttpResponseError
        from azure.storage.blob import ContainerClient

        store = self.ask(lambda client: client.datastores.get(name))
        if not hasattr(store, "container_name"):
            raise LabError(f"{name} of the workspace is not a blob container; the lab uses only those.")
        key = None
        try:
            # The request of the client's own upload; no public call also accepts signatures.
            if not isinstance(store.credentials, NoneCredentialConfiguration):
                secrets = self.ask(
                    lambda client: client.datastores._list_secrets(name, expirable_secret=True)
                )
                key = getattr(secrets, "sas_token", None) or getattr(secrets, "key", None)
        except HttpResponseError as error:
            if error.status_code != 403:
                raise
        url = f"https://{store.account_name}.blob.{_get_storage_endpoint_from_metadata()}"
        # The credential caches a token that the storage may have refused: a new client gets a new one.
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
    """Every workspace that the login sees, and a sentence for each subscription that does not answer.

    Raises LabError if none answers.
    """
    with _manager(credential(login)) as manager, ThreadPoolExecutor(TOGETHER) as pool:
        subscriptions = list(_pages(manager, "/subscriptions?api-version=2022-12-01"))
        answers = list(pool.map(partial(_workspaces_in, manager, login), subscriptions))
    refused = [answer for answer in answers if isinstance(answer, str)]
    if refused and len(refused) == len(answers):
        raise LabError(refused[0])
    return [place for answer in answers if not isinstance(answer, str) for place in answer], refused


def _workspaces_in(manager: Any, login: str, subscription: dict[str, Any]) -> list[Place] | str:
    """The workspaces of one subscription, or a sentence on why they cannot be listed."""
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
    """Log only errors of the azure packages: their warnings contain addresses and don't help."""
    logging.getLogger("azure").setLevel(logging.ERROR)


def _manager(credential: Any) -> Any:
    """A client of Resource Manager for what azure-ai-ml lacks; threads may share it and its token."""
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
