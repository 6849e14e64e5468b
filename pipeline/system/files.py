"""JSON as everybody reads it, and files that a reader finds whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def to_json(value: Any, **how: Any) -> str:
    """JSON with null for every NaN and infinity, which it does not have and Python would write.

    `how` is as for `json.dumps`.
    """
    return json.dumps(finite(value), allow_nan=False, **how)


def finite(value: Any) -> Any:
    """`value` with null for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(to_json(facts, default=lambda v: finite(float(v))), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
