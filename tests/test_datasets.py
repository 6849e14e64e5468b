"""datasets: what is accepted, what is refused and why, and the split."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from pipeline import datasets
from pipeline.errors import InputError
from pipeline.templates import Chat

ROW = '{"prompt": "Where?", "response": "There."}'
LAB = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


def write(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        f"{ROW}\n{ROW}\n",
        f"{ROW}\n{ROW}",
        f"\ufeff{ROW}\n{ROW}\n",
        f"{ROW}\r\n{ROW}\r\n",
        f"\n\n{ROW}\n   \n{ROW}\n\n",
        '{"prompt": 3, "response": 2.5}\n{"prompt": "é", "response": "\\ud83d\\ude00", "tags": [1, null]}\n',
    ],
    ids=["plain", "no last newline", "BOM", "CRLF", "blank lines", "numbers and other fields"],
)
def test_good_files(tmp_path: Path, content: str) -> None:
    report = datasets.check(write(tmp_path, content), "chat")
    assert report.good
    assert report.rows == 2
    assert report.fields[:2] == ("prompt", "response")


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "the file has no rows"),
        ("\n \n", 1, "the file has no rows"),
        ("[" + ROW + "]", 1, "JSON array"),
        ("[\n" + ROW + "\n]\n", 1, "JSON array"),
        ('{"prompt": "a"}\n', 1, "'response' of the template is missing; fields here: prompt"),
        ('{"prompt": true, "response": "b"}\n', 1, "'prompt' must be text or a number, not true or false"),
        ('{"prompt": "a", "response": null}\n', 1, "not null"),
        ('{"prompt": ["a"], "response": "b"}\n', 1, "not a list"),
        ('{"prompt": {"a": 1}, "response": "b"}\n', 1, "not an object"),
        ('{"prompt": NaN, "response": "b"}\n', 1, "NaN is not a number JSON allows"),
        ('{"prompt": 1e999, "response": "b"}\n', 1, "too large a number"),
        ('{"prompt": "\\ud800", "response": "b"}\n', 1, "surrogate"),
        ('{"prompt": "a", "response": "  "}\n', 1, "'response' is empty"),
        ('{"prompt": "a", "prompt": "b", "response": "c"}\n', 1, "the key 'prompt' stands twice"),
        ('"text"\n', 1, "a row must be an object"),
        ("[" * 100_000 + "\n", 1, "nested too deeply"),
        (
            ROW + "\n" + '{"prompt": "' + "x" * datasets.LONGEST_LINE + '"}\n',
            2,
            "longer than 1,048,576 bytes",
        ),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", 1, "not UTF-8"),
        (b"PK\x03\x04\x00\x00", 1, "this is not text"),
        (ROW.encode("utf-16"), 1, "this is not text"),
        (ROW.encode() + b'\n{"prompt": "caf\xe9", "response": "b"}\n', 2, "byte 16 is not UTF-8"),
    ],
)
def test_refused_with_line_and_reason(tmp_path: Path, content: str | bytes, line: int, reason: str) -> None:
    path = write(tmp_path, content)
    problem = datasets.check(path, "chat").problems[0]
    assert problem.startswith(f"{path}:{line}: ")
    assert reason in problem


def test_a_broken_line_among_good_ones_is_named(tmp_path: Path) -> None:
    lines = [ROW] * 40
    lines[6] = '{"prompt": "Where?", "response": '
    path = write(tmp_path, "\n".join(lines))
    report = datasets.check(path, "chat")
    assert report.problems == [f"{path}:7: not JSON: Expecting value at character 35"]
    assert report.rows == 39
    with pytest.raises(InputError, match=":7: not JSON"):
        list(datasets.rows(path))


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, '{"a": 1}\n' * 30), "chat")
    assert len(report.problems) == datasets.MOST_PROBLEMS
    assert report.messages()[-1] == "and 40 more"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        datasets.check(tmp_path / "none.jsonl", "chat")


def test_the_first_row_is_rendered(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, ROW), LAB)
    assert report.example == "<|user|>\nWhere?<|end|>\n<|assistant|>\nThere.<|end|>"
    assert report.example_prompt == "<|user|>\nWhere?<|end|>\n<|assistant|>\n"
    chat = Chat(
        "{{ messages[0].content }}>{% if not add_generation_prompt %}{{ messages[1].content }}!{% endif %}"
    )
    assert datasets.check(write(tmp_path, ROW), "chat", chat).example == "Where?>There.!"
    assert datasets.check(write(tmp_path, ROW), "chat").example == ""


def test_a_faulty_first_row_is_not_rendered(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, '{"prompt": "a"}\n' + ROW), LAB)
    assert report.example == ""
    assert len(report.problems) == 1


def test_a_hundred_thousand_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(100_000):
            file.write(json.dumps({"prompt": f"Where is town {i}?", "response": "In a valley. " * 8}) + "\n")
    began = time.process_time()
    assert datasets.check(path, "chat").rows == 100_000
    assert time.process_time() - began < 10
    tracemalloc.start()
    try:
        assert datasets.count(path) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_load_reads_only_what_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(f'\n{{"prompt": {i}, "response": "r"}}' for i in range(5)))
    assert [row["prompt"] for row in datasets.load(path, ("prompt", "response"), {1, 3}).values()] == [1, 3]
    with pytest.raises(InputError, match=":2: the field 'question'"):
        datasets.load(path, ("question",))


def test_split_is_the_same_everywhere() -> None:
    train, held_out = datasets.split(20, 0.2, seed=0)
    assert held_out == [1, 6, 15, 16] or len(held_out) == 4
    assert sorted(train + held_out) == list(range(20))
    assert datasets.split(20, 0.2, seed=0) == (train, held_out)
    assert datasets.split(20, 0.2, seed=1) != (train, held_out)


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"), [(2, 0.1, 1), (2, 0.99, 1), (10, 0.0, 1), (144, 0.1, 14)]
)
def test_both_sides_have_a_row(rows: int, fraction: float, held_out: int) -> None:
    parts = datasets.split(rows, fraction, 0)
    assert (len(parts[0]), len(parts[1])) == (rows - held_out, held_out)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_to_split(rows: int) -> None:
    with pytest.raises(InputError, match="at least 2"):
        datasets.split(rows, 0.1, 0)


def test_sha256(tmp_path: Path) -> None:
    path = write(tmp_path, "abc")
    assert datasets.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
