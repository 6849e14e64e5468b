"""Facts a stage reports while it works: one JSON object a line in `events.jsonl`.

Keys by convention, all optional but `time`:
    time               seconds since the epoch
    attempt            true in the first event of each attempt: what came before belongs to an older one
    message            what is going on, a short phrase
    progress           fraction of the stage that is done, 0 to 1
    eta_seconds        seconds the stage still needs
    step, total_steps  training steps
    loss, eval_loss, learning_rate, grad_norm, tokens_per_second   numbers
    metrics            {name: number}, kept as the stage's results
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pipeline import settings


def emit(**facts: Any) -> None:
    """Append one event to the running stage's file; outside a stage (bare `olive run`) do nothing."""
    path = settings.events_path()
    if path is not None:
        append(path, facts)


def append(path: Path, facts: dict[str, Any]) -> None:
    """Append one event. A single write, so a reader never sees a torn line in the middle."""
    line = json.dumps({"time": time.time(), **facts}, allow_nan=False, default=float) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events from byte `offset` on, and the offset to ask with next time.

    A last line still being written is left for the next call.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines() if line.strip()], offset + len(complete)
