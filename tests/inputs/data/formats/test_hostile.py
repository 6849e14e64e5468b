"""Hostile files, `FUZZ_CASES` of them: no crash, no hang, every refusal with line and reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats import columns, make
from tests.helpers import formats

CASES = int(os.environ.get("FUZZ_CASES", "500"))
GROUPS = 10
HANG_SECONDS = 60  # a case takes milliseconds; this is for machines that are busy with others'
LETTERS = [
    "a",
    "é",
    "\U0001f600",
    "\0",
    "\x1b",
    "\u2028",
    "\ufeff",
    '"',
    "'",
    ",",
    ";",
    "\t",
    "\\",
    "{",
    "[",
    "\n",
    "\r",
    "",
]
NAMES = ["prompt", "response", "system", "question", "answer", "instruction", "input", "output", "text",
         "messages", "conversations", "", " prompt ", "x", "prompt,response"]  # fmt: skip


def text(chance: random.Random) -> str:
    return "".join(chance.choices(LETTERS, k=chance.choice([0, 1, 5, 40]))) * chance.choice([1, 1, 1, 3000])


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(10)
    if kind < 5:
        return text(chance)
    if kind < 7 and depth < 4:
        inner = [value(chance, depth + 1) for _ in range(chance.randrange(4))]
        return (
            inner
            if kind == 5
            else {chance.choice(["role", "from", "content", "value", "x"]): v for v in inner}
        )
    return chance.choice(
        [None, True, 7, -0.0, 1e308, 10**30, float("nan"), float("inf"), "human", "gpt", "\ud800"]
    )


def row(chance: random.Random, names: list[str]) -> dict[str, Any]:
    if chance.random() < 0.3:
        who = ["human", "gpt", "system", "user", "assistant", value(chance)]
        said = [{"from": chance.choice(who), "value": value(chance)} for _ in range(chance.randrange(4))]
        return {chance.choice(["conversations", "messages"]): said}
    return {name: value(chance) for name in names if chance.random() < 0.9}


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The file with bytes changed, left out or twice."""
    for _ in range(chance.choice([0, 0, 1, 3, 20])):
        at = chance.randrange(len(data) + 1)
        to = at + chance.choice([0, 1, 50])
        data = data[:at] + chance.choice([b"", bytes([chance.randrange(256)]), data[at:to] * 2]) + data[to:]
    return data


def case(seed: int) -> tuple[str, bytes]:
    """A file by its number: its name and its bytes."""
    chance = random.Random(seed)
    names = chance.sample(NAMES, chance.randrange(1, 5))
    rows = [row(chance, names) for _ in range(chance.choice([0, 1, 3, 60]))]
    kind = chance.choice(["jsonl", "json", "csv", "tsv", "parquet", "txt"])
    data = packed(kind, rows, names, chance)
    data = damaged(chance, data)
    if chance.random() < 0.15:
        data = damaged(chance, gzip.compress(data))
        kind += ".gz"
    return f"case.{kind}", data


def packed(kind: str, rows: list[dict[str, Any]], names: list[str], chance: random.Random) -> bytes:
    if kind == "parquet":
        texts = [{name: str(row.get(name)) for name in names} for row in rows] or [{"prompt": "a"}]
        valid = json.loads(json.dumps(texts).encode("utf-8").replace(b"\\ud", b"\\u0"))
        return formats.parquet(valid)
    if kind in ("csv", "tsv"):
        cells = [{name: row.get(name) for name in names} for row in rows] or [{"a": 1}]
        table = formats.table(cells, chance.choice(",;\t"))
        return table.encode(chance.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"]), "replace")
    written = json.dumps(rows, ensure_ascii=chance.random() < 0.5)
    if kind != "json":
        written = "\n".join(json.dumps(row) for row in rows)
    return written.encode(chance.choice(["utf-8", "utf-8", "utf-16-le"]), "replace")


@contextmanager
def no_hang(seed: int) -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise AssertionError(f"case {seed} hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(path: Path, seed: int) -> None:
    """Make and check a file as `make` does it, in this process."""
    chance = random.Random(-seed)
    chosen = chance.choice(
        [None, None, columns.Columns(("prompt",), ("response",)), columns.Columns(("x",), ("",))]
    )
    template = chance.choice([None, None, frozenset(("x", "text"))])
    out = io.BytesIO()
    making = make.Making(out, chosen, template)
    list(making.add(path, path.parent))
    found = making.found()
    assert json.dumps(found)
    for number, problem in found["problems"]:
        assert number >= 1
        assert problem.strip()
        assert problem.isprintable()
        assert len(problem) < 2000
    lines = out.getvalue().split(b"\n")
    made = [json.loads(line) for line in lines if line]
    assert len(made) == found["rows"]
    assert len(lines) - 1 <= making.number
    if making.applied:
        assert all(set(row) <= {"prompt", "response", "system"} for row in made)
    kept = path.with_name("made.jsonl")
    kept.write_bytes(out.getvalue())
    for template_text in ("chat", "{x} {text}"):
        report = datasets.check(kept, template_text)
        assert report.good or all(":" in problem for problem in report.problems)


@pytest.mark.parametrize("group", range(GROUPS))
def test_hostile_files_are_read_or_refused_by_line(tmp_path: Path, group: int) -> None:
    for seed in islice(range(group, CASES, GROUPS), None):
        name, data = case(seed)
        path = tmp_path / name
        path.write_bytes(data)
        with no_hang(seed):
            read(path, seed)


def test_hostile_choices_are_refused_by_key() -> None:
    for seed in range(CASES):
        chance = random.Random(seed)
        given = chance.choice(
            [value(chance), text(chance), {chance.choice(NAMES): value(chance) for _ in range(3)}]
        )
        try:
            found = columns.parse(given)
        except InputError as error:
            said = error.problems[0]
            if not (said.startswith("columns") and said.isprintable()):
                pytest.fail(f"case {seed}: {said!r}")
        else:
            assert columns.parse(found.to_dict()) == found
