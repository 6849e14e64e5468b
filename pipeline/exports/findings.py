"""The result of a check: of an exported folder, or before publishing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended. Their values are what `verify --json` and `publish --dry-run --json` print."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"  # there was nothing to check, or what it needs failed
    UNKNOWN = "unknown"  # only doing it would show


@dataclass(frozen=True)
class Finding:
    """What one check found: `message` is a sentence; if the check failed, it says what to do.

    Raises ValueError for an unknown status, which another process may send.
    """

    check: str
    status: Status
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))  # a text, when read from JSON


def failed(findings: Iterable[Finding]) -> list[Finding]:
    """The failed ones: they prevent using a folder or publishing a version."""
    return [finding for finding in findings if finding.status == Status.FAILED]
