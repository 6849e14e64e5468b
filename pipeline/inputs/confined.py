"""Confine a process that opens files which somebody else made: a tokenizer's file may name another one.

What a library takes for a path in such a file is checked before (`models/contents`), as far as it is known.
This holds for what is not: from then on the process reads nothing but the files that it was given, and what
Python needs. By Landlock, which Linux has since 5.13 (landlock(7), https://docs.kernel.org/userspace-api/
landlock.html), and most systems switch on.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from pipeline import settings
from pipeline.system import own_process

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on all processors
_PATH_BENEATH = 1  # a rule for a file, or a folder and what is in it
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_NO_NEW_PRIVILEGES = 38  # of prctl(2), which the system calls ask for
# What Python and libraries look at while they work: no file of a person is in there. Of other processes,
# Landlock shows no environment and no memory.
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc", "/sys", "/dev")


def to(given: Iterable[Path]) -> bool:
    """Let this thread, and the threads and processes that it starts, read no files but Python's and those
    `given`, with the files that links in given folders lead to. False, and nothing changed, where the system
    has no Landlock.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    handled = struct.pack("Q", _READ_FILE | _READ_DIR)
    rules: int = call(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    try:
        for path in {*_python(), *itertools.chain.from_iterable(map(_with_links, given))}:
            _allow(call, rules, path, _READ_FILE | _READ_DIR)
        _allow(call, rules, settings.ROOT, _READ_DIR)  # where Python looks for our packages, by their names
        own_process.prctl(_NO_NEW_PRIVILEGES, 1)
        return not call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(call: ctypes._FuncPointer, rules: int, path: Path, access: int) -> None:
    """Allow access to a path, if it is there, and all below it."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = struct.pack("=Qi", access if path.is_dir() else access & _READ_FILE, opened)
        if call(_ADD_RULE, rules, _PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), "Landlock takes no rule for it", os.fspath(path))
    finally:
        os.close(opened)


def _with_links(path: Path) -> Iterable[Path]:
    """A path, and the files that links right in a folder lead to: in a hub's cache all files are links."""
    links = path.iterdir() if path.is_dir() else ()
    return [path, *(each.resolve() for each in links if each.is_symlink() and each.is_file())]


def _python() -> set[Path]:
    """Where Python reads modules. Of a checkout, which may hold a home, our packages alone."""
    folders = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *site.getsitepackages(), *sys.path}
    found = {Path(folder).absolute() for folder in folders}
    if not settings.INSTALLED:
        found = found - {settings.ROOT} | {settings.ROOT / "pipeline"}
    return {*found, *map(Path, SYSTEM)}
