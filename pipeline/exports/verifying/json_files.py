"""The small files of JSON in an exported folder, which anybody may have written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pipeline import display
from pipeline.exports import contract
from pipeline.inputs.prompts import model_template

CONFIG, TOKENIZER = "genai_config.json", "tokenizer.json"
MODULE = "tokenizer_module.json"
LARGEST_JSON = 1 << 20  # bytes; real ones have some kilobytes,
LARGEST = {  # but for these
    "tokenizer_config.json": model_template.LARGEST_CONFIG,
    TOKENIZER: 1 << 26,  # one of 260,000 words and all their merges has 33 MB
}
MOST_VALUES = 5_000_000  # of a file of JSON: such a tokenizer has two million
Found = TypeVar("Found")


def small_json(folder: Path, name: str) -> dict[str, Any]:
    """A file of JSON with a mapping in it. Raises ValueError."""
    most = LARGEST.get(name, LARGEST_JSON)
    with contract.inside(folder, name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size) if size <= most else b""
    # A list of empty lists takes thirty times the memory of its text.
    if size > most or sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"{name} is larger than any real one; export the model again")
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not valid JSON, or is incomplete; export the model again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is not a mapping; export the model again")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping without repeated keys: another reader may use the value that we don't see."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def part(given: dict[str, Any], key: str, kind: type[Found], file: str = CONFIG) -> Found:
    """A value that is there and of this type. Raises ValueError."""
    found = given.get(key)
    if not isinstance(found, kind) or not found:
        raise ValueError(f"{file} has no {key}; export the model again")
    return found


def count(given: dict[str, Any], key: str, file: str = CONFIG) -> int:
    """A whole number from 1. Raises ValueError."""
    found = given.get(key)
    if type(found) is not int or found < 1:
        wrong = display.value(found)
        raise ValueError(f"{file}: {key} is {wrong}, not a number from 1; export the model again")
    return found
