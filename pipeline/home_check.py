"""Whether the file system of a home can do what the lab needs: tried once a process, in a few milliseconds.

Shares such as SMB lack some features; locks, the database or file permissions would then fail later, each
with its own error. And nobody else may write to it: who does could have any file of this user written.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shlex
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from pipeline import writers
from pipeline.errors import InputError

PREFIX = ".probe-"
OURS = re.compile(re.escape(PREFIX) + r"[0-9a-f]{12}")
LONGEST_PATH = 480  # bytes of a home's path; SQLite takes 512, the database's name included
ABANDONED_SECONDS = 600.0
ROOT = 0  # whose folders are safe, and who may use those of others
ANOTHERS = "belongs to another user, who could change all that is kept there"
# These errors say nothing about the kind of file system; the next write reports them.
ELSEWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


class _Lacking(Exception):
    """A call succeeded but had no effect."""


@lru_cache(maxsize=8)
def need(home: Path) -> None:
    """Check that a home can hold a lab. Leaves nothing behind, and does not disturb other processes.

    Raises InputError with what is missing and where to put the home instead, and for one that is another
    user's or that others may write to.
    """
    if len(os.fsencode(home)) > LONGEST_PATH:
        raise InputError(
            f"OLIVE_LAB_HOME: the path of the home is longer than {LONGEST_PATH} bytes, which its database"
            " does not take; name a shorter one."
        )
    try:
        with _folder(home) as folder:
            lacking = [words for words, tried in TRIED.items() if not _works(tried, folder)]
            me = folder.stat().st_uid  # shares and containers give users other numbers
    except OSError as error:
        if error.errno in ELSEWHERE:
            return
        raise InputError(
            f"{home} cannot be written ({error.strerror}); make the home folder writable, or set"
            " OLIVE_LAB_HOME to another one."
        ) from None
    if lacking:
        raise InputError(
            f"OLIVE_LAB_HOME: the file system of {home} lacks {_and(lacking)}, which the lab needs; put the"
            " home on a local disk, as OLIVE_LAB_HOME=/a/local/folder."
        )
    found = home.stat()
    if found.st_uid not in (me, ROOT) and os.geteuid() != ROOT:
        raise InputError(
            f"OLIVE_LAB_HOME: {home} {ANOTHERS}; name a folder of your own, or have it given to you: sudo"
            f" chown {me} {shlex.quote(str(home))}"
        )
    if found.st_uid == me and _is_open(found) and not found.st_mode & stat.S_ISVTX:
        raise InputError(f"OLIVE_LAB_HOME: {_open_to_others(home)}")


def warning(home: Path) -> str | None:
    """What the operator should know of a home that `need` takes: containers have such, and root uses any."""
    found = home.stat()
    if found.st_uid not in (os.geteuid(), ROOT) and os.geteuid() == ROOT:
        return f"{home} {ANOTHERS}."
    if _is_open(found):
        return _open_to_others(home)
    if wrong := writers.other([home]):
        return f"{wrong}: whoever may change that could change all that is kept in the home {home}."
    return None


def _is_open(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IWOTH)


def _open_to_others(home: Path) -> str:
    return (
        f"every user of this machine may write to {home}, and so change all that is kept there; close it to"
        f" them: chmod o-w {shlex.quote(str(home))}"
    )


def _works(tried: Callable[[Path], None], folder: Path) -> bool:
    """Whether it works. Raises OSError if that cannot be found out, for example on a full disk."""
    try:
        tried(folder)
    except _Lacking:
        return False
    except OSError as error:
        if error.errno in ELSEWHERE:
            raise
        return False
    return True


@contextmanager
def _folder(home: Path) -> Iterator[Path]:
    """A folder of this process alone inside the home, gone afterwards."""
    _sweep(home)
    folder = home / f"{PREFIX}{os.urandom(6).hex()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder)


def _sweep(home: Path) -> None:
    """Remove what processes left behind that were killed during this check, and nothing else of that name."""
    with os.scandir(home) as entries:
        found = [Path(entry.path) for entry in entries if OURS.fullmatch(entry.name)]
    for folder in found:
        with suppress(OSError):
            facts = folder.lstat()
            ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid()
            if ours and time.time() - facts.st_mtime > ABANDONED_SECONDS:
                _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder of this check, unless there is anything in it that is not of this check."""
    with suppress(OSError):
        folder.chmod(0o700)  # it may have been tried with less
    for name in FILES:
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _two(path: Path) -> Iterator[tuple[int, int]]:
    """A file opened twice, as by two processes."""
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield first, second
        finally:
            os.close(second)
    finally:
        os.close(first)


def _flock(folder: Path) -> None:
    """Shared by two, refused to one who wants it alone, and free when it is closed."""
    path = folder / "flock"
    with _two(path) as (first, second):
        for descriptor in (first, second):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise _Lacking
    with _two(path) as (first, second):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise _Lacking


def _ranges(folder: Path) -> None:
    """Locks on parts of a file, as SQLite takes them; checked for as another process would."""
    with _two(folder / "ranges") as (first, second):
        fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 1)
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            told = fcntl.fcntl(second, fcntl.F_OFD_GETLK, asked)
        except OSError as error:
            if (
                error.errno != errno.EINVAL
            ):  # this kernel does not support the query; SQLite does not use it either
                raise
        else:
            if struct.unpack("hhqqi4x", told)[0] == fcntl.F_UNLCK:
                raise _Lacking
        fcntl.lockf(first, fcntl.LOCK_UN, 2, 1)


def _mapping(folder: Path) -> None:
    """A file mapped as memory by two. It is written first: without disk space the mapping would crash."""
    with _two(folder / "mapped") as (first, second):
        os.write(first, bytes(mmap.PAGESIZE))
        with mmap.mmap(first, mmap.PAGESIZE) as one, mmap.mmap(second, mmap.PAGESIZE) as other:
            one[0] = 1
            if other[0] != 1:
                raise _Lacking


def _modes(folder: Path) -> None:
    """Permissions stay as they are set. None tried here is wider than those of our files."""
    path = folder / "modes"
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for target, modes in ((path, (0o400, 0o600)), (folder, (0o500, 0o700))):
        for mode in modes:
            target.chmod(mode)
            if target.stat().st_mode & 0o777 != mode:
                raise _Lacking


def _replacing(folder: Path) -> None:
    """A file replaces another that is open. It is empty, because some file systems flush it at this point."""
    new, old = folder / "new", folder / "old"
    new.write_bytes(b"")
    old.write_bytes(b"old")
    with old.open("rb"):
        new.replace(old)
    if new.exists() or old.stat().st_size:
        raise _Lacking


def _appending(folder: Path) -> None:
    """What is written goes to the file's end, as logs do."""
    path = folder / "appended"
    for text in (b"one", b"two"):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
    if path.read_bytes() != b"onetwo":
        raise _Lacking


def _cutting(folder: Path) -> None:
    """A file is cut short by its name and while it is open, as SQLite does it."""
    path = folder / "cut"
    path.write_bytes(b"long")
    os.truncate(path, 1)
    with path.open("rb+") as file:
        if file.read() != b"l":
            raise _Lacking
        os.ftruncate(file.fileno(), 0)
    if path.stat().st_size:
        raise _Lacking


def _dating(folder: Path) -> None:
    """A file gets another time, as files do that are carried over."""
    path = folder / "dated"
    path.write_bytes(b"")
    os.utime(path, (1e9, 1e9))
    if path.stat().st_mtime != 1e9:
        raise _Lacking


def _removing(folder: Path) -> None:
    """A file that is removed is gone."""
    path = folder / "removed"
    path.write_bytes(b"")
    path.unlink()
    if path.exists():
        raise _Lacking


def _syncing(folder: Path) -> None:
    """Sync a file without new data, if there is one: with data it takes long on a busy disk."""
    used = folder.parent / "runs.lock"
    path = used if used.exists() else folder / "synced"
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


TRIED: dict[str, Callable[[Path], None]] = {
    "file locks (flock)": _flock,
    "locks on parts of a file (fcntl)": _ranges,
    "shared memory maps (mmap)": _mapping,
    "permissions (chmod)": _modes,
    "replacing an open file (rename)": _replacing,
    "writing through to the disk (fsync)": _syncing,
    "appending to a file (O_APPEND)": _appending,
    "cutting a file short (truncate)": _cutting,
    "time stamps (utime)": _dating,
    "removing files (unlink)": _removing,
}
# All that these leave in their folder.
FILES = ("flock", "ranges", "mapped", "modes", "new", "old", "synced", "appended", "cut", "dated", "removed")


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
