"""Which Azure workspace and login to use: given, from a config.json of Azure ML, or remembered."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import settings
from pipeline.errors import InputError
from pipeline.system.files import to_json, write_whole

LOGINS = ("cli", "identity", "environment")
FILE = "azure.json"  # in the home; it holds no secrets
CONFIG_KEYS = {
    "subscription": "subscription_id",
    "resource_group": "resource_group",
    "workspace": "workspace_name",
}
LARGEST_CONFIG = 1 << 16  # bytes
# The names that Azure allows, and how messages describe them.
SUBSCRIPTION = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
GROUP = r"[\w.()-]{0,89}[\w()-]"
SPACE = r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,32}"
ALLOWED = {
    "subscription": (SUBSCRIPTION, "its id, like 00000000-1111-2222-3333-444444444444"),
    "resource_group": (GROUP, "letters, digits, - _ . and parentheses, up to 90 and no . at the end"),
    "workspace": (SPACE, "letters, digits, - and _, 3 to 33, a letter or digit first"),
    "registry": (SPACE, "letters, digits, - and _, 3 to 33, a letter or digit first"),
}


@dataclass(frozen=True)
class Place:
    """A workspace and how to log in to it. Any part may be "" if not known yet.

    With `registry` set, it is that registry, which several workspaces share.
    """

    login: str = "cli"
    subscription: str = ""
    resource_group: str = ""
    workspace: str = ""
    registry: str = ""

    def __str__(self) -> str:
        if self.registry:
            return f"registry {self.registry}"
        return f"workspace {self.workspace}" if self.workspace else "the subscription"

    @property
    def path(self) -> str:
        """The workspace's id in Azure Resource Manager."""
        return (
            f"/subscriptions/{quote(self.subscription, '')}/resourceGroups/{quote(self.resource_group, '()')}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{quote(self.workspace, '')}"
        )

    def datastore(self, prefix: str, store: str = "workspaceblobstore") -> str:
        """A folder of one of the workspace's datastores, as models name it."""
        return (
            f"azureml://subscriptions/{self.subscription}/resourcegroups/{self.resource_group}"
            f"/workspaces/{self.workspace}/datastores/{store}/paths/{prefix}/"
        )

    def page(self, name: str, version: str) -> str:
        """Where Azure shows a version of a model in a browser."""
        if self.registry:
            return f"https://ml.azure.com/registries/{self.registry}/models/{name}/version/{version}"
        return (
            f"https://ml.azure.com/model/{name}:{version}/details?wsid=/subscriptions/{self.subscription}"
            f"/resourcegroups/{quote(self.resource_group, '()')}/workspaces/{self.workspace}"
        )

    def required(self) -> Place:
        """Itself. Raises InputError naming each part that is missing."""
        missing = [name for name in CONFIG_KEYS if not getattr(self, name)]
        if missing and not self.registry:
            raise InputError(
                [
                    f"{name}: is not known; give it, or the config.json of the workspace as config;"
                    f" `{settings.command()} azure workspaces` lists those the login can see"
                    for name in missing
                ]
            )
        return self


def command(
    place: Place, name: str, version: str, folder: Path, description: str, tags: dict[str, str]
) -> str:
    """The Azure CLI command that does the same."""
    words = ["az", "ml", "model", "create", "--name", name, "--type", "custom_model", "--path", str(folder)]
    words += ["--version", version] if version else []
    if place.registry:
        words += ["--registry-name", place.registry]
    else:
        words += ["--resource-group", place.resource_group, "--workspace-name", place.workspace]
        words += ["--subscription", place.subscription]
    words += ["--description", description] if description else []
    words += ["--tags", *(f"{key}={value}" for key, value in tags.items())] if tags else []
    return shlex.join(words)


def find(home: Path, given: Place, config: str = "") -> Place:
    """The workspace and login as given, else from a config.json, else as remembered.

    Raises InputError for a faulty config.json and for names that Azure does not allow.
    """
    known = Place(**recall(home)) if config == "" else _of_config(Path(config))
    login = given.login or recall(home).get("login", "cli")
    parts = {name: getattr(given, name) or getattr(known, name) for name in CONFIG_KEYS}
    if given.registry:
        parts = {"registry": given.registry}
    if wrong := _not_allowed(parts):
        raise InputError(
            [f"{name}: {parts[name][:80]!r} is not allowed; allowed: {ALLOWED[name][1]}" for name in wrong]
        )
    return Place(login=login, **parts)


def recall(home: Path) -> dict[str, str]:
    """What was remembered; {} if nothing was, or the file cannot be read."""
    try:
        known = json.loads((home / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    names = [field.name for field in dataclasses.fields(Place)]
    found = {
        name: known[name] for name in names if isinstance(known, dict) and isinstance(known.get(name), str)
    }
    return found if found.get("login", "cli") in LOGINS and not _not_allowed(found) else {}


def remember(home: Path, place: Place) -> None:
    """Remember a workspace that worked. A registry is not remembered: it is named each time."""
    if place.registry:
        return
    write_whole(home / FILE, to_json(dataclasses.asdict(place), indent=2), shared=True)


def _not_allowed(parts: Mapping[str, str]) -> list[str]:
    """Which parts are not valid names in Azure; empty ones are skipped."""
    return [
        name
        for name, (pattern, _) in ALLOWED.items()
        if parts.get(name) and not re.fullmatch(pattern, parts[name])
    ]


def _of_config(path: Path) -> Place:
    """A workspace from the config.json that Azure ML offers for download, or a folder that holds one."""
    file = path.expanduser()
    if file.is_dir():
        inside = [file / ".azureml" / "config.json", file / "config.json"]
        file = next((candidate for candidate in inside if candidate.is_file()), file / "config.json")
    try:
        with file.open("rb") as opened:  # a larger file is cut, so it is not valid JSON
            facts: Any = json.loads(opened.read(LARGEST_CONFIG))
    except OSError as error:
        raise InputError(f"config: {file} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"config: {file} is not valid JSON; download it again from the workspace") from None
    if not isinstance(facts, dict) or not all(
        isinstance(facts.get(key), str) for key in CONFIG_KEYS.values()
    ):
        wanted = ", ".join(CONFIG_KEYS.values())
        raise InputError(f"config: {file} is not the config.json of a workspace; one has {wanted}")
    return Place(**{name: facts[key] for name, key in CONFIG_KEYS.items()})
