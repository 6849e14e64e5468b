"""What a forked process shows of itself, and who waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.worker.ahead import forking
from tests.helpers.lab import alive, until

RENAMES = """
import os, signal, sys
from pipeline.worker.ahead import forking
signal.alarm(100)
hears, tells = os.pipe()
pid = os.fork()
if not pid:
    forking.rename("--fork", ["one", "two"], sys.argv[1])
    os.write(tells, b".")
    signal.pause()
os.read(hears, 1)
for number in (pid, os.getpid()):
    for name in ("cmdline", "environ"):
        print(open(f"/proc/{number}/{name}", "rb").read().rstrip(b"\\0").split(b"\\0"))
os.kill(pid, signal.SIGKILL)
"""


def run(code: str, *words: str, roomy: bool = True) -> subprocess.CompletedProcess[str]:
    environment = settings.child_environment(LAST="1")
    return subprocess.run(
        [sys.executable, "-c", code, *words, "--fork", "what it is for", forking.ROOM],
        env=settings.roomy(environment) if roomy else environment, capture_output=True, text=True,
    )  # fmt: skip


def test_a_fork_has_words_and_a_mark_of_its_own_and_the_process_its_own() -> None:
    done = run(RENAMES, "OLIVE_LAB_EVENTS=/möwe/events.jsonl")
    words, variables, before, others = map(eval, done.stdout.splitlines())
    assert [word for word in words if word][-2:] == [b"one", b"two"]
    assert "OLIVE_LAB_EVENTS=/möwe/events.jsonl".encode() in variables
    assert b"LAST=1" in variables
    assert not any(variable.startswith(settings.ROOM.encode()) for variable in variables)
    assert before[-2:] == [b"what it is for", forking.ROOM.encode()]
    assert not any(variable.startswith(b"OLIVE_LAB_EVENTS") for variable in others)


@pytest.mark.parametrize(("mark", "roomy"), [("A=" + "x" * 9000, True), ("A=1", False)])
def test_without_room_there_is_none(mark: str, roomy: bool) -> None:
    code = f"from pipeline.worker.ahead import forking; forking.rename('--fork', ['one'], {mark!r})"
    assert "has no room for the name of its stage" in run(code, roomy=roomy).stderr


# Forks are made by processes with one thread, which this one may not be.
WAITS = """
import os, signal, subprocess
from pipeline.worker.ahead import forking

def fork(code=None):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        signal.pause() if code is None else os._exit(code)
    return forking.Forked(pid)

with fork() as forked:
    assert forked.poll() is None
    try:
        forked.wait(0.01)
    except subprocess.TimeoutExpired:
        print("lives")
    forked.kill()
    print(forked.wait(60), forked.poll())
forked.kill()  # nobody else, who may have its number by now
print(fork(7).wait())
"""


def test_its_exit_code_is_known_and_it_can_be_waited_for() -> None:
    done = run(WAITS)
    assert done.stdout.split() == ["lives", "-9", "-9", "7"], done.stderr


ADOPTS = """
import os, sys
from pipeline.worker.ahead import forking
hears, tells = os.pipe()
told, tell = os.pipe()

def orphan():
    if pid := os.fork():
        os.waitpid(pid, 0)
        return int(os.read(told, 20))
    if pid := os.fork():
        os.write(tell, str(pid).encode())
    else:
        os.close(tells)
        os.read(hears, 1)
    os._exit(0)

with forking.adopting():
    child = orphan()
strangers = orphan()
os.close(tells)
print(forking.Forked(child).wait(60))
try:
    os.waitpid(strangers, 0)
except ChildProcessError:
    print("no child")
"""


def test_a_process_whose_parent_ends_becomes_a_child_inside_the_block_alone() -> None:
    done = run(ADOPTS)
    assert done.stdout.splitlines() == ["0", "no child"], done.stderr


ENDS = """
import os, signal
from pipeline.system import own_process
pid = os.fork()
if not pid:
    own_process.end_with(os.getppid())
    if not os.fork():
        signal.alarm(60)
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: both of them write there
    signal.pause()
signal.pause()
"""


def test_a_process_ends_with_its_parent_and_not_its_forks() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDS], env=settings.child_environment(), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            pids = [int(parent.stdout.readline()) for _ in range(2)]
            assert all(map(alive, pids))
        finally:
            parent.kill()
    until(lambda: [alive(pid) for pid in sorted(pids)] == [False, True], "the end of the first")
    os.kill(max(pids), signal.SIGKILL)


LETS_GO = """
import os, signal, sys
from pathlib import Path
from pipeline.system import locks
from pipeline.worker.ahead import forking
lock = Path(sys.argv[1])
held = locks.take(lock)
hears, tells = os.pipe()
pid = os.fork()
if not pid:
    signal.alarm(60)
    forking.close_files()
    os.write(tells, b".")  # a pipe stays
    signal.pause()
os.read(hears, 1)
print(locks.held(lock))
os.close(held)
print(locks.held(lock))
os.kill(pid, signal.SIGKILL)
"""


def test_a_fork_lets_go_of_locks_that_it_has_inherited(tmp_path: Path) -> None:
    done = run(LETS_GO, str(tmp_path / "lock"))
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_number_of_threads_that_the_user_wants_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert settings.blas_threads() == 1
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "all")
    assert settings.blas_threads() == 0


def test_an_error_is_of_ours() -> None:
    with pytest.raises(LabError, match="no room"):
        forking.rename("--no such word", [], "A=1")
