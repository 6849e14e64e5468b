"""The errors a user can cause, each one sentence that says what to do next."""

from __future__ import annotations

import errno

from pipeline import display

LONGEST_PROBLEM = 2000  # characters; a path in it may have thousands
MOST_PROBLEMS = 20  # of one refusal: a page draws each, and files may have a great many
# Errors of a program, not of what it was given: their texts ('multi_cache') say nothing to a user.
INTERNAL = (LookupError, TypeError, AttributeError, AssertionError, NameError, NotImplementedError)
# What to suggest when memory ran out and the cause is not known.
ANY_SMALLER = "a smaller batch_size or max_length, or with gradient_checkpointing on"
NO_MORE = "This machine can start no more processes now; try again in a minute."


class LabError(Exception):
    """Something the user can put right. Its text is shown as it is, without a traceback, if it is no longer
    than `most` characters; a longer one is cut.
    """

    def __init__(self, text: str = "", *, most: int = LONGEST_PROBLEM) -> None:
        super().__init__(display.valid(display.cut(text, most)))


class InputError(LabError):
    """One or more faults in what the user gave; nothing was started.

    `problems` holds one sentence each, already naming the line or the key. Of more than MOST_PROBLEMS, the
    last one says how many more there are.
    """

    def __init__(self, problems: list[str] | str) -> None:
        given = [problems] if isinstance(problems, str) else problems
        more = len(given) - MOST_PROBLEMS
        if more > 1:  # one more may be how many more there are
            given = [*given[:MOST_PROBLEMS], f"and {more:,} more"]
        self.problems = [display.valid(display.cut(problem, LONGEST_PROBLEM)) for problem in given]
        super().__init__("\n".join(self.problems), most=(LONGEST_PROBLEM + 1) * (MOST_PROBLEMS + 1))


class NotHere(InputError):
    """What was named cannot be had just now, though nothing may be wrong with its name."""


class Busy(InputError):
    """A resource shared with others was not free in time."""


def sentence(error: BaseException, stage: str = "", smaller: str = ANY_SMALLER) -> str:
    """One plain sentence for what went wrong, in a stage if it is given, and what to do next.

    `smaller` is what to suggest if memory ran out.
    """
    known = expected(error, smaller)
    if known is not None:
        return known
    failed = f"{stage} failed" if stage else "This failed"
    internal = " with an internal error" if isinstance(error, INTERNAL) else ""
    following = "its log shows where. Retry it, or start a new run with other options."
    if internal:
        following = "its log shows where. Retry it; if it fails again, report it with that log."
    if not stage:
        following = "try again; if it fails again, report it."
    return f"{failed}{internal} ({name(error)}); {following}"


def expected(error: BaseException, smaller: str = ANY_SMALLER) -> str | None:
    """The sentence for a known kind of error: ours, full disk, out of memory, too many processes, no access;
    else None."""
    if isinstance(error, LabError):
        return str(error)
    causes = _causes(error)
    if any(_is_full_disk(cause) for cause in causes):
        return "The disk is full; free some space in the home folder and retry."
    if any(_is_out_of_memory(cause) for cause in causes):
        gpu = any("CUDA" in f"{type(cause).__name__} {cause}" for cause in causes)
        return f"{'GPU memory' if gpu else 'Memory'} ran out; start a new run with {smaller}."
    if any(starts_no_more(cause) for cause in causes):
        return NO_MORE
    return _no_access(error) if isinstance(error, OSError) else None


def _no_access(error: OSError) -> str | None:
    if error.errno == errno.EROFS:
        return (
            f"{display.line(error.filename or 'A file')} cannot be written ({error.strerror}); make the home"
            " folder writable, or set OLIVE_LAB_HOME to another one."
        )
    if error.filename is not None and error.strerror:
        return (
            f"{display.line(error.filename)} cannot be used ({error.strerror});"
            " check that it exists and is yours, and retry."
        )
    return None


def starts_no_more(error: BaseException) -> bool:
    """Whether a thread or a process could not be started: a user, a container or a machine has so many."""
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN and error.filename is None
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def reason(error: BaseException) -> str:
    """What went wrong, to follow a colon: the known sentence, or the error's name and text."""
    known = expected(error)
    if known is not None:
        return known
    return f"an internal error ({name(error)})" if isinstance(error, INTERNAL) else name(error)


def name(error: BaseException) -> str:
    """Kind and text of an error on one short line."""
    text = display.line(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _causes(error: BaseException | None) -> list[BaseException]:
    """The error and those it was raised from: libraries wrap the one that says why."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's own, torch's on a GPU and on the host, ONNX Runtime's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = (
        "DefaultCPUAllocator: can't allocate",
        "CUDA out of memory",
        "Failed to allocate memory for requested",
    )
    return isinstance(error, RuntimeError) and any(text in str(error) for text in told)
