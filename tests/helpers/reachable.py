"""A folder that other users of this machine can get to, and cannot change."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import writers


@contextmanager
def folder() -> Iterator[Path]:
    """A new one, removed at the end. Skips the test if others may change the temporary folder."""
    made = Path(tempfile.mkdtemp(prefix="olive-lab-test-")).resolve()
    try:
        made.chmod(0o711)
        if reason := writers.other([made]):
            pytest.skip(f"the temporary folder is open: {reason}")
        yield made
    finally:
        shutil.rmtree(made)
