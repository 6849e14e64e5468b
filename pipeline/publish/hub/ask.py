"""Questions of the page to the hub, in a process of its own, which may hang or crash without harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.publish import check_process

HUB = "The Hugging Face Hub"


def whoami(home: Path) -> dict[str, Any]:
    """Who is logged in: name, organisations, the token's name and role."""
    found: dict[str, Any] = check_process.ask(home, HUB, "hub", "whoami")
    return found


def preflight(home: Path, run: str, options: dict[str, Any]) -> dict[str, Any]:
    """The dry run of a publish, as `check_process.preflight` returns it."""
    return check_process.preflight(home, HUB, run, "huggingface", options)
