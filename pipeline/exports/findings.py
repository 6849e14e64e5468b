"""What a check says: of an exported folder, or of what a publish would meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a check ended. Their values are what `verify --json` and `publish --dry-run --json` print."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"  # there was nothing to check, or what it needs failed
    UNKNOWN = "unknown"  # only doing it shows


@dataclass(frozen=True)
class Finding:
    """What one check found: `message` is a sentence, of a failed one that says what to do.

    Raises ValueError for a status that is none, as another process may send.
    """

    check: str
    status: Status
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))  # of what was read from JSON


def failed(findings: Iterable[Finding]) -> list[Finding]:
    """Those that keep a folder from being used, or a version from being published."""
    return [finding for finding in findings if finding.status == Status.FAILED]
