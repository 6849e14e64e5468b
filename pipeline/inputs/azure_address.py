"""How a model in Azure is named: `azureml:NAME:VERSION`, or a whole address in a registry or workspace."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.azure_workspace import GROUP, SPACE, SUBSCRIPTION, Place

PREFIX = "azureml:"
NAME = r"([a-zA-Z0-9][a-zA-Z0-9._-]{0,254})"
SHORT = re.compile(f"azureml:{NAME}:{NAME}")
REGISTRY = re.compile(f"azureml://registries/({SPACE})/models/{NAME}/versions/{NAME}")
WORKSPACE = re.compile(
    f"azureml://subscriptions/({SUBSCRIPTION})/resource[gG]roups/({GROUP})/workspaces/({SPACE})"
    f"/models/{NAME}/versions/{NAME}"
)


@dataclass(frozen=True)
class Reference:
    """A version of a model in a registry or, if `registry` is "", in the workspace `where`."""

    where: Place
    registry: str
    name: str
    version: str

    @property
    def uri(self) -> str:
        """The full address, which means the same everywhere."""
        if self.registry:
            return f"azureml://registries/{self.registry}/models/{self.name}/versions/{self.version}"
        place = self.where
        return (
            f"azureml://subscriptions/{place.subscription}/resourceGroups/{place.resource_group}"
            f"/workspaces/{place.workspace}/models/{self.name}/versions/{self.version}"
        )


def parse(uri: str, where: Place) -> Reference:
    """What `uri` names. A short one is in the workspace `where`, whose login is used in any case.

    Raises InputError if it is not an address.
    """
    if found := REGISTRY.fullmatch(uri):
        return Reference(where, *found.groups())
    if found := WORKSPACE.fullmatch(uri):
        return Reference(Place(where.login, found[1], found[2], found[3]), "", found[4], found[5])
    if found := SHORT.fullmatch(uri):
        return Reference(where.required(), where.registry, *found.groups())
    raise InputError(
        f"model: {display.value(uri)} is not a model in Azure; one looks like azureml:NAME:VERSION or"
        " azureml://registries/REGISTRY/models/NAME/versions/VERSION"
    )
