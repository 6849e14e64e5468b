"""Downloads a registered model's files by ranged reads and compares them with known checksums."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.inputs.azure_address import Reference, parse
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import lineage
from pipeline.publish.azure.transfer import blob_client, download
from pipeline.publish.azure.transfer.blob_client import Container
from pipeline.publish.azure.transfer.download import Remote
from pipeline.system import checksums, locks
from pipeline.system.transfer_progress import Meter, Report

LARGEST_TEXT = 1 << 20  # bytes
IN_DATASTORE = re.compile(
    r"azureml://(?:subscriptions/[^/]+/resourcegroups/[^/]+/workspaces/[^/]+/)?datastores/([^/]+)/paths(?:/(.*))?",
    re.IGNORECASE,
)


def pull(home: Path, where: Place, uri: str, to: Path | None, report: Report) -> dict[str, Any]:
    """Download all files of a version into a new folder: whole or not at all, resumed where one was started.

    Raises InputError if the folder is there or what was started has links, LabError if what came differs from
    its checksums.
    """
    reference = parse(uri, where)
    target = to or Path(f"{reference.name}-{reference.version}")
    if target.exists():
        raise InputError(f"{target}: already exists; give another folder with --to")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.absolute().parent}: no such folder")
    part = target.with_name(f".{target.name}.part")
    with _alone(target, part):
        return _pulled(reference, target, part, report)


@contextmanager
def _alone(target: Path, part: Path) -> Iterator[None]:
    """Keep other processes from the same download. Raises LabError if one is running."""
    path = part.with_name(f"{part.name}.lock")
    lock = _taken(path)
    if lock is None:
        raise LabError(f"{target}: is being pulled already; wait for that, or give another folder.")
    try:
        yield
    finally:
        if not part.exists():  # there is nothing to resume
            path.unlink(missing_ok=True)
        os.close(lock)


def _taken(path: Path) -> int | None:
    """Take a lock whose file is deleted at the end, making sure that the file still exists."""
    while (lock := locks.take(path)) is not None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)
    return None


def _pulled(reference: Reference, target: Path, part: Path, report: Report) -> dict[str, Any]:
    if target.exists():  # another process has just finished it
        raise InputError(f"{target}: already exists; give another folder with --to")
    if any(path.is_symlink() for path in (part, *part.rglob("*"))):  # the folder may have come from others
        raise InputError(f"{part}: has links, so it is no download of this lab; remove it and pull again")
    container, files, known = opened(reference)
    part.mkdir(mode=0o700, exist_ok=True)
    size = sum(remote.size for remote in files.values())
    sums = download.arrive(container, files, part, Meter(report, size))
    compared = _compare(files, part, sums, known)
    download.settle(files, part)
    part.rename(target)
    return {
        "folder": str(target.absolute()),
        "files": len(files),
        "bytes": size,
        "compared": compared,
        **known,
    }


def opened(
    reference: Reference, patience: float = blob_client.PATIENCE_SECONDS
) -> tuple[Container, dict[str, Remote], dict[str, Any]]:
    """A version's container, its files by name, its tags and properties. Raises LabError without files."""
    opener, prefix, model = (_of_registry if reference.registry else _of_workspace)(reference)
    container = Container(opener, patience)
    files = download.listed(container, prefix) or (_single(container, prefix) if prefix else {})
    if not files:
        raise LabError(f"{reference.uri} has no files; ask whoever registered it.")
    known = {"tags": dict(model.tags or {}), "properties": dict(model.properties or {}), "uri": reference.uri}
    return container, files, known


def read_text(reference: Reference, name: str) -> str:
    """One small file of a version, such as its recipe. Raises LabError if it has none of that name."""
    container, files, _ = opened(reference)
    remote = files.get(name)
    if remote is None or remote.size > LARGEST_TEXT:
        raise LabError(f"{reference.uri} has no {name}; it was not published by this lab.")
    return download.small(container, remote).decode("utf-8", "replace")


def _of_workspace(reference: Reference) -> tuple[Callable[[], Any], str, Any]:
    from pipeline.publish.azure.workspace import Workspace

    workspace = Workspace(reference.where)
    model = workspace.ask(lambda client: client.models.get(reference.name, version=reference.version))
    found = IN_DATASTORE.fullmatch(str(model.path))
    if found is None:
        raise LabError(
            f"The files of {reference.uri} are not in a datastore of the workspace but at {model.path};"
            " download them with `az ml model download`."
        )
    return lambda: workspace.open_container(found[1]), (found[2] or "").rstrip("/"), model


def _of_registry(reference: Reference) -> tuple[Callable[[], Any], str, Any]:
    """For a registry, such as Azure's catalogue: each new signature is requested with the model's name."""
    from azure.ai.ml._utils._registry_utils import get_storage_details_for_registry_assets
    from azure.storage.blob import ContainerClient

    from pipeline.publish.azure.registry import Registry

    registry = Registry(Place(reference.where.login, registry=reference.registry))
    model = registry.ask(lambda client: client.models.get(reference.name, version=reference.version))
    address = urlsplit(str(model.path))
    name, _, prefix = address.path.strip("/").partition("/")

    def details(client: Any) -> Any:
        """The request of the client's own download."""
        models = client.models
        return get_storage_details_for_registry_assets(
            service_client=models._registry_service_client, asset_type="models", uri=model.path,
            asset_name=reference.name, asset_version=reference.version, reg_name=reference.registry,
            rg_name=models._resource_group_name,
        )  # fmt: skip

    def opener() -> Any:
        try:
            signed, kind = registry.ask(details)
        except KeyError:  # a public one, which the client only knows under another spelling
            signed, kind = "", "NoCredentials"
        if kind == "SAS":
            return ContainerClient.from_container_url(signed, **blob_client.client_options())
        return ContainerClient(f"https://{address.netloc}", name, **blob_client.client_options())

    return opener, prefix, model


def _single(container: Container, blob: str) -> dict[str, Remote]:
    """A model that is one file, by its last name; {} if there is none."""
    from azure.core.exceptions import ResourceNotFoundError

    name = blob.rpartition("/")[2]
    download.check_names([name])

    def ask(client: Any) -> dict[str, Remote]:
        try:
            found = client.get_blob_client(blob).get_blob_properties()
        except ResourceNotFoundError:
            return {}
        return {name: Remote(blob, found.size, found.etag.strip('"'))}

    return container.do(ask)


def _compare(files: dict[str, Remote], folder: Path, sums: dict[str, str], known: dict[str, Any]) -> str:
    """Compare downloaded files with the model's SHA256SUMS and the version's hash.

    Returns what was compared, in words. Raises LabError; the next attempt downloads differing files again.
    """
    told = _told(files, folder)
    wrong = sorted(name for name, digest in told.items() if sums.get(name) != digest)
    if wrong:
        for name in files.keys() & wrong:
            download.waiting(folder, files[name]).unlink()
        raise LabError(
            f"{display.names(wrong)}: not as {checksums.NAME} of the model says; it was changed. Ask whoever"
            " registered it."
        )
    content = known["properties"].get(lineage.CONTENT)
    if content is not None and content != lineage.content(sums):
        raise LabError(f"The files are not those that were published as {known['uri']}; they were changed.")
    if content is not None:
        return "the same as was published"
    return f"as its {checksums.NAME} says" if told else "without checksums to compare with; sizes agree"


def _told(files: dict[str, Remote], folder: Path) -> dict[str, str]:
    """The checksums in the model's SHA256SUMS; {} if there is none, or it is another kind of file."""
    remote = files.get(checksums.NAME)
    if remote is None:
        return {}
    if remote.size > checksums.LARGEST:
        raise LabError(f"Its {checksums.NAME} is larger than any real one; this is no model of the lab.")
    try:
        told = checksums.parse(download.waiting(folder, remote).read_text("utf-8"))
    except ValueError:
        return {}
    told.pop(checksums.NAME, None)
    return told
