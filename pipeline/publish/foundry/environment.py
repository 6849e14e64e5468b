"""The environment that Foundry Local's package lives in: it pins an ONNX Runtime that is not ours.

Whoever finds it finds it whole: the file that says what it has is written last, before it gets its name.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.system import files, locks, own_process

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = "foundry-local"  # in the home, and beside our own packages
NAME = "environment"
SIZE = 300 << 20  # bytes that it takes, about
CREATE_SECONDS = 600.0
INSTALL_SECONDS = 1800.0
IMPORT_SECONDS = 60.0
SHOWN = ("Collecting", "Downloading", "Installing")  # how those of pip's lines begin that are progress
Say = Callable[[str], None]


def folder(home: Path) -> Path:
    """Where it is, or where `make` puts it."""
    if (given := settings.foundry_local()) is not None:
        return given
    beside = Path(sys.prefix) / FOLDER
    return beside if complete(beside) else home / FOLDER / NAME


def complete(where: Path) -> bool:
    """Whether it is there with the packages of this release."""
    try:
        return (where / REQUIREMENTS.name).read_text("utf-8") == REQUIREMENTS.read_text("utf-8")
    except OSError:
        return False


def ready(home: Path, say: Say) -> Path:
    """Its interpreter; made first if it is not complete, while `say` hears what happens.

    Raises LabError if it cannot be had. Nothing is left half made then.
    """
    where = folder(home)
    if not complete(where):
        make(where, say)
    return _python(where)


def make(where: Path, say: Say) -> None:
    """Make it, in place of one of another release. Raises LabError."""
    with locks.locked(where.with_name(f".{where.name}.lock")):
        if complete(where):  # another process was faster
            return
        if where.exists() and not (where / "pyvenv.cfg").is_file():
            raise LabError(f"{where} is there and no environment of Python; name another folder for it.")
        part = where.with_name(f".{where.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            _fill(part, say)
            shutil.rmtree(where, ignore_errors=True)
            part.rename(where)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _fill(part: Path, say: Say) -> None:
    say(f"Making an environment for Foundry Local, once: about {display.size(SIZE)}")
    files.make_room(part.parent, SIZE)
    environment = settings.child_environment()
    try:
        done = own_process.run(["-m", "venv", str(part)], CREATE_SECONDS, environment)
    except subprocess.TimeoutExpired:
        raise LabError(f"Python made no environment within {CREATE_SECONDS:.0f} seconds; retry.") from None
    if done.returncode != 0:
        raise LabError(
            "Python could not make an environment for Foundry Local; it needs venv with ensurepip (Debian:"
            " apt-get install python3-venv)."
        )
    _install(part, say)
    probe = ["-I", "-c", "import foundry_local_sdk"]
    try:
        done = own_process.run(probe, IMPORT_SECONDS, settings.bare_environment(), _python(part))
    except subprocess.TimeoutExpired:
        raise LabError(_unusable(f"it did not start within {IMPORT_SECONDS:.0f} seconds")) from None
    if done.returncode != 0:
        raise LabError(_unusable(_last(done.stderr.splitlines()) or f"code {done.returncode}"))
    shutil.copyfile(REQUIREMENTS, part / REQUIREMENTS.name)


def _install(part: Path, say: Say) -> None:
    said: deque[str] = deque(maxlen=20)

    def heard(line: str) -> None:
        said.append(line)
        if (text := line.strip()).startswith(SHOWN):
            say(display.line(text, 100))
        else:
            print(line, flush=True)  # for the log

    words = ["-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar",
             "off", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]  # fmt: skip
    try:
        code = own_process.follow(words, settings.child_environment(), heard, _python(part), INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise LabError(
            f"Foundry Local's package is not installed after {INSTALL_SECONDS / 60:.0f} minutes; see that pip"
            f" works on this machine, then run `{settings.command()} foundry-local --install`."
        ) from None
    if code != 0:
        why = _last([line for line in said if line.startswith("ERROR")]) or "see the log"
        raise LabError(
            f"Foundry Local's package cannot be installed ({why.removeprefix('ERROR: ')}); see that pip works"
            f" on this machine, then run `{settings.command()} foundry-local --install`."
        )


def _python(where: Path) -> Path:
    return where / "bin" / "python"


def _last(lines: list[str]) -> str:
    return display.line(lines[-1].strip(), 200) if lines else ""


def _unusable(why: str) -> str:
    return (
        f"Foundry Local's package does not run on this machine ({why}); it is for Linux with glibc 2.28 or"
        " newer: publish to this lab, and register the folder on the device itself."
    )
