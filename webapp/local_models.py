"""Which models the page takes: those of the catalogue, of the hub and of Azure, and folders that it offers.

Of the hub it takes what is public or gated. What only the operator's login may read is offered to everybody
who opens the page if the operator has chosen so at its start.

Those are the model folders of the home and those named when the app was started. Any other path is refused
with the same sentence, whether or not it exists: the page does not reveal what is on this machine's disks.
The command line takes any folder.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline import display, settings, writers
from pipeline.errors import InputError
from pipeline.inputs.azure_address import PREFIX
from pipeline.inputs.models import base_models
from pipeline.store.run import Run

# A word, or a hub id. Any other text could be taken for a folder.
ID = re.compile(r"[A-Za-z0-9][\w.-]{0,199}(?:/[A-Za-z0-9][\w.-]{0,199}(?:@[\w.-]{1,199})?)?", re.ASCII)
NOT_OFFERED = (
    "model: {} is not offered on this page; choose one from the list, or a hub id such as org/name. Other"
    " folders are for the command line, or for `{} --models FOLDER`."
)
NO_TEXT = "the path of one is no Unicode text, which no page can hold; rename it"
WAY_OUT = (
    "see to it that only you may change it (chmod -R go-w, or a copy of your own), or start with"
    " --shared-models if you trust whoever may"
)
_named: list[Path] = []  # by the operator, for this process
_hub_login: list[bool] = [False]  # whether the operator's login at the hub is for everybody, and
_shared: list[bool] = [False]  # whether models count that others may change, for this process


def find(folder: Path) -> dict[Path, Path]:
    """The folder itself if it is a model's, else the model folders in it: their real paths, with their names
    there, which may be those of links.

    Others may have put links in there, to folders that they may not read: only links count that the user of
    this process, or root, has made.
    """
    real = folder.resolve()
    if _is_model(folder):
        return {real: folder}
    found = {}
    for path in sorted(folder.glob("[!.]*")):
        with suppress(FileNotFoundError):  # it is just being removed
            facts = path.lstat()
            link = stat.S_ISLNK(facts.st_mode)
            if _is_model(path) and (not link or facts.st_uid in (0, os.geteuid())):
                # As it is, if it was no link: it may be one by now, and nothing is read through it.
                found[path.resolve() if link else real / path.name] = path
    return found


def offer(folders: Iterable[Path], *, hub_login: bool = False, shared: bool = False) -> None:
    """Offer the models of these folders on the page, besides the home's.

    With `hub_login` it also offers what only the operator may read on the hub, with `shared` also models that
    other users of this machine may change. Raises InputError for a folder without a model to offer.
    """
    folders = [folder.expanduser().absolute() for folder in folders]
    for folder in folders:
        if not find(folder):
            raise InputError(
                f"--models: {folder} is not a model folder, and contains none; one has a config.json and"
                f" .safetensors files. Of this one: {base_models.lacking(folder)}"
            )
    _named[:], _hub_login[:], _shared[:] = folders, [hub_login], [shared]
    for folder in folders:
        if all(reasons := _reasons(folder).values()):
            _named.clear()
            raise InputError(f"--models: no model in {folder} is offered: {next(iter(reasons))}")


def left_out() -> list[str]:
    """For the operator: of each folder with models that are not offered, the first and the reason."""
    found = {folder: [*filter(None, _reasons(folder).values())] for folder in (_home(), *_named)}
    return [
        f"models in {display.line(str(folder))} that are not offered: {len(reasons)}; {reasons[0]}"
        for folder, reasons in found.items()
        if reasons
    ]


def hub_login() -> bool:
    """Whether the page may read what only the operator may read on the hub."""
    return _hub_login[0]


def listed() -> list[tuple[str, str]]:
    """The folders on offer now, as (label, path)."""
    here = [
        (f"{display.line(path.name)} · in this lab", str(path))
        for path in _offered(_home())
        if path.suffix != ".part"
    ]
    named = [
        (f"{display.line(path.name)} · {display.line(str(path.parent))}", str(path))
        for folder in _named
        for path in _offered(folder)
    ]
    return [*here, *(row for row in named if row not in here)]


def known(chosen: object) -> str:
    """The model as a recipe names it. Raises InputError for a path that is not offered."""
    if not chosen or not isinstance(chosen, str):
        raise InputError("model: choose one")
    if ID.fullmatch(chosen) or chosen.startswith(PREFIX) or chosen in {path for _, path in listed()}:
        return chosen
    raise InputError(NOT_OFFERED.format(display.value(chosen), settings.page_command()))


def to_look_up(run: Run) -> str | None:
    """The model of a run that is to be started again from the page, if it is not here yet: one that the
    command line has queued is looked up as the page may. Raises InputError if it is not offered."""
    model = known(run.recipe.get("model"))
    absent = "/" in model and not model.startswith(("/", PREFIX)) and not base_models.is_here(model)
    return model if absent else None


def _is_model(folder: Path) -> bool:
    try:
        return not base_models.lacking(folder)
    except OSError:  # not ours to read
        return False


def _home() -> Path:
    return settings.home() / "models"


def _offered(folder: Path) -> list[Path]:
    return [path for path, reason in _reasons(folder).items() if not reason]


def _reasons(folder: Path) -> dict[Path, str]:
    """The models in a folder, each with the reason why it is not offered, or ""."""
    named = find(folder)
    found = {path: way for path, way in named.items() if display.valid(str(path)) == str(path)}
    return dict.fromkeys(named.keys() - found.keys(), NO_TEXT) | _changeable_ones(folder, found)


def _changeable_ones(folder: Path, found: dict[Path, Path]) -> dict[Path, str]:
    if _shared[0]:
        return dict.fromkeys(found, "")
    if folder == _home() and writers.other([settings.home()]):  # of which the operator was warned
        return {path: _changeable(path) if way.is_symlink() else "" for path, way in found.items()}
    return {path: _changeable(path, way) for path, way in found.items()}


def _changeable(model: Path, *ways: Path) -> str:
    """How another user could change a model's files, or one of the ways to them; "" if nobody can.

    Whoever can has the app's user read other files for them, by links that come and go while it reads.
    """
    try:
        who = writers.other([*ways, model, *_entries(model)])
        return f"{who}; {WAY_OUT}" if who else ""
    except (OSError, RuntimeError):  # a link to itself
        return f"{display.line(str(model))} is being changed"


def _entries(model: Path) -> list[Path]:
    """What a model's folder has, two levels deep; transformers reads no deeper. Without links to nothing."""
    return [path for path in (*model.glob("*"), *model.glob("*/*")) if path.exists()]
