"""Downloads files from a container in reads of a few megabytes, so that memory does not depend on their size.

Until all are there, a file waits under a name made of its path and ETag, so that a later attempt can resume
it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.exports import verify
from pipeline.publish.azure.transfer import blob_client, upload
from pipeline.publish.azure.transfer.blob_client import Container
from pipeline.system.files import KEPT_FREE
from pipeline.system.files import size as disk_size
from pipeline.system.transfer_progress import Meter

ARRIVING = ".arriving"  # the subfolder in which files wait
SPARE = KEPT_FREE  # bytes
MOST_FILES = verify.MOST_FILES  # what `verify` would refuse is not fetched
LONGEST_PART, LONGEST = 255, 1024  # bytes of a part of a path, and of a whole path


@dataclass(frozen=True)
class Remote:
    """A file in a container: its full name, size, ETag, and known hash."""

    blob: str
    size: int
    etag: str
    sha256: str = ""
    md5: str = ""


def listed(container: Container, prefix: str) -> dict[str, Remote]:
    """The files below the prefix, by their relative names.

    Raises LabError for invalid file names, and for more files than a model that is used here may have.
    """
    blobs = upload.blobs(container, prefix, MOST_FILES)
    check_names(blobs)
    found = {}
    for name, blob in blobs.items():
        md5 = blob.content_settings.content_md5
        found[name] = Remote(
            blob.name,
            blob.size,
            blob.etag.strip('"'),
            (blob.metadata or {}).get(upload.SHA, ""),
            bytes(md5).hex() if md5 else "",
        )
    return found


def check_names(names: Iterable[str]) -> None:
    """Raise LabError for a name that leads out of its folder or that this machine cannot have."""
    there = set(names)
    for name in sorted(there):
        if why := _unfit(name) or ("is in a folder that is a file as well" if _inside(name) & there else ""):
            raise LabError(
                f"The model has a file named {name[:80]!r}, which {why}; it has to be registered without it."
            )


def _unfit(name: str) -> str:
    parts = name.split("/")
    if "\\" in name or {"", ".", ".."} & set(parts):
        return "leads out of its folder"
    if not name.isprintable():
        return "has letters that cannot be shown"
    if len(name.encode()) > LONGEST or max(len(part.encode()) for part in parts) > LONGEST_PART:
        return "is too long for a disk"
    return "is kept for what is on its way" if parts[0] == ARRIVING else ""


def _inside(name: str) -> set[str]:
    """The folders that a file lies in."""
    return {str(folder) for folder in PurePosixPath(name).parents}


def fetch(container: Container, files: dict[str, Remote], folder: Path, meter: Meter) -> dict[str, str]:
    """Download files into the folder under the given names; returns each one's SHA-256.

    Raises LabError where `arrive` does. Afterwards the folder contains nothing else.
    """
    sums = arrive(container, files, folder, meter)
    settle(files, folder)
    return sums


def arrive(container: Container, files: dict[str, Remote], folder: Path, meter: Meter) -> dict[str, str]:
    """Download files to their waiting places in the folder; returns each one's SHA-256 by name.

    Files of an earlier attempt with the same content are kept; anything else in the folder is deleted.
    Raises LabError if the disk has too little space or fills up, and for a file whose content differs from
    its hash.
    """
    (folder / ARRIVING).mkdir(mode=0o700, parents=True, exist_ok=True)
    _clear(folder, {waiting(folder, remote) for remote in files.values()})
    _room(folder, sum(remote.size for remote in files.values()))
    return {
        name: _fetch(container, name, remote, waiting(folder, remote), meter)
        for name, remote in sorted(files.items())
    }


def settle(files: dict[str, Remote], folder: Path) -> None:
    """Move the waiting files to their final names."""
    for name, remote in files.items():
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        waiting(folder, remote).replace(folder / name)
    (folder / ARRIVING).rmdir()


def waiting(folder: Path, remote: Remote) -> Path:
    """The waiting place of a file; its name includes the ETag, so that content never gets mixed up."""
    return folder / ARRIVING / hashlib.sha256(f"{remote.etag} {remote.blob}".encode()).hexdigest()


def _clear(folder: Path, wanted: set[Path]) -> None:
    for path in {*folder.iterdir(), *(folder / ARRIVING).iterdir()} - wanted - {folder / ARRIVING}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _room(folder: Path, size: int) -> None:
    needed = size - disk_size(folder / ARRIVING)
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise LabError(
            f"The model needs {display.size(needed)} more of disk, and {display.size(free)} are free; free"
            " some and try again."
        )


def _fetch(container: Container, name: str, remote: Remote, part: Path, meter: Meter) -> str:
    """Download one file, resuming an earlier attempt; returns its SHA-256."""
    sha = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if remote.md5 else None

    def take(piece: bytes) -> None:
        sha.update(piece)
        if md5 is not None:
            md5.update(piece)

    with part.open("a+b") as file:
        kept = _kept(file.fileno(), remote.size)
        file.truncate(kept)
        file.seek(0)
        while piece := file.read(blob_client.BLOCK):
            take(piece)
        if kept:
            here = f"{name} is here already" if kept == remote.size else f"Downloading {name}"
            meter.add(kept, here, moved=False)
        with blob_client.together() as run:
            for piece in run(_reads(container, remote, kept)):
                take(piece)
                if shutil.disk_usage(part.parent).free < SPARE:
                    raise LabError("The disk is full; free some room and try again.")
                file.write(piece)
                meter.add(len(piece), f"Downloading {name}")
    wrong = remote.sha256 not in ("", sha.hexdigest())
    if wrong or (md5 is not None and md5.hexdigest() != remote.md5):
        part.unlink()
        raise LabError(
            f"{name} came out of Azure with other content than it has there; try again, and if that does not"
            " help, somebody changed it there: publish it again under a version number of its own."
        )
    return sha.hexdigest()


def _kept(file: int, size: int) -> int:
    """Bytes of an earlier attempt that can be kept."""
    there = os.fstat(file).st_size
    return there if there <= size else 0


def _reads(container: Container, remote: Remote, kept: int) -> Iterator[Callable[[], bytes]]:
    for start in range(kept, remote.size, blob_client.BLOCK):
        yield partial(_read, container, remote, start, min(blob_client.BLOCK, remote.size - start))


def small(container: Container, remote: Remote) -> bytes:
    """The content of a file; for one that is small by the size that it has there. Raises LabError."""
    return _read(container, remote, 0, remote.size) if remote.size else b""


def _read(container: Container, remote: Remote, start: int, length: int) -> bytes:
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError

    def read(client: Any) -> bytes:
        data: bytes = (
            client.get_blob_client(remote.blob)
            .download_blob(
                offset=start,
                length=length,
                max_concurrency=1,
                decompress=False,  # a file that says it is packed could be a thousand times its size
                etag=f'"{remote.etag}"',
                match_condition=MatchConditions.IfNotModified,
            )
            .readall()
        )
        return data

    try:
        data = container.do(read)
    except ResourceModifiedError:
        raise LabError(f"{remote.blob} was changed in Azure while it was downloaded; try again.") from None
    if len(data) != length:
        raise LabError(f"{remote.blob} came out of Azure with another size than it has there; try again.")
    return data
