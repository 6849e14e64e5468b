"""What is far larger than it looks, or than a dataset is: a sentence with its line."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from pipeline.inputs.data.formats import make
from tests.helpers.formats import made_of

HEAD = "question,answer\na,b\n"


def bomb(rows: int, cell: str | None, name: str = "question") -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    values = arrow.array([cell], arrow.string()).take(arrow.array([0] * rows))
    file = io.BytesIO()
    table = arrow.table({name: values, "answer": arrow.array(["b"] * rows)})
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def timed(zone: str) -> bytes:
    """A table with a column of times in a zone."""
    import pyarrow as arrow
    from pyarrow import parquet

    file = io.BytesIO()
    times = arrow.array([0], arrow.timestamp("s", zone))
    parquet.write_table(arrow.table({"question": ["a"], "answer": ["b"], "at": times}), file)
    return file.getvalue()


def packed(piece: bytes, times: int) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as out:
        for _ in range(times):
            out.write(piece)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("cell.csv", lambda: HEAD + '"' + "x" * 50_000_000 + '",b\n', 3, "the row is longer than 1,048,576"),
        ("lines.csv", lambda: HEAD + '"' + "x\n" * 1_000_000, 524_290, "the row is longer than 1,048,576"),
        ("cell.json", lambda: '[{"q":"a","a":"' + "x" * 50_000_000 + '"}]', 1, "this item is longer"),
        ("blank.csv", lambda: HEAD + "\n" * 1_100_000, 1_000_003, "more than 1,000,000 blank lines"),
        ("wide.csv", lambda: ",".join(map(str, range(10_000))), 1, "the table has 10,000 columns;"),
        ("deep.json", lambda: '[{"a": ' + "[" * 100_000, 1, "this item is nested too deeply"),
        ("rows.jsonl.gz", lambda: packed(b'{"q":"a","a":"b"}\n' * 50_000, 160), 1, "unpacks to more than"),
        ("zeros.csv.gz", lambda: packed(bytes(1 << 20), 140), 1, "unpacks to more than"),
        ("cut.csv.gz", lambda: gzip.compress(HEAD.encode() * 9999)[:-100], 1, "(gzip) is damaged"),
        ("rows.parquet", lambda: bomb(2_000_000, None), 1, "holds 2,000,000 rows; give a part of it"),
        ("cells.parquet", lambda: bomb(2_000, "x" * 400_000), 1, "holds more than 134,217,728 bytes of rows"),
        ("cell.parquet", lambda: bomb(1, "x" * 450_000_000), 1, "take far more memory than a row may"),
        ("zone.parquet", lambda: timed("UTC+2"), 1, "has the time zone 'UTC+2', which is not known"),
        ("cut.parquet", lambda: bomb(9, "x")[:-9], 1, "the Parquet file is damaged or cut off"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused(tmp_path: Path, name: str, content, line: int, said: str) -> None:
    found = made_of(tmp_path, content(), name)
    assert found.problems
    number, problem = found.problems[-1]
    assert said in problem
    assert number >= line
    assert len(found.problems) == 1


def test_small_packed_files_do_not_add_up_to_a_large_one(tmp_path: Path) -> None:
    row = b'{"prompt": "' + b"x" * 900_000 + b'", "response": "y"}\n'
    packed = gzip.compress(row * 3)
    making = make.Making(io.BytesIO(), None, None, room=5_000_000)
    for number in range(3):
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(packed)
        list(making.add(path, tmp_path))
        if making.stopped:
            break
    assert making.number == making.stopped == 6
    assert making.problems[0][1].startswith("the files unpack to far more than their size")
