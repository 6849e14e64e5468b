"""Registered versions of models, of this lab or of Azure, as plain data for the page.

Azure's are cached in the home, one file for each workspace: the page shows them at once, and Azure is asked
only on request.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_address import Reference
from pipeline.inputs.azure_workspace import Place
from pipeline.publish import targets
from pipeline.publish.azure import ask, lineage
from pipeline.publish.azure.workspace import MOST_MODELS
from pipeline.runs import pulls
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system.files import make_room, write_whole
from webapp.ui import choices, views

LOCAL, AZURE = "local", "azureml"
FOLDER = "azure-models"
# What is kept of a version in Azure, where anybody may write at length:
LONGEST_FACT = 2000  # characters of a description, a tag or a property
LONGEST_FACT_NAME = 200
MOST_LISTS = 8  # of workspaces, whose versions are kept: a look at one of them may read all
MOST_FACTS = 100  # tags, and properties,
LARGEST_FACTS = 1 << 15  # and characters of all their names and values
LARGEST_ANSWER = 64 << 20  # bytes of a workspace's versions; five hundred that are full of facts have less
NOT_LISTED = "No list of Azure has it any more; what was pulled of it is here, and can be removed."
BYTES = re.compile(r"[0-9]{1,15}")
Version = dict[str, Any]  # id, name, version, created, tags, properties, bytes, and path or portal


@dataclass(frozen=True)
class Kept:
    """The answer of a workspace, and its time in seconds since the epoch."""

    place: str
    asked: float
    versions: list[Version]

    def __str__(self) -> str:
        said = f"As the {self.place} said on {display.moment(self.asked)}"
        return f"{said}, of the {MOST_MODELS} models that changed last"


def of_lab(store: Store) -> list[Version]:
    """The versions registered in this lab, newest first."""
    found = []
    for made in targets.PUBLISHERS[LOCAL].versions(store.home):
        version = {
            **made,
            "id": f"{made['name']}:{made['version']}",
            "tags": {"run": made["run"]},
            "properties": {},
        }
        if (run := run_of(store, version)) is not None:
            algorithm = (run.recipe.get("quantize") or {}).get("algorithm", "")
            version["tags"] |= {"base": str(run.recipe.get("model", "")), "algorithm": str(algorithm)}
        version["tags"]["verified"] = "true"  # it was verified before it was copied here
        found.append(version)
    return found


def of_azure(home: Path, where: Place) -> Kept | None:
    """The cached versions of a workspace or registry, newest first; None if it was never asked."""
    return _kept(_file(home, where))


def ask_azure(home: Path, where: Place) -> list[Version]:
    """Ask for the versions in a workspace; cache the answer and remember the workspace. Raises LabError."""
    found = [_of_azure(where, model) for model in ask.models(home, where=where)]
    azure_workspace.remember(home, where)
    keep(home, where, found)
    return found


def keep(home: Path, where: Place, found: list[Version]) -> None:
    """Cache versions as the current answer of a workspace; the oldest of many answers make room."""
    file = _file(home, where)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    others = sorted((path.stat().st_mtime, path) for path in _files(home) if path != file)
    for _, path in others[: len(others) + 1 - MOST_LISTS]:
        path.unlink(missing_ok=True)
    make_room(home, 0)
    write_whole(file, {"place": str(where), "asked": time.time(), "versions": found}, shared=True)


def one(store: Store, where: str, chosen: str) -> Version:
    """The version with that id, in any workspace. Raises InputError if it is no longer listed."""
    found = of_lab(store)
    if where == AZURE:
        found = _of_all_lists(store.home)
        found += pulled(store.home, found)
    version = next((version for version in found if version["id"] == chosen), None)
    if version is None:
        raise InputError("This version is no longer in the list; refresh the list and choose again.")
    return version


def pulled(home: Path, shown: list[Version]) -> list[Version]:
    """What was pulled, or is here in part, besides what is shown: so that it can be removed."""
    listed = {version["id"]: version for version in _of_all_lists(home)}
    ids = {version["id"] for version in shown}
    found = [known for known in pulls.listed(home) if "base" not in known and known["uri"] not in ids]
    return [listed.get(known["uri"]) or _unlisted(home, known) for known in found]


def _unlisted(home: Path, known: pulls.Facts) -> Version:
    return _bounded({
        "id": known["uri"], "name": known["name"], "version": known["version"], "tags": known["tags"],
        "properties": {}, "created": "", "description": NOT_LISTED, "bytes": None,
        "path": str(pulls.folder(home, known["key"])),
    })  # fmt: skip


def _of_all_lists(home: Path) -> list[Version]:
    lists = [_kept(file) for file in _files(home)]
    return [version for kept in lists if kept for version in kept.versions]


def run_of(store: Store, version: Version) -> Run | None:
    """The finished run that made a version, if this lab has it."""
    try:
        run = store.get(str(version["tags"].get("run")), whole=True)
    except InputError:
        return None
    return run if run.status == DONE and not run.deleted else None


def exported(version: Version) -> bool:
    """Whether it is an ONNX export of this lab, from which training cannot start."""
    return "path" in version or lineage.CONTENT in version["properties"]


def table(found: list[Version], where: str, empty: str, caption: str) -> views.Table:
    """The versions, with boxes to check two for comparison."""
    rows = [
        [
            _verified(version),
            version["name"],
            version["version"],
            display.moment(version["created"])
            if where == LOCAL
            else str(version["created"] or "")[:16].replace("T", " "),
            *(display.line(version["tags"].get(tag, "")) for tag in ("run", "base", "algorithm")),
            display.size(version["bytes"]),
            *([version["path"]] if where == LOCAL else []),
        ]
        for version in found
    ]
    columns = ["Verified", "Name", "Version", "Created", "Run", "Base", "Algorithm", "Size"]
    columns += ["Folder"] if where == LOCAL else []
    made = views.table(columns, rows, empty=empty, caption=caption)
    return {**made, "ids": [version["id"] for version in found], "check": "Compare", "checked": []}


def details(version: Version) -> views.Table:
    """Everything known about one version."""
    return views.table(["Kind", "Name", "Value"], _facts(version), caption=_title(version))


def differences(one: Version, other: Version) -> views.Table:
    """The differences of two versions."""
    left, right = ({(kind, name): text for kind, name, text in _facts(v)} for v in (one, other))
    rows = [
        [*key, left.get(key, ""), right.get(key, "")]
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]
    return views.table(
        ["Kind", "Name", _title(one), _title(other)], rows, caption="Differences",
        empty="Tags and properties of both are the same.",
    )  # fmt: skip


def key(home: Path, version: Version) -> str:
    """The key of a version from Azure once it is pulled."""
    return pulls.key_of(home, version["name"], version["version"], version["id"])


def comparable(store: Store, where: str, version: Version) -> str:
    """The value in `choices.exports` for a version: itself if it is here, else its run; "" if neither is."""
    if where == LOCAL:
        return choices.registry_key(version)
    known = pulls.facts(store.home, key(store.home, version))
    if known is not None and choices.answers(store, known):
        return choices.PULLED + str(known["key"])
    run = run_of(store, version)
    return run.id if run else ""


def _of_azure(where: Place, model: dict[str, Any]) -> Version:
    names = ("name", "version", "description", "tags", "properties", "created", "created_by", "portal")
    size = model["properties"].get("olive_lab_bytes", "")
    return _bounded({
        **{name: model[name] for name in names},
        "id": Reference(where, where.registry, model["name"], model["version"]).uri,
        "bytes": int(size) if BYTES.fullmatch(size) else None,  # anybody can edit properties there
    })  # fmt: skip


def _bounded(version: Version) -> Version:
    """A version with as much of its texts as is shown: each is sent to the page, and read at each click."""
    long = {name: _text(version.get(name), LONGEST_FACT) for name in ("description", "portal")}
    short = {
        name: _text(version.get(name), display.LONGEST_LINE)
        for name in ("name", "version", "created", "created_by")
    }
    return {**version, **long, **short, **{among: _some(version[among]) for among in ("tags", "properties")}}


def _text(given: Any, most: int) -> str:
    return display.valid(display.cut(str(given or ""), most))


def _some(given: dict[str, Any]) -> dict[str, str]:
    """The first tags or properties, cut."""
    found: dict[str, str] = {}
    room = LARGEST_FACTS
    for name, text in given.items():
        kept, value = _text(name, LONGEST_FACT_NAME), _text(text, LONGEST_FACT)
        room -= len(kept) + len(value)
        if room < 0 or len(found) == MOST_FACTS:
            break
        found[kept] = value
    return found


def _file(home: Path, where: Place) -> Path:
    # Azure takes names in any case, and each would be a list of its own.
    digest = hashlib.sha256(f"{where.path} {where.registry}".casefold().encode()).hexdigest()
    return home / FOLDER / f"{digest[:16]}.json"


def _files(home: Path) -> list[Path]:
    return list((home / FOLDER).glob("[!.]*.json"))


def _kept(file: Path) -> Kept | None:
    """The answer of a workspace; None if it was never asked, or the file is damaged or too large."""
    try:
        there = file.stat()
        if there.st_size > LARGEST_ANSWER:
            return None
        return _read_kept(file, there.st_ino, there.st_mtime_ns, there.st_size)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@lru_cache(maxsize=MOST_LISTS)
def _read_kept(file: Path, _inode: int, _changed: int, _size: int) -> Kept:
    """The same, read once until it changes: each click on a version asks for all. Raises what it may."""
    found = json.loads(file.read_text("utf-8"))
    return Kept(found["place"], found["asked"], [_bounded(version) for version in found["versions"]])


def _facts(version: Version) -> list[list[str]]:
    about = [["", name, str(version.get(name) or "")] for name in ("description", "created_by", "path")]
    return [[*row[:2], display.cut(row[2], LONGEST_FACT)] for row in about if row[2]] + [
        [kind, display.cut(name, LONGEST_FACT_NAME), display.cut(str(text), LONGEST_FACT)]
        for kind, among in (("Tag", "tags"), ("Property", "properties"))
        for name, text in sorted(version[among].items())
    ]


def _title(version: Version) -> str:
    return f"{version['name']}:{version['version']}"


def _verified(version: Version) -> dict[str, str]:
    said = version["tags"].get("verified")
    if said == "true":
        return {"status": "done", "word": "Yes"}
    return (
        {"status": "interrupted", "word": "No"}
        if said == "false"
        else {"status": "queued", "word": "Unknown"}
    )
