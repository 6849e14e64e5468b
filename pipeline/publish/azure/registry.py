"""A registry that workspaces share, or Azure's catalogue: like a workspace, with other access to its files.

Each version has its own container, which the registry provides for creating the version.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from pipeline.errors import LabError
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure.transfer import blob_client
from pipeline.publish.azure.transfer.blob_client import Container
from pipeline.publish.azure.workspace import PATIENCE, Taken, Workspace


class Registry(Workspace):
    """The registry of a place. Raises whatever the azure packages raise: see `faults.explained`."""

    def _connect(self) -> Any:
        from azure.ai.ml import MLClient

        name = self.place.registry
        return MLClient(
            self.credential, registry_name=name, enable_telemetry=False, show_progress=True, **PATIENCE
        )

    def about(self) -> dict[str, Any]:
        """The registry's name; connecting has found it already."""
        return {"workspace": self.place.registry, "location": "every region it is in", "id": ""}

    def container(self, name: str, version: str, patience: float = blob_client.PATIENCE_SECONDS) -> Container:
        """The container of a version that is about to be made."""
        from azure.storage.blob import ContainerClient

        def opener() -> Any:
            return ContainerClient.from_container_url(
                self._signed(name, version), **blob_client.client_options()
            )

        return Container(opener, patience)

    def path(self, prefix: str, name: str, version: str) -> str:
        """The path of a version's files: their address without the signature."""
        return f"{self._signed(name, version).partition('?')[0]}/{prefix}"

    def _signed(self, name: str, version: str) -> str:
        """The address of a version's container with a signature, as the client's own upload asks for it."""
        from azure.ai.ml._utils._registry_utils import (
            get_asset_body_for_registry_storage,
            get_sas_uri_for_registry_asset,
        )

        registry = self.place.registry

        def asked(client: Any) -> Any:
            models = client.models
            return get_sas_uri_for_registry_asset(
                service_client=models._registry_service_client, name=name, version=version,
                resource_group=models._resource_group_name, registry=registry,
                body=get_asset_body_for_registry_storage(registry, "models", name, version),
            )  # fmt: skip

        signed = self.ask(asked)
        if signed is None:
            raise Taken(name, version)
        return str(signed)

    def _create(self, client: Any, model: Any, patience: float) -> None:
        """Create a version. A registry takes its time, and the client alone would wait endlessly."""
        create = super()._create
        made: Future[None] = Future()

        def make() -> None:
            try:
                made.set_result(create(client, model, patience))
            except Exception as error:
                made.set_exception(error)

        threading.Thread(target=make, daemon=True, name="registering").start()
        try:
            made.result(patience)
        except TimeoutError:
            if made.done():
                raise
            raise LabError(
                f"{self.place} has not made {model.name} version {model.version} within {patience:.0f}"
                " seconds; look at it there, and publish again: that resumes it."
            ) from None


def opened(place: Place) -> Workspace:
    """The workspace, or the registry given instead."""
    if place.registry:
        return Registry(place)
    return Workspace(place)
