"""Rows and hash of a dataset: counted in pieces by another process, once, however its lines are."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest

from pipeline.inputs.data import content_facts, datasets
from pipeline.inputs.data.content_facts import Facts
from pipeline.runs import kept_datasets
from pipeline.runs.data import prepare_data


def expected(data: bytes) -> Facts:
    return Facts(sum(1 for line in data.split(b"\n") if line.strip()), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("piece", [1, 2, 3, 1 << 16])
def test_rows_are_counted_wherever_a_piece_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(content_facts, "PIECE", piece)
    letters, path = random.Random(0), tmp_path / "rows"
    for length in range(60):
        path.write_bytes(data := bytes(letters.choices(b"\n\n \r{a", k=length)))
        assert content_facts.read(path) == expected(data), data


def test_neither_a_long_line_nor_many_take_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data := b"{}" + b" " * (20 << 20) + b"\n" * (20 << 20) + b"{}\n" + b"x" * (2 << 20))
    tracemalloc.start()
    found = content_facts.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == expected(data)
    assert peak < 10 * content_facts.PIECE


def test_a_dataset_of_the_home_is_read_once(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"prompt": "a"}\n\n{"prompt": "b"}')
    kept = kept_datasets.keep(home, source, "of the hub")
    prepare_data.keep_source(kept, "ann/towns")
    digest = datasets.sha256(source)
    assert content_facts.of(kept) == Facts(2, digest)
    assert content_facts.sha256(kept) == digest == datasets.kept_sha256(kept) != kept.parent.name
    note = kept.parent / content_facts.NOTE
    note.write_text(json.dumps({**json.loads(note.read_text()), "rows": 7}))
    assert content_facts.of(kept) == Facts(7, digest)
    for broken in (
        "",
        "[]",
        "[" * 4000,
        '{"name": "rows.jsonl"}',
        json.dumps({"name": kept.name, "bytes": 1}),
    ):
        note.write_text(broken)
        assert content_facts.of(kept) == Facts(2, digest)


def test_one_from_elsewhere_is_not_noted(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    assert content_facts.of(path) == expected(b"{}\n")
    assert list(tmp_path.glob(".*")) == []
    assert content_facts.of(tmp_path / "none.jsonl") is None
    assert content_facts.sha256(tmp_path / "none.jsonl") == ""
