"""Files that a reader finds whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.events import finite


def write_whole(path: Path, facts: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(finite(facts), default=float), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
