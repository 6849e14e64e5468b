"""Which files gave the answers that a run has recorded, by SHA-256, and whether they are still those on disk.

An evaluation writes down the adapter's file that was active on each side, and the graph's files. Adapters are
summed again each time; a graph's file, which may have gigabytes, only if it was touched since the evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from pipeline.exports import contract
from pipeline.store.run import Run

BASE, ADAPTER = "base", "adapter"
FLOAT = "float"  # the model that was quantized, whose answers may be beside theirs
NONE = "none"  # where no adapter was active
UNKNOWN = "Which files gave these answers is not recorded; evaluate again to have their checksums."
GONE = "The exported files that answered are no longer there."
DIGITS = 12  # of a checksum in a sentence
SHA256 = 64  # digits of a whole one: a file that changed while it was loaded has words in its place


@dataclass(frozen=True)
class Files:
    """The files of one side: SHA-256 of the adapter's, or NONE, and of the graph's by name."""

    adapter: str
    graph: Mapping[str, str]


@dataclass(frozen=True)
class Answered:
    """Who answered, by side: BASE, ADAPTER, and other adapters by `other`. `export` is the folder that the
    run exported, `adapter` its adapter's file, and `since` when the answers were written, in nanoseconds."""

    sides: Mapping[str, Files]
    export: Path | None
    adapter: Path | None
    since: int

    @property
    def lines(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """By side in words, its files and their checksums."""
        return [
            (said(side), [("adapter", files.adapter), *sorted(files.graph.items())])
            for side, files in self.sides.items()
        ]

    @property
    def sentence(self) -> str:
        """Who answered, in a sentence with the beginnings of checksums; "" where that is not recorded."""
        told = [
            f"{name}: {', '.join(f'{file} {short(digest)}' for file, digest in named)}"
            for name, named in self.lines
        ]
        return f"Answered by: {'; '.join(told)}." if told else ""

    @property
    def changes(self) -> list[str]:
        """A sentence on each file that is no longer the one that answered. Reads them."""
        if not self.sides:
            return [UNKNOWN]
        if self.export is None or not self.export.is_dir():
            return [GONE]
        return list(dict.fromkeys(self._changes(self.export)))

    def _changes(self, export: Path) -> Iterator[str]:
        for side, files in self.sides.items():
            for name, was in sorted(files.graph.items()):
                file = _inside(export, name)
                if len(was) != SHA256:
                    yield f"{name} {was}, so which one answered is not known."
                elif not self._is_untouched(file) and (now := _sum(file)) != was:
                    yield _changed(name, was, now)
            if files.adapter != NONE:
                yield from self._change_of_adapter(export, side, files.adapter)

    def _change_of_adapter(self, export: Path, side: str, was: str) -> Iterator[str]:
        file, named = self.adapter, self.adapter.name if self.adapter else ""
        if is_other(side):
            named = f"{other(side)}{contract.SUFFIX}"
            file = _inside(export, named)
        if named and (now := _sum(file)) != was:
            yield _changed(f"The adapter {named}", was, now)

    def _is_untouched(self, file: Path | None) -> bool:
        """Whether neither the file nor its name was changed since the answers: nobody can set that time."""
        if file is None:
            return False
        try:
            return file.stat().st_ctime_ns < self.since
        except OSError:
            return False


def read(given: Any, export: str | None, adapter: str | None, written: str | None) -> Answered:
    """What an evaluation's `metrics.files` say, of a run with these paths; `written` are its answers or
    losses. Whatever is no such record is passed over."""
    sides = given if isinstance(given, dict) else {}
    found = {str(side): files for side, told in sides.items() if (files := _files(told)) is not None}
    try:
        since = Path(written).stat().st_mtime_ns if written else 0
    except OSError:
        since = 0
    return Answered(found, Path(export) if export else None, Path(adapter) if adapter else None, since)


def of_run(run: Run) -> Answered:
    """Who gave a run's recorded answers."""
    paths = [path for kind in ("answers", "row_losses") if (path := run.artifact(kind))]
    written = next((path for path in paths if Path(path).exists()), None)
    return read(told(run), run.artifact("onnx"), run.artifact("onnx_adapter"), written)


def told(run: Run) -> Any:
    """What a run's evaluation says of the files that answered."""
    return next((stage.metrics.get("files") for stage in run.stages if stage.kind == "evaluate"), None)


def side(name: str) -> str:
    """The side of another adapter than the run's own."""
    return f"{ADAPTER} {name}"


def is_other(side: str) -> bool:
    """Whether it is the side of another adapter."""
    return side.startswith(f"{ADAPTER} ")


def other(side: str) -> str:
    """The name of such a side's adapter."""
    return side.removeprefix(f"{ADAPTER} ")


def said(side: str) -> str:
    """A side in words."""
    return {BASE: "Base", ADAPTER: "With adapter", FLOAT: "Float model"}.get(side, f"With {other(side)}")


def short(digest: str) -> str:
    """A checksum as a sentence has it; words as they are."""
    return digest[:DIGITS] if len(digest) == SHA256 else digest


def _files(told: Any) -> Files | None:
    graph = told.get("graph") if isinstance(told, dict) else None
    if not isinstance(graph, dict) or not isinstance(told.get("adapter"), str):
        return None
    names = {name: digest for name, digest in graph.items() if isinstance(digest, str)}
    if len(names) != len(graph) or any(PurePath(name).name != name for name in names):
        return None
    return Files(told["adapter"], names)


def _changed(what: str, was: str, now: str | None) -> str:
    there = f"{short(now)} is there now" if now else "it is gone now"
    return f"{what} is no longer the file that answered: {short(was)} did, and {there}."


def _inside(export: Path, name: str) -> Path | None:
    """The file of that name in an export; None if it is not there, or leads out of it."""
    try:
        return contract.inside(export, name)
    except (ValueError, OSError):
        return None


def _sum(file: Path | None) -> str | None:
    """SHA-256 of a file; None if it cannot be read."""
    if file is None:
        return None
    try:
        facts = file.stat()
        return _summed(str(file), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _summed(file: str, *_: int) -> str:
    """The same, once until the file changes."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
