"""Uploads files to a container, block by block. Files and blocks that are already there are not sent again.

A block's name includes the hash of its content, and a file appears in the container only when all its blocks
are there, so an interrupted upload resumes.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.publish.azure import faults
from pipeline.publish.azure.transfer import blob_client
from pipeline.publish.azure.transfer.blob_client import Container
from pipeline.publish.items import Item
from pipeline.system.transfer_progress import Meter

SHA = "sha256"  # the metadata of a finished file
OUR_BLOCK = re.compile(r"\d{6,}-[0-9a-f]{24}")
MOST_FILES = 20_000  # of a model; each takes 2 kB of memory in a list


PENDING = "pending"  # status of a copy inside Azure that takes a while
FAILED = "failed"
UNDER_WAY = "PendingCopyOperation"
COPY_SECONDS = 600.0
LOOK_SECONDS = 1.0  # between two checks of a copy


class TooMany(LabError):
    """More files than a model can have."""


def send(container: Container, prefix: str, items: list[Item], meter: Meter, among: str = "") -> None:
    """Upload all files, then compare what is there with them.

    A file that already exists below `among`, from another version of ours, is copied inside Azure.

    Raises LabError if a file changes while it is read, if the upload fails, and for foreign files in the
    target folder.
    """
    there = stored(container, prefix)
    wanted = {item.name: (item.size, item.sha256) for item in items}
    if foreign := sorted(there.keys() - wanted.keys()):
        raise LabError(
            f"Files that are not of this model lie beside it in Azure ({display.names(foreign)}); remove them"
            f" from {prefix} in the container, then publish again."
        )
    missing = [item for item in items if there.get(item.name) != wanted[item.name]]
    known = _known(container, among) if among and missing else {}
    for item in items:
        name = f"{prefix}/{item.name}"
        if item not in missing and _sent_by_us(container, name, item):
            meter.add(item.size, f"{item.name} is there already", moved=False)
        elif _copied(container, known.get((item.size, item.sha256)), name, item):
            meter.add(item.size, f"{item.name} is copied from another version", moved=False)
        else:
            _send(container, name, item, meter)
    there = stored(container, prefix)
    if different := sorted({name for name, _ in wanted.items() ^ there.items()}):
        raise LabError(
            f"What is in Azure is not what was sent ({display.names(different)}); nothing was registered,"
            " publish again."
        )


def stored(container: Container, prefix: str) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file below the prefix; "" for one without a SHA-256."""
    return {
        name: (blob.size, (blob.metadata or {}).get(SHA, ""))
        for name, blob in blobs(container, prefix).items()
    }


def blobs(container: Container, prefix: str, most: int | None = None) -> dict[str, Any]:
    """The files below the prefix with their properties, by relative name; "" is the whole container.

    Folders, which the service stores as files, are skipped. Raises LabError for more than `most` files, by
    default MOST_FILES.
    """
    most = most or MOST_FILES
    start = f"{prefix}/" if prefix else ""

    def listed(client: Any) -> list[Any]:
        return list(islice(client.list_blobs(name_starts_with=start, include=["metadata"]), most + 1))

    found = container.do(listed)
    if len(found) > most:
        raise TooMany(
            f"More than {most:,} files lie at {prefix or 'the top'} of the container, which no model"
            " has; register the folder of the model alone."
        )
    return {blob.name[len(start) :]: blob for blob in found if not (blob.metadata or {}).get("hdi_isfolder")}


def _known(container: Container, among: str) -> dict[tuple[int, str], str]:
    """Our files in the container, by size and SHA-256; {} if there are too many to list."""
    try:
        found = stored(container, among)
    except TooMany:
        return {}
    return {facts: f"{among}/{name}" for name, facts in found.items() if facts[1]}


def _copied(container: Container, source: str | None, name: str, item: Item) -> bool:
    """Copy a file inside the container; False if that fails, so that it must be uploaded.

    Blocks and metadata are copied too. The copy is compared like an uploaded file.
    """
    from azure.core.exceptions import HttpResponseError

    if source is None or not item.size or not _sent_by_us(container, source, item):
        return False

    def copy(client: Any) -> str:
        # The address has the client's access signature, if it has one.
        address = client.get_blob_client(source).url
        try:
            return str(client.get_blob_client(name).start_copy_from_url(address)["copy_status"])
        except HttpResponseError as error:
            code = faults.code_of(error)
            if code == UNDER_WAY:  # started by a killed publish
                return PENDING
            if error.status_code in (429, 503) or code in blob_client.EXPIRED:
                raise
            return FAILED  # whatever the reason, the file can be uploaded

    def asked(client: Any) -> str:
        return str(client.get_blob_client(name).get_blob_properties().copy.status)

    try:
        status, began = container.do(copy), time.monotonic()
        while status == PENDING and time.monotonic() - began < COPY_SECONDS:
            time.sleep(LOOK_SECONDS)
            status = container.do(asked)
        if status == PENDING:
            container.do(lambda client: client.get_blob_client(name).abort_copy(_copy_id(client, name)))
    except HttpResponseError:  # it was deleted meanwhile, or the login may not read it
        return False
    return status == "success"


def _copy_id(client: Any, name: str) -> str:
    return str(client.get_blob_client(name).get_blob_properties().copy.id)


def _sent_by_us(container: Container, name: str, item: Item) -> bool:
    """Whether a file consists of our blocks; its metadata alone could be of an older content."""

    def asked(client: Any) -> list[Any]:
        committed, _ = client.get_blob_client(name).get_block_list("committed")
        return list(committed)

    blocks = container.do(asked)
    return bool(blocks or not item.size) and all(OUR_BLOCK.fullmatch(block.id) for block in blocks)


def _send(container: Container, name: str, item: Item, meter: Meter) -> None:
    """Upload one file: its blocks, several at a time, then the list of blocks, which completes it."""
    from azure.storage.blob import BlobBlock

    staged = _staged(container, name)
    digest = hashlib.sha256()
    names: list[str] = []

    def blocks() -> Iterator[Callable[[], tuple[int, bool]]]:
        with item.open() as file:
            while data := file.read(blob_client.BLOCK):
                digest.update(data)
                names.append(f"{len(names):06d}-{hashlib.sha256(data).hexdigest()[:24]}")
                yield partial(_stage, container, name, names[-1], data, staged)

    with blob_client.together() as run:
        for size, moved in run(blocks()):
            meter.add(size, f"Uploading {item.name}", moved)
    if digest.hexdigest() != item.sha256:
        raise LabError(f"{item.name} changed while it was uploaded; nothing was registered, publish again.")
    listed = [BlobBlock(block) for block in names]
    container.do(
        lambda client: client.get_blob_client(name).commit_block_list(listed, metadata={SHA: item.sha256})
    )


def _stage(
    container: Container, name: str, block: str, data: bytes, staged: Mapping[str, int]
) -> tuple[int, bool]:
    """Upload one block unless it is there; returns its size and whether it was uploaded."""
    if staged.get(block) == len(data):
        return len(data), False
    container.do(
        lambda client: client.get_blob_client(name).stage_block(block, data, len(data), validate_content=True)
    )
    return len(data), True


def _staged(container: Container, name: str) -> dict[str, int]:
    """Blocks from an earlier upload of the file: sizes by name."""
    from azure.core.exceptions import ResourceNotFoundError

    def listed(client: Any) -> dict[str, int]:
        try:
            _, waiting = client.get_blob_client(name).get_block_list("uncommitted")
        except ResourceNotFoundError:
            return {}
        return {block.id: block.size for block in waiting}

    return container.do(listed)
