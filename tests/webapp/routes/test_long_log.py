"""A log of 2 GB: pieces of it, the whole of it as a download, and on the command line, in little memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.store import Store
from tests.helpers import planted
from tests.helpers.lab import until
from tests.webapp.test_start import answers, free_port, start

pytestmark = pytest.mark.chain
SIZE = 2 << 30
LINE = b"step 1234 of 5000, loss 1.234\n"
MOST_GROWTH = 64 << 20  # what pieces on their way may take


@pytest.fixture
def long_log(home: Path) -> tuple[str, Path]:
    """A run in the middle of fine-tuning whose log is 2 GB long, most of it a hole."""
    store = Store(home)
    run = planted.running(store)
    path = store.folder(run, "finetune") / "log.txt"
    with path.open("r+b") as file:
        file.truncate(SIZE - 1000 * len(LINE) - 1)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + LINE * 1000)
    assert path.stat().st_size == SIZE
    return run, path


def resident(pid: int) -> int:
    """The most memory it had so far, in bytes; 0 if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def test_the_server_sends_it_in_little_memory(home: Path, long_log: tuple[str, Path]) -> None:
    run, _ = long_log
    port = free_port()
    process = start(home, "--port", str(port))
    try:
        until(lambda: answers(port), "the first answer", 180)
        before = resident(process.pid)
        address = f"http://127.0.0.1:{port}/runs/{run}"

        def piece(offset: int) -> dict[str, Any]:
            asked = f"{address}/live?stage=finetune&events=&log={offset}"
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return dict(json.load(answer)["log"])

        first, last, middle = piece(0), piece(-3000), piece(SIZE // 2)
        assert first["text"].startswith("line 0: step 0 of 60\n")
        assert (first["next"] <= 256 * 1024, first["size"]) == (True, SIZE)
        assert (last["text"], last["next"]) == ((LINE * 99).decode(), SIZE)
        assert len(middle["text"]) == 256 * 1024
        length, end = 0, b""
        with urllib.request.urlopen(f"{address}/finetune/log.txt", timeout=60) as whole:
            while block := whole.read(1 << 20):
                length, end = length + len(block), block[-len(LINE) :] or end
        assert (length, end) == (SIZE, LINE)
        assert resident(process.pid) - before < MOST_GROWTH
    finally:
        process.kill()
        process.communicate()


def test_the_command_line_writes_it_in_little_memory(home: Path, long_log: tuple[str, Path]) -> None:
    run, _ = long_log
    count = subprocess.Popen(["wc", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "logs", run],
        cwd=settings.ROOT, env=settings.child_environment(), stdout=count.stdin,
    )  # fmt: skip
    assert count.stdin is not None
    count.stdin.close()
    count.stdin = None
    most = 0
    while said.returncode is None:
        most = max(most, resident(said.pid))
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # asked again and again it would have half a core
            said.wait(0.05)
    assert said.returncode == 0
    assert int(count.communicate(timeout=60)[0]) == SIZE
    assert 0 < most < MOST_GROWTH
