"""Azure AI: a version in a workspace's model registry, downloaded again and tried before it counts.

1. The export is verified, as for every target. 2. Its files go to the workspace's container, in a folder
named by a hash of them. 3. When all are there, one request registers the version. 4. It is downloaded,
compared and asked prompts; then its tag `verified` becomes true.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import LabError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_address import Reference
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.options import option
from pipeline.publish import card, check_process, checks, zip_file
from pipeline.publish.azure import ask, faults, lineage, pull
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.transfer import blob_client as azure_storage
from pipeline.publish.azure.transfer import download, upload
from pipeline.publish.azure.workspace import Taken
from pipeline.publish.items import Item, packed
from pipeline.publish.report import files as report_files
from pipeline.publish.report.files import ROWS_HELP
from pipeline.publish.source import source_of
from pipeline.store.run import Run
from pipeline.system import retry
from pipeline.system.files import write_whole
from pipeline.system.transfer_progress import Meter, Report

SPEED = "azure-speed.txt"  # bytes a second of the last upload, for estimates
MOST_RACES = 5  # times that another publisher may take the next version first


@dataclass(frozen=True)
class Options:
    name: str = option("", "Name of the model: letters, digits, - and _")
    version: str = option("", "A whole number; empty: the next one")
    description: str = option("", "A sentence for the model card", advanced=True)
    rows: bool = option(False, ROWS_HELP, label="Include rows of the data")
    tags: str = option("", "Tags of your own: key=value, several with commas between", advanced=True)
    login: Literal["remembered", "cli", "identity", "environment"] = option(
        "remembered",
        "cli: az login; identity: the compute instance's; environment: a service principal's AZURE_"
        " variables; remembered: the last one that worked, or cli",
    )
    subscription: str = option("", "The subscription's id; empty: the remembered one")
    resource_group: str = option("", "The workspace's resource group; empty: the remembered one")
    workspace: str = option("", "The workspace; empty: the remembered one")
    registry: str = option("", "A registry that workspaces share, instead of a workspace", advanced=True)
    config: str = option("", "A config.json of the workspace instead of these three", advanced=True)
    check: bool = option(
        True,
        "Download it again, compare it and have it answer; only then does it count as verified",
        advanced=True,
    )
    patience: float = option(
        300.0, "Give up when nothing has got through for so many seconds", min=1, max=86400, advanced=True
    )


def place_of(home: Path, options: Any) -> Place:
    """The workspace that options name, read from a config.json, or remembered. Raises InputError."""
    login = "" if options.login == "remembered" else options.login
    given = Place(login, options.subscription, options.resource_group, options.workspace, options.registry)
    return azure_workspace.find(home, given, options.config)


def settled(home: Path, options: Options) -> Options:
    """The options with the workspace filled in: another one may be remembered by the time the publish starts,
    and the path of a config.json may be relative. Raises InputError if none is known."""
    where = place_of(home, options).required()
    return dataclasses.replace(
        options, login=where.login,  # type: ignore[arg-type] # place knows no other logins
        subscription=where.subscription, resource_group=where.resource_group,
        workspace=where.workspace, registry=where.registry, config="",
    )  # fmt: skip


def plan(home: Path, run: Run, options: Options) -> dict[str, Any]:
    """What `publish` would do, as far as this machine knows: name, version, target, files, bytes, and an
    Azure CLI command for it. Does not ask Azure; `preflight` does.

    Raises InputError if name, version or tags are not valid, no workspace is known, or there is nothing to
    publish.
    """
    source = source_of(run, options.name, options.version)
    tags = lineage.parse_tags(options.tags)
    where = place_of(home, options).required()
    written = _written(home, run, options)
    files = [
        {"path": path.relative_to(source).as_posix(), "bytes": path.stat().st_size}
        for path in zip_file.files(source)
    ]
    files += [{"path": name, "bytes": len(text.encode())} for name, text in written.items()]
    return {
        "name": options.name,
        "version": options.version or "(the next one)",
        "target": str(where),
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "command": azure_workspace.command(
            where, options.name, options.version, source, options.description, tags
        ),
    }


def publish(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """Do it; returns name, version, path, bytes, verified and more for the stage's metrics.

    Raises InputError where `plan` does, and LabError with the reason if it fails. A version is registered
    with all its files or not at all.
    """
    plan(home, run, options)
    report("Verifying the exported model", 0.0)
    check_process.verified(source_of(run, options.name, options.version), "Nothing was published")
    return register(home, run, options, report)


def register(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """The part of `publish` after the export is verified."""
    planned = plan(home, run, options)
    where = place_of(home, options)
    with explained(where):
        publication = _Publication(home, run, options, where, report)
        return publication.carry_out(source_of(run, options.name, options.version), planned["bytes"])


def versions(home: Path) -> list[dict[str, Any]]:
    """Every version in the remembered workspace, newest first. Asks Azure, in a process of its own."""
    return list(ask.models(home))


class _Publication:
    """One publication in progress."""

    def __init__(self, home: Path, run: Run, options: Options, where: Place, report: Report) -> None:
        from pipeline.publish.azure.registry import opened

        self.home, self.run, self.options, self.report = home, run, options, report
        report("Logging in to Azure", 0.02)
        self.workspace = opened(where)
        self.sent = {"bytes_sent": 0, "upload_seconds": 0.0, "retries": 0}

    def carry_out(self, source: Path, size: int) -> dict[str, Any]:
        options = self.options
        items = packed(source, _written(self.home, self.run, options))
        sums = {item.name: item.sha256 for item in items}
        digest = lineage.content(sums)
        about: dict[str, Any] = {
            "description": options.description or f"{self.run.name}, run {self.run.id} of Olive Lab",
            "tags": lineage.tags(self.run, lineage.parse_tags(options.tags)),
            "properties": lineage.properties(self.run, digest, size),
        }
        version, path = self._make(items, digest, about)
        azure_workspace.remember(self.home, self.workspace.place)
        if options.check:
            self._check(version, sums, digest)
            there = self.workspace.model(options.name, version)  # somebody may have set tags meanwhile
            tags = {**about["tags"], **((there and there.tags) or {}), lineage.VERIFIED: "true"}
            self._register(version, path, digest, {**about, "tags": tags})
        return {
            "name": options.name,
            "version": version,
            "path": f"azureml:{options.name}:{version}",
            "bytes": size,
            **self.sent,
            "verified": options.check,
            "content": digest,
            "portal": self.workspace.place.page(options.name, version),
        }

    def _make(self, items: list[Item], digest: str, about: dict[str, Any]) -> tuple[str, str]:
        """Send the files and register a version of them; returns its number and the path of its files.

        If somebody else takes the next version first, the one after is tried. Raises Taken for an explicit
        version.
        """
        wanted = self.options.version or unfinished(self.workspace, self.run, self.options.name, digest)
        for _ in range(MOST_RACES):
            version = wanted or self.workspace.next_version(self.options.name)
            try:
                return version, self._attempt(version, items, digest, about)
            except Taken:
                if wanted:
                    raise
        raise LabError(f"Others took {MOST_RACES} versions of {self.options.name} in a row; publish again.")

    def _attempt(self, version: str, items: list[Item], digest: str, about: dict[str, Any]) -> str:
        name, prefix = self.options.name, lineage.prefix(digest)
        there = self._there(version, digest)
        if there is None or not self.workspace.place.registry:  # versions in a registry are complete
            self._send(version, items, prefix)
        path = str(there.path) if there else self.workspace.path(prefix, name, version)
        kept = dict(there.tags or {}) if there else {}
        tags = {**kept, **about["tags"]}
        # A verified version stays verified: its files cannot change.
        tags[lineage.VERIFIED] = kept.get(lineage.VERIFIED, tags[lineage.VERIFIED])
        self.report("Registering the version", 0.57)
        self._register(version, path, digest, {**about, "tags": tags})
        return path

    def _register(self, version: str, path: str, digest: str, about: dict[str, Any]) -> None:
        """Create the version, or change its tags. Raises Taken if it exists with other content.

        A conflict without such a version is temporary, like 503: another operation is running.
        """
        from azure.core.exceptions import HttpResponseError

        name, patience = self.options.name, self.options.patience
        started = time.monotonic()

        def wait(error: BaseException, tries: int) -> float | None:
            if not isinstance(error, HttpResponseError) or error.status_code not in (400, 409):
                return None
            self._there(version, digest)
            return retry.backoff(tries, azure_storage.LONGEST_WAIT) if faults.passes(error) else None

        retry.persist(
            lambda: self.workspace.register(name, version, path, patience, **about),
            wait=wait,
            left=lambda: patience - (time.monotonic() - started),
            before_wait=lambda: self.report("Waiting for another operation of the workspace to end", 0.57),
        )

    def _send(self, version: str, items: list[Item], prefix: str) -> None:
        """Send the files, and count bytes and seconds."""
        container = self.workspace.container(self.options.name, version, self.options.patience)
        started = time.monotonic()
        end = 0.55 if self.options.check else 0.98
        meter = Meter(self.report, sum(item.size for item in items), 0.05, end)
        upload.send(container, prefix, items, meter, lineage.OURS)
        seconds = time.monotonic() - started
        if meter.moved:
            write_whole(self.home / SPEED, f"{meter.moved / max(seconds, 1e-9):.0f}", shared=True)
        self.sent["bytes_sent"] += meter.moved
        self.sent["upload_seconds"] += seconds
        self.sent["retries"] += container.retries

    def _there(self, version: str, digest: str) -> Any | None:
        """The version, if it exists with this content. Raises Taken if it exists with other content."""
        model = self.workspace.model(self.options.name, version)
        if model is not None and (model.properties or {}).get(lineage.CONTENT) != digest:
            raise Taken(self.options.name, version)
        return model

    def _check(self, version: str, sums: dict[str, str], digest: str) -> None:
        """Download the version as any user would, compare it, and have it answer. Raises LabError."""
        name = self.options.name
        folder = self.home / checks.CHECKED / f"{name}-{version}"
        for other in folder.parent.glob("*"):  # left by a killed process; only one publishes at a time
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        place = self.workspace.place
        container, files, known = pull.opened(
            Reference(place, place.registry, name, version), self.options.patience
        )
        if known["properties"].get(lineage.CONTENT) != digest:
            raise LabError(
                f"{name} version {version} was registered, but Azure does not give it back; look at it there."
            )
        try:
            total = sum(remote.size for remote in files.values())
            checks.room(self.home, total)
            fetched = download.fetch(container, files, folder, Meter(self.report, total, 0.6, 0.95))
            if fetched != sums:
                raise LabError(
                    f"{name} version {version} came back from Azure with other content; publish it again."
                )
            self.report("Asking what came back", 0.95)
            check_process.verified(folder, f"{name} version {version} is registered, but not verified")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def unfinished(workspace: Any, run: Run, name: str, digest: str) -> str:
    """The version of this content that an earlier attempt did not finish checking; "" if there is none."""
    for model in workspace.models([name])[:1]:
        same = model["properties"].get(lineage.CONTENT) == digest
        if same and model["tags"].get("run") == run.id and model["tags"].get(lineage.VERIFIED) == "false":
            return str(model["version"])
    return ""


def content(home: Path, run: Run, options: Options) -> str:
    """The hash of all files that a publish would send."""
    source = source_of(run, options.name, options.version)
    return lineage.content({item.name: item.sha256 for item in packed(source, _written(home, run, options))})


def _written(home: Path, run: Run, options: Options) -> dict[str, str]:
    """The files that the version has besides the export's own."""
    # The card names no version, so that the content's hash does not depend on it.
    return {
        card.CARD: card.text(home, run, options.name, options.description),
        zip_file.RECIPE: card.recipe(run),
        **card.texts(home, run),
        **report_files.with_rows(home, run, options.rows),
    }
