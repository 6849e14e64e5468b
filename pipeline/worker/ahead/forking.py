"""Forked processes that are like started ones: children of whom they work for, with marks of their own.

A process may fork while it has one thread: locks that others hold would never be free in the fork.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from pipeline import settings
from pipeline.errors import LabError
from pipeline.system import own_process

SELF = Path("/proc/self")
_SUBREAPER = 36  # of prctl(2)
_ARGUMENTS, _ENVIRONMENT = 45, 47  # where /proc/self/stat has the begin and the end of each, after the name
ROOM = " " * 1024  # an argument whose place the words of a forked process take


def threads() -> int:
    """How many threads this process has, whoever started them."""
    return len(os.listdir(SELF / "task"))  # noqa: PTH208 - a path for each is of no use


class Forked:
    """A child process that was forked; it is used as a `subprocess.Popen` is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def poll(self) -> int | None:
        """Its exit code; None while it lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises TimeoutExpired after `timeout` seconds."""
        if self.returncode is None and timeout is not None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("a forked process", timeout)
            finally:
                os.close(descriptor)
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """Kill it, unless its end is known: its number may be reused then."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of processes below this one whose own parent ends inside the block.

    Raises OSError where the system does not do that.
    """
    own_process.prctl(_SUBREAPER, 1)
    try:
        yield
    finally:
        own_process.prctl(_SUBREAPER, 0)


def rename(first: str, words: Sequence[str], mark: str) -> None:
    """Show other words from the argument `first` on, and a mark, `NAME=VALUE`, in this process's /proc.

    Others see there what a process was started with, and its forks have the same. So the process that forks
    was started with ROOM as its last argument, and with room in its environment (`settings.roomy`).
    Raises LabError where there is not enough.
    """
    facts = (SELF / "stat").read_text().rpartition(") ")[2].split()
    _replace(facts[_ENVIRONMENT : _ENVIRONMENT + 2], f"{settings.ROOM}=", mark)
    _replace(facts[_ARGUMENTS : _ARGUMENTS + 2], f"{first}\0", "\0".join(words))
    if mark.encode() not in (SELF / "environ").read_bytes().split(b"\0"):
        raise LabError("this process cannot be marked as one of its stage")


def _replace(region: Sequence[str], begins: str, text: str) -> None:
    """Write a text over what begins so at the start of a word, in the region between two addresses.

    An argument is replaced with all after it, a variable alone.
    """
    begin, end = map(int, region)
    there, wanted = b"\0" + ctypes.string_at(begin, end - begin), b"\0" + begins.encode()
    at, new = there.find(wanted), text.encode()
    room = len(there) - at - 1 if begins.endswith("\0") else there.find(b"\0", at + 1) - at
    if at < 0 or len(new) >= room:
        raise LabError("this process has no room for the name of its stage")
    ctypes.memmove(begin + at, new.ljust(room - 1, b"\0"), room - 1)


def close_files() -> None:
    """Close what this process has inherited of its parent's open files, and with them its locks.

    For a fork that ends with `os._exit`, whatever else holds their numbers. The three standard ones stay.
    """
    for number in [int(name) for name in os.listdir(SELF / "fd")]:  # noqa: PTH208
        with suppress(OSError):  # the listing's own
            if number > 2 and stat.S_ISREG(os.fstat(number).st_mode):
                os.close(number)


def use_all_cores() -> None:
    """Give OpenBLAS the threads it would have had in a process that was started on its own.

    One that forks has loaded it with one thread, because it starts the others when it is loaded.
    """
    asked = settings.blas_threads()
    for library in _loaded("openblas"):
        for prefix, end in (("scipy_openblas", "64_"), ("scipy_openblas", ""), ("openblas", "")):
            set_threads = getattr(library, f"{prefix}_set_num_threads{end}", None)
            if set_threads is not None:
                cores = int(getattr(library, f"{prefix}_get_num_procs{end}")())
                set_threads(min(asked or cores, cores))
                break


def _loaded(name: str) -> list[ctypes.CDLL]:
    """The shared libraries of this process with that in their file's name."""
    lines = (SELF / "maps").read_text().splitlines()
    files = {line.partition("/")[2] for line in lines if name in line.rpartition("/")[2]}
    return [ctypes.CDLL(f"/{file}") for file in sorted(files)]
