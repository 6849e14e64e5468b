"""A finished run's exported folder as a ZIP that is made while it is sent, with card, recipe and checksums.

All files are opened before the first byte is sent, so that a result that is replaced or deleted meanwhile is
still sent completely. Weights don't compress, so they are stored uncompressed, and the length is known in
advance.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.publish import card
from pipeline.publish.card import CARD
from pipeline.publish.report import files as report_files
from pipeline.publish.samples import offered
from pipeline.stages import artifacts
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system import checksums
from pipeline.system.files import whole

RECIPE = "recipe.yaml"
# Files of the folder that the ZIP leaves out or replaces.
OURS = (
    CARD, RECIPE, checksums.NAME, artifacts.MANIFEST, *report_files.NAMES, report_files.ANSWERS,
    *offered.NAMES, card.LICENCE,
)  # fmt: skip
BYTECODE = "__pycache__"  # left by a program that ran in the folder
EARLIEST = 315532800  # 1980-01-01, in seconds since the epoch
PIECE = 1 << 20  # bytes read at a time
SMALL = 1 << 18  # bytes of a text that is kept in memory while it is sent
READABLE = 0o100644 << 16  # a regular file with mode 0644, in ZIP's format


def exported(run: Run) -> Path | None:
    """The exported folder, or None: only a run that is done has one, unless it was deleted."""
    folder = run.shipped
    return Path(folder) if run.status == DONE and folder is not None and Path(folder).is_dir() else None


def _why_not(run: Run) -> str:
    if run.status == DONE and run.shipped:
        return f"The exported model of run {run.id} is no longer there; run its recipe again."
    return f"Run {run.id} is {run.status} and has no exported model; only a finished one is downloaded."


def file_name(run: Run) -> str:
    """The name of the download: the run's name in ASCII letters and digits, and its id."""
    return f"{_stem(run)}.zip"


def _stem(run: Run) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", run.name)[:60].strip("-")
    return f"{name}-{run.id}" if name else run.id


@dataclass(frozen=True)
class Entry:
    """A file of the ZIP: its name there, its length in bytes, and where its bytes are read."""

    name: str
    size: int
    source: IO[bytes]


class Takeaway:
    """The ZIP of a run: iterate once for its bytes, in pieces of up to a megabyte, then close it.

    `size` is its length in bytes. Iterating raises LabError if a file turns out shorter than it was.
    Threads may take turns, one at a time.
    """

    def __init__(self, home: Path, run: Run, texts: Mapping[str, str] | None = None) -> None:
        """Open all files. `texts` is as `written` makes it; without it, it is made here, and holds no rows of
        the data. Raises InputError if the run has no exported model."""
        folder = exported(run)
        if folder is None:
            raise InputError(_why_not(run))
        self._when = _moment(run.created)
        with contextlib.ExitStack() as opening:
            texts = written(home, run, False) if texts is None else texts
            self._entries = [_kept(name, text.encode(), opening) for name, text in texts.items()]
            try:
                self._entries += [_open(path, folder, opening) for path in files(folder)]
            except FileNotFoundError:
                raise InputError(
                    f"The exported model of run {run.id} is being replaced; try again."
                ) from None
            self._opened = opening.pop_all()
        self.size = _length([*self._entries, self._sums()])

    def __iter__(self) -> Iterator[bytes]:
        passed = _Passed()
        digests = {}
        with zipfile.ZipFile(passed, "w") as archive:
            for entry in self._entries:
                digest = hashlib.sha256()
                with archive.open(self._info(entry), "w") as target:
                    for piece in _pieces(entry):
                        digest.update(piece)
                        target.write(piece)
                        yield from passed.taken()
                digests[entry.name] = digest.hexdigest()
            sums = self._sums(digests)
            with archive.open(self._info(sums), "w") as target:
                target.write(sums.source.read())
        yield from passed.taken()

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def __enter__(self) -> Takeaway:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _sums(self, digests: dict[str, str] | None = None) -> Entry:
        """The checksums as `sha256sum` reads them; before they are known, a placeholder of equal length."""
        known = digests or {entry.name: "0" * 64 for entry in self._entries}
        text = checksums.text(known).encode()
        return Entry(checksums.NAME, len(text), io.BytesIO(text))

    def _info(self, entry: Entry) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(entry.name, self._when)  # the run's time, so that each download is the same
        info.file_size, info.external_attr = entry.size, READABLE
        return info


class _Passed(io.RawIOBase):
    """A write-only, unseekable stream for zipfile; `taken` returns and clears what was written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> list[bytes]:
        """All that was written since the last call."""
        pieces, self._pieces = self._pieces, []
        return pieces


def written(home: Path, run: Run, rows: bool) -> dict[str, str]:
    """What the ZIP has besides the export's files: card, recipe, report, and programs for other apps; rows of
    data only if `rows`."""
    told = report_files.written(home, run, rows)
    folder = Path(str(run.shipped))
    programs = offered.texts(folder, _stem(run))
    use = f"{card.app(run)}\n\n{offered.lines(folder, programs)}"
    return {
        CARD: card.text(home, run, run.name, use=use),
        RECIPE: card.recipe(run),
        **card.texts(home, run),
        **told,
        **programs,
    }


def asked(run: str, rows: bool) -> Generator[str, None, dict[str, str]]:
    """`written`, as a process is asked for it."""
    yield "Writing card and report…"
    home = settings.home()
    return written(home, Store(home).get(run), rows)


def files(folder: Path) -> list[Path]:
    """The files of an exported folder, without those that the ZIP replaces, our manifest, and bytecode."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != BYTECODE)
    return [path for path in found if str(path.relative_to(folder)) not in OURS]


def _kept(name: str, text: bytes, opening: contextlib.ExitStack) -> Entry:
    """An entry of a text, which waits on the disk if it is large: a reader may take an hour."""
    kept = tempfile.SpooledTemporaryFile(SMALL)  # noqa: SIM115  # `opening` closes it
    opening.enter_context(kept)
    kept.write(text)
    kept.seek(0)
    return Entry(name, len(text), kept)


def _open(path: Path, folder: Path, opening: contextlib.ExitStack) -> Entry:
    source = opening.enter_context(path.open("rb", buffering=0))
    return Entry(path.relative_to(folder).as_posix(), os.fstat(source.fileno()).st_size, source)


def _pieces(entry: Entry) -> Iterator[bytes]:
    """Exactly `size` bytes of a file. Raises LabError if it has fewer by now."""
    left = entry.size
    while left:
        piece = entry.source.read(min(left, PIECE))
        if not piece:
            raise LabError(f"{entry.name} became shorter while it was being downloaded.")
        left -= len(piece)
        yield piece


def _moment(seconds: float) -> tuple[int, int, int, int, int, int]:
    """A time since the epoch in ZIP's format, in UTC; ZIP has none before 1980."""
    moment = time.gmtime(max(seconds, EARLIEST))
    return moment.tm_year, moment.tm_mon, moment.tm_mday, moment.tm_hour, moment.tm_min, moment.tm_sec


def _length(entries: list[Entry]) -> int:
    """Size of the ZIP that zipfile makes of uncompressed files on an unseekable stream.

    Each file has a header, its bytes and a descriptor; at the end there are a directory entry for each, and
    the end record. What passes zipfile's limit (2 GiB) takes the longer fields of zip64.
    """
    limit = zipfile.ZIP64_LIMIT
    position = directory = 0
    for entry in entries:
        name = len(entry.name.encode())
        long = entry.size * 1.05 > limit  # zipfile decides this before it reads the file
        wide = 2 * (entry.size > limit) + (position > limit)  # numbers that need the longer field
        directory += 46 + name + (4 + 8 * wide if wide else 0)
        position += 30 + name + (20 if long else 0) + entry.size + (24 if long else 16)
    more = len(entries) > zipfile.ZIP_FILECOUNT_LIMIT or max(position, directory) > limit
    return position + directory + 22 + (56 + 20 if more else 0)


def save(home: Path, run: Run, target: Path, rows: bool = False) -> int:
    """Write the ZIP of a run to `target`, complete or not at all; returns its size. It holds rows of the data
    only if `rows`.

    Raises InputError if the run has no exported model, the folder does not exist, or the file does.
    """
    if target.exists():
        raise InputError(f"{target}: already exists; give another name with --to")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")
    texts = written(home, run, rows) if exported(run) else None
    with Takeaway(home, run, texts) as zipped, whole(target, shared=True) as part:
        with part.open("xb") as file:
            for piece in zipped:
                file.write(piece)
        if target.exists():
            raise LabError(f"{target} was created meanwhile; nothing was overwritten.")
    return zipped.size
