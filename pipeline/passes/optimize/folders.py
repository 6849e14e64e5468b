"""A new folder for a changed graph, with the weights it shares linked into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ANOTHERS = ("artifact.json", "SHA256SUMS")


def carry_over(source: Path, folder: Path) -> list[Path]:
    """Link what stands beside the graph file `source`, weights too, into `folder`, which is made.

    Returns what was linked and is not weights. What belongs to another run stays behind: its adapters, its
    manifest and its checksums.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = []
    for file in source.parent.iterdir():
        if file == source or not file.is_file() or file.suffix == ".onnx_adapter" or file.name in ANOTHERS:
            continue
        target = folder / file.name
        target.unlink(missing_ok=True)  # it may be a link, and is not to be written through
        try:
            os.link(file, target)
        except OSError:  # another file system: then a copy it must be
            shutil.copyfile(file, target)
        if file.name != f"{source.name}.data":
            others.append(target)
    return others
