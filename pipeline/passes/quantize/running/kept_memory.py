"""Freed memory is kept for what comes next while layers are quantized on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's names for what glibc's manual calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 << 20  # bytes of a block; larger ones are mapped by themselves
MOST_KEPT = 128 << 20  # bytes at the end of the heap


@contextmanager
def kept_memory() -> Iterator[None]:
    """Have glibc keep freed blocks, and give back at the end what is free then.

    A stage starts with settings by which each large block gets new pages and is given back at once
    (`settings.EVEN_MEMORY`), because what a training frees fits little that comes after. Here each layer asks
    for the same blocks as the one before, so keeping them costs little memory, and a quarter of the time was
    the system's, for new pages. Does nothing where the C library is another one.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    library.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
    library.mallopt(TRIM_THRESHOLD, MOST_KEPT)
    try:
        yield
    finally:
        library.malloc_trim(0)
