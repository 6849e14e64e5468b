"""The offline checks of a dry run, shared by all targets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.exports import verify
from pipeline.exports.findings import Finding, Status, failed
from pipeline.exports.verifying import adapter_files
from pipeline.system.files import KEPT_FREE

CHECKED = "checked"  # in the home: where a publish checks what it downloaded
FIRST = "is asked once what stands above is good"


def files(planned: dict[str, Any]) -> Finding:
    """The number and size of a plan's files."""
    return Finding("files", Status.OK, f"{len(planned['files'])} files, {planned['bytes']:,} bytes")


def fit(source: Path) -> list[Finding]:
    """Whether graph and adapters fit together, without reading the weights."""
    if wrong := failed(verify.static(source)):
        return wrong
    adapters = [file.name for file in adapter_files.adapters_of(source)]
    what = (
        f"{', '.join(adapters)} fit the graph"
        if adapters
        else "the graph is good; there is no adapter beside it"
    )
    return [Finding("adapter", Status.OK, what)]


def disk(home: Path, size: int) -> Finding:
    """Whether there is disk space for the copy that is downloaded again."""
    try:
        room(home, size)
    except LabError as error:
        return Finding("disk", Status.FAILED, str(error))
    return Finding("disk", Status.OK, "has room for the copy that is downloaded and compared")


def room(home: Path, size: int) -> None:
    """Raise LabError if the disk has no space for `size` more bytes and what runs need."""
    free = shutil.disk_usage(home).free
    if free < size + KEPT_FREE:
        raise LabError(
            f"Checking what came back needs {display.size(size)} of disk, and {display.size(free)} are free;"
            " free some, or publish with check off."
        )
