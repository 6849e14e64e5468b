"""How long ago something was, whatever happens to the clock and without time asleep.

One process stores a mark, another reads it: the monotonic clock is the same for all processes until the
machine restarts, stops while it sleeps, and cannot be set.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark() -> dict[str, Any]:
    """Now, as JSON: an id of the machine's boot, and seconds of its monotonic clock."""
    return {"boot": _boot(), "monotonic": time.monotonic()}


def since(mark: dict[str, Any] | None) -> float | None:
    """Seconds since a mark; None if there is none, or the machine has restarted since."""
    if not mark or mark.get("boot") != _boot():
        return None
    return max(time.monotonic() - float(mark["monotonic"]), 0.0)


def _boot() -> str:
    return BOOT.read_text(encoding="ascii").strip()
