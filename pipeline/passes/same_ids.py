"""Whether the exported tokenizer reads what training reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def require(source: Path, exported: Path, template: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Compare the ids of `rows` in training, with the tokenizer in `source`, with those of `exported`.

    Raises LabError with the sentence where they differ and nothing in the exported folder makes them equal.
    """
