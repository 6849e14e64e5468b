"""Tables: what separates, what the header is, and what is wrong with a row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inputs.data.formats import delimited
from tests.helpers.formats import made_of, rows_of


@pytest.mark.parametrize(
    ("text", "ending", "separator"),
    [
        ("a,b\n1,2\n", "", ","),
        ("a;b\n1,5;2,5\n", "", ";"),
        ("a\tb\n1,2,3\t4\n", ".txt", "\t"),
        ("sep=|\na|b\n", ".csv", "|"),
        ("Dear all,\nhere it is.\n", "", None),
        ("Dear all, hello, there\nyou, too, friend\n", "", ","),
        ("one\ntwo\n", ".csv", ","),
        ('"What, now?",b\n1,2\n', ".csv", ","),
    ],
)
def test_what_separates(text: str, ending: str, separator: str | None) -> None:
    found = delimited.sniffed(text, ending)
    assert (found.separator if found else None) == separator


def test_a_first_row_of_sentences_is_a_row(tmp_path: Path) -> None:
    found = made_of(
        tmp_path, "What is the capital of France?,It is Paris on the Seine.\nAnd of Spain?,Madrid\n"
    )
    assert found.fields == ("column 1", "column 2")
    assert rows_of(found)[1] == {
        "prompt": "What is the capital of France?", "response": "It is Paris on the Seine.",
    }  # fmt: skip


def test_names_are_told_apart(tmp_path: Path) -> None:
    found = made_of(tmp_path, "q,,q,a\nx,y,z,w\n", template="{q} {a}")
    assert list(rows_of(found).values()) == [{"q": "x", "column 2": "y", "q (3)": "z", "a": "w"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a", "the row has 1 cell, and the table 2 columns; put texts that hold the separator into"),
        ("a,b,c", "the row has 3 cells, and the table 2 columns"),
        ('"a"b,c', "',' must follow the quote that closes a cell"),
        ('a,"b', "a quote that opens here is never closed"),
    ],
)
def test_a_bad_row_is_said_by_its_line(tmp_path: Path, row: str, said: str) -> None:
    found = made_of(tmp_path, f"question,answer\na,b\n{row}\n")
    ((line, problem),) = found.problems
    assert (line, found.rows) == (3, 1)
    assert problem.startswith(said)


def test_empty_cells_at_the_end_and_empty_rows_are_excels(tmp_path: Path) -> None:
    found = made_of(tmp_path, "question;answer\na;b;;\n;;;\n\n;\n")
    assert (found.problems, list(rows_of(found).values())) == ((), [{"prompt": "a", "response": "b"}])


def test_bytes_that_are_no_utf_8_are_said_by_line(tmp_path: Path) -> None:
    found = made_of(tmp_path, "question,answer\na,b\né,d\n".encode("latin-1"))
    assert found.problems == ((3, "the text is not UTF-8; save the file as UTF-8 (in Excel: CSV UTF-8)"),)
    found = made_of(tmp_path, "question,answer\na,b\n".encode("utf-16") + b"\x00\xd8x\x00")
    assert found.problems[0][1].startswith("the text is not UTF-16 here")
