"""One stage in progress, with real processes; what the worker makes of it is in test_loop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store.run import LOCK, PROCESS, RESULT
from pipeline.system import clock, locks
from pipeline.worker import job
from pipeline.worker.job import Job
from tests.helpers.lab import until


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Job]:
    """A stage whose process waits until it is ended, in a group of its own, with its lock."""
    lock = locks.take(tmp_path / LOCK)
    assert lock is not None
    process = subprocess.Popen(["sleep", "200"], start_new_session=True, pass_fds=[lock])
    os.close(lock)
    (tmp_path / PROCESS).write_text(json.dumps({"pid": process.pid, **clock.mark()}))
    try:
        yield Job("r", "quantize", tmp_path, process)
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def test_it_is_asked_to_end_and_says_how_it_died(waiting: Job) -> None:
    assert not waiting.ended()
    assert job.lives(waiting.folder)
    waiting.end()
    until(waiting.ended, "the end of the process")
    assert not job.lives(waiting.folder)
    assert waiting.death() == "This stage crashed (Terminated); its log shows the last steps."
    assert waiting.taken_bytes > 0
    waiting.end()  # once more has no effect


def test_what_another_worker_started_is_known_by_its_folder(waiting: Job) -> None:
    adopted = Job("r", "quantize", waiting.folder)
    assert not adopted.ended()
    assert 0 <= adopted.elapsed() < 200
    adopted.end()
    assert waiting.process is not None
    waiting.process.wait()
    assert waiting.process.returncode == -signal.SIGTERM
    assert adopted.ended()
    assert adopted.death() == "This stage ended without saying why; its log shows the last steps."


def test_one_that_could_not_be_started_has_ended(tmp_path: Path) -> None:
    assert Job("r", "quantize", tmp_path, failure="No room.").ended()


def test_a_result_counts_once_it_is_whole(tmp_path: Path) -> None:
    given = Job("r", "quantize", tmp_path)
    assert given.result() is None
    (tmp_path / RESULT).write_text('{"status": ')
    assert given.result() is None
    (tmp_path / RESULT).write_text('{"status": "done"}')
    assert given.result() == {"status": "done"}


def test_a_process_that_stays_after_its_result_is_told_of_once(waiting: Job) -> None:
    log = waiting.folder / "log.txt"
    assert not waiting.lingers(0), "there is no result"
    (waiting.folder / RESULT).write_text('{"status": "done"}')
    assert not waiting.lingers(0), "it has just been seen"
    assert not waiting.lingers(1000)
    assert waiting.wrote is not None
    waiting.wrote -= 1
    assert waiting.lingers(0.5)
    waiting.asked_to_end = time.monotonic()
    assert waiting.lingers(0.5)
    assert log.read_text().count("The process of quantize did not exit within 0.5 seconds of writing") == 1


def test_the_last_sign_is_the_newest_file(tmp_path: Path) -> None:
    given = Job("r", "quantize", tmp_path)
    assert given.last_sign() is None
    for name, when in (("log.txt", 7), (PROCESS, 5)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    assert given.last_sign() == 7
