"""The errors a user can cause, each one sentence that says what to do next."""

from __future__ import annotations


class LabError(Exception):
    """Something the user can put right. Its text is shown as it is, without a traceback."""


class InputError(LabError):
    """One or more faults in what the user gave; nothing was started.

    `problems` holds one sentence each, already naming the line or the key.
    """

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
