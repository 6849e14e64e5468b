"""Whether another user of this machine could change what a path leads to, as sshd asks it of its keys.

Whoever may write to a folder can exchange its files while they are read, for links to what only the reader
may read. Root could do so anyway. A folder that is open counts as open also below one that is closed: it may
be mounted elsewhere.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from pipeline import display

ROOT = 0
MOST_LINKS = 40  # on the way to a file, as for Linux
CHANGE_SECONDS = 60.0  # after which a group is asked again who is in it: some are far away
ACCESS_LIST = "system.posix_acl_access"  # an extended attribute; users named in it have the group's rights


def other(paths: Iterable[Path]) -> str:
    """How another user could change one of these, or put another there: a clause; "" if nobody can.

    Raises OSError, for example if one of them is gone.
    """
    looked: set[tuple[Path, bool]] = set()
    for path in paths:
        *way, end = _steps(path)
        # On the way, a folder such as /tmp is closed: only the owner of what is there can exchange it.
        for step in {(step, True) for step in way} | {(end, False)} - looked:
            if wrong := _open_to(*step):
                return wrong
            looked.add(step)
    return ""


def _steps(path: Path) -> Iterator[Path]:
    """Every folder and link on the way to a path, and what it leads to, each without links on its own way."""
    reached, rest, links = Path("/"), [*reversed(path.absolute().parts)], 0
    while rest:
        step = reached / rest.pop()
        if step.name == "..":
            step = reached.parent
        elif step.is_symlink():
            if (links := links + 1) > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            rest += reversed(step.readlink().parts)
        reached = reached if step.is_symlink() else step
        yield step


def _open_to(path: Path, sticky: bool) -> str:
    """Who else may change a file or folder; a `sticky` folder counts as closed."""
    facts, name = path.lstat(), display.line(str(path))
    if facts.st_uid not in (ROOT, os.geteuid()):
        return f"{name} belongs to {_user(facts.st_uid)}"
    if stat.S_ISLNK(facts.st_mode) or (sticky and facts.st_mode & stat.S_ISVTX):
        return ""
    if facts.st_mode & stat.S_IWOTH:
        return f"every user may write to {name}"
    return _open_to_group(path, facts.st_gid, name) if facts.st_mode & stat.S_IWGRP else ""


def _open_to_group(path: Path, group: int, name: str) -> str:
    with suppress(OSError):  # a file system without any
        if ACCESS_LIST in os.listxattr(path):
            return f"an access list lets others write to {name}"
    private = _is_private(group, os.geteuid(), int(time.monotonic() // CHANGE_SECONDS))
    return "" if private else f"{_group(group)} may write to {name}"


@lru_cache(maxsize=256)
def _is_private(group: int, me: int, _minute: int) -> bool:
    """Whether a group has a user, and nobody else but root: many systems give each user such a group.

    A directory of users (LDAP) need not list all: where the user is not seen, others may not be either. And
    containers give root's group to users that have no name.
    """
    if group == ROOT:
        return False
    try:
        names = set(grp.getgrgid(group).gr_mem)
    except KeyError:
        return False
    users = pwd.getpwall()
    members = {user.pw_uid for user in users if user.pw_gid == group or user.pw_name in names}
    return me in members <= {ROOT, me} and names <= {user.pw_name for user in users}


def _user(number: int) -> str:
    try:
        return f"user {display.line(pwd.getpwuid(number).pw_name)}"
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return f"group {display.line(grp.getgrgid(number).gr_name)}"
    except KeyError:
        return f"group {number}"
