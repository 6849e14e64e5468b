"""Standard JSON, files that a reader finds complete or not at all, and the size of folders."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline import settings
from pipeline.errors import LabError

TRACEBACKS = "errors.log"  # in the home
_LARGEST_LOG = 4 << 20  # bytes, after which a log of the home starts again
LINKED, CLONED, COPIED = "link", "reflink", "copy"  # how a file came to be in another folder
_FICLONE = 0x40049409  # Linux's request to share the blocks of another file
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def to_json(value: Any, **how: Any) -> str:
    """JSON with null for every NaN and infinity, which JSON lacks but Python would write.

    `how` is as for `json.dumps`.
    """
    return json.dumps(finite(value), allow_nan=False, **how)


def finite(value: Any) -> Any:
    """`value` with None for every NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path to write to inside the block, which replaces `path` at its end, or is gone if the block raises.

    `shared` is for a file that several processes may write at the same time: each gets its own path.
    Otherwise what a killed process left there is removed, as is a link, which would be written through: the
    folder may have come from somebody else.
    """
    unique = f".{secrets.token_hex(4)}" if shared else ""
    part = path.with_name(f".{path.name}{unique}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: Any, *, shared: bool = False) -> None:
    """Write text, bytes, or anything else as JSON: a reader sees the old file or the new one, never half.

    Only its user can read it, whatever the umask. `shared` is as for `whole`.
    """
    if not isinstance(content, str | bytes):
        content = to_json(content, default=lambda v: finite(float(v)))
    data = content.encode() if isinstance(content, str) else content
    with whole(path, shared=shared) as part, os.fdopen(os.open(part, _NEW, 0o600), "wb") as file:
        file.write(data)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link `target` to a file, or a copy where the file system has no links: whole, or not at all.

    Raises FileNotFoundError, FileExistsError, or the OSError of the copy.
    """
    share(source, target)


def share(source: Path, target: Path, inside: Iterable[Path] = ()) -> str:
    """As `link_or_copy`, and says how: LINKED, CLONED (a copy that shares its blocks until either file is
    changed, for file systems that have those but no link here), or COPIED.

    With `inside`, only of a source that `open_inside` opens.
    """
    if not inside:
        return _shared(source, target)
    with open_inside(source, inside) as opened:
        return _shared(Path(f"/proc/self/fd/{opened.fileno()}"), target)


def _shared(source: Path, target: Path) -> str:
    try:
        with _directory(source.parent) as folder:  # else a link would be linked, and not what it leads to
            os.link(source.name, target, src_dir_fd=folder)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:  # which errno says so differs between file systems
        with whole(target, shared=True) as part:
            try:
                _clone(source, part)
            except OSError:
                shutil.copyfile(source, part)
                return COPIED
            return CLONED
    return LINKED


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def linked_only_in(folder: Path) -> set[tuple[int, int]]:
    """Device and inode of the files below a folder that have no name elsewhere."""
    names = Counter((file.st_dev, file.st_ino, file.st_nlink) for file in stats([folder]))
    return {(device, inode) for (device, inode, links), count in names.items() if count == links}


def _clone(source: Path, target: Path) -> None:
    """A reflink, as Btrfs and XFS have them. Raises OSError where there are none."""
    with source.open("rb") as read, target.open("wb") as write:
        fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())


KEPT_FREE = 1 << 30  # bytes of disk left for runs


def make_room(folder: Path, size: int) -> None:
    """See that a disk takes so many bytes more, and runs have room beside them. Raises LabError."""
    if shutil.disk_usage(folder).free - size < KEPT_FREE:
        raise LabError("The lab's disk is nearly full: delete runs on the Runs tab, or free space on it.")


def visible(folder: Path) -> list[Path]:
    """The files in a folder that are not hidden; none if it is not there or not ours, or just removed."""
    try:
        return [path for path in folder.iterdir() if path.name[0] != "." and path.is_file()]
    except (FileNotFoundError, PermissionError):
        return []


def read_inside(path: Path, tops: Iterable[Path], most: int = -1) -> bytes:
    """A file's content, or its first `most` bytes, as `open_inside` opens it."""
    with open_inside(path, tops) as file:
        return file.read(most)


def open_inside(path: Path, tops: Iterable[Path]) -> IO[bytes]:
    """A file to read, if it lies below one of `tops`, which are real paths.

    What is looked at before a file is opened may be a link when it is: whoever may write to its folder can
    put one there. So it is asked of the open file. Raises OSError.
    """
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
    real = Path(os.readlink(f"/proc/self/fd/{opened}"))  # noqa: PTH115 - of a file without a path too
    if stat.S_ISREG(os.fstat(opened).st_mode) and any(real.is_relative_to(top) for top in tops):
        return open(opened, "rb")  # noqa: PTH123 - it is open already
    os.close(opened)
    raise OSError(errno.EXDEV, "it is no file of its folder", str(path))


def stats(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    """`stat` of every file below these folders, without following links; vanished files are skipped."""
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    yield (Path(parent) / name).lstat()


def size(*paths: Path) -> int:
    """Bytes of files, and of all files below folders; one that is linked several times counts once."""
    named = [path.stat() for path in paths if path.is_file()]
    below = stats(path for path in paths if not path.is_file())
    return sum({(file.st_dev, file.st_ino): file.st_size for file in (*named, *below)}.values())


def log(path: Path) -> IO[bytes]:
    """A log to append to. One that has grown large starts again: others decide how much errors say.

    Raises LabError for a link, as it may lead to any file of this user.
    """
    try:
        opened = os.fdopen(os.open(path, _APPEND, 0o600), "ab")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise LabError(f"{path} must be a file, and no link; remove it, and try again.") from None
    if opened.tell() > _LARGEST_LOG:
        opened.truncate(0)
    return opened


def keep_traceback(text: str) -> Path | None:
    """Append the traceback of an error of ours to a file in the home; where that is, None if it cannot be."""
    try:
        file = settings.home() / TRACEBACKS
        with log(file) as opened:
            opened.write(text[-_LARGEST_LOG:].encode("utf-8", "backslashreplace"))
    except (LabError, OSError):
        return None
    return file


def with_traceback(said: str, text: str) -> str:
    """A sentence on an error that nobody foresaw, and where its traceback `text` is kept."""
    kept = keep_traceback(text) if text else None
    return f"{said} The details are in {TRACEBACKS} of the home folder." if kept else said
