"""A registered model's files, brought here by ranged reads and compared with what is known of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import checksums
from pipeline.azure import download, lineage, storage
from pipeline.azure.download import Remote
from pipeline.azure.place import Place
from pipeline.azure.reference import Reference, parse
from pipeline.azure.storage import Container
from pipeline.errors import InputError, LabError
from pipeline.meter import Meter, Report

LARGEST_TEXT = 1 << 20  # bytes


def pull(home: Path, where: Place, uri: str, to: Path | None, report: Report) -> dict[str, Any]:
    """Download all files of a version into a new folder: whole or not at all, resumed where one was begun.

    Raises InputError if the folder is there, LabError if what came differs from its checksums.
    """
    reference = parse(uri, where)
    target = to or Path(f"{reference.name}-{reference.version}")
    if target.exists():
        raise InputError(f"{target}: is there already; give another folder with --to")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.absolute().parent}: no such folder")
    container, files, known = opened(reference)
    part = target.with_name(f".{target.name}.part")
    part.mkdir(mode=0o700, exist_ok=True)
    size = sum(remote.size for remote in files.values())
    sums = download.fetch(container, files, part, Meter(report, size))
    compared = _compare(part, sums, known)
    part.rename(target)
    return {
        "folder": str(target.absolute()),
        "files": len(files),
        "bytes": size,
        "compared": compared,
        **known,
    }


def opened(
    reference: Reference, patience: float = storage.PATIENCE_SECONDS
) -> tuple[Container, dict[str, Remote], dict[str, Any]]:
    """A version's container, its files by name, its tags and properties. Raises LabError if it has none."""
    opener, prefix, model = (_of_registry if reference.registry else _of_workspace)(reference)
    container = Container(opener, patience)
    files = download.listed(container, prefix) or _single(container, prefix)
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
    data: bytes = container.do(lambda client: client.download_blob(remote.blob).readall())
    return data.decode("utf-8", "replace")


def _of_workspace(reference: Reference) -> tuple[Callable[[], Any], str, Any]:
    from azure.ai.ml._utils._storage_utils import get_ds_name_and_path_prefix

    from pipeline.azure.workspace import Workspace

    workspace = Workspace(reference.where)
    model = workspace.client.models.get(reference.name, version=reference.version)
    store, prefix = get_ds_name_and_path_prefix(model.path)
    return lambda: workspace.open_container(store), prefix.rstrip("/"), model


def _of_registry(reference: Reference) -> tuple[Callable[[], Any], str, Any]:
    """Of a registry, such as Azure's own catalogue: each new signature is asked for with the model's name."""
    from azure.ai.ml._utils._registry_utils import get_storage_details_for_registry_assets
    from azure.ai.ml._utils._storage_utils import get_ds_name_and_path_prefix
    from azure.storage.blob import ContainerClient

    from pipeline.azure.registry import Registry

    registry = Registry(Place(reference.where.login, registry=reference.registry))
    login, models = registry.credential, registry.client.models
    model = models.get(reference.name, version=reference.version)
    _, prefix = get_ds_name_and_path_prefix(model.path, reference.registry)

    def opener() -> Any:
        # What the client's own download asks.
        address, kind = get_storage_details_for_registry_assets(
            service_client=models._registry_service_client, asset_type="models", asset_name=reference.name,
            asset_version=reference.version, rg_name=models._resource_group_name, reg_name=reference.registry,
            uri=model.path,
        )  # fmt: skip
        if kind == "SAS":
            return ContainerClient.from_container_url(address, **storage.client_options())
        host, _, path = address.removeprefix("https://").partition("/")
        return ContainerClient(
            f"https://{host}", path.partition("/")[0], credential=login, **storage.client_options()
        )

    return opener, prefix.rstrip("/"), model


def _single(container: Container, name: str) -> dict[str, Remote]:
    """A model that is one file, by its last name; {} if there is none."""
    from azure.core.exceptions import ResourceNotFoundError

    def ask(client: Any) -> dict[str, Remote]:
        try:
            found = client.get_blob_client(name).get_blob_properties()
        except ResourceNotFoundError:
            return {}
        return {os.path.basename(name): Remote(name, found.size, found.etag.strip('"'))}  # noqa: PTH119

    return container.do(ask)


def _compare(folder: Path, sums: dict[str, str], known: dict[str, Any]) -> str:
    """Compare with SHA256SUMS and the version's own property; returns what was compared. Raises LabError."""
    told = {name: digest for name, digest in checksums.read(folder).items() if name != checksums.NAME}
    wrong = [name for name, digest in told.items() if sums.get(name) != digest]
    if wrong:
        raise LabError(
            f"{', '.join(sorted(wrong)[:3])}: not as {checksums.NAME} of the model says; it was changed."
        )
    content = known["properties"].get(lineage.CONTENT)
    if content is not None and content != lineage.content(sums):
        raise LabError(f"The files are not those that were published as {known['uri']}; they were changed.")
    if content is not None:
        return "the same as was published"
    return f"as its {checksums.NAME} says" if told else "without checksums to compare with; sizes agree"
