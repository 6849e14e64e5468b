"""Files out of a container by reads of a few megabytes: the largest needs no more memory than a small one.

A file is written under a temporary name, which a later attempt goes on with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.azure import storage, upload
from pipeline.azure.storage import Container
from pipeline.errors import LabError
from pipeline.meter import Meter

PART = ".part"


@dataclass(frozen=True)
class Remote:
    """A file in a container: its whole name, its bytes, its tag there, and what is known of its content."""

    blob: str
    size: int
    etag: str
    sha256: str = ""
    md5: str = ""


def listed(container: Container, prefix: str) -> dict[str, Remote]:
    """The files below the prefix, by their names there. Folders, which the service keeps as files, are none.

    Raises LabError for a name that would lead out of a folder.
    """

    def ask(client: Any) -> list[Any]:
        return list(client.list_blobs(name_starts_with=f"{prefix.rstrip('/')}/", include=["metadata"]))

    found = {}
    for blob in container.do(ask):
        metadata = blob.metadata or {}
        if metadata.get("hdi_isfolder"):
            continue
        name = blob.name[len(prefix.rstrip("/")) + 1 :]
        if not _safe(name):
            raise LabError(
                f"The model has a file named {name!r}, which leads out of its folder; it is not taken."
            )
        md5 = blob.content_settings.content_md5
        found[name] = Remote(
            blob.name,
            blob.size,
            blob.etag.strip('"'),
            metadata.get(upload.SHA, ""),
            bytes(md5).hex() if md5 else "",
        )
    return found


def _safe(name: str) -> bool:
    parts = name.split("/")
    return (
        not name.startswith("/")
        and "\\" not in name
        and "\0" not in name
        and not {"", ".", ".."} & set(parts)
    )


def fetch(container: Container, files: dict[str, Remote], folder: Path, meter: Meter) -> dict[str, str]:
    """Bring files into the folder under the names they are given by; returns each one's SHA-256.

    What is in the folder already is kept. Raises LabError for one whose content the container does not have.
    """
    sums = {}
    for name, remote in sorted(files.items()):
        target = folder / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == remote.size:
            sums[name] = _digest(target)
            meter.add(remote.size, f"{name} is here already", moved=False)
        else:
            sums[name] = _fetch(container, name, remote, target, meter)
    return sums


def _fetch(container: Container, name: str, remote: Remote, target: Path, meter: Meter) -> str:
    """Read one file from where an earlier attempt has got to; returns its SHA-256."""
    part = target.with_name(f".{target.name}.{remote.etag[-16:]}{PART}")  # of this very content
    sha = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if remote.md5 else None

    def take(piece: bytes) -> None:
        sha.update(piece)
        if md5 is not None:
            md5.update(piece)

    with part.open("a+b") as file:
        begun = _begun(file.fileno(), remote.size)
        file.truncate(begun)
        file.seek(0)
        while piece := file.read(storage.BLOCK):
            take(piece)
        if begun:
            meter.add(begun, f"Downloading {name}", moved=False)
        with storage.together() as run:
            for piece in run(_reads(container, remote, begun)):
                take(piece)
                file.write(piece)
                meter.add(len(piece), f"Downloading {name}")
    wrong = remote.sha256 not in ("", sha.hexdigest())
    if wrong or (md5 is not None and md5.hexdigest() != remote.md5):
        part.unlink()
        raise LabError(f"{name} came out of Azure with other content than it has there; try again.")
    part.replace(target)
    return sha.hexdigest()


def _begun(file: int, size: int) -> int:
    """Bytes of an earlier attempt that can be kept."""
    there = os.fstat(file).st_size
    return there if there <= size else 0


def _reads(container: Container, remote: Remote, begun: int) -> Iterator[Callable[[], bytes]]:
    for start in range(begun, remote.size, storage.BLOCK):
        yield partial(_read, container, remote, start, min(storage.BLOCK, remote.size - start))


def _read(container: Container, remote: Remote, start: int, length: int) -> bytes:
    def read(client: Any) -> bytes:
        blob = client.get_blob_client(remote.blob)
        data: bytes = blob.download_blob(offset=start, length=length, max_concurrency=1).readall()
        return data

    data = container.do(read)
    if len(data) != length:
        raise LabError(f"{remote.blob} became shorter while it was downloaded; try again.")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
