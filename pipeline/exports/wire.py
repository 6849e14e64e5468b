"""How much of a protobuf message is values: bytes that a reader keeps as one block, whatever their number.

Read from the file's own fields (https://protobuf.dev/programming-guides/encoding), without building objects:
a message of many small ones takes forty times its size in memory once it is built.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path as File
from typing import TypeAlias

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Where values lie: by number of a field, the fields inside it, or None for the values themselves.
Path: TypeAlias = "Mapping[int, Path | None]"


def bulk(file: File, values: Path, least: int, most: int) -> int:
    """Bytes of those fields that `values` leads to and that have at least `least` bytes.

    Fields shorter than that are not looked into. Raises ValueError if more than `most` fields were read,
    google.protobuf's DecodeError if the file is no message.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, read = 0, 0
        left = [(0, len(data), values)]
        while left:
            begin, end, inside = left.pop()
            for number, first, length in _fields(data, begin, end):
                read += 1
                if read > most:
                    raise ValueError(f"{file.name} has more than {most:,} parts; export the model again")
                if length < least or number not in inside:
                    continue
                within = inside[number]
                if within is None:
                    found += length
                else:
                    left.append((first, first + length, within))
        return found


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, place and length of each field of a message; the length is 0 of what is no block of bytes."""
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == VARINT:
            _, at = _varint(data, at, end)
            yield key >> 3, at, 0
            continue
        if kind == BYTES:
            length, at = _varint(data, at, end)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
        if length < 0 or length > end - at:
            raise _broken()
        yield key >> 3, at, length if kind == BYTES else 0
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise _broken()


def _broken() -> Exception:
    from google.protobuf.message import DecodeError

    error: Exception = DecodeError("cut short, or no message")
    return error
