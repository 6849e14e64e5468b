"""Start Python processes of our own, which may hang or crash without harm to this one.

The caller chooses the environment, and with it how much the process may know: see `settings`. All of them can
import our packages, and none reads our standard input.
"""

from __future__ import annotations

import locale
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline import settings
from pipeline.errors import NO_MORE, LabError, starts_no_more

if TYPE_CHECKING:
    import asyncio

EXPENDABLE = 800  # of 1,000 points that Linux adds to what a process takes of the memory
_DEATH_SIGNAL = 1  # of prctl(2)
UNKNOWN_CODE = 255  # as asyncio's own watchers give
LOOK_SECONDS = 0.5  # how long `lines` may be silent
Channel = int | IO[bytes] | None  # as for `subprocess.Popen`; None is ours
_running: set[subprocess.Popen[bytes]] = set()
_groups: set[subprocess.Popen[bytes]] = set()  # those of `start_group`


def start(
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: Channel = subprocess.DEVNULL,
    stdout: Channel = None,
    stderr: Channel = None,
    keep: Sequence[int] = (),
    apart: bool = False,
    python: str | Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python WORDS` and leave it to the caller. It inherits the descriptors in `keep` as well.

    `apart` gives it a session, and so a process group, of its own: what ends ours leaves it alone. `python`
    is the interpreter of another environment, whose output must not be inherited. Raises LabError where the
    machine can start no more.
    """
    with starting():
        return subprocess.Popen(
            [python or settings.python(), *_guarded(words, stdout, stderr)],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=apart,
            cwd=settings.ROOT,
            env=environment,
            pass_fds=keep,
        )


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises LabError where the machine can start no more."""
    with starting():
        thread.start()


@lru_cache(maxsize=1)
def _watch_without_threads() -> None:
    """Have event loops learn of the end of a process by its descriptor, as they do from Python 3.12 on.

    Before, a loop starts a thread for each process once it is there: where that cannot be, the process was
    kept, with its model, for nobody. And Python's own watcher of that kind forgets the processes of all loops
    when one of them ends.
    """
    import asyncio

    if sys.version_info >= (3, 12):
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:  # an old kernel: then it is as before
        return

    class Watcher(asyncio.AbstractChildWatcher):
        def __enter__(self) -> Watcher:
            return self

        def __exit__(self, *_: object) -> None: ...

        def is_active(self) -> bool:
            return True

        def attach_loop(self, loop: object) -> None: ...

        def close(self) -> None: ...

        def add_child_handler(self, pid: int, callback: Callable[..., object], *given: object) -> None:
            loop = asyncio.get_running_loop()

            def ended() -> None:
                loop.remove_reader(descriptor)
                os.close(descriptor)
                try:
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                except ChildProcessError:  # whoever killed it has waited for it: see Popen.send_signal
                    code = UNKNOWN_CODE
                callback(pid, code, *given)

            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # no more files can be open
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            loop.add_reader(descriptor, ended)

        def remove_child_handler(self, pid: int) -> bool:
            return False

    asyncio.get_event_loop_policy().set_child_watcher(Watcher())


@contextmanager
def starting() -> Iterator[None]:
    """Around what starts a process or a thread: raises LabError where the machine can start no more.

    That lasts a moment or is somebody's doing. So whoever has counted, taken or made something for what is
    started gives it back where this raises.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if starts_no_more(error):
            raise LabError(NO_MORE) from None
        raise


def _guarded(words: Sequence[str], stdout: Channel, stderr: Channel) -> Sequence[str]:
    """The words for a process that cannot move the cursor of a terminal that it has from us."""
    inherits = stdout is None or stderr is None
    return ["-m", "pipeline.system.guarded", *words[1:]] if inherits and words[0] == "-m" else words


def expendable() -> None:
    """Have this process leave no files behind, and be the first to end where memory runs out.

    For one that loads somebody's model: a runtime may write to the current folder, and Linux ends whatever
    has the most memory, which may be a fine-tune.
    """
    itself = Path("/proc/self")
    if itself.is_dir():  # on Linux
        with suppress(OSError):  # some containers forbid it
            (itself / "oom_score_adj").write_text(f"{EXPENDABLE}\n")
        os.chdir(itself)  # nobody can make a file there


def end_with(parent: int) -> None:
    """Have this process killed when its parent, of that number, ends, however that does. Not its forks.

    The parent's thread that has started this process must last as long as the parent.
    """
    prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_input() -> None:
    """Have this process, which leads its group, killed with the group when its standard input ends: with
    whoever asks it, however that ends."""
    threading.Thread(target=_end_at_the_end, daemon=True).start()


def _end_at_the_end() -> None:
    while os.read(0, 1 << 16):  # not through `sys.stdin`, whose lock would have Python abort
        pass
    os.killpg(0, signal.SIGKILL)


def answer(line: str) -> None:
    """Print a line for whoever asks this process; if nobody does any more, it ends as by `end_with_input`."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.killpg(0, signal.SIGKILL)


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError where the system does not do that."""
    import ctypes  # most that import this module don't need it

    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option} is not allowed here")


async def converse(
    words: Sequence[str], environment: Mapping[str, str], *, stderr: Channel, longest_line: int
) -> asyncio.subprocess.Process:
    """Start `python WORDS` for an event loop, with a pipe to it and one back, and leave it to the caller."""
    import asyncio  # slow to import, and only the app needs it

    _watch_without_threads()
    with starting():
        return await asyncio.create_subprocess_exec(
            settings.python(),
            *_guarded(words, subprocess.PIPE, stderr),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=settings.ROOT,
            env=environment,
            limit=longest_line,
        )


@contextmanager
def while_wanted(look: Callable[[], None]) -> Iterator[None]:
    """Inside, in this thread, `run` calls `look` twice a second, and ends its process where that raises."""
    token = _look.set(look)
    try:
        yield
    finally:
        _look.reset(token)


def still_wanted() -> None:
    """Raises what the look of `while_wanted` does: nobody waits for what this thread does any more."""
    _look.get()()


_look: ContextVar[Callable[[], None]] = ContextVar("_look", default=lambda: None)


def run(
    words: Sequence[str],
    seconds: float | None,
    environment: Mapping[str, str],
    python: str | Path | None = None,
    given: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` prints, to whose standard input `given` is written, if it is given any. After
    `seconds`, if given, or when nobody wants it any more (`while_wanted`), ends it with all that it has
    started; raises TimeoutExpired, or what the look does.

    `python` is as for `start`.
    """
    pipe = subprocess.PIPE
    stdin = subprocess.DEVNULL if given is None else pipe
    with (
        temporary(environment) as own,
        start(words, own, stdin=stdin, stdout=pipe, stderr=pipe, python=python) as process,
    ):
        _running.add(process)
        try:
            out, error = _said(process, given.encode() if given is not None else None, seconds)
        except BaseException:
            _kill_all(process)
            raise
        finally:
            _running.discard(process)
    return subprocess.CompletedProcess(process.args, process.returncode, _text(out), _text(error))


@contextmanager
def temporary(environment: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """The environment with a folder for temporary files, which is there inside: what is killed has no time to
    remove its own."""
    with tempfile.TemporaryDirectory(prefix="olive-lab-", ignore_cleanup_errors=True) as folder:
        yield {**environment, "TMPDIR": folder}


def _said(
    process: subprocess.Popen[bytes], given: bytes | None, seconds: float | None
) -> tuple[bytes, bytes]:
    """What a process prints until it ends. Raises as `run` does."""
    ends = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        left = ends - time.monotonic()
        try:
            return process.communicate(given, timeout=max(0.0, min(LOOK_SECONDS, left)))
        except subprocess.TimeoutExpired:
            if left <= LOOK_SECONDS:
                raise subprocess.TimeoutExpired(process.args, seconds or 0) from None
        given = None  # it is sent already, or will be
        still_wanted()


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a process with those that it has started, which would go on without anybody to end them."""
    import psutil  # slow to import

    below: list[psutil.Process] = []
    if process.returncode is None:  # else its number may be reused by now
        with suppress(psutil.Error):
            below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in below:
        with suppress(psutil.Error):
            child.kill()


def follow(
    words: Sequence[str],
    environment: Mapping[str, str],
    tell: Callable[[str], None],
    python: str | Path | None = None,
    seconds: float | None = None,
) -> int:
    """Run `python WORDS`, give `tell` each line that it prints, and return its exit code.

    Its errors go where ours go; those of a `python` of another environment, as for `start`, to `tell` too. It
    ends when `tell` raises. Raises subprocess.TimeoutExpired if it is not done after so many `seconds`.
    """
    errors = subprocess.STDOUT if python is not None else None
    with (
        temporary(environment) as own,
        start(words, own, stdout=subprocess.PIPE, stderr=errors, python=python) as process,
    ):
        _running.add(process)
        assert process.stdout is not None
        late = threading.Event()

        def end_it() -> None:
            late.set()
            _kill_all(process)

        watch = threading.Timer(seconds or 0, end_it)
        try:
            if seconds is not None:
                start_thread(watch)
            for line in process.stdout:
                tell(_text(line).rstrip("\n"))
            code = process.wait()
        except BaseException:
            _kill_all(process)
            raise
        finally:
            watch.cancel()
            _running.discard(process)
    if late.is_set():
        raise subprocess.TimeoutExpired(list(words), seconds or 0)
    return code


def start_group(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `python WORDS` to talk to over its pipes; end it with `end`. Its errors go where ours go.

    It must end itself when its standard input closes, because nothing else does if this process is killed.
    """
    process = start(words, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, apart=True)
    _groups.add(process)
    return process


def lines(pipe: int, seconds: float) -> Iterator[bytes | None]:
    """Lines of a pipe until it ends or for so many seconds; None where there is none for a moment."""
    ends = time.monotonic() + seconds
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    received = b""
    while time.monotonic() < ends:
        if not ready.poll(1000 * LOOK_SECONDS):
            yield None
            continue
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return
        *whole, received = (received + piece).split(b"\n")
        yield from whole


def end(process: subprocess.Popen[bytes]) -> int:
    """End a process of `start_group` and all that it started; return its exit code."""
    kill(process)
    code = process.wait()
    _groups.discard(process)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):  # unsent input
            pipe.close()
    return code


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process of `start_group` and all that it has started, from a thread that does not call `end`."""
    if process.returncode is None:  # else its number may be reused by now
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def close() -> None:
    """End all that `run` and `follow` wait for, with what it has started. For the end of the app."""
    for process in list(_running):
        _kill_all(process)
    for group in list(_groups):
        kill(group)


def _text(data: bytes) -> str:
    return data.decode(locale.getencoding(), "replace")
