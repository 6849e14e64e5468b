"""The files of an export that answer in an evaluation: they are loaded, and named by their SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.evaluation.examples import answered_by
from pipeline.exports import verify
from pipeline.exports.chat.loaded_files import Loaded
from pipeline.exports.chat.sources import Source
from pipeline.exports.verifying import adapter_files

NAME = "the export"  # in messages
NONE = "none"  # in place of an adapter's checksum


def others(export: Path, own: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The other adapters in an exported folder: files by the side that they are, and why some are none, by
    their names. Raises ValueError, OSError for a faulty graph."""
    fit, unfit = {}, {}
    for file in adapter_files.other_adapters(export, own):
        if (
            display.valid(file.stem) != file.stem
        ):  # no JSON has such a name, and ONNX Runtime takes no such path
            unfit[display.valid(file.stem)] = "its file's name is no Unicode text; rename it"
        elif why := verify.why_unfit(export, file):
            unfit[file.stem] = why
        else:
            fit[answered_by.side(file.stem)] = file
    return fit, unfit


def load(export: Path, adapter: Path | None, merged: bool, others: Mapping[str, Path]) -> Loaded:
    """An export with the adapter as "adapter" and others by their names. Raises what `Loaded` does."""
    return Loaded(Source(NAME, export, adapter, merged), others)


def named(loaded: Loaded, sides: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """By side {"adapter": SHA-256 of the adapter's file that is active, or NONE, "graph": those of the
    graph's files by name}; waits until they are known. An adapter in the weights is no file of its own.

    A file of the graph that is another one since it was loaded has words in place of a checksum.
    """
    graph = loaded.graph_still()
    return {
        side: {"adapter": loaded.adapters[adapter] if adapter else NONE, "graph": graph}
        for side, adapter in sides.items()
    }
