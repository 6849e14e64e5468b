"""Facts that a stage reports while it works: one JSON object per line in `events.jsonl`.

Keys, all optional except `time`:
    time               seconds since the epoch
    attempt            true in the first event of each attempt: earlier events belong to older attempts,
                       except the losses up to the step it is `resumed` from
    message            what the stage is doing, a short phrase
    progress           fraction of the stage that is done, 0 to 1
    eta_seconds        seconds the stage still needs
    step, total_steps  training steps
    resumed            the step of the checkpoint that this attempt resumes from
    bytes_done, bytes_total   of a transfer
    loss, eval_loss    mean nats per learned token: of the step's rows, of the held-out rows
    learning_rate, grad_norm, tokens_per_second   numbers
    gpu_memory_bytes   peak GPU memory of tensors so far
    elapsed            seconds since this attempt began, in events with these four (`usage`):
    memory_bytes       main memory of the stage's process and those it has started
    host_memory_bytes  main memory in use on the whole machine
    gpu_utilization    percent of recent time in which the GPU was busy
    gpu_memory_used_bytes  memory in use on the GPU, by any process
    metrics            {name: number}, kept as the stage's results
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import settings
from pipeline.system.files import finite

ATTEMPT = "attempt"
FACTS = (
    "message", "progress", "eta_seconds", "step", "total_steps", "loss", "eval_loss", "tokens_per_second",
    "bytes_done", "bytes_total",
)  # fmt: skip


def emit(**facts: Any) -> None:
    """Append one event to the running stage's file; outside a stage (bare `olive run`) do nothing."""
    path = settings.events_path()
    if path is not None:
        append(path, facts)


def append(path: Path, facts: dict[str, Any]) -> None:
    """Append one event. A single write, so a reader never sees a torn line in the middle."""
    line = (
        json.dumps(
            finite({"time": time.time(), **facts}), allow_nan=False, default=lambda v: finite(float(v))
        )
        + "\n"
    )
    with path.open("a+b", buffering=0) as file:
        if _torn(file):
            line = "\n" + line
        file.write(line.encode())


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events from byte `offset` on, and the offset to ask with next time.

    A last line still being written is left for the next call; an incomplete one before it is skipped.
    """
    found = []
    found = list(each(path, offset))
    return [event for event, _ in found if event], found[-1][1] if found else offset


def each(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """`read` one line at a time, because a long training writes hundreds of megabytes: each event from byte
    `offset` on, and the offset of the next. An incomplete line counts as an empty event.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield parse(line) or {}, offset


class Newest:
    """The latest value of each key of FACTS in the newest attempt; each read continues the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._known: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The facts as they stand now."""
        for event, offset in each(self._path, self._offset):
            self._offset = offset
            if event.get(ATTEMPT):
                self._known.clear()
            self._known.update({key: event[key] for key in FACTS if key in event})
        return dict(self._known)


def _torn(file: BinaryIO) -> bool:
    """Whether the last line is incomplete: its writer was killed, or the disk was full."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def parse(line: bytes) -> dict[str, Any] | None:
    """The event on a line, or None: a process may be killed in the middle of writing one."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
