"""Downloads models into the home, each in a process of its own that outlives the page.

A model has a key, made of its name, version and full address. `pulled/` in the home has its folder once it is
complete, and hidden files: `.KEY.part` until then, `.KEY.json` with its facts and progress, `.KEY.lock`,
which its process holds while it runs, `.KEY.stop` to end it, and `.KEY.log`. A base model is downloaded the
same way; its folder is in `models/`, where runs look for it (see `cached_models`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.runs import disk
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, RUNNING
from pipeline.system import locks, own_process
from pipeline.system.files import write_whole

if TYPE_CHECKING:  # imported where it is used: those who only look need it not
    from pipeline.inputs.models.base_models import Model

FOLDER = "pulled"
MOST = 2  # at a time
MOST_KNOWN = 200  # that came, come or failed: the page reads the facts of all
LOOK_SECONDS = 0.2
ENDING_SECONDS = 10.0  # a process reports its end shortly before it is gone
CROWDED = "{} models were pulled already, as many as may be kept; remove one that nobody needs first."
AGAIN = "Pull again: it resumes."
AGAIN_BASE = "Download it again: it resumes."
PERCENT = re.compile(r"(\d{1,3})%")  # in messages about a base model in Azure
KEY = re.compile(r"[A-Za-z0-9._-]+")  # one from a browser may be anything; this is no path
_begun: list[subprocess.Popen[bytes]] = []  # kept until they end, so that none stays a zombie
Facts = dict[str, Any]  # key, uri, name, version, login, tags, status, message, error, progress, and bytes


def key_of(home: Path, name: str, version: str, uri: str) -> str:
    """The key of a version; one with the same name in another workspace has a different key.

    It has half of the address's hash: who writes addresses must not find two alike. Of former releases it had
    a few letters; what they pulled keeps its key.
    """
    words = re.sub(r"[^A-Za-z0-9._-]", "_", f"{name}-{version}")  # usable as a folder name
    digest = hashlib.sha256(uri.encode()).hexdigest()
    former = f"{words}-{digest[:8]}"
    known = _read(home, former)
    return former if known is not None and known.get("uri") == uri else f"{words}-{digest[:32]}"


def folder(home: Path, key: str) -> Path:
    """Where a model is once it is complete."""
    return home / FOLDER / key


def listed(home: Path) -> list[Facts]:
    """Every model that was pulled, or is being pulled, newest first."""
    found = [facts(home, path.name[1 : -len(".json")]) for path in (home / FOLDER).glob(".*.json")]
    return sorted((known for known in found if known), key=lambda known: known["begun"], reverse=True)


def facts(home: Path, key: str) -> Facts | None:
    """The facts of a pull; None if there was none. Its status is like that of a stage.

    Only its own file is read: whoever asks often must not make others' be read each time.
    """
    known = _read(home, key) if KEY.fullmatch(key) else None
    if known is not None and known["status"] == RUNNING and not locks.held(_beside(home, key, "lock")):
        known = _read(home, key)  # it may have ended meanwhile and reported it
        if known is not None and known["status"] == RUNNING:
            ended = f"The machine stopped, or the process was ended. {_again(known)}"
            known |= {"status": INTERRUPTED, "error": ended}
    here = known is not None and _place(home, known).is_dir()
    if known is not None and here and known["status"] != RUNNING:
        # The folder appears last, after the comparison; an end of the process after that has no effect.
        return {**known, "status": DONE, "error": None, "progress": 1.0}
    if known is not None and known["status"] == DONE:
        return None
    return known


def start(home: Path, version: Facts, login: str) -> str:
    """Start or resume pulling a version (name, version, tags, and its address as `id`); returns its key.

    One that is complete or being pulled is left alone. Raises LabError if two others are being pulled.
    """
    return _begin(home, key_of(home, version["name"], version["version"], version["id"]), version, login)


def start_base(home: Path, model: Model) -> str:
    """Start or resume downloading a base model; returns its key. Raises LabError as `start` does."""
    key = key_of(home, model.id.rpartition("/")[2][:80], model.revision[:12], f"base {model.pinned}")
    version = {"id": model.pinned, "name": model.id, "version": model.revision, "tags": {}}
    return _begin(home, key, {**version, "base": model.folder(home).name, "kind": model.kind}, "")


def _begin(home: Path, key: str, version: Facts, login: str) -> str:
    with locks.locked(home / FOLDER / ".lock"):  # else two processes could both find room
        known = facts(home, key)
        if known is None or known["status"] not in (DONE, RUNNING):
            _start(home, key, version, login)
    return key


def _start(home: Path, key: str, version: Facts, login: str) -> None:
    others = _with_room(home, [other for other in listed(home) if other["key"] != key])
    if len(others) >= MOST_KNOWN:
        raise LabError(CROWDED.format(MOST_KNOWN))
    if sum(other["status"] == RUNNING for other in others) >= MOST:
        raise LabError(f"{MOST} models are being pulled already; wait until one is here, or stop one.")
    lock = locks.take_within(_beside(home, key, "lock"), ENDING_SECONDS)
    if lock is None:
        raise LabError("Its process has not ended yet; try again in a moment.")
    is_new = _read(home, key) is None
    try:
        _beside(home, key, "stop").unlink(missing_ok=True)
        _write(home, {
            "key": key, "uri": version["id"], "name": version["name"], "version": version["version"],
            "tags": version["tags"], "login": login, "begun": time.time(), "status": RUNNING,
            "message": "Asking for the files", "error": None, "progress": 0.0,
            **{name: version[name] for name in ("base", "kind") if name in version},
        })  # fmt: skip
        with _beside(home, key, "log").open("wb") as log:
            process = own_process.start(
                ["-m", "pipeline.runs.pulls", key],
                settings.child_environment(OLIVE_LAB_HOME=str(home)),
                stdout=log,
                stderr=log,
                keep=[lock],
                apart=True,
            )
        _begun[:] = [*(other for other in _begun if other.poll() is None), process]
    except LabError:  # nothing has come, and MOST_KNOWN would count it
        if is_new:
            _beside(home, key, "json").unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def _with_room(home: Path, others: list[Facts]) -> list[Facts]:
    """Of as many as may be kept, forget those of which nothing is in `pulled/`, the oldest first.

    Base models lie elsewhere, and are removed there.
    """
    for one in reversed(others[:]):
        if len(others) < MOST_KNOWN:
            break
        there = folder(home, one["key"]).exists() or _beside(home, one["key"], "part").exists()
        if one["status"] != RUNNING and not there:
            with suppress(InputError, LabError):  # somebody removes or resumes it just now
                remove(home, one["key"])
                others.remove(one)
    return others


def stop(home: Path, key: str) -> None:
    """End a pull; what has arrived stays. Raises InputError if it is not being pulled."""
    known = facts(home, key)
    if known is None or known["status"] != RUNNING:
        raise InputError(f"{key}: is not being pulled")
    _beside(home, key, "stop").touch()


def remove(home: Path, key: str) -> None:
    """Remove a pulled model, complete or not. Raises LabError while it is being pulled."""
    known = facts(home, key)
    if known is None:
        raise InputError(f"{key}: is not here")
    waits = 0.0 if known["status"] == RUNNING else ENDING_SECONDS
    lock = locks.take_within(_beside(home, key, "lock"), waits)
    if lock is None:
        raise LabError("It is being pulled; stop that first.")
    try:
        for ending in ("json", "part.lock"):
            _beside(home, key, ending).unlink(missing_ok=True)
        for path in () if "base" in known else (folder(home, key), _beside(home, key, "part")):
            disk.discard(path)
    finally:
        os.close(lock)


def _again(known: Facts) -> str:
    return AGAIN_BASE if "base" in known else AGAIN


def _place(home: Path, known: Facts) -> Path:
    """Where a model lies once it is whole: a base model among those of the home."""
    return home / "models" / known["base"] if "base" in known else folder(home, known["key"])


def _beside(home: Path, key: str, ending: str) -> Path:
    return home / FOLDER / f".{key}.{ending}"


def _read(home: Path, key: str) -> Facts | None:
    try:
        known: Facts = json.loads(_beside(home, key, "json").read_text("utf-8"))
    except (OSError, ValueError):  # there is none, or it was just removed
        return None
    # A file of this name that is another's is no pull: it must not hide those that are.
    return known if isinstance(known, dict) and known.get("key") == key else None


def _write(home: Path, known: Facts) -> None:
    path = _beside(home, known["key"], "json")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, known)


# -- the process ---------------------------------------------------------------------------------------


class _Told:
    """Writes the progress of the pull; nothing more once it is to end."""

    def __init__(self, home: Path, known: Facts) -> None:
        self._home, self._known, self._writing = home, known, threading.Lock()

    def report(self, message: str, fraction: float, **more: Any) -> None:
        self.tell(message=message, progress=fraction, **more)

    def tell(self, **changes: Any) -> None:
        with self._writing:
            self._known |= changes
            _write(self._home, self._known)

    def end_when_asked(self) -> None:
        """Wait for the stop file, and then end this process wherever it is."""
        while not _beside(self._home, self._known["key"], "stop").exists():
            time.sleep(LOOK_SECONDS)
        with self._writing:
            if self._known["status"] == RUNNING:
                _write(
                    self._home,
                    {**self._known, "status": CANCELED, "error": f"Stopped. {_again(self._known)}"},
                )
            own_process.close()  # what fetches from Azure in a process of its own
            os._exit(0)


def _pull(home: Path, known: Facts, report: Callable[..., None]) -> str:
    from pipeline.inputs import azure_workspace
    from pipeline.publish.azure import pull
    from pipeline.publish.azure.faults import explained

    # The full address names the workspace; only the login is added.
    where = azure_workspace.find(home, azure_workspace.Place(known["login"]))
    with explained(where):
        done = pull.pull(home, where, known["uri"], folder(home, known["key"]), report)
    return str(done["compared"])


def _fetch(home: Path, known: Facts, report: Callable[..., None]) -> str:
    """Bring a base model to where runs look for it."""
    from pipeline.inputs.models import base_models

    def say(message: str) -> None:
        said = PERCENT.findall(message)
        report(message, min(int(said[-1]), 100) / 100 if said else 0.0)

    model = base_models.Model(known["name"], known["kind"], known["version"], {}, None)
    base_models.materialize(model, home, say, report)
    return "in this lab; runs take it from here"


def _main(key: str) -> int:
    settings.quiet_this_process()
    settings.keep_private()
    home = settings.home()
    known: Facts = json.loads(_beside(home, key, "json").read_text("utf-8"))
    told = _Told(home, known)
    threading.Thread(target=told.end_when_asked, daemon=True).start()
    try:
        compared = (_fetch if "base" in known else _pull)(home, known, told.report)
    except (LabError, OSError) as error:
        told.tell(status=FAILED, error=f"{sentence(error)} {_again(known)}")
        return 1
    told.tell(status=DONE, message=f"It is {compared}.", progress=1.0)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
