"""The result of a check, of an exported folder or before publishing, and a report of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TypeVar

from pipeline import display
from pipeline.errors import reason

NAMED_FAULTS = 3
COUNTED_FAULTS = 1000
LONGEST_MESSAGE = 500  # characters
Found = TypeVar("Found")


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


class Report:
    """Findings as they come."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    def skip(self, check: str, message: str) -> None:
        self._add(check, Status.SKIPPED, message)

    def check(
        self, check: str, look: Callable[[], tuple[Found, str]], *, quiet: bool = False
    ) -> Found | None:
        """What `look` found, noted with its sentence; None where it raised, whatever that was.

        `quiet` notes only that.
        """
        try:
            found, message = look()
        except ValueError as error:  # ours, which say what to do
            self._add(check, Status.FAILED, str(error))
        except Exception as error:  # a hostile file may raise anything
            self._add(check, Status.FAILED, reason(error))
        else:
            if not quiet:
                self._add(check, Status.OK, message)
            return found
        return None

    def _add(self, check: str, status: Status, message: str) -> None:
        self.findings.append(Finding(one_line(check), status, one_line(message)))


def one_line(text: str) -> str:
    """Text on one line, without what would move a terminal's cursor: names in it come from the files."""
    return display.line(" ".join(text.split()), LONGEST_MESSAGE)


def some(faults: Iterable[str]) -> str:
    """The first of them, and how many more there are; "" of none. No more are made than are counted."""
    faults = iter(faults)
    named = ", ".join(islice(faults, NAMED_FAULTS))
    more = sum(1 for _ in islice(faults, COUNTED_FAULTS + 1))
    if more > COUNTED_FAULTS:
        return f"{named}, and more than {COUNTED_FAULTS:,} more"
    return f"{named}, and {more:,} more" if more else named
