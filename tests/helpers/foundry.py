"""Foundry Local's real environment, which `make install` makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.publish.foundry import environment


def installed(config: pytest.Config) -> Path:
    """Its interpreter. Whoever asks for the tests that need it is told where it is missing; in a run of
    everything they are only left out."""
    where = environment.folder(Path("/nowhere"))
    if not environment.complete(where):
        why = "Foundry Local's package is not installed for the tests: make install"
        (pytest.fail if config.getoption("markexpr") == "chain" else pytest.skip)(why)
    return where / "bin" / "python"
