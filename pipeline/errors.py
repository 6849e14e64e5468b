"""The errors a user can cause, each one sentence that says what to do next."""

from __future__ import annotations

import errno


class LabError(Exception):
    """Something the user can put right. Its text is shown as it is, without a traceback."""


class InputError(LabError):
    """One or more faults in what the user gave; nothing was started.

    `problems` holds one sentence each, already naming the line or the key.
    """

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def sentence(error: BaseException) -> str:
    """One plain sentence for what went wrong, with what to do where that is known."""
    if isinstance(error, LabError):
        return str(error)
    causes = _causes(error)
    if any(_is_full_disk(cause) for cause in causes):
        return "The disk is full; free some space in the home folder and retry."
    if any(isinstance(c, MemoryError) or type(c).__name__ == "OutOfMemoryError" for c in causes):
        return (
            "Memory ran out; start a new run with a smaller batch_size or max_length, or with"
            " gradient_checkpointing on."
        )
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return (
            f"{error.filename or 'A file'} cannot be written ({error.strerror}); make the home folder"
            " writable, or set OLIVE_LAB_HOME to another one."
        )
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else f"{type(error).__name__}; see the log."


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and what it was raised from, as libraries wrap the one that says why."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)
