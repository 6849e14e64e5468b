"""JSON as everybody reads it, files that a reader finds whole or not at all, and how large folders are."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def to_json(value: Any, **how: Any) -> str:
    """JSON with null for every NaN and infinity, which it does not have and Python would write.

    `how` is as for `json.dumps`.
    """
    return json.dumps(finite(value), allow_nan=False, **how)


def finite(value: Any) -> Any:
    """`value` with null for every NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path to write to inside the block, which replaces `path` at its end, or is gone if the block raises.

    `shared` is for a file that several may write at the same time: each gets a path of its own. Otherwise
    what a killed process has left there is written over.
    """
    unique = f".{secrets.token_hex(4)}" if shared else ""
    part = path.with_name(f".{path.name}{unique}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: Any, *, shared: bool = False) -> None:
    """Write text, bytes, or anything else as JSON: a reader sees the old file or the new one, never half.

    It is its user's alone, whatever the umask. `shared` is as for `whole`.
    """
    if not isinstance(content, str | bytes):
        content = to_json(content, default=lambda v: finite(float(v)))
    data = content.encode() if isinstance(content, str) else content
    with whole(path, shared=shared) as part, os.fdopen(os.open(part, _NEW, 0o600), "wb") as file:
        file.write(data)


def stats(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    """Of every file below these folders, links not followed; what vanishes meanwhile is left out."""
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    yield (Path(parent) / name).lstat()


def size(*paths: Path) -> int:
    """Bytes of files, and of all files below folders; one that is linked several times counts once."""
    named = [path.stat() for path in paths if path.is_file()]
    below = stats(path for path in paths if not path.is_file())
    return sum({(file.st_dev, file.st_ino): file.st_size for file in (*named, *below)}.values())
