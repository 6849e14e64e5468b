"""What can be asked: the exported model of a run, or any exported folder, and one of its adapters."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, serving_ids
from pipeline.exports.verifying import adapter_files
from pipeline.inputs.prompts import templates
from pipeline.store.run import DONE, Run

SIDES = ("base", "adapter")
# Of a lab.json: bytes, and lists and mappings. It names each added token, of which Gemma 3 has 6,400; most
# models have some hundred, which is less than 30 kB.
LARGEST_LAB = 1 << 19
MOST_PARTS = 10_000


@dataclass(frozen=True)
class Source:
    """An exported model that can answer: its name in messages, its folder, and its adapter, if that is a file
    of its own; `merged` if it is in the weights or the graph.

    `others` are adapters that are loaded as well, each asked by its file's name without suffix."""

    name: str
    folder: Path
    adapter: Path | None
    merged: bool
    others: tuple[Path, ...] = ()

    def words(self) -> list[str]:
        """The source as arguments for a process."""
        merged = "merged" if self.merged else ""
        return [self.name, str(self.folder), str(self.adapter or ""), merged, *map(str, self.others)]

    @classmethod
    def from_words(cls, name: str, folder: str, adapter: str, merged: str, *others: str) -> Source:
        """A source from `words`."""
        own = Path(adapter) if adapter else None
        return cls(name, Path(folder), own, bool(merged), tuple(map(Path, others)))

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of "base" and "adapter" can answer."""
        if self.merged:
            return ("adapter",)
        return SIDES if self.adapter else ("base",)

    @property
    def bound(self) -> bool:
        """Whether the adapter is a part of the graph."""
        return self.merged and (self.folder / contract.BOUND).is_file()

    @property
    def missing_side(self) -> str | None:
        """Why only one side can answer; None if both can."""
        if self.bound:
            return (
                f"The adapter of {self.name} is a part of its graph;"
                " the folder that it was bound from has its base."
            )
        if self.merged:
            return f"The adapter of {self.name} is merged into its weights; there is no base to compare with."
        return None if self.adapter else f"There is no adapter in {self.name}; its base answers alone."


def of_run(run: Run) -> Source:
    """What a run exported. Raises LabError if it cannot answer."""
    folder, adapter = run.artifact("onnx"), run.artifact("onnx_adapter")
    if folder is None and run.artifact("workflow"):
        raise LabError(f"Run {run.id} has a workflow and no model: its export is not run here.")
    if run.status != DONE and folder is None:
        raise LabError(f"Run {run.id} is {run.status}; it can answer once its optimize stage is done.")
    if folder is None or not Path(folder).is_dir():
        raise LabError(
            f"Run {run.id} has no exported model; its recipe leaves optimize out, or it was deleted."
        )
    merged = run.artifact("merged") is not None
    return Source(f"run {run.id}", Path(folder), Path(adapter) if adapter else None, merged)


def of_folder(folder: Path, name: str) -> Source:
    """Any exported folder. Of several adapters, the one with the name that our exports use, else the first.

    Raises InputError if there is no such folder, or if it has more adapters than one is asked with.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    merged = (folder / contract.MERGED).is_file() or (folder / contract.BOUND).is_file()
    return Source(name, folder, adapter_files.usual_adapter(folder), merged)


def with_adapter(source: Source, given: str) -> Source:
    """The source with another adapter: the name of a file in its folder, suffix optional, or a path.

    Raises InputError, listing the folder's adapters, if there is none, or if the adapter is merged.
    """
    if source.merged:
        where = "a part of its graph" if source.bound else "merged into its weights"
        raise InputError(f"The adapter of {source.name} is {where}; it takes no other.")
    return replace(source, adapter=adapter_files.named_adapter(source.folder, given))


@dataclass(frozen=True)
class Asks:
    """What an exported model's folder says of its prompts: their fields, and whether a system text may be
    there."""

    fields: tuple[str, ...] = ("prompt",)
    system: bool = False


def takes_system(source: Source) -> bool:
    """Whether the prompts of an exported model can have a system text, as far as its folder says."""
    return _asks(source).system


def prompt_fields(source: Source) -> tuple[str, ...]:
    """The fields that a prompt of an exported model has, as far as its folder says; else one, `prompt`."""
    return _asks(source).fields


def _asks(source: Source) -> Asks:
    """What lab.json says; the least if there is none that can be read, which asking the model reports."""
    file = source.folder / serving_ids.LAB
    try:
        there = file.stat()
    except (OSError, ValueError):
        return Asks()
    if not stat.S_ISREG(there.st_mode) or there.st_size > LARGEST_LAB:
        return Asks()
    return _read_asks(file, there.st_ino, there.st_mtime_ns, there.st_size)


@lru_cache(maxsize=64)
def _read_asks(file: Path, _inode: int, _changed: int, _size: int) -> Asks:
    """The same of a file, which is parsed once until it changes: anybody can have brought it, and the page
    asks for it at each event."""
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST_LAB + 1)
        if len(text) > LARGEST_LAB or text.count(b"[") + text.count(b"{") > MOST_PARTS:
            return Asks()
        lab = json.loads(text.decode())
    except (OSError, ValueError, RecursionError):
        return Asks()
    if not isinstance(lab, dict):
        return Asks()
    optional, fields = lab.get("optional", ["system"]), lab.get("fields")
    system = lab.get("template") == templates.CHAT and isinstance(optional, list) and "system" in optional
    if not (isinstance(fields, list) and 0 < len(fields) <= templates.MOST_FIELDS):
        return Asks(system=system)
    if not all(map(_is_name, fields)):
        return Asks(system=system)
    return Asks(tuple(dict.fromkeys(fields)), system)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= templates.LONGEST_FIELD and display.valid(name) == name
