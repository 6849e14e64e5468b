"""SHA256SUMS: checksums of a folder's files, as `sha256sum -c` reads them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.system import hardware, own_process

NAME = "SHA256SUMS"
LARGEST = 1 << 22  # bytes of such a file: a thousand files have some hundred kilobytes
LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<name>.+)")
TAGGED = re.compile(
    r"SHA256 \((?:\./)?(?P<name>.+)\) = (?P<digest>[0-9a-fA-F]{64})"
)  # as BSD and --tag write


def write(folder: Path) -> None:
    """Write the checksums of every file in the folder, except this one. Raises OSError as `of` does."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in found if name != NAME]
    started = {name: _started.pop(_state((folder / name).stat()), None) for name in names}
    sums = of(folder, (name for name, ahead in started.items() if ahead is None))
    taken = {name: ahead.taken() for name, ahead in started.items() if ahead is not None}
    sums |= {name: digest for name, digest in taken.items() if digest is not None}
    (folder / NAME).write_text(text(sums | of(folder, taken.keys() - sums.keys())), "utf-8")


def begin(file: Path) -> None:
    """Take the checksum of a file that is complete, from a thread, for `write` of a folder that has it then.

    Hashing gigabytes takes seconds, in which this process can do other work. A file that has another name by
    then is still the same; one that was copied or changed is read again, and so is one that could not be
    read, so that `write` fails for it as it does without this.
    """
    ahead = _Ahead(file.open("rb"))
    own_process.start_thread(ahead)
    _started[ahead.state] = ahead


State = tuple[int, int, int, int]


def _state(facts: os.stat_result) -> State:
    """What changes with the content of a file, and not with its name."""
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


class _Ahead(threading.Thread):
    """Takes the checksum of an open file, and closes it. The end of the process does not wait for it."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(name="checksum", daemon=True)
        self.file, self.state = file, _state(os.fstat(file.fileno()))
        self._digest: str | None = None

    def run(self) -> None:
        with suppress(OSError), self.file:
            digest = _digest(self.file)
            if _state(os.fstat(self.file.fileno())) == self.state:
                self._digest = digest

    def taken(self) -> str | None:
        """The checksum, once it is there; None if there is none."""
        self.join()
        return self._digest


_started: dict[State, _Ahead] = {}


def of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by name. Raises OSError for one that cannot be read."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and to look at a run needs none

    wanted = sorted(names)
    # Files are hashed in parallel: hashing releases the interpreter lock.
    with ThreadPoolExecutor(hardware.cores()) as pool:
        return dict(zip(wanted, pool.map(lambda name: _of(folder / name), wanted), strict=True))


def intact(folder: Path) -> bool:
    """Whether the folder has checksums and all files in them are unchanged."""
    try:
        told = read(folder)
        return bool(told) and of(folder, told) == told
    except (OSError, ValueError):
        return False


def text(sums: Mapping[str, str]) -> str:
    """The lines of the file, by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def read(folder: Path) -> dict[str, str]:
    """The folder's checksums by name; empty if it has none. Raises ValueError naming a faulty line, or where
    somebody's file is no text or larger than any real one.
    """
    if not (folder / NAME).is_file():
        return {}
    with (folder / NAME).open("rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise ValueError(f"{NAME} is larger than any real one; export the model again")
    try:
        return parse(found.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{NAME} is not text in UTF-8; export the model again") from None


def parse(text: str) -> dict[str, str]:
    """The checksums by name in the text of such a file. Raises ValueError naming a faulty line."""
    found = {}
    for number, ended in enumerate(io.StringIO(text, newline=None), 1):
        line = ended.removesuffix("\n")
        match = LINE.fullmatch(line) or TAGGED.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} of {NAME} is not a checksum; export the model again")
        found[match["name"]] = match["digest"].lower()
    return found


def of_bytes(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def _of(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: io.BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
