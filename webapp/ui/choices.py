"""What can be chosen on the page: datasets, models, finished runs, and all that can answer, as (label, value)
for a dropdown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat import sources
from pipeline.exports.chat.sources import Source
from pipeline.exports.verifying import adapter_files, json_files
from pipeline.inputs.data import datasets
from pipeline.inputs.data.hub import dataset_id
from pipeline.inputs.models import about
from pipeline.inputs.models.catalogue import CATALOGUE
from pipeline.publish import targets
from pipeline.runs import pulls
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system import capacity
from webapp import local_models
from webapp.home import known_run

Choices = list[tuple[str, str]]
REGISTRY, PULLED = "registry/", "pulled/"  # prefixes of values that are not ids of runs


def data(home: Path) -> Choices:
    """The samples, then what was uploaded or used in a run, newest first."""
    samples = _samples()
    kept = [(path, used) for path, used in _kept(home) if path.parent.name not in samples.values()]
    kept.sort(key=lambda found: found[1], reverse=True)
    labels = [(f"{path.name} (sample)", str(path)) for path in samples]
    return labels + [
        (f"{display.line(path.name)} · {display.moment(used)}", str(path)) for path, used in kept
    ]


def known_data(home: Path, chosen: str | None) -> Path:
    """The chosen dataset. Raises InputError for a path that the page did not offer."""
    if not chosen:
        raise InputError("data: choose a dataset, or upload one on the Data tab")
    if dataset_id.is_id(chosen):
        raise InputError("data: fetch a dataset of the hub on the Data tab; then it can be chosen here")
    if not has_data(home, chosen):
        raise InputError("data: this dataset is not in the lab; upload it on the Data tab")
    return Path(chosen)  # which is not in use by being named: one client could name all that it has for ever


def has_data(home: Path, chosen: str) -> bool:
    """Whether `data` offers this path, without looking at all of them."""
    samples = _samples()
    folder = chosen.rpartition("/")[0]
    above, _, digest = folder.rpartition("/")
    if above != str(home / "datasets") or digest in samples.values():
        return chosen in map(str, samples)
    if not digest or digest.startswith(".") or not digest.isprintable():
        return False
    with suppress(OSError):  # its name is too long for one
        return any(str(path) == chosen for path, _ in _in(Path(folder)))
    return False


def _samples() -> dict[Path, str]:
    """The samples, with the digest of each."""
    return {path: _digest(path, path.stat().st_mtime_ns) for path in sorted(settings.SAMPLES.glob("*.jsonl"))}


@lru_cache(maxsize=64)
def _digest(path: Path, _changed: int) -> str:
    return datasets.sha256(path)


def _kept(home: Path) -> Iterator[tuple[Path, float]]:
    """The datasets of a home, and when each was last used."""
    with suppress(FileNotFoundError), os.scandir(home / "datasets") as folders:
        for folder in folders:
            if not folder.name.startswith("."):
                yield from _in(Path(folder.path))


def _in(folder: Path) -> Iterator[tuple[Path, float]]:
    """The datasets of a folder, which has one, and when it was last used."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as files:
        for file in files:
            if not file.name.startswith(".") and file.is_file():
                facts = file.stat()
                yield Path(file.path), max(facts.st_mtime, facts.st_atime)


def models() -> Choices:
    """The catalogue, each with size, licence, context, gate and fit; then the folders on offer."""
    home = settings.home()
    there = capacity.of(home)
    known = [about.of_entry(entry, home) for entry in CATALOGUE]
    return [
        *((f"{one.title} · {about.words(one, about.fit(one, there))}", one.id) for one in known),
        *local_models.listed(),
    ]


def finished(store: Store) -> Choices:
    """Runs with an exported model, newest first."""
    runs = [run for run in store.list(artifact="onnx") if run.status == DONE]
    return [(f"{run.name} · {display.moment(run.created)} · {run.id}", run.id) for run in runs]


def run(store: Store, chosen: str | None) -> Run:
    """The chosen run. Raises InputError if there is none."""
    if not chosen:
        raise InputError("run: choose a finished run")
    return known_run(chosen, store)


def exports(store: Store) -> Choices:
    """Everything that can answer: finished runs, registered versions, and versions pulled from Azure."""
    mine = targets.PUBLISHERS["local"].versions(store.home)
    theirs = [known for known in pulls.listed(store.home) if answers(store, known)]
    return [
        *finished(store),
        *((f"{v['name']}:{v['version']} · registered here", registry_key(v)) for v in mine),
        *((f"{v['name']}:{v['version']} · pulled from Azure", PULLED + v["key"]) for v in theirs),
    ]


def beside(store: Store) -> dict[str, list[str]]:
    """Names of the other adapters in the exported folders of finished runs, by the runs' ids."""
    found: dict[str, list[str]] = {}
    for run in store.list(artifact="onnx_adapter"):
        if run.status == DONE:
            with suppress(LabError):  # its folder is gone
                found[run.id] = sorted(others(sources.of_run(run)))
    return {run: names for run, names in found.items() if names}


def others(source: Source) -> dict[str, Path]:
    """The adapters beside an export's own by their names; none of a folder that has none of its own, or too
    many to choose from."""
    try:
        files = adapter_files.other_adapters(source.folder, source.adapter) if source.adapter else []
    except (InputError, OSError):
        return {}
    return {
        file.stem: file for file in files if "@" not in file.stem and display.valid(file.stem) == file.stem
    }


def answers(store: Store, known: pulls.Facts) -> bool:
    """Whether a pulled model is complete and an export, not a base to train on."""
    folder = pulls.folder(store.home, known["key"])
    return known["status"] == DONE and (folder / json_files.CONFIG).is_file()


def registry_key(version: dict[str, Any]) -> str:
    """The value in `exports` of a version registered in this lab."""
    return f"{REGISTRY}{version['name']}/{version['version']}"


def source(store: Store, chosen: str) -> Source:
    """The chosen export. Raises InputError if it is not offered, LabError if it cannot answer."""
    if not chosen.startswith((REGISTRY, PULLED)):
        return sources.of_run(known_run(chosen, store))
    if chosen not in {value for _, value in exports(store)}:
        raise InputError("This model no longer exists; choose another one.")
    if chosen.startswith(PULLED):
        key = chosen.removeprefix(PULLED)
        return sources.of_folder(pulls.folder(store.home, key), f"model {key.rpartition('-')[0]}")
    name = chosen.removeprefix(REGISTRY)
    return sources.of_folder(store.home / "registry" / name, f"model {name.replace('/', ':')}")


def run_behind(store: Store, chosen: str) -> Run | None:
    """The run that made an export, whose held-out prompts may be asked; None if it is not in this lab."""
    run = chosen
    if chosen.startswith(PULLED):
        key = chosen.removeprefix(PULLED)
        known = pulls.facts(store.home, key)
        run = str(known["tags"].get("run") or "none") if known else "none"
    elif chosen.startswith(REGISTRY):
        versions = targets.PUBLISHERS["local"].versions(store.home)
        run = next((str(v["run"]) for v in versions if registry_key(v) == chosen), "none")
    try:
        found = known_run(run, store)
    except InputError:
        return None
    return None if found.deleted else found
