"""What runs take on disk, and how space is freed: deleted runs after a day, results and datasets on request.

Results are shared: a stage with the same options and inputs as an earlier one reuses its result. So a result
is deleted only if no run refers to it, not even a deleted run that can be restored, and no stage may be about
to use it. A stage finds or makes its result while holding the result's lock, and only after it has ended does
the worker record that its run refers to it. In between, only the stage's status shows that the result is in
use: it is `running` from before the process starts until the transaction that records the result. So results
are renamed, a few at a time, inside a transaction that locks the store: no stage starts or is recorded
meanwhile. While any `quantize` stage runs, for example, all results of `quantize` stay; while `optimize`
runs, so do the graphs that it may reuse. Each result's lock is taken too, because a process may outlive its
worker. A folder is renamed before it is deleted, so that a folder under its own name is always complete.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pipeline.errors import InputError
from pipeline.inputs.data.hub import fetching_rows
from pipeline.inputs.models import starter_package
from pipeline.publish.checks import CHECKED
from pipeline.runs import check_pool, crowds
from pipeline.runs.data import data_card
from pipeline.stages import artifacts
from pipeline.store import Store, scratch
from pipeline.store.history import Inventory
from pipeline.store.run import PUBLISH, Run
from pipeline.system import files, locks
from pipeline.worker import probe

DAY = 86400.0
# A retry may need the result of a stage that was killed before it was recorded; a new dataset has no run yet.
YOUNG = 3600.0
ASIDE = ".gone"
DATASETS = "datasets"
# Seconds in which nobody used a dataset before it makes room for others. The command line notes use only as
# work begins, so it has to count for as long as any piece of work may take, and a little more.
QUIET = check_pool.MOST_SECONDS + 60.0
AT_ONCE = 50  # folders that are renamed while the store is held
MEASURED = "measured"  # by results of exports: what evaluations of theirs measured (`known_rows`)
LOCKED = ("artifacts", MEASURED)  # whose folders are locked by those who use them
LOOKED_AT = ".looked-at"  # beside a prompt file that was uploaded on the page: when somebody last chose it
PLACES = {
    "results": "artifacts", "models": "models", "datasets": DATASETS,
    "fetched datasets": fetching_rows.FOLDER, "data cards": "cards", "runs": "runs",
    "published copies": "registry", "for Foundry Local": "foundry-local",
    "pulled models": "pulled", "tried models": probe.PROBES,
    "starter model": starter_package.FOLDER, "measured rows": MEASURED,
    "checks in progress": scratch.FOLDER,
}  # fmt: skip


@dataclass(frozen=True)
class Storage:
    """Bytes of one run: its own folder, the results it refers to, and those only it refers to."""

    folder: int
    results: int
    alone: int

    @property
    def freed(self) -> int:
        """What deleting the run finally frees."""
        return self.folder + self.alone


@dataclass
class Unused:
    """Results and datasets that no run refers to, by name, and their bytes on disk."""

    results: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    bytes: int = 0


def of(store: Store, run: str) -> Storage:
    """What a run takes on disk now."""
    inventory = store.inventory()
    users = _users(inventory)
    mine = [name for name, runs in users.items() if run in runs]
    alone = [name for name in mine if users[name] == {run}]
    folder = store.home / "artifacts"
    return Storage(
        folder=files.size(store.folder(run)),
        results=files.size(*(folder / name for name in mine)),
        alone=_freed(folder / name for name in alone),
    )


def total(home: Path) -> dict[str, int]:
    """Bytes of the home, by kind. A file that several kinds share by links counts for the first."""
    seen: set[tuple[int, int]] = set()
    found = {}
    for word, place in PLACES.items():
        there = {(file.st_dev, file.st_ino): file.st_size for file in files.stats([home / place])}
        found[word] = sum(size for key, size in there.items() if key not in seen)
        seen |= there.keys()
    return found


def unused(store: Store) -> Unused:
    """What `collect` would free now."""
    found = _candidates(store.home, store.inventory())
    return _describe({folder: name for folder, name in found.items() if not _is_young(folder, YOUNG)})


def collect(store: Store) -> Unused:
    """Delete what no run refers to, and return what that was. The newest probes stay; they are small."""
    probe.drop_old(store.home)
    before = store.inventory()
    moved = _free(store, _candidates(store.home, before), young=YOUNG)
    unknown = [
        path for path in _folders(store.runs) if path.name not in before.runs and not _is_young(path, YOUNG)
    ]
    with store.held_still() as inventory:
        _drop_empty(unknown, inventory.runs)
        publishing = any(name.startswith(PUBLISH) for name in inventory.running)
        checked = None if publishing else _aside(store.home / CHECKED)  # left by a killed publish
    data_card.tidy(store.home)
    scratch.clear(store.home)
    freed = _describe(moved)
    _delete([*moved, *([checked] if checked else []), *_left(store.home)])
    return freed


def purge(store: Store, older_than: float = DAY) -> list[str]:
    """Remove runs that were deleted `older_than` seconds ago for good; return their ids.

    Its folder and the results that only it referred to are deleted too, except those that a running stage
    may be about to use, which are left to `collect`. Published copies stay. If the clock was set back, a run
    whose deletion is in the future stays until then.
    """
    gone: list[str] = []
    asides = _left(store.home)
    for run in _deleted(store, time.time() - older_than):
        names = {artifacts.name(a["path"]) for stage in run.stages for a in stage.artifacts}
        if not store.forget(run.id, time.time() - older_than):
            continue
        gone.append(run.id)
        if (
            aside := _aside(store.folder(run.id))
        ) is not None:  # first: after a repair it would be a run again
            asides.append(aside)
        unused = _candidates(store.home, store.inventory())
        asides += _free(store, {path: name for path, name in unused.items() if name in names}, young=0.0)
    _delete(asides)
    return gone


def _deleted(store: Store, before: float) -> Iterator[Run]:
    """The runs that were deleted before; those that another process removes meanwhile are skipped."""
    for run in store.deleted_before(before):
        with suppress(InputError):
            yield store.get(run)


def look_at(file: Path, *, new: bool = False) -> None:
    """Note that a prompt file is chosen just now; one that is `new` is removed later, if no run uses it."""
    mark = file.with_name(LOOKED_AT)
    with suppress(FileNotFoundError):  # it has just been removed
        if new or mark.exists():
            mark.touch(mode=0o600)


def tidy_prompts(store: Store, older_than: float = DAY) -> list[str]:
    """Remove uploaded prompt files that no run refers to and nobody has chosen for so many seconds."""
    found = {
        folder: name
        for folder, name in _candidates(store.home, store.inventory()).items()
        if (folder / LOOKED_AT).exists() and not _is_young(folder, older_than)
    }
    moved = _free(store, found, young=YOUNG)
    _delete(moved)
    return list(moved.values())


def datasets_make_room(home: Path, most: int) -> bool:
    """Whether there are fewer than `most` datasets, after those that no run has made room as
    `crowds.making_room` says.

    One at a time: of many who come at once, those who waited find that there is room.
    """
    kept = home / DATASETS
    if _missing(kept, most) <= 0:
        return True
    with locks.locked(kept / ".room.lock"):
        if (over := _missing(kept, most)) <= 0:
            return True
        store = Store(home)
        wanted: list[crowds.Kept] = []
        room = over + most // 32  # and some more, so that not every one that comes looks at all
        now = time.time()
        for one in crowds.making_room(_kept_datasets(kept, store.inventory()), most, now, QUIET):
            if room > 0:
                wanted.append(one)
                room -= one.places
        # Whoever takes one up meanwhile keeps it.
        young = min([QUIET, *(now - one.used for one in wanted)])
        asides = _free(store, {one.path: "" for one in wanted}, young=young)
        over -= sum(len(files.visible(aside)) for aside in asides)
        _delete(asides)
        return over <= 0  # others may have come meanwhile; those who come next see them


def _kept_datasets(kept: Path, inventory: Inventory) -> list[crowds.Kept]:
    """The folders of datasets; those of runs are needed. Use does not change when a dataset was written."""
    folders = _folders(kept)
    unused = _without_users(dict.fromkeys(folders, ""), inventory)
    found = []
    for folder in folders:
        with suppress(FileNotFoundError):  # it is just being removed
            names = files.visible(folder)
            arrived = min((path.stat().st_mtime for path in names), default=0.0)
            used = max(_last_used(folder), folder.stat().st_mtime)
            found.append(crowds.Kept(folder, arrived, used, len(names), folder not in unused))
    return found


def _missing(kept: Path, most: int) -> int:
    """How many datasets there are too many for one more."""
    return sum(len(files.visible(folder)) for folder in _folders(kept)) - most + 1


def _last_used(folder: Path) -> float:
    """When anything in a folder was last written or read; the folder itself is read by who lists it."""
    try:
        facts = [path.lstat() for path in folder.iterdir()]
    except FileNotFoundError:
        return math.inf  # it is just arriving, or being removed
    return max((max(one.st_mtime, one.st_atime) for one in facts), default=0.0)


def _users(inventory: Inventory) -> dict[str, set[str]]:
    """The runs that refer to each result, by the result's name."""
    users: dict[str, set[str]] = {}
    for path, runs in inventory.artifacts.items():
        if name := artifacts.name(path):
            users.setdefault(name, set()).update(runs)
    return users


def _candidates(home: Path, inventory: Inventory) -> dict[Path, str]:
    """Folders that no run refers to, with their names."""
    found = {folder: folder.name.removesuffix(".part") for folder in _folders(home / "artifacts")}
    found |= {folder: folder.name.rpartition("-")[0] for folder in _folders(home / MEASURED)}
    for folder in _folders(home / DATASETS):
        found[folder] = ", ".join(sorted(path.name for path in files.visible(folder)))
    # Runs have copies of what was fetched from the hub.
    found |= {folder: folder.name for folder in _folders(home / fetching_rows.FOLDER)}
    return _without_users(found, inventory)


def _without_users(found: dict[Path, str], inventory: Inventory) -> dict[Path, str]:
    """Those of the folders that no run refers to."""
    users = _users(inventory)
    used = {Path(path).parent.name for path in inventory.data}

    def is_used(folder: Path, name: str) -> bool:
        place = folder.parent.name
        if place == DATASETS:
            return folder.name in used
        if place == "artifacts" and name.rpartition("-")[0] in inventory.running:
            return True
        return place in LOCKED and name in users

    return {folder: name for folder, name in found.items() if not is_used(folder, name)}


def _free(store: Store, candidates: dict[Path, str], young: float) -> dict[Path, str]:
    """Rename those of the folders that no run refers to by now; return the new paths.

    A few at a time: while folders are renamed nobody can queue, cancel or record anything.
    """
    moved: dict[Path, str] = {}
    waiting = iter(candidates.items())
    while some := dict(islice(waiting, AT_ONCE)):
        with store.held_still() as inventory:
            moved |= _take_aside(_without_users(some, inventory), young)
    return moved


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, without hidden ones."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")


def _take_aside(candidates: dict[Path, str], young: float) -> dict[Path, str]:
    """Rename folders that nobody holds or has touched for `young` seconds; return the new paths.

    Call it only while the store is locked.
    """
    moved = {}
    for folder, name in candidates.items():
        held = None
        if folder.parent.name in LOCKED:
            held = locks.take(folder.parent / ".locks" / folder.name.removesuffix(".part"))
            if held is None:
                continue
        try:
            if not _is_young(folder, young) and (aside := _aside(folder)) is not None:
                if _is_young(aside, young):  # touched just now by a process that is about to use it
                    aside.rename(folder)
                else:
                    moved[aside] = name
        finally:
            if held is not None:
                os.close(held)
    return moved


def _is_young(folder: Path, seconds: float) -> bool:
    """Whether the folder or an entry in it was written, or a dataset used, within this time, or in the
    future."""
    try:
        times = [path.lstat().st_mtime for path in (folder, *folder.iterdir())]
        if folder.parent.name == DATASETS:
            times.append(_last_used(folder))
    except (FileNotFoundError, PermissionError):
        return True  # just renamed, by its maker or by another deletion; or not ours, so it stays
    return seconds > 0 and time.time() - max(times) < seconds


def _aside(folder: Path) -> Path | None:
    """Rename a folder to mark it for deletion; None if it does not exist."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{ASIDE}")
    try:
        return folder.rename(aside)
    except FileNotFoundError:
        return None


def discard(folder: Path) -> None:
    """Delete a folder; it is renamed first, so that it disappears at once."""
    if (aside := _aside(folder)) is not None:
        _delete([aside])


def _left(home: Path) -> list[Path]:
    """What an earlier call had renamed before it was killed, or could not delete."""
    return [aside for place in (*PLACES.values(), ".") for aside in (home / place).glob(f".*{ASIDE}")]


def _delete(folders: Iterable[Path]) -> None:
    """Delete them all; of a link only the link: what somebody keeps elsewhere, and linked here, is not ours.

    Raises the first OSError once each has been tried: one that cannot be deleted keeps no other.
    """
    failed: list[OSError] = []
    for folder in folders:
        try:
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)
        except FileNotFoundError:  # another process deletes it too
            pass
        except OSError as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _drop_empty(folders: list[Path], known: frozenset[str]) -> None:
    """Remove empty folders of runs that were never recorded."""
    for path in folders:
        if path.name not in known:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _describe(folders: dict[Path, str]) -> Unused:
    found = Unused(bytes=_freed(folders))
    for folder, name in folders.items():
        listed = found.results if folder.parent.name in LOCKED else found.datasets
        if name not in listed:
            listed.append(name)
    return found


def _freed(folders: Iterable[Path]) -> int:
    """Bytes that deleting these folders frees: exports share weights by links, which others may hold."""
    seen: dict[tuple[int, int], list[int]] = {}
    for file in files.stats(folders):
        seen.setdefault((file.st_dev, file.st_ino), [0, file.st_nlink, file.st_size])[0] += 1
    return sum(size for count, links, size in seen.values() if count >= links)
