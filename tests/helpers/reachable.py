"""A folder that other users of this machine can get to, as those of pytest are not."""

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
    """A new one, removed at the end. Skips the test if the temporary folder is closed to others, or open."""
    made = Path(tempfile.mkdtemp(prefix="olive-lab-test-")).resolve()
    try:
        made.chmod(0o711)
        if reason := writers.other([made]):
            pytest.skip(f"the temporary folder is open: {reason}")
        if writers._is_below_closed(made, writers._mounts()):
            pytest.skip("the temporary folder is closed to other users")
        yield made
    finally:
        shutil.rmtree(made)
