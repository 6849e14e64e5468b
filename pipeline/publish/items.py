"""The files of a version: the export's own, and those written for the target."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.publish import zip_file
from pipeline.system import checksums


@dataclass(frozen=True)
class Item:
    """A file to send: its name below the prefix, where its bytes are, how many, and their SHA-256."""

    name: str
    source: Path | bytes
    size: int
    sha256: str

    def open(self) -> BinaryIO:
        """Its bytes, to be read once."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def packed(source: Path, written: Mapping[str, str], beside: Mapping[str, Path] | None = None) -> list[Item]:
    """All files with their checksums, sorted by name: the export's, those `beside` it, texts, and SHA256SUMS.

    For the export's own files these are its checksums, which were verified just before.
    """
    told = checksums.read(source)
    paths = {path.relative_to(source).as_posix(): path for path in zip_file.files(source)}
    sums = {name: told[name] for name in paths if name in told}
    sums |= checksums.of(source, [name for name in paths if name not in told])
    for name, path in (beside or {}).items():
        paths[name] = path
        sums |= {name: checksums.of(path.parent, [path.name])[path.name]}
    items = [Item(name, path, path.stat().st_size, sums[name]) for name, path in paths.items()]
    texts = {name: text.encode() for name, text in written.items()}
    sums |= {name: checksums.of_bytes(text) for name, text in texts.items()}
    texts[checksums.NAME] = checksums.text(sums).encode()
    items += [Item(name, text, len(text), checksums.of_bytes(text)) for name, text in texts.items()]
    return sorted(items, key=lambda item: item.name)
