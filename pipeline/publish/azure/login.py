"""The chosen login and no other: no browser, and no search through all kinds of logins."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.inputs.azure_workspace import LOGINS, Place

CLI_SECONDS = 30
KEY = "get a key to the storage"
WITHOUT_KEY = (
    "Without a key to the storage, for example because keys are not allowed, the login itself is used there;"
    " it then needs the role Storage Blob Data Contributor on the storage account"
)
NEEDED = {
    "see models": "Microsoft.MachineLearningServices/workspaces/models/versions/read",
    "register models": "Microsoft.MachineLearningServices/workspaces/models/versions/write",
    KEY: "Microsoft.MachineLearningServices/workspaces/datastores/listSecrets/action",
}


def credential(login: str) -> Any:
    """A credential of azure-identity. Raises InputError for an unknown login."""
    from azure.identity import AzureCliCredential, EnvironmentCredential, ManagedIdentityCredential

    if login == "cli":
        return AzureCliCredential(process_timeout=CLI_SECONDS)
    if login == "identity":
        return ManagedIdentityCredential(client_id=settings.azure_identity())
    if login == "environment":
        # The check of the authority knows only Microsoft's own hosts; one of another cloud is trusted as
        # given.
        return EnvironmentCredential(disable_instance_discovery=settings.azure_authority() is not None)
    raise InputError(f"login: {display.value(login)} is not allowed; allowed: {', '.join(LOGINS)}")


def identity(place: Place) -> dict[str, Any]:
    """Who is logged in, from the token: name, tenant, object, and for how many minutes it is valid."""
    token = credential(place.login).get_token(scope())
    facts = _payload(token.token)
    name = next(
        (facts[key] for key in ("upn", "unique_name", "name", "appid") if facts.get(key)), "not named"
    )
    return {
        "login": place.login,
        "name": name,
        "tenant": facts.get("tid", ""),
        "object": facts.get("oid", ""),
        "minutes": round((token.expires_on - time.time()) / 60),
    }


def scope() -> str:
    """The scope of a token for Resource Manager."""
    return f"{manager()}/.default"


def manager() -> str:
    """The address of Resource Manager in the cloud that the environment names."""
    from azure.ai.ml._azure_environments import _get_base_url_from_metadata

    return str(_get_base_url_from_metadata())


def allowed(permissions: list[dict[str, Any]]) -> dict[str, bool]:
    """Which actions that publishing needs the workspace's permissions allow, by their names in plain words.

    All but KEY are always needed; KEY only if the storage account allows keys.
    """
    return {
        word: any(_grants(permission, action) for permission in permissions)
        for word, action in NEEDED.items()
    }


def _grants(permission: dict[str, Any], action: str) -> bool:
    def matches(key: str) -> bool:
        return any(_like(pattern, action) for pattern in permission.get(key) or [])

    return matches("actions") and not matches("notActions")


def _like(pattern: str, action: str) -> bool:
    """Whether a pattern of Azure's roles, in which * stands for anything, covers an action."""
    import fnmatch

    return fnmatch.fnmatchcase(action.lower(), pattern.lower())


def _payload(token: str) -> dict[str, Any]:
    """The claims in a token; {} if only the service can read it."""
    try:
        part = token.split(".")[1]
        facts = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
