"""Which workspace, and as whom: given, read from a config.json as Azure ML writes it, or remembered."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

LOGINS = ("cli", "identity", "environment")
FILE = "azure.json"  # in the home; it has no secrets
CONFIG_KEYS = {
    "subscription": "subscription_id",
    "resource_group": "resource_group",
    "workspace": "workspace_name",
}


@dataclass(frozen=True)
class Place:
    """A workspace and how to log in to it. Any part may be "": not known yet.

    With a `registry`, which several workspaces share, it is that one instead.
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
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace}"
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
            f"/resourcegroups/{self.resource_group}/workspaces/{self.workspace}"
        )

    def required(self) -> Place:
        """Itself. Raises InputError naming each part that is missing."""
        missing = [name for name in CONFIG_KEYS if not getattr(self, name)]
        if missing and not self.registry:
            raise InputError(
                [
                    f"{name}: is not known; give it, or the config.json of the workspace as config;"
                    " `python -m pipeline azure workspaces` lists those that the login sees"
                    for name in missing
                ]
            )
        return self


def command(
    place: Place, name: str, version: str, folder: Path, description: str, tags: dict[str, str]
) -> str:
    """The same as a line for the Azure CLI."""
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
    """What is given, else what a config.json says, else what is remembered; a login of "" is one of these.

    Raises InputError for a config.json that is none.
    """
    known = Place(**recall(home)) if config == "" else dataclasses.replace(_of_config(Path(config)))
    login = given.login or recall(home).get("login", "cli")
    if given.registry:
        return Place(login=login, registry=given.registry)
    parts = {name: getattr(given, name) or getattr(known, name) for name in CONFIG_KEYS}
    return Place(login=login, **parts)


def recall(home: Path) -> dict[str, str]:
    """What was remembered; {} if nothing was, or the file cannot be read as that."""
    try:
        known = json.loads((home / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    names = [field.name for field in dataclasses.fields(Place)]
    found = {
        name: known[name] for name in names if isinstance(known, dict) and isinstance(known.get(name), str)
    }
    return found if found.get("login", "cli") in LOGINS else {}


def remember(home: Path, place: Place) -> None:
    """Keep a workspace that worked for the next time; a registry is named each time."""
    if place.registry:
        return
    part = home / f".{FILE}.part"
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text(json.dumps(dataclasses.asdict(place), indent=2), "utf-8")
    part.replace(home / FILE)


def _of_config(path: Path) -> Place:
    """A workspace from the config.json that Azure ML offers for download, or a folder that holds one."""
    file = path.expanduser()
    if file.is_dir():
        inside = [file / ".azureml" / "config.json", file / "config.json"]
        file = next((candidate for candidate in inside if candidate.is_file()), file / "config.json")
    try:
        facts: Any = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"config: {file} cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"config: {file} is not valid JSON; download it anew from the workspace") from None
    if not isinstance(facts, dict) or not all(
        isinstance(facts.get(key), str) for key in CONFIG_KEYS.values()
    ):
        wanted = ", ".join(CONFIG_KEYS.values())
        raise InputError(f"config: {file} is no config.json of a workspace; one has {wanted}")
    return Place(**{name: facts[key] for name, key in CONFIG_KEYS.items()})
