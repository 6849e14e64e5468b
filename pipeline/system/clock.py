"""How long ago something was, told so that neither a clock set again nor a machine asleep confuses it.

A mark is written down by one process and read by another: the monotonic clock is the same for all of them
until the machine starts again, stands still while it sleeps, and nobody can set it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

BOOT = Path("/proc/sys/kernel/random/boot_id")


def mark() -> dict[str, Any]:
    """This moment, as JSON: which start of the machine, and seconds of its monotonic clock."""
    return {"boot": _boot(), "monotonic": time.monotonic()}


def since(mark: dict[str, Any] | None) -> float | None:
    """Seconds since a mark; None if there is none, or the machine has been started again since."""
    if not mark or mark.get("boot") != _boot():
        return None
    return max(time.monotonic() - float(mark["monotonic"]), 0.0)


def _boot() -> str:
    return BOOT.read_text(encoding="ascii").strip()
