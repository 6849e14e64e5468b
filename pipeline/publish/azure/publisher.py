"""Azure AI: a version in a workspace's model registry, taken down again and tried before it counts.

1. The export is verified, as everywhere. 2. Its files go to the workspace's container, under a name made of
their content. 3. Only when all are there is the version registered: one request. 4. It is downloaded,
compared and asked something; then its tag `verified` says true.
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
from pipeline.publish.source import source_of
from pipeline.store.run import Run
from pipeline.system import retry
from pipeline.system.files import write_whole
from pipeline.system.transfer_progress import Meter, Report

SPEED = "azure-speed.txt"  # bytes a second of the last upload, for estimates
MOST_RACES = 5  # times that somebody else may take the next version


@dataclass(frozen=True)
class Options:
    name: str = option("", "Name of the model: letters, digits, - and _")
    version: str = option("", "A whole number; empty takes the next one")
    description: str = option("", "A sentence for the model card", advanced=True)
    tags: str = option("", "Tags of your own: key=value, several with commas between", advanced=True)
    login: Literal["remembered", "cli", "identity", "environment"] = option(
        "remembered",
        "cli: az login; identity: the compute instance's; environment: a service principal's AZURE_"
        " variables; remembered: the last that worked, at first cli",
    )
    subscription: str = option("", "The subscription's id; empty: the remembered one")
    resource_group: str = option("", "The workspace's resource group; empty: the remembered one")
    workspace: str = option("", "The workspace; empty: the remembered one")
    registry: str = option("", "A registry that workspaces share, instead of a workspace", advanced=True)
    config: str = option("", "A config.json of the workspace instead of these three", advanced=True)
    check: bool = option(
        True, "Download it again, compare, and have it answer; only then it counts as verified", advanced=True
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
    """The options with the workspace written out: it may be remembered otherwise when the publish begins, and
    a config.json is named from where somebody is just now. Raises InputError if none is known."""
    where = place_of(home, options).required()
    return dataclasses.replace(
        options, login=where.login,  # type: ignore[arg-type] # place knows no other logins
        subscription=where.subscription, resource_group=where.resource_group,
        workspace=where.workspace, registry=where.registry, config="",
    )  # fmt: skip


def plan(home: Path, run: Run, options: Options) -> dict[str, Any]:
    """What `publish` would do, as far as this machine knows: name, version, target, files, bytes, and it
    as a command for the Azure CLI. Asks nobody; `preflight` does.

    Raises InputError if name, version or tags cannot be taken, no workspace is known, or there is nothing to
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

    Raises InputError where `plan` does, and LabError with what stands against it. A version is registered
    with all its files or not at all.
    """
    plan(home, run, options)
    report("Verifying the exported model", 0.0)
    check_process.verified(source_of(run, options.name, options.version), "Nothing was published")
    return register(home, run, options, report)


def register(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """What `publish` does with an export that was verified."""
    planned = plan(home, run, options)
    where = place_of(home, options)
    with explained(where):
        publication = _Publication(home, run, options, where, report)
        return publication.carry_out(source_of(run, options.name, options.version), planned["bytes"])


def versions(home: Path) -> list[dict[str, Any]]:
    """Every version in the remembered workspace, newest first. Asks Azure, in a process of its own."""
    return list(ask.models(home))


class _Publication:
    """One publication under way."""

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
            there = self.workspace.model(options.name, version)  # others may have set tags meanwhile
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
        """Send the files and register a version of them; returns its number and what it calls its files.

        A next version that somebody else takes at the same moment is followed by the next one. Raises Taken
        for one that was asked for.
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
        if there is None or not self.workspace.place.registry:  # what is in a registry is whole
            self._send(version, items, prefix)
        path = str(there.path) if there else self.workspace.path(prefix, name, version)
        kept = dict(there.tags or {}) if there else {}
        tags = {**kept, **about["tags"]}
        # What was verified once stays so: its files cannot have changed.
        tags[lineage.VERIFIED] = kept.get(lineage.VERIFIED, tags[lineage.VERIFIED])
        self.report("Registering the version", 0.57)
        self._register(version, path, digest, {**about, "tags": tags})
        return path

    def _register(self, version: str, path: str, digest: str, about: dict[str, Any]) -> None:
        """Make the version, or change its tags. Raises Taken where it is there with other content.

        A conflict with no such version is one of the moment, as 503 is: another operation is under way.
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
        """Send the files, and add what that took to what was sent."""
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
        """The version, if it is there with this content. Raises Taken if it is with other content."""
        model = self.workspace.model(self.options.name, version)
        if model is not None and (model.properties or {}).get(lineage.CONTENT) != digest:
            raise Taken(self.options.name, version)
        return model

    def _check(self, version: str, sums: dict[str, str], digest: str) -> None:
        """Take the version down as anybody would, compare it, and have it answer. Raises LabError."""
        name = self.options.name
        folder = self.home / checks.CHECKED / f"{name}-{version}"
        for other in folder.parent.glob("*"):  # by a process that was killed; only one publishes at a time
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
    """The version of this content that an earlier attempt of the run did not get to check; "" if none is."""
    for model in workspace.models([name])[:1]:
        same = model["properties"].get(lineage.CONTENT) == digest
        if same and model["tags"].get("run") == run.id and model["tags"].get(lineage.VERIFIED) == "false":
            return str(model["version"])
    return ""


def content(home: Path, run: Run, options: Options) -> str:
    """What names all files that a publish would send, by their content."""
    source = source_of(run, options.name, options.version)
    return lineage.content({item.name: item.sha256 for item in packed(source, _written(home, run, options))})


def _written(home: Path, run: Run, options: Options) -> dict[str, str]:
    """The files that the version has besides the export's own."""
    # The card names no version, so that the same content has the same name whichever version it becomes.
    return {
        card.CARD: card.text(home, run, options.name, options.description),
        zip_file.RECIPE: card.recipe(run),
    }
