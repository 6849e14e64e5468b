"""Files for what does not fit into memory, without a name: they go with the process, however that ends."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import IO

from pipeline import settings
from pipeline.system import files


class Scratch:
    """Bytes that are written one after the other, and read from anywhere."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._folder: Path | None = None
        self._size = 0

    def write(self, data: bytes) -> int:
        """Add bytes; where they begin. Raises LabError if the disk is full, OSError."""
        if self._file is None:
            home = settings.home()  # a folder for temporary files may be in memory
            self._folder = home if home.is_dir() and os.access(home, os.W_OK) else None
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is kept
            weakref.finalize(self, self._file.close)
        if self._folder is not None:
            files.make_room(self._folder, len(data))
        self._file.write(data)
        self._file.flush()
        begins, self._size = self._size, self._size + len(data)
        return begins

    def read(self, begins: int, count: int) -> bytes:
        """Some of the bytes that were written. Raises OSError."""
        assert self._file is not None
        return os.pread(self._file.fileno(), count, begins)
