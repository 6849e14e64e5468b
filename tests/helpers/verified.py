"""What `verify` finds in an exported folder, and changes to one of its files."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.exports import verify
from pipeline.exports.findings import Finding, failed

OTHER = "other.onnx_adapter"


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.status for finding in findings}


def faults(folder: Path) -> dict[str, str]:
    """What the static part finds wrong, by check."""
    return {finding.check: finding.message for finding in failed(verify.static(folder))}


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


def peak(look: Callable[[], Any]) -> int:
    """Bytes that Python's objects take at the most."""
    look()  # what is imported counts for nobody
    tracemalloc.start()
    try:
        look()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
