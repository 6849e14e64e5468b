"""Who has a GPU besides the runs of the queue: whoever holds its lock, which dies with them.

The worker starts no run on a GPU that somebody holds; a run that is already there ends first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import LabError
from pipeline.store.queue import AND, Queue
from pipeline.store.turns import Waiting
from pipeline.system import hardware, locks

FOLDER = "devices"
LOOK_SECONDS = 0.5
CLAIM_SECONDS = 5.0  # for which a worker may have the lock while it claims a run
ALL_HELD = "Every GPU already serves a model; stop one of these servers first."
WAITS = "Every GPU has a run now; this starts when the run on {} ends, and no other run starts there."


def _file(home: Path, device: str) -> Path:
    return home / FOLDER / f"{quote(device, safe='')}.lock"


@contextmanager
def unheld(home: Path, device: str) -> Iterator[bool]:
    """Whether nobody holds the device, and nobody takes it inside the block."""
    descriptor = locks.take(_file(home, device))
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def hold(queue: Queue, devices: Sequence[str], tell: Callable[[str], None]) -> tuple[str, int]:
    """Take one of the devices from the queue: it, and the descriptor that holds it until closed.

    Waits for the end of a run if each has one, after telling so. Raises LabError if others hold all.
    """
    held = {device: locks.take_within(_file(queue.home, device), CLAIM_SECONDS) for device in devices}
    mine = {device: descriptor for device, descriptor in held.items() if descriptor is not None}
    if not mine:
        raise LabError(ALL_HELD)
    chosen = next((device for device in mine if not _has_run(queue, device)), next(iter(mine)))
    for device, descriptor in mine.items():
        if device != chosen:
            os.close(descriptor)
    try:
        if _has_run(queue, chosen):
            tell(WAITS.format(chosen))
        while _has_run(queue, chosen):
            time.sleep(LOOK_SECONDS)
    except BaseException:
        os.close(mine[chosen])
        raise
    return chosen, mine[chosen]


def _has_run(queue: Queue, device: str) -> bool:
    """Whether a run works on the device; one between two stages may be anybody's."""
    return bool(queue.between_stages()) or device in _busy(queue)


def _busy(queue: Queue) -> set[str]:
    """The devices on which stages run."""
    return {device for _, _, there in queue.running() for device in (there or "").split(AND)}


def waits(queue: Queue, run: Waiting) -> str:
    """What a run waits for whose next stage uses several GPUs; "" for others."""
    if run.gpus < 2:
        return ""
    busy = _busy(queue)
    free = [
        one
        for one in hardware.devices()
        if one not in {*busy, "cpu"} and not locks.held(_file(queue.home, one))
    ]
    return f"waiting for {run.gpus} GPUs; {len(free)} {'is' if len(free) == 1 else 'are'} free"
