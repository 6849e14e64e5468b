"""Questions of the page to Azure, in a process of its own, which may hang or crash without harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.inputs.azure_workspace import Place
from pipeline.publish import check_process

AZURE = "Azure"


def whoami(home: Path, where: Place | None = None) -> dict[str, Any]:
    """Who is logged in (name, tenant, minutes), and `may`: what of publishing is allowed in the workspace."""
    found: dict[str, Any] = run(home, "azure", "whoami", *_flags(where))
    return found


def workspaces(home: Path, login: str = "") -> dict[str, Any]:
    """`workspaces` that the login sees (login, subscription, resource_group, workspace), and `left_out`: a
    sentence for each subscription that did not answer."""
    found: dict[str, Any] = run(home, "azure", "workspaces", *_flags(Place(login)))
    return found


def models(home: Path, name: str = "", where: Place | None = None) -> list[dict[str, Any]]:
    """Versions of a model, or of those that changed last, newest first: name, version, tags, properties,
    created, portal, ..."""
    return list(run(home, "azure", "models", *([name] if name else []), *_flags(where)))


def recipe(home: Path, uri: str, where: Place | None = None) -> str:
    """The recipe of a registered version, as YAML; `uri` is NAME:VERSION or an address."""
    return str(run(home, "azure", "recipe", uri, *_flags(where))["recipe"])


def preflight(home: Path, run_id: str, options: dict[str, Any]) -> dict[str, Any]:
    """The dry run of a publish, as `check_process.preflight` returns it."""
    return check_process.preflight(home, AZURE, run_id, "azureml", options)


def run(home: Path, *words: str) -> Any:
    """The output of a verb with --json. Raises LabError with its error message."""
    return check_process.ask(home, AZURE, *words)


def _flags(where: Place | None) -> list[str]:
    if where is None:
        return []
    given = {
        "login": where.login,
        "subscription": where.subscription,
        "resource-group": where.resource_group,
        "workspace": where.workspace,
        "registry": where.registry,
    }
    return [f"--{name}={value}" for name, value in given.items() if value]
