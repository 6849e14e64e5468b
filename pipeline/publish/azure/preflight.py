"""The dry run of a publish to Azure: what might prevent it, and what cannot be known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.exports.findings import Finding, Status, failed
from pipeline.inputs.azure_workspace import Place
from pipeline.publish import checks
from pipeline.publish.azure import faults, lineage, login
from pipeline.publish.azure import publisher as azureml
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.workspace import Taken
from pipeline.publish.checks import FIRST
from pipeline.publish.source import source_of
from pipeline.store.run import Run

IGNORES = (".amlignore", ".gitignore")
SIGNATURE_SECONDS = 3600.0
EXAMPLE_SPEED = 12.5e6  # bytes a second: a line of 100 Mbit/s
Check = Callable[[], tuple[Status, str]]


def preflight(home: Path, run: Run, options: azureml.Options) -> list[Finding]:
    """Every check, in the order of publishing. Writes nothing, here or there.

    Raises InputError where the publisher's plan does.
    """
    planned = azureml.plan(home, run, options)
    where = azureml.place_of(home, options)
    source = source_of(run, options.name, options.version)
    found = [Finding("name", Status.OK, f"{options.name} is a valid name of a model")]
    found += [checks.files(planned), _ignored(source), *checks.fit(source), _time(home, planned["bytes"])]
    if options.check:
        found.append(checks.disk(home, planned["bytes"]))
    digest = azureml.content(home, run, options)
    return found + _asked(run, options, where, digest) + _unknown()


def _asked(run: Run, options: azureml.Options, where: Place, digest: str) -> list[Finding]:
    """The checks that ask Azure; after the first failure, the rest is unknown."""
    from pipeline.publish.azure.registry import opened as connected
    from pipeline.publish.azure.workspace import STORE, Workspace

    opened: list[Workspace] = []

    def log_in() -> tuple[Status, str]:
        who = login.identity(where)
        opened.append(connected(where))
        return (
            Status.OK,
            f"{who['name']} of tenant {who['tenant']}, by {who['login']}, good for {who['minutes']} minutes",
        )

    def workspace() -> tuple[Status, str]:
        about = opened[0].about()
        return Status.OK, f"{about['workspace']} in {about['location']}"

    def permissions() -> tuple[Status, str]:
        may = login.allowed(opened[0].permissions())
        missing = [word for word, yes in may.items() if not yes]
        if "register models" in missing:
            return (
                Status.FAILED,
                f"the login may not {', '.join(missing)}; ask for the role {faults.role(where)}",
            )
        without = f". {login.WITHOUT_KEY}" if login.KEY in missing else ""
        return Status.OK, f"may {', '.join(word for word, yes in may.items() if yes)}{without}"

    def datastore() -> tuple[Status, str]:
        upload_there = opened[0].container("", "", min(options.patience, 30.0))
        upload_there.do(
            lambda client: next(iter(client.list_blobs(name_starts_with=f"{lineage.OURS}/")), None)
        )
        return Status.OK, f"{STORE} answers"

    def version() -> tuple[Status, str]:
        return _version(opened[0], run, options, digest)

    questions: dict[str, Check] = {
        "login": log_in, "workspace": workspace, "permissions": permissions, "datastore": datastore,
        "version": version,
    }  # fmt: skip
    found: list[Finding] = []
    if where.registry:  # it gives a container, and shows permissions, only when a version is made
        questions = {name: questions[name] for name in ("login", "workspace", "version")}
    for name, check in questions.items():
        if failed(found):
            found.append(Finding(name, Status.SKIPPED, FIRST))
            continue
        try:
            with explained(where):
                found.append(Finding(name, *check()))
        except LabError as error:
            found.append(Finding(name, Status.FAILED, str(error)))
    return found


def _version(workspace: Any, run: Run, options: azureml.Options, digest: str) -> tuple[Status, str]:
    if not options.version:
        if unfinished := azureml.unfinished(workspace, run, options.name, digest):
            return (
                Status.OK,
                f"it resumes {unfinished}, which has this content and was not fully checked",
            )
        return Status.OK, f"the next one is {workspace.next_version(options.name)}"
    model = workspace.model(options.name, options.version)
    if model is None:
        return Status.OK, f"{options.version} is free"
    if (model.properties or {}).get(lineage.CONTENT) == digest:
        return Status.OK, f"{options.version} is there already with the same content; it is registered again"
    return Status.FAILED, str(Taken(options.name, options.version))


def _ignored(source: Path) -> Finding:
    """A pitfall of `az ml model create`: it silently leaves out what a .gitignore in the folder names."""
    there = [name for name in IGNORES if (source / name).is_file()]
    if not there:
        return Finding("ignore files", Status.OK, "none that would leave files out")
    return Finding(
        "ignore files",
        Status.UNKNOWN,
        f"the folder has {' and '.join(there)}; this lab uploads every file all the same, but the Azure"
        " CLI's command would leave out what is named there",
    )


def _time(home: Path, size: int) -> Finding:
    """How long the upload takes, compared with the hour that an access signature is valid."""
    try:
        speed, known = float((home / azureml.SPEED).read_text("utf-8")), True
    except (OSError, ValueError):
        speed, known = EXAMPLE_SPEED, False
    seconds = size / max(speed, 1.0)
    last = f"at the {display.size(speed)} a second of the last upload"
    basis = last if known else "on a line of 100 Mbit/s"
    more = "; access ends after an hour and is renewed" if seconds > SIGNATURE_SECONDS else ""
    status = Status.OK if known else Status.UNKNOWN
    return Finding("time", status, f"about {display.about(seconds)} for the upload {basis}{more}")


def _unknown() -> list[Finding]:
    return [
        Finding(
            "not known",
            Status.UNKNOWN,
            "whether the storage account lets this machine write, and whether a policy of the workspace"
            " prevents a new version: only publishing shows it",
        )
    ]
