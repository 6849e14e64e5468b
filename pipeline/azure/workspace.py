"""The workspace: its models and its container, through azure-ai-ml; and questions it has no verb for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from pipeline.azure import storage
from pipeline.azure.login import credential
from pipeline.azure.place import Place
from pipeline.azure.storage import Container
from pipeline.errors import LabError

STORE = "workspaceblobstore"
PATIENCE: dict[str, Any] = {"connection_timeout": 20, "read_timeout": 60}  # seconds; the client's own are 300
MOST_LISTED = 500
MOST_RACES = 5  # times that somebody else may take the next version


class Workspace:
    """A workspace with an open client. Raises whatever the azure packages raise: see `faults.explained`."""

    def __init__(self, place: Place) -> None:
        quiet()
        self.place = place
        self.credential = credential(place.login)
        self.client = self._connect()

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
        found = self.client.workspaces.get(self.place.workspace)
        return {"workspace": found.name, "location": found.location, "id": found.id}

    def permissions(self) -> list[dict[str, Any]]:
        """What the login may do in the workspace, as roles say it."""
        path = f"{self.place.path}/providers/Microsoft.Authorization/permissions?api-version=2022-04-01"
        return list(_pages(self.credential, path))

    def models(self, name: str | None = None) -> list[dict[str, Any]]:
        """Versions of a model, newest first; without a name, of all models."""
        names = [name] if name else [model.name for model in self.client.models.list()]
        found = [facts(self.place, model) for each in names for model in self._versions(str(each))]
        return sorted(found, key=lambda model: str(model["created"]), reverse=True)[:MOST_LISTED]

    def _versions(self, name: str) -> list[Any]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return list(self.client.models.list(name=name))
        except ResourceNotFoundError:
            return []

    def model(self, name: str, version: str) -> Any | None:
        """A version of a model, None if it is not there."""
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return self.client.models.get(name, version=version)
        except ResourceNotFoundError:
            return None

    def next_version(self, name: str) -> str:
        """The number that the service would give; it knows archived versions too, which are not listed."""
        from azure.ai.ml._utils._asset_utils import _get_next_version_from_container

        models = self.client.models
        return str(
            _get_next_version_from_container(
                name=name, container_operation=models._model_container_operation, asset_plural="models",
                resource_group_name=models._resource_group_name, workspace_name=models._workspace_name,
                registry_name=models._registry_name, registry_service_client=models._registry_service_client,
            )
        )  # fmt: skip

    def register(self, name: str, version: str, prefix: str, **about: Any) -> tuple[str, Any]:
        """Make a version of files that lie in the container already; the service copies nothing.

        Without a version the next one is taken, also when somebody else takes one at the same moment.
        `about` is description, tags, properties. Returns the version's number and the version.
        """
        from azure.ai.ml.entities import Model
        from azure.core.exceptions import HttpResponseError

        for race in range(MOST_RACES):
            number = version or self.next_version(name)
            # Anew each time: the client writes into what it is given.
            path = self.path(prefix, name, number)
            model = Model(name=name, version=number, path=path, type="custom_model", **about)
            try:
                return number, self.client.models.create_or_update(model)
            except HttpResponseError as error:
                taken = error.status_code in (400, 409) and self.model(name, number) is not None
                if version or not taken or race == MOST_RACES - 1:
                    raise
        raise AssertionError("the last race returns or raises")

    def container(self, name: str, version: str, patience: float = storage.PATIENCE_SECONDS) -> Container:
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

        store = self.client.datastores.get(name)
        if not hasattr(store, "container_name"):
            raise LabError(f"{name} of the workspace is no blob container; the lab uses those only.")
        key = None
        try:
            # What the client's own upload asks; it has no public verb that also takes signatures.
            if not isinstance(store.credentials, NoneCredentialConfiguration):
                secrets = self.client.datastores._list_secrets(name, expirable_secret=True)
                key = getattr(secrets, "sas_token", None) or getattr(secrets, "key", None)
        except HttpResponseError as error:
            if error.status_code != 403:
                raise
        url = f"https://{store.account_name}.blob.{_get_storage_endpoint_from_metadata()}"
        return ContainerClient(
            url, store.container_name, credential=key or self.credential, **storage.client_options()
        )


def opened(place: Place) -> Workspace:
    """The workspace, or the registry that is in its place."""
    if place.registry:
        from pipeline.azure.registry import Registry

        return Registry(place)
    return Workspace(place)


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


def workspaces(login: str) -> list[Place]:
    """Every workspace that the login sees."""
    found = []
    for subscription in _pages(credential(login), "/subscriptions?api-version=2022-12-01"):
        known = Workspace(Place(login, subscription["subscriptionId"]))
        for workspace in known.client.workspaces.list(scope="subscription"):
            parts = workspace.id.split("/")
            found.append(Place(login, parts[2], parts[4], workspace.name))
    return found


def scope() -> str:
    """What a token for Resource Manager is asked for."""
    return f"{_manager()}/.default"


def quiet() -> None:
    """Only errors of the azure packages go into the log: their warnings name addresses, and help nobody."""
    logging.getLogger("azure").setLevel(logging.ERROR)


def _manager() -> str:
    """The address of Resource Manager in the cloud that the environment names."""
    from azure.ai.ml._azure_environments import _get_base_url_from_metadata

    return str(_get_base_url_from_metadata())


def _pages(credential: Any, path: str) -> Iterator[dict[str, Any]]:
    """The values of a list in Resource Manager, page by page."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
    from azure.core.rest import HttpRequest

    policies = [RetryPolicy(), BearerTokenCredentialPolicy(credential, scope())]
    client: Any = PipelineClient(_manager(), policies=policies, **PATIENCE)
    with client:
        address: str | None = _manager() + path
        while address:
            response = client.send_request(HttpRequest("GET", address))
            response.raise_for_status()
            page = response.json()
            yield from page["value"]
            address = page.get("nextLink")
