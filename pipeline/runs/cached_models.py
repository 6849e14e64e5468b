"""Base models in the home: what they take, who uses them, and removing those that the lab has fetched.

Stages read a model's folder without a lock. So one is taken away only while the store is held still, and only
if no queued or running run names it; a run that is queued later fetches it again. Whoever fetches or unpacks
it holds its lock. Folders that people have put among the models stay theirs.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.models import about, base_models, starter_package
from pipeline.inputs.models.base_models import Model
from pipeline.runs import check_pool, disk
from pipeline.store import Store
from pipeline.system import files, locks

FOLDER, TOKENIZERS, PART = "models", ".tokenizers", ".part"


@dataclass(frozen=True)
class Cached:
    """A model's folder: its name, bytes, and whether it is whole and no download that has not ended.

    used    when the newest run that names it was made, in seconds since the epoch; None if none does
    users   ids of queued and running runs that name it
    ours    whether the lab has fetched it
    busy    whether it is being fetched now
    """

    name: str
    bytes: int
    whole: bool
    used: float | None
    users: tuple[str, ...]
    ours: bool
    busy: bool


def looking(model: str) -> Generator[str, None, tuple[Model, about.About]]:
    """A model by its name, and what is known of it; the app has its files read by a process.

    Raises InputError if there is no such model or it cannot be used, LabError.
    """
    found = yield from check_pool.ask(f"{__name__}:look", {"model": model})
    return base_models.from_facts(found["model"]), about.About(**found["about"])


def look(model: str) -> Generator[str, None, dict[str, Any]]:
    """`looking` as a process is asked for it."""
    yield "Asking what this model is…"
    found = base_models.resolve(model)
    return {"model": asdict(found), "about": asdict(about.of_model(found, settings.home()))}


def listed(store: Store) -> list[Cached]:
    """The models that lie in the home, largest first."""
    folder = store.home / FOLDER
    names = sorted({path.name.removesuffix(PART) for path in folder.glob("[!.]*") if _real(path)})
    used: dict[str, float] = {}
    for model, created in store.models().items():
        name = _named(model, store.home)
        used[name] = max(used.get(name, 0.0), created)
    users = _users(store.inventory(models=True).models, store.home)
    found = [
        Cached(
            name=name,
            bytes=files.size(*_parts(folder, name)),
            whole=(folder / name).is_dir(),
            used=used.get(name),
            users=tuple(sorted(users.get(name, ()))),
            ours=base_models.fetched(folder / name).is_file(),
            busy=locks.held(_lock(folder, name)),
        )
        for name in names
    ]
    return sorted(found, key=lambda cached: cached.bytes, reverse=True)


def remove(store: Store, name: str) -> int:
    """Remove a model that the lab has fetched, or what there is of it; returns the bytes that came free.

    Raises InputError for one that is not listed or not ours, LabError for one that is in use.
    """
    found = next((cached for cached in listed(store) if cached.name == name), None)
    if found is None:
        raise InputError(f"{display.line(name)}: no such model in this lab")
    if not found.ours:
        raise InputError(
            f"{display.line(name)}: was not fetched by the lab but put there by somebody; delete its folder,"
            f" {FOLDER}/{display.line(name)} in the home, yourself"
        )
    folder = store.home / FOLDER
    lock = locks.take(_lock(folder, name))
    if lock is None:
        raise LabError(f"{name} is being fetched just now; stop that first.")
    try:
        with store.held_still(models=True) as inventory:
            if users := _users(inventory.models, store.home).get(name):
                raise LabError(
                    f"{name} is used by {display.names(sorted(users))}; cancel what is queued or running, or"
                    " wait until it has ended."
                )
            base_models.fetched(folder / name).unlink(missing_ok=True)
            gone = [aside for path in _parts(folder, name) if (aside := _aside(path)) is not None]
    finally:
        os.close(lock)
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)  # what stays has a name that `disk` removes
    return found.bytes


def _users(models: dict[str, set[str]], home: Path) -> dict[str, set[str]]:
    """Runs by the name of the folder in the home that they read."""
    users: dict[str, set[str]] = {}
    for model, runs in models.items():
        users.setdefault(_named(model, home), set()).update(runs)
    return users


def _named(model: str, home: Path) -> str:
    """The name of the folder, among the home's models, of a recipe's model; "" where it lies elsewhere."""
    if model.startswith("/"):
        path, models = Path(model).resolve(), (home / FOLDER).resolve()
        below = path.relative_to(models).parts if path.is_relative_to(models) else ()
        return below[0] if below else ""
    name, _, revision = model.partition("@")
    try:
        if model == "starter":
            return Model(model, "starter", starter_package.version(), {}, None).folder(home).name
        if model.startswith("azureml:"):
            return Model(model, "azureml", "", {}, None).folder(home).name
    except IndexError:  # an address that is none, in a recipe of another release
        return ""
    return Model(name, "hub", revision, {}, None).folder(home).name if revision else ""


def _parts(folder: Path, name: str) -> list[Path]:
    """The folders of a model: whole, on its way, and its tokenizer alone."""
    tokenizers = folder / TOKENIZERS
    of_hub = tokenizers.glob(glob.escape(name) + "?" * 28)  # with the rest of the commit
    every = (folder / name, folder / f"{name}{PART}", tokenizers / name, *of_hub)
    return [path for path in every if _real(path)]


def _real(path: Path) -> bool:
    """Whether it is a folder and no link to one that lies elsewhere."""
    return path.is_dir() and not path.is_symlink()


def _lock(folder: Path, name: str) -> Path:
    """What `base_models.materialize` holds."""
    return folder / f".{name}.lock"


def _aside(path: Path) -> Path | None:
    """Give a folder a name that says it is to be deleted; None if it is not there."""
    try:
        return path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}{disk.ASIDE}"))
    except FileNotFoundError:
        return None
