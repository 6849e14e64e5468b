"""The dry run of a publish to the hub: what might prevent it, and what cannot be known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import LabError
from pipeline.exports.findings import Finding, Status, failed
from pipeline.publish import checks
from pipeline.publish.card import CARD
from pipeline.publish.checks import FIRST
from pipeline.publish.hub import publisher as huggingface
from pipeline.publish.hub.client import Hub, account, foreign, may_write
from pipeline.publish.hub.faults import explained
from pipeline.publish.hub.repository import ITS_OWN, Repository, of_this_lab
from pipeline.publish.source import source_of
from pipeline.store.run import Run

SECONDS = 30.0  # without an answer; a person waits for it


def preflight(home: Path, run: Run, options: huggingface.Options) -> list[Finding]:
    """Every check, including those that ask the hub. Raises what the publisher's `plan` raises."""
    planned = huggingface.plan(home, run, options)
    source = source_of(run, options.name, options.version, huggingface.NAME)
    found = [checks.files(planned), *checks.fit(source)]
    if options.check:
        found.append(checks.disk(home, planned["bytes"]))
    return found + asked(options)


def asked(options: huggingface.Options) -> list[Finding]:
    """The checks that ask the hub: login, permission, repository, version. Writes nothing."""
    asking = _Asking(options)
    questions: dict[str, Callable[[], tuple[Status, str]]] = {
        "login": asking.login, "permission": asking.permission, "repository": asking.seen,
        "version": asking.version,
    }  # fmt: skip
    found: list[Finding] = []
    for name, check in questions.items():
        if failed(found):
            found.append(Finding(name, Status.SKIPPED, FIRST))
            continue
        try:
            with explained(options.name):
                found.append(Finding(name, *check()))
        except LabError as error:
            found.append(Finding(name, Status.FAILED, str(error)))
    return [
        *found,
        Finding("not known", Status.UNKNOWN, "whether the account has room for it: only publishing shows it"),
    ]


class _Asking:
    """The checks; each uses what earlier ones found."""

    def __init__(self, options: huggingface.Options) -> None:
        self.options = options

    def login(self) -> tuple[Status, str]:
        self.hub = Hub(min(self.options.patience, SECONDS))
        self.who: dict[str, Any] = account(self.hub.who())
        name = self.options.name
        self.repository = Repository(self.hub, name if "/" in name else f"{self.who['name']}/{name}")
        token = f", by the token {self.who['token']} ({self.who['role']})" if self.who["token"] else ""
        return Status.OK, f"{self.who['name']}{token}"

    def permission(self) -> tuple[Status, str]:
        name = self.repository.name
        may = may_write(self.who, name)
        if refusal := foreign(self.who, name):
            return Status.FAILED, refusal
        if not may:
            return Status.FAILED, f"the token may not write to {name}; make one that may, and log in with it"
        return Status.OK, f"may write to {name}"

    def seen(self) -> tuple[Status, str]:
        name, private = self.repository.name, not self.options.public
        self.there = self.repository.private()
        if self.there is None:
            return (
                Status.OK,
                f"{name} is not there yet; it would be made, {'private' if private else 'public'}",
            )
        if self.there is not private:
            return Status.FAILED, huggingface.seen_by(name, private=self.there)
        return Status.OK, f"{name} is there, and {'private' if private else 'public'}"

    def version(self) -> tuple[Status, str]:
        wanted = self.options.version
        if self.there is None:
            return Status.OK, f"the first one would be {wanted or 1}"
        head, tags = self.repository.refs()
        files = self.repository.files(head)
        ours = of_this_lab(files)
        if files.keys() - ITS_OWN and not ours:
            return (
                Status.FAILED,
                f"{self.repository.name} has files that are not of this lab; choose another name",
            )
        if wanted in tags:
            return (
                Status.UNKNOWN,
                f"{wanted} is there already; only with the same content it is taken for done",
            )
        free = f"{wanted} is free" if wanted else f"the next one is {max(map(int, tags), default=0) + 1}"
        replaced = CARD in files and not ours
        return Status.OK, f"{free}; the model card replaces the {CARD} that is there" if replaced else free
