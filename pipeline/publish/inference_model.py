"""How Foundry Local names a model, and the file by which it finds one in a cache of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.exports import serving_ids
from pipeline.exports.verifying import json_files
from pipeline.system.files import to_json

DEVICE = "generic-cpu"  # as Foundry Local names what any processor runs
NAME = "inference_model.json"


def model_id(name: str, version: str) -> str:
    """The id of a version in Foundry Local's catalogue."""
    return f"{name}-{DEVICE}:{version}"


def text(source: Path, model: str) -> str:
    """The file for an export: its name there, and the words of its prompt, for a service that needs them.

    Raises OSError, ValueError or LookupError where the export is not whole.
    """
    return to_json(about(source, model), indent=2, ensure_ascii=False) + "\n"


def about(source: Path, model: str) -> dict[str, Any]:
    """What the file says."""
    pieces = json_files.small_json(source, serving_ids.LAB).get("prompt")
    prompt = None
    if isinstance(pieces, list):
        written = "".join(piece if isinstance(piece, str) else "{Content}" for piece in pieces)
        prompt = {"assistant": "{Content}", "prompt": written.rstrip(" ")}
    return {"Name": model, "PromptTemplate": prompt}
