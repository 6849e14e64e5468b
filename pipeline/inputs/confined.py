"""Confine a process that opens files which somebody else made: a tokenizer's file may name another one.

What a library takes for a path in such a file is checked before (`models/contents`), as far as it is known.
This holds for what is not: from then on the process reads nothing but the files that it was given, and what
Python and drivers need. By Landlock, which Linux has since 5.13, and since 5.19 as what moves files needs it
(landlock(7), https://docs.kernel.org/userspace-api/landlock.html), and most systems switch on.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import site
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline import settings
from pipeline.inputs.prompts import model_template
from pipeline.system import own_process

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on all processors
_PATH_BENEATH = 1  # a rule for a file, or a folder and what is in it
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_MOVE = 1 << 13  # a file into another folder, by rename or link; nobody may before the second version
_ASK_VERSION, _MOVING = 1, 2
_NO_NEW_PRIVILEGES = 38  # of prctl(2), which the system calls ask for
# Capabilities of root that would show environment and memory of other processes, which Landlock does not:
# CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON (capabilities(7)); and CAP_SYSLOG the messages of the kernel.
_LOOKING = 1 << 19 | 1 << 21 | 1 << 34 | 1 << 38
_ENVIRONMENT = 47  # where /proc/self/stat has its begin and its end, after the name
_CAPABILITIES = 0x20080522  # the version that has 64 of them
# What Python and libraries look at while they work: no file of a person is in there.
SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc", "/sys", "/dev/null", "/dev/zero",
    "/dev/random", "/dev/urandom",
)  # fmt: skip
PYTHON = ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg")  # parts of a folder that may be a person's
# What drivers of GPUs, and libraries that compute on several, read besides: whose user this is, what machines
# are called, and software outside /usr.
MACHINE = (
    "/dev", "/bin", "/sbin", "/opt", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/nsswitch.conf",
    "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/gai.conf",
    "/etc/nccl.conf", "/etc/nvidia", "/etc/OpenCL",
)  # fmt: skip


def works() -> bool:
    """Whether all that should be confined is: this system's Landlock is switched on, and new enough."""
    return _version() >= _MOVING


def to(given: Iterable[Path], moves: bool = False) -> bool:
    """Let this thread, and the threads and processes that it starts, read no files but Python's and those
    `given`, with those that links in a snapshot of the hub lead to; and move files into other folders only
    among the given ones, if it `moves` any at all. False, and nothing changed, where the system's Landlock is
    too old for that, or it has none.
    """
    if _version() < (_MOVING if moves else 1):
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    access = _READ_FILE | _READ_DIR | (_MOVE if moves else 0)
    handled = struct.pack("Q", access)
    rules: int = call(_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    if rules < 0:
        return False
    try:
        given = {*given}
        for path in {*_python(), *given}:
            _allow(call, rules, path, access)
        for link, inside in itertools.chain.from_iterable(map(_links, given)):
            _allow(call, rules, link, access, inside)
        _allow(call, rules, settings.ROOT, _READ_DIR)  # where Python looks for our packages, by their names
        own_process.prctl(_NO_NEW_PRIVILEGES, 1)
        _look_at_no_others()
        return not call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def to_compute(given: Iterable[Path]) -> bool:
    """`to`, for what computes as well, on a GPU too: it may read what drivers and their libraries do, and the
    folders that the operator names (`OLIVE_LAB_READABLE`). It keeps no login in its environment, which is a
    file too, and asks no hub, whatever repository a file names; that on all systems.
    """
    stay_offline()
    compiled = settings.compiled()
    for folder in compiled:
        with suppress(OSError):  # what is not there when the rules are made is not opened later either
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    machine = (part for path in map(Path, MACHINE) for part in (_apart([path]) or _apart(_inside(path))))
    needed = {*machine, *_apart((*settings.software(), *compiled))}
    if not to([*given, *settings.readable(), *needed], moves=True):
        return False
    _forget_secrets()
    return True


def stay_offline() -> None:
    """Have the hub's client ask nothing any more in this process, and in those that it starts."""
    settings.stay_offline()
    if "huggingface_hub.constants" in sys.modules:  # it has read its switch then
        sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def _version() -> int:
    """The version of Landlock that this system has, or a number below 1."""
    version: int = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    return version


def _forget_secrets() -> None:
    """`settings.forget_secrets`, in /proc/self/environ too, which shows what the process was started with, or
    the one that it is a fork of."""
    settings.forget_secrets()
    facts = Path("/proc/self/stat").read_text().rpartition(") ")[2].split()
    at, end = map(int, facts[_ENVIRONMENT : _ENVIRONMENT + 2])
    for variable in ctypes.string_at(at, end - at).split(b"\0"):
        if not settings.computes_with(os.fsdecode(variable.partition(b"=")[0])):
            ctypes.memset(at, 0, len(variable))
        at += len(variable) + 1


def _apart(folders: Iterable[Path]) -> set[Path]:
    """Those of the folders that hold neither what a person keeps nor the lab's home."""
    kept = [settings.person().resolve(), settings.home_path().resolve()]
    return {path for path in folders if not any(one.is_relative_to(path.resolve()) for one in kept)}


def _inside(path: Path) -> list[Path]:
    return [*path.iterdir()] if path.is_dir() else []


def _look_at_no_others() -> None:
    """Give up what root has for it; what this thread starts does not get it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    version, held = struct.pack("Ii", _CAPABILITIES, 0), ctypes.create_string_buffer(24)
    if libc.capget(version, held):
        raise OSError(ctypes.get_errno(), "the capabilities of this process are not known")
    low, high = ~_LOOKING & 0xFFFFFFFF, ~(_LOOKING >> 32) & 0xFFFFFFFF
    kept = [have & (low if at < 3 else high) for at, have in enumerate(struct.unpack("6I", held.raw))]
    if libc.capset(version, struct.pack("6I", *kept)):
        raise OSError(ctypes.get_errno(), "the capabilities of this process cannot be given up")


def _allow(
    call: ctypes._FuncPointer, rules: int, path: Path, access: int, inside: tuple[Path, ...] = ()
) -> None:
    """Allow access to a path, and all below it, if it is there; of a link, if it leads `inside` these."""
    try:
        opened = _follow(path, inside) if inside else _open(path)
    except OSError:
        return
    try:
        access &= -1 if stat.S_ISDIR(os.fstat(opened).st_mode) else _READ_FILE
        if call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0):
            raise OSError(ctypes.get_errno(), "Landlock takes no rule for it", os.fspath(path))
    finally:
        os.close(opened)


def _open(path: Path) -> int:
    """A descriptor of what is at a path, but not through a link that another user has made: whoever may write
    to a folder of models could put one there, to what they may not read. Raises OSError."""
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    facts = os.fstat(opened)
    if not stat.S_ISLNK(facts.st_mode):
        return opened
    os.close(opened)
    if facts.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, "a link of another user", os.fspath(path))
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _follow(link: Path, inside: tuple[Path, ...]) -> int:
    """A descriptor of what a link leads to, if that lies below one of `inside`, which are real paths.

    It is asked of what is open: the link may lead elsewhere by then. Raises OSError.
    """
    opened = os.open(link, os.O_PATH | os.O_CLOEXEC)
    real = Path(os.readlink(f"/proc/self/fd/{opened}"))  # noqa: PTH115 - of what has no path any more too
    if any(real.is_relative_to(top) for top in inside):
        return opened
    os.close(opened)
    raise PermissionError(errno.EPERM, "leads elsewhere", os.fspath(link))


def _links(path: Path) -> Iterable[tuple[Path, tuple[Path, ...]]]:
    """The links in a folder of a hub's cache, where all files are links, with where they may lead.

    None in other folders: what lies below them is given already, and to look where they are now would follow
    whatever they are exchanged with.
    """
    if path.parent.name != model_template.SNAPSHOTS or not path.is_dir():
        return []
    inside = model_template.tops(path.resolve())
    return [(each, inside) for each in path.iterdir() if each.is_symlink()]


def _python() -> set[Path]:
    """Where Python reads modules. Of a checkout, which may hold a home, our packages alone."""
    folders = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *site.getsitepackages(), *sys.path}
    parts = (Path(folder) / part for folder in (sys.prefix, sys.base_prefix) for part in PYTHON)
    found = _apart((*(Path(folder).absolute() for folder in folders), *parts))
    if not settings.INSTALLED:
        found = found - {settings.ROOT} | {settings.ROOT / "pipeline"}
    return {*found, *map(Path, SYSTEM)}
