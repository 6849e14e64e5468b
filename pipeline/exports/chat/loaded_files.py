"""A loaded model with the checksums of the bytes that it was loaded from, by the process that holds it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from pipeline.errors import LabError
from pipeline.exports import contract, generation
from pipeline.exports.chat.sources import Source

PIECE = 1 << 20
ADAPTER = "adapter"  # the name by which the source's own is asked
CHANGED = "changed while it was loaded"
MOST_GRAPH_FILES = 64  # each is named beside every answer, and anybody may have made the folder
Stat = tuple[int, int, int]


class Loaded:
    """A model, the SHA-256 of its adapters' files by name, and those of its graph's files, which take longer.

    An adapter is loaded from a copy of our own, so its checksum is of what is in memory, whatever becomes of
    the file. Weights are too large for that: a file of theirs that changes meanwhile has CHANGED for one.
    """

    def __init__(self, source: Source, more: Mapping[str, Path] | None = None) -> None:
        """Load it, with `more` adapters by other names than a file's. Raises OSError, LabError for too many
        files, and what `generation.load` raises."""
        self.source = source
        self._before = {path.name: _stat(path) for path in _graph_files(source.folder)}
        self._touched = {name: _touched(source.folder / name) for name in self._before}
        own = {ADAPTER: source.adapter} if source.adapter else {}
        wanted = {**own, **{file.stem: file for file in source.others}, **(more or {})}
        with tempfile.TemporaryDirectory(prefix="olive-lab-") as folder:
            copies = {name: Path(folder) / f"{number}{contract.SUFFIX}" for number, name in enumerate(wanted)}
            self.adapters = {name: _copied(file, copies[name]) for name, file in wanted.items()}
            self.model = generation.load(source.folder, copies)
        self._graph: dict[str, str] = {}
        self._summing = threading.Thread(target=self._sum, daemon=True)  # hashing lets other threads run
        self._summing.start()

    @property
    def adapter(self) -> str | None:
        """SHA-256 of the source's own adapter; None if it has none."""
        return self.adapters.get(ADAPTER) if self.source.adapter else None

    def digest(self, text: str, adapter: str | None) -> str:
        """SHA-256 of the logits after a text, with an adapter by its name or without one.

        Raises what onnxruntime_genai raises where the adapter does not fit the graph.
        """
        return hashlib.sha256(generation.logits(self.model, text, adapter).tobytes()).hexdigest()

    def is_summed(self, seconds: float) -> bool:
        """Whether `graph` is known, after waiting so long at most."""
        self._summing.join(seconds)
        return not self._summing.is_alive()

    def graph(self) -> dict[str, str]:
        """SHA-256 of the files of the graph and its weights, by name; waits until they are read."""
        self._summing.join()
        return self._graph

    def graph_still(self) -> dict[str, str]:
        """The same, with CHANGED for a file that is no longer what was loaded; reads those that were touched.

        Until now somebody may have put another file there, however old it looks.
        """
        found = self.graph()
        return {name: digest if self._is_still(name, digest) else CHANGED for name, digest in found.items()}

    def _is_still(self, name: str, digest: str) -> bool:
        path = self.source.folder / name
        try:
            return _touched(path) == self._touched[name] or _sum(path) == digest
        except OSError:
            return False

    def adapter_now(self) -> str | None:
        """SHA-256 of the adapter's file as it is now; None if there is none any more."""
        try:
            return _sum(self.source.adapter) if self.source.adapter else None
        except OSError:
            return None

    def _sum(self) -> None:
        found = {}
        for name, before in self._before.items():
            path = self.source.folder / name
            try:
                digest = _sum(path)
                found[name] = digest if _stat(path) == before else CHANGED
            except OSError:
                found[name] = CHANGED
        self._graph = found


def load(source: Source) -> Loaded:
    """Load a source. Raises what `Loaded` does."""
    return Loaded(source)


def _graph_files(folder: Path) -> list[Path]:
    found = (path for pattern in ("*.onnx", "*.onnx.data") for path in folder.glob(pattern))
    few = list(islice(found, MOST_GRAPH_FILES + 1))
    if len(few) > MOST_GRAPH_FILES:
        raise LabError(f"This model has more than {MOST_GRAPH_FILES} graph files; export it again.")
    return sorted(few)


def _stat(path: Path) -> Stat:
    facts = path.stat()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _touched(path: Path) -> int:
    """When a file's bytes, name or attributes were last changed, in nanoseconds: nobody can set that."""
    return path.stat().st_ctime_ns


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copied(path: Path, to: Path) -> str:
    """Copy a file; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with path.open("rb") as file, to.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        while piece := file.read(PIECE):
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()
