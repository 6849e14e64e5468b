"""Reads a dataset as the lab's processes do, in a process of its own, and says what that took.

`python -m tests.helpers.reading FILE` prints {"steps": {phase: sentences}, "rows": …, "peak": bytes}; with
`copies` behind it {"rows": …, "check": bytes, "card": bytes}, the peaks after each.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import settings
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.data.formats import containers, make
from pipeline.runs.data import data_card

T = TypeVar("T")
TEMPLATE = "{prompt} {response}"
LETTERS = 500_000  # of a row: long texts are read fast


def write(path: Path, size: int) -> int:
    """A dataset of about that size, JSON lines or a table, whose rows differ; how many there are."""
    count = size // LETTERS
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("prompt,response\n")
        for number in range(count):
            prompt, text = f"Question {number}", f"{number} is it. ".ljust(50, ".") * (LETTERS // 50)
            row = {"prompt": prompt, "response": text}
            file.write(f"{prompt},{text}\n" if path.suffix == ".csv" else json.dumps(row) + "\n")
    return count


def write_short(path: Path, count: int) -> None:
    """A dataset of so many short rows that differ, as JSON lines."""
    with path.open("w") as file:
        for number in range(count):
            file.write(f'{{"prompt": "Is {number} so?", "response": "It is {number}."}}\n')


def measured(path: Path, *phases: str) -> dict[str, Any]:
    """What `python -m tests.helpers.reading` says of a file."""
    words = [settings.python(), "-m", "tests.helpers.reading", str(path), *phases]
    done = subprocess.run(words, cwd=settings.ROOT, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class _Nowhere(io.RawIOBase):
    """Takes what is written, and keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _told(steps: Generator[str, None, T]) -> tuple[list[str], T]:
    said: list[str] = []
    found = telling.ended(steps, said.append)
    return said, found


def _making(path: Path) -> Generator[str, None, int]:
    making = make.Making(io.BufferedWriter(_Nowhere()), None, None, room=path.stat().st_size * 2)
    yield from making.add(path, path.parent)
    assert not making.problems
    return making.rows


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _copies(path: Path) -> dict[str, Any]:
    """The check, and of the card what it finds by comparing rows exactly: no sample is taken for that."""
    report = datasets.check(path, TEMPLATE)
    checked = _peak()
    asked = data_card.Question(path, TEMPLATE, None, 512)
    card = telling.ended(data_card.making_card(asked, ["duplicates"]))
    assert (card.rows, card.found.counts()) == (report.rows, {})
    return {"rows": report.rows, "check": checked, "card": _peak()}


def _main(path: Path, only: Sequence[str]) -> dict[str, Any]:
    if only:
        return _copies(path)
    telling.TELL_SECONDS = -1.0  # whatever the speed of this machine
    steps: dict[str, Iterable[str]] = {}
    known = containers.recognised(path)
    assert isinstance(known, containers.Container)
    if not known.is_plain:
        steps["making"], rows = _told(_making(path))
        return {"steps": steps, "rows": rows, "peak": _peak()}
    steps["check"], report = _told(datasets.checking(path, TEMPLATE))
    assert report.good
    steps["card"], card = _told(data_card.making_card(data_card.Question(path, TEMPLATE, None, 512)))
    assert card.rows == report.rows
    return {"steps": steps, "rows": report.rows, "peak": _peak()}


if __name__ == "__main__":
    print(json.dumps(_main(Path(sys.argv[1]), sys.argv[2:])))
