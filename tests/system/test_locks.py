from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.system import locks

HOLD = """
import sys, signal
from pathlib import Path
from pipeline.system import locks
print(locks.take(Path(sys.argv[1])) is not None, flush=True)
signal.alarm(200)
signal.pause()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has taken the lock and keeps it."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=settings.ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.held(path)
    process = holder(path)
    assert locks.held(path)
    assert locks.take(path) is None
    end(process)
    assert not locks.held(path)
    taken = locks.take(path)
    assert taken is not None
    os.close(taken)


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    taken = locks.take(tmp_path / "lock")
    assert taken is not None
    assert locks.take(tmp_path / "lock") is None
    os.close(taken)
    assert not locks.held(tmp_path / "lock")


def test_a_child_that_inherits_the_lock_keeps_it_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    sleeper = [sys.executable, "-c", "import signal; signal.alarm(200); print(flush=True); signal.pause()"]
    taken = locks.take(path)
    assert taken is not None
    with (
        subprocess.Popen(sleeper, stdout=subprocess.PIPE, pass_fds=[taken]) as heir,
        subprocess.Popen(sleeper, stdout=subprocess.PIPE) as other,
    ):
        os.close(taken)
        assert locks.held(path)
        heir.kill()
        heir.wait()
        assert not locks.held(path)
        other.kill()


def test_asking_does_not_make_taking_fail(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    asker = os.open(path, os.O_RDONLY)
    fcntl.flock(asker, fcntl.LOCK_SH)  # `held` in the middle of asking
    threading.Timer(0.1, os.close, [asker]).start()
    taken = locks.take(path)
    assert taken is not None
    os.close(taken)


def test_locked_waits_for_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with locks.locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locks.locked(path):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_no_file_is_made_where_a_link_leads(tmp_path: Path) -> None:
    (lock := tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        locks.take(lock)
    with pytest.raises(OSError, match="symbolic links"), locks.locked(lock):
        pass
    with pytest.raises(OSError, match="symbolic links"), locks.shared(lock):
        pass
    assert not (tmp_path / "elsewhere").exists()
