from __future__ import annotations

import ast
import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.system import own_process
from tests.helpers.lab import alive, until

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def test_what_it_prints_comes_back() -> None:
    done = own_process.run(["-c", "import sys; print('é'); sys.exit('no')"], 60, settings.child_environment())
    assert (done.stdout, done.stderr, done.returncode) == ("é\n", "no\n", 1)


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = f"import os, signal; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); signal.pause()"
    with pytest.raises(subprocess.TimeoutExpired):
        own_process.run(["-c", code], 1.0, ENVIRONMENT)
    assert not own_process._running


STARTS_ANOTHER = """
import pathlib, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
part = pathlib.Path(sys.argv[1] + ".part")
part.write_text(str(child.pid))
part.rename(sys.argv[1])
signal.pause()
"""


@pytest.mark.parametrize("how", ["time", "unwanted", "close", "follow"])
def test_what_it_has_started_ends_with_it(tmp_path: Path, how: str) -> None:
    """Nobody else would end it: its own time limit lay in the process that was ended."""
    noted = tmp_path / "pid"
    words = ["-c", STARTS_ANOTHER, str(noted)]

    def look() -> None:
        if noted.exists() and how == "unwanted":
            raise LabError("Nobody waits for this any more.")

    def carry_out() -> None:
        with suppress(LabError, subprocess.TimeoutExpired), own_process.while_wanted(look):
            if how == "follow":
                own_process.follow(words, settings.child_environment(), print)
            else:
                own_process.run(words, None, settings.child_environment())

    if how == "time":
        for seconds in (2.0, 20.0, 60.0):  # on a slow machine it has not started its own at first
            with pytest.raises(subprocess.TimeoutExpired):
                own_process.run(words, seconds, settings.child_environment())
            if noted.exists():
                break
    thread = threading.Thread(target=carry_out)
    if how != "time":
        thread.start()
        until(noted.exists, "the process that it starts")
        if how in ("close", "follow"):
            own_process.close()
        thread.join(60)
        assert not thread.is_alive()
    assert noted.exists()
    until(lambda: not alive(int(noted.read_text())), "its end")


def test_close_ends_them_and_who_waits_gets_an_answer() -> None:
    ends: list[int] = []
    asking = threading.Thread(
        target=lambda: ends.append(
            own_process.run(["-c", "import signal; signal.pause()"], 600, ENVIRONMENT).returncode
        )
    )
    asking.start()
    until(lambda: own_process._running, "the start")
    own_process.close()
    asking.join(60)
    assert ends == [-9]


def test_one_that_is_left_to_itself_has_its_own_session_and_what_it_is_to_keep(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    code = f"import os; os.fstat({held}); print(os.getsid(0) == os.getpid(), os.getcwd(), os.read(0, 1))"
    try:
        with own_process.start(
            ["-c", code], settings.child_environment(), stdout=subprocess.PIPE, keep=[held], apart=True
        ) as process:
            assert process.stdout is not None
            said = process.stdout.read().decode()
    finally:
        os.close(held)
    assert said == f"True {settings.ROOT} b''\n"


EXPENDABLE = """
from pathlib import Path
from pipeline.system import own_process
own_process.expendable()
try:
    Path("profile.json").write_text("x")
except OSError:
    print("no file,", Path("/proc/self/oom_score_adj").read_text().strip())
"""


def test_an_expendable_one_leaves_no_file_behind_and_ends_first(tmp_path: Path) -> None:
    done = own_process.run(["-c", EXPENDABLE], 60, settings.child_environment())
    assert (done.stdout, done.stderr) == (f"no file, {own_process.EXPENDABLE}\n", "")


def test_one_talks_with_an_event_loop() -> None:
    async def talk() -> bytes:
        process = await own_process.converse(
            ["-c", "print(input() + '!')"], settings.child_environment(), stderr=None, longest_line=1000
        )
        return (await process.communicate(b"Hello\n"))[0]

    assert [asyncio.run(talk()) for _ in range(2)] == [b"Hello!\n"] * 2


def test_a_talk_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that could not be started, the process would stay for nobody."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    test_one_talks_with_an_event_loop()


def test_a_talk_ends_though_another_loop_has_ended_meanwhile() -> None:
    talks, ends = threading.Event(), threading.Event()

    async def talk() -> int:
        process = await own_process.converse(
            ["-c", "input()"], settings.child_environment(), stderr=None, longest_line=1000
        )
        talks.set()
        while not ends.is_set():
            await asyncio.sleep(0.01)
        await process.communicate(b"\n")
        return process.returncode or 0

    with ThreadPoolExecutor(1) as others:
        talking = others.submit(asyncio.run, talk())
        assert talks.wait(60)
        test_one_talks_with_an_event_loop()
        ends.set()
        assert talking.result(60) == 0


def test_the_end_of_one_that_was_killed_after_it_is_known() -> None:
    """Killing waits for what has ended, so the watcher finds nothing to wait for."""

    async def talk() -> int:
        process = await own_process.converse(
            ["-c", ""], settings.child_environment(), stderr=None, longest_line=1000
        )
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # the event loop does not learn of its end
        with suppress(ProcessLookupError):
            process.kill()
        return await asyncio.wait_for(process.wait(), 60)

    assert asyncio.run(talk()) in (0, own_process.UNKNOWN_CODE)


def test_one_that_cannot_be_watched_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info >= (3, 12):
        pytest.skip("Python watches it")
    started: list[int] = []

    def full(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    test_one_talks_with_an_event_loop()
    monkeypatch.setattr(os, "pidfd_open", full)
    with pytest.raises(OSError, match="Too many"):
        test_one_talks_with_an_event_loop()
    assert not psutil.pid_exists(started[0])
    gc.collect()  # what Python had made for it closes itself here, and not within another test


def test_what_is_no_text_comes_back_all_the_same() -> None:
    code = "import sys; sys.stderr.buffer.write(b'\\xff broken')"
    done = own_process.run(["-c", code], None, settings.child_environment())
    assert done.stderr == "\ufffd broken"


def test_all_processes_of_ours_are_started_in_one_place() -> None:
    """Elsewhere only programs that are not ours are run, such as nvidia-smi."""
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix()
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        if _starts(path)
    }
    assert found == {
        "pipeline/system/capacity.py",
        "pipeline/system/hardware.py",
        "pipeline/system/own_process.py",
        "pipeline/worker/usage.py",
    }


STARTERS = {
    "subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output",
    "subprocess.Popen", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
    "os.system", "os.execv", "os.posix_spawn", "settings.python",
}  # fmt: skip


def _starts(path: Path) -> bool:
    tree = ast.parse(path.read_text("utf-8"))
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) in STARTERS for node in ast.walk(tree))


def test_lines_come_as_they_are_written_and_none_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "LOOK_SECONDS", 0.001)
    source, target = os.pipe()
    found = own_process.lines(source, 60.0)
    os.write(target, b"one\ntw")
    assert next(found) == b"one"
    assert next(found) is None
    os.write(target, b"o\nthree")
    assert next(found) == b"two"
    os.close(target)
    assert list(found) == []
    os.close(source)
    assert list(own_process.lines(source, 0.0)) == []


ASKED = """
import sys
from pipeline.system import own_process
sys.stdin.buffer.readline()
own_process.end_with_input()
own_process.answer("one")
"""


def asked(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", ASKED + code],
        cwd=settings.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"what?\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"one\n"
    return process


def test_one_that_is_asked_ends_with_who_asks() -> None:
    process = asked("import signal\nsignal.pause()")
    assert process.communicate(timeout=60)[1] == b""  # which closes its input first
    assert process.returncode == -signal.SIGKILL


def test_one_that_is_asked_ends_where_nobody_reads_the_answer() -> None:
    process = asked("while True: own_process.answer('another')")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGKILL


def test_one_that_ends_while_it_waits_for_the_end_of_its_input_does_not_abort() -> None:
    """Python would, at the lock of `sys.stdin`, with a core file."""
    process = asked("raise SystemExit(7)")
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 7
