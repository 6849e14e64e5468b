"""A process that has imported what the next stage needs and waits for the signal to start.

Importing torch, transformers and Olive takes seconds, on slow machines half a minute, and each of a run's
four stages has its own process. While one stage works, the worker prepares a spare for the next. Its
environment has the mark of that stage from the start, because later changes are not visible to other
processes; it ends when the worker ends or does not need it.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pipeline.system import own_process
from pipeline.system.files import to_json

READY = b"ready"
MOST_BYTES = 1 << 16
ENOUGH_MEMORY = 4 << 30  # bytes that must be free: a spare takes half a gigabyte
ALL = ("olive.workflows", "olive.engine", "olive.passes.pytorch.quant_utils", "transformers.masking_utils")


def without_bitsandbytes() -> None:
    """Hide bitsandbytes from this process: if it is installed, PEFT imports it, which takes seconds."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # makes the import fail


def serves(options: dict[str, Any]) -> bool:
    """Whether a spare, which has no bitsandbytes, can run a stage with these options."""
    return options.get("method") != "qlora"


class Spare:
    """The worker's side: a process prepared for a stage of a run, started in that stage's environment."""

    def __init__(self, run: str, stage: str, child: Sequence[str], environment: dict[str, str]) -> None:
        self.run, self.stage = run, stage
        self.channel, theirs = socket.socketpair()
        with theirs:
            words = [*child, "--spare", stage, str(theirs.fileno())]
            self.process = own_process.start(words, environment, keep=[theirs.fileno()], apart=True)
        self.channel.setblocking(False)
        self._ready = False

    def ready(self) -> bool:
        """Whether it has imported everything and still lives."""
        if not self._ready:
            with suppress(BlockingIOError, ConnectionError):
                self._ready = self.channel.recv(MOST_BYTES) == READY
        return self._ready and self.process.poll() is None

    def give(self, lock: int, log: int) -> subprocess.Popen[bytes]:
        """Let it run the stage, with its lock and log. Raises OSError if it has ended."""
        message = to_json({"run": self.run, "stage": self.stage})
        with self.channel:
            socket.send_fds(self.channel, [message.encode()], [lock, log])
        return self.process

    def dismiss(self) -> None:
        """End it; it is not needed."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


def affordable() -> bool:
    """Whether there is enough memory for a spare."""
    import psutil

    return bool(psutil.virtual_memory().available > ENOUGH_MEMORY)


def prepare(stage: str) -> None:
    """Import what a stage needs."""
    from pipeline.stages.all_stages import about  # not for the worker, which imports this module too
    from pipeline.stages.execute import import_torchmetrics

    import_torchmetrics()
    for module in (*ALL, *about(stage, "MODULES", ())):
        importlib.import_module(module)


def _word(worker: socket.socket) -> tuple[bytes, list[int]]:
    """The worker's message and the descriptors with it; b"" if the worker has ended."""
    try:
        message, descriptors, _, _ = socket.recv_fds(worker, MOST_BYTES, 2)
    except ConnectionResetError:  # the worker was killed before it read that the spare is ready
        return b"", []
    return message, descriptors


def wait(stage: str, channel: int, carry_out: Callable[[str, str], int]) -> int:
    """The spare's side: import, wait, then `carry_out(run, stage)` as if just started. Returns its code."""
    with socket.socket(fileno=channel) as worker:
        without_bitsandbytes()
        prepare(stage)
        with suppress(BrokenPipeError):  # the worker has ended, so there is no message either
            worker.sendall(READY)
        message, descriptors = _word(worker)
    if not message:
        return 0  # the worker has ended
    given = json.loads(message)
    _, log = descriptors  # the lock is held for as long as its descriptor is open
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    return carry_out(given["run"], given["stage"])
