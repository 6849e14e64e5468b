"""The login that was chosen, and no other: never a browser, never a search through all there is."""

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
    "Without a key to the storage, as where keys are not allowed, the login itself is used there; then it"
    " needs the role Storage Blob Data Contributor on the storage account"
)
NEEDED = {
    "see models": "Microsoft.MachineLearningServices/workspaces/models/versions/read",
    "register models": "Microsoft.MachineLearningServices/workspaces/models/versions/write",
    KEY: "Microsoft.MachineLearningServices/workspaces/datastores/listSecrets/action",
}


def credential(login: str) -> Any:
    """A credential of azure-identity. Raises InputError for a login that is none."""
    from azure.identity import AzureCliCredential, EnvironmentCredential, ManagedIdentityCredential

    if login == "cli":
        return AzureCliCredential(process_timeout=CLI_SECONDS)
    if login == "identity":
        return ManagedIdentityCredential(client_id=settings.azure_identity())
    if login == "environment":
        # Only Microsoft's own hosts know each other; one of another cloud is taken at its word.
        return EnvironmentCredential(disable_instance_discovery=settings.azure_authority() is not None)
    raise InputError(f"login: {display.value(login)} is not allowed; allowed: {', '.join(LOGINS)}")


def identity(place: Place) -> dict[str, Any]:
    """Who is logged in, as its token says: name, tenant, object, and for how many minutes it is good."""
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
    """What a token for Resource Manager is asked for."""
    return f"{manager()}/.default"


def manager() -> str:
    """Where Resource Manager is in the cloud that the environment names."""
    from azure.ai.ml._azure_environments import _get_base_url_from_metadata

    return str(_get_base_url_from_metadata())


def allowed(permissions: list[dict[str, Any]]) -> dict[str, bool]:
    """What of what publishing needs the workspace's permissions let one do, in words.

    All but KEY is needed in any case, and that one only where the storage account allows keys.
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
    """What a token says of itself; {} for one that only the service can read."""
    try:
        part = token.split(".")[1]
        facts = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
