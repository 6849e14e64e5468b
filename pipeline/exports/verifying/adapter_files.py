"""The adapters that lie in an exported folder: all, all others, the usual one, one by its name."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from pipeline import display
from pipeline.errors import InputError
from pipeline.exports import contract

MOST_ADAPTERS = 64  # of a folder


def adapters_of(folder: Path) -> list[Path]:
    """The adapters that lie beside the graph, by name. Raises InputError for more than MOST_ADAPTERS."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.endswith(contract.SUFFIX))
        found = list(islice(names, MOST_ADAPTERS + 1))
    if len(found) > MOST_ADAPTERS:
        raise InputError(
            f"{display.line(folder.name) or 'the folder'} has more than {MOST_ADAPTERS} adapters; move some"
            " elsewhere"
        )
    return [folder / name for name in sorted(found)]


def other_adapters(folder: Path, own: Path) -> list[Path]:
    """The adapters beside the graph but for one, by name. Raises as `adapters_of` does."""
    return [file for file in adapters_of(folder) if file.name != own.name]


def usual_adapter(folder: Path) -> Path | None:
    """Of several adapters, the one with the name that our exports use, else the first; None without any.

    Raises InputError for more than MOST_ADAPTERS.
    """
    adapters = adapters_of(folder)
    usual = next((file for file in adapters if file.name == contract.ADAPTER), None)
    return usual or next(iter(adapters), None)


def named_adapter(folder: Path, given: str) -> Path:
    """The adapter of a name in the folder, suffix optional, or at a path.

    Raises InputError, listing the folder's adapters, if there is none.
    """
    found = [folder / given, folder / f"{given}{contract.SUFFIX}", Path(given)]
    file = next((file for file in found if file.name.endswith(contract.SUFFIX) and file.is_file()), None)
    if file is None:
        there = [display.plain(each.name) for each in adapters_of(folder)]
        listed = f"in the folder there are {display.names(there)}" if there else "the folder has none"
        raise InputError(f"adapter: {display.quoted(given)} is no {contract.SUFFIX} file; {listed}")
    return file
