"""filekinds: each kind of file is named in one sentence, and a slip on one line is not taken for a kind."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.inputs.data import datasets, file_faults

ROW = '{"prompt": "a", "response": "b"}\n'
ROWS = ROW * 3
PRETTY = json.dumps({"prompt": "a", "response": "b"}, indent=2) + "\n"
WRITE = "save it as JSON lines, one object per line in UTF-8"


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, ROWS)
    return file.getvalue()


KINDS = {
    "CSV": ('prompt,response\n"a, b",c\nd,e\n', f"the file is CSV, a table; {WRITE}"),
    "CSV with a line in a cell": ('prompt,response\n"a\nb",c\nd,e\n', "the file is CSV"),
    "semicolons": ("prompt;response\na;b\n", "the file is CSV (with semicolons)"),
    "TSV": ("prompt\tresponse\na, b\tc\n", "the file is TSV (tab-separated)"),
    "gzip": (
        gzip.compress(ROWS.encode()),
        "the file is compressed (gzip); unpack it, and give the file inside",
    ),
    "zip": (zipped("rows.jsonl"), "the file is compressed (ZIP); unpack it"),
    "xlsx": (zipped("[Content_Types].xml"), "the file is an Office document, such as .xlsx; save it"),
    "parquet": (b"PAR1\x15\x04\x15", "the file is a Parquet file"),
    "arrow": (b"ARROW1\0\0", "the file is an Arrow file"),
    "PDF": (b"%PDF-1.7\n", "the file is a PDF document"),
    "SQLite": (b"SQLite format 3\0", "the file is an SQLite database"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "the file is a PNG image"),
    "binary": (b"\x07\0\x13\0\0\0\x01\x02", "the file is not text but binary data"),
    "UTF-16": (ROWS.encode("utf-16"), f"the file is in UTF-16; {WRITE}"),
    "UTF-16 without mark": (ROWS.encode("utf-16-le"), "the file is in UTF-16"),
    "UTF-16 big": (ROWS.encode("utf-16-be"), "the file is in UTF-16"),
    "UTF-32": (ROWS.encode("utf-32"), "the file is in UTF-32"),
    "UTF-32 without mark": (ROWS.encode("utf-32-le"), "the file is in UTF-32"),
    "UTF-32 big": (ROWS.encode("utf-32-be"), "the file is in UTF-32"),
    "old Mac": (ROWS.replace("\n", "\r"), "the file has the line ends of old Macs (CR alone)"),
    "several lines": (PRETTY * 3, "the file is JSON over several lines; write each object on one line"),
    "several lines, broken": (PRETTY.replace('"b"', '"b",'), "the file is JSON over several lines"),
    "array": ("[" + ROW.strip() + "]", file_faults.ARRAY),
    "array of lines": ("[\n" + ROW.strip() + ",\n" + ROW + "]\n", file_faults.ARRAY),
    "Python": (
        "{'prompt': 'a', 'response': None}\n" * 2,
        "these are Python dicts; save them with json.dumps",
    ),
    "Python words": ('{"prompt": "a", "response": "b", "good": True}\n' * 2, "these are Python dicts"),
    "commas": (ROW.replace("}", "},") * 3, "a comma follows the object; write one object per line, without"),
    "on one line": (ROWS.replace("\n", " "), "several objects stand on one line; write one object per line"),
    "HTML": ("<!DOCTYPE html>\n<html></html>\n", "the file is a web page (HTML)"),
    "XML": ('<?xml version="1.0"?>\n<rows/>\n', "the file is XML"),
    "prose": ("Dear all,\nhere are some rows, enjoy.\n", "the file is plain text, not JSON lines"),
    "empty": ("", "the file is empty"),
    "blank": ("\n \n", "the file has no rows"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_one_sentence(tmp_path: Path, kind: str) -> None:
    content, said = KINDS[kind]
    path = tmp_path / "data"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    report = datasets.check(path, "chat")
    assert len(report.messages()) == 1
    assert report.problems[0].startswith(f"{path}:1: {said}")


LINES = {
    ROW.replace("}", "},"): "not JSON: a comma follows the object",
    ROW.strip() + " " + ROW: "not JSON: several objects stand on one line",
    "{'prompt': 'a'}": "not JSON: these are Python dicts; save them with json.dumps",
    '{"prompt": None}': "not JSON: these are Python dicts",
    '["prompt", "response"]': 'a row must be an object like {"prompt": …}, not a list',
    "[1, 2": "not JSON: the line ends too early, at character 6",
    '{"prompt": "a\tb"}': r"not JSON: a tab stands inside a text at character 14; write it as \t",
    '{"prompt": "a\x1b"}': r"not JSON: the control character '\u001b' stands inside a text at character 14",
    '{"prompt": "a': "not JSON: the text that begins at character 12 has no closing quote on this line",
    r'{"prompt": "\x"}': "not JSON: the backslash at character 13 begins no escape that JSON knows",
    r'{"prompt": "\u12"}': r"not JSON: \u needs four hexadecimal digits",
    '{"prompt": "a",}': "not JSON: a comma stands before the } at character 16; take it out",
    '{"prompt": "say "a" to b"}': "not JSON: a comma is missing at character 18, or a quote inside a text",
    '{"prompt": }': "not JSON: '}' at character 12 is not expected there",
    '{"prompt": "a"} x': "not JSON: something follows the first value, at character 17: 'x'",
    "# rows": "not JSON: this is a comment, which JSON does not have; take it out (at character 1)",
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("at", [1, 2])
def test_a_slip_on_one_line_is_about_that_line(tmp_path: Path, line: str, at: int) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(ROW * (at - 1) + line.strip() + "\n" + ROW * 2, "utf-8")
    report = datasets.check(path, "chat")
    assert len(report.messages()) == 1
    assert report.problems[0].startswith(f"{path}:{at}: {LINES[line]}")
    assert report.rows == at + 1


def test_a_file_larger_than_its_head_is_told_by_it(tmp_path: Path) -> None:
    path = tmp_path / "data"
    rows = ROW * (2 * file_faults.HEAD // len(ROW))
    for content, said in (
        ("[" + rows.replace("\n", ",") + "]", file_faults.ARRAY),
        (rows.replace("\n", "\r"), file_faults.OLD_MAC),
        ('["prompt", "response"]\n' + rows, "a row must be an object"),
    ):
        path.write_bytes(content.encode())
        assert datasets.check(path, "chat").problems[0].startswith(f"{path}:1: {said}")


def test_pythons_longest_integer_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": ' + "9" * (sys.get_int_max_str_digits() + 1) + ', "response": "b"}\n' + ROW)
    assert datasets.check(path, "chat").problems == [
        f"{path}:1: a number has too many digits; write it as text, in quotes"
    ]
