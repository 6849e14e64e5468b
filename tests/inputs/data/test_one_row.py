"""one_row: a row is found by its line and from another one, in files of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import one_row, row_lines
from pipeline.inputs.prompts import templates

CHAT = templates.parse("chat")


def write(folder: Path, *lines: str) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes("\n".join(lines).encode())
    return path


def row(text: str) -> str:
    return json.dumps({"prompt": text, "response": "r"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Rows on lines 1, 3, 4 and 7."""
    return write(tmp_path, "\ufeff" + row("a"), "", row("b" * 50), row("c"), "  ", "", row("d"))


@pytest.mark.parametrize(
    ("where", "line", "found"),
    [
        ("line", 1, 1), ("line", 3, 3), ("line", 7, 7), ("next", 1, 3), ("next", 4, 7), ("next", 0, 1),
        ("previous", 7, 4), ("previous", 3, 1), ("previous", 99, 7), ("longest", 1, 3),
    ],
)  # fmt: skip
def test_rows_are_found_from_one_another(path: Path, where: str, line: int, found: int) -> None:
    number, given = one_row.find(path, CHAT, where, line)
    assert number == found
    assert given["prompt"][0] == {1: "a", 3: "b", 4: "c", 7: "d"}[found]


@pytest.mark.parametrize(
    ("where", "line", "reason"),
    [
        ("line", 2, "there is no row on line 2"), ("line", 8, "there is no row on line 8"),
        ("next", 7, "no row is behind line 7"), ("previous", 1, "no row is before line 1"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_there_is_one_sentence(path: Path, where: str, line: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        one_row.find(path, CHAT, where, line)


def test_any_row_is_another_one(path: Path, tmp_path: Path) -> None:
    found = {one_row.find(path, CHAT, "random", 3)[0] for _ in range(200)}
    assert found == {1, 4, 7}
    (tmp_path / "one").mkdir()
    assert one_row.find(write(tmp_path / "one", row("a")), CHAT, "random", 1)[0] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "data.jsonl:2: "),
        ('{"prompt": "a"}', "data.jsonl:2: the field 'response'"),
        ('{"messages": [{"role": "user", "content": 1}]}', "data.jsonl:2: message 1: content must be text"),
        (
            '{"prompt": "' + "x" * row_lines.LONGEST_LINE + '", "response": "r"}',
            "longer than 1,048,576 bytes",
        ),
        ("[" * 100_000, "data.jsonl:2: "),
        ("\0", "data.jsonl:2: the line is not text"),
    ],
)
def test_a_faulty_row_is_named_and_others_are_found_beside_it(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, row("a"), line, row("b"))
    with pytest.raises(InputError) as error:
        one_row.find(path, CHAT, "line", 2)
    assert reason in error.value.problems[0]
    assert one_row.find(path, CHAT, "line", 1)[1]["prompt"] == "a"


def test_an_empty_file_and_one_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the file has no rows"):
        one_row.find(write(tmp_path, "", " "), CHAT, "longest")
    (tmp_path / "data.jsonl").write_bytes(b"\x1f\x8b\x08" + b"x" * 100)
    with pytest.raises(InputError, match=r"data\.jsonl:1: "):
        one_row.find(tmp_path / "data.jsonl", CHAT, "next", 0)
