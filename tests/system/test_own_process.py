from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.system import own_process
from tests.helpers.lab import until

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def test_what_it_prints_comes_back() -> None:
    done = own_process.run(["-c", "import sys; print('é'); sys.exit('no')"], 60, settings.child_environment())
    assert (done.stdout, done.stderr, done.returncode) == ("é\n", "no\n", 1)


def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = f"import os, signal; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); signal.pause()"
    with pytest.raises(subprocess.TimeoutExpired):
        own_process.run(["-c", code], 1.0, ENVIRONMENT)
    assert not own_process._running


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
