"""Each container with each shape, the rows with the numbers they had, and what stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats import columns, convert
from pipeline.inputs.data.formats.columns import Columns
from tests.helpers.formats import FORMATS, made, made_of, rows_of

SAID = [{"from": "system", "value": "s"}, {"from": "human", "value": "é"}, {"from": "gpt", "value": "b"}]
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "é"},
    {"role": "assistant", "content": "b"},
]
STORY = "Once, é lived. Then it ended;\n\nnobody knows, why."
PAIR = {"prompt": "é", "response": 'b\n"c"; d, e\tf'}
# The shape, a row of it, and the row that is made.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt/response": (PAIR, PAIR),
    "question/answer": ({"id": "7", "Question": "é", "Answer": "b"}, {"prompt": "é", "response": "b"}),
    "alpaca": (
        {"instruction": "i", "input": "é", "output": "o"},
        {"prompt": "i\n\né", "response": "o"},
    ),
    "messages": ({"messages": CHAT}, {"messages": CHAT}),
    "sharegpt": ({"conversations": SAID}, {"messages": CHAT}),
    "plain text": ({"text": STORY, "id": 7}, {"prompt": STORY[:14], "response": STORY[14:]}),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_recognised_in_every_container(tmp_path: Path, name: str, shape: str) -> None:
    container, written = FORMATS[name]
    row, expected = SHAPES[shape]
    found = made_of(tmp_path, written([row] * 3), name)
    assert (found.container, found.shape, found.problems) == (container, shape, ())
    assert list(rows_of(found).values()) == [expected] * 3
    as_it_is = name == "a.jsonl" and shape in ("prompt/response", "messages")
    assert found.is_made != as_it_is
    report = datasets.check(found.path, "chat")
    assert (report.problems, report.rows) == ([], 3)


def test_columns_that_are_chosen_are_joined_with_a_blank_line(tmp_path: Path) -> None:
    chosen = columns.parse("prompt=b+a,response=c,system=d")
    found = made_of(tmp_path, "a,b,c,d\nx,y,z,s\n,y,z,\n", chosen=chosen)
    assert list(rows_of(found).values()) == [
        {"prompt": "y\n\nx", "response": "z", "system": "s"},
        {"prompt": "y", "response": "z"},
    ]
    assert (found.columns, found.has_chosen) == (chosen, True)


def test_rows_keep_the_lines_they_had(tmp_path: Path) -> None:
    found = made_of(tmp_path, 'question,answer\n"a\n\nb",c\n\nd,\ne,f\n')
    assert list(rows_of(found)) == [2, 7]
    (problem,) = found.problems
    assert problem == (6, "'answer' is empty, so there is nothing to learn from this row")
    assert found.named(6) == f"{tmp_path}/data.csv:6"


def test_items_of_an_array_are_counted_as_rows(tmp_path: Path) -> None:
    found = made_of(tmp_path, '[{"q": "a", "a": "b"},\n\n 7, {"q": "c", "a": true}]', "a.json")
    assert list(rows_of(found)) == [1]
    assert [found.named(number) for number, _ in found.problems] == [
        f"{tmp_path}/a.json: row 2",
        f"{tmp_path}/a.json: row 3",
    ]


def test_several_files_are_one_and_errors_name_each(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("1.csv", "2.json", "3.jsonl"))
    one.write_text("question,answer\na,b\n")
    two.write_text('[{"question": "c", "answer": "d"}, {"question": "e"}]')
    three.write_text('{"question": "g", "answer": "h"}\n{\n')
    found = made(tmp_path, one, two, three)
    assert [row["prompt"] for row in rows_of(found).values()] == ["a", "c", "g"]
    assert found.container == "csv+json+jsonl"
    assert [found.named(number) for number, _ in found.problems] == [f"{two}: row 2", f"{three}:2"]


def test_several_files_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("question,answer\na,b\n")
    (tmp_path / "2.csv").write_text("instruction,output\na,b\n")
    found = made(tmp_path, tmp_path / "1.csv", tmp_path / "2.csv")
    ((number, problem),) = found.problems
    assert found.named(number) == f"{tmp_path}/2.csv:1"
    assert problem.startswith("the file has other columns than the first one")


def test_a_pattern_names_several_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in convert.sources(tmp_path / "*.csv")] == ["a.csv", "b.csv"]
    assert convert.sources(tmp_path / "*.tsv") == (tmp_path / "*.tsv",)
    (tmp_path / "[1]?.csv").write_text("x")
    assert convert.sources(tmp_path / "[1]?.csv") == (tmp_path / "[1]?.csv",)


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n',
        '{"prompt": "a"}\n{"prompt": "a", "response": "b", "other": "c"}\n',
        "",
        "{\n",
        '{"prompt": 1\n{"x": [2]}\n',
        "Dear all,\nhere are rows.\n",
        "%PDF-1.7\n",
    ],
)
def test_json_lines_and_what_is_no_dataset_stay_as_they_are(tmp_path: Path, content: str) -> None:
    """So that the check says of them what it always has."""
    found = made_of(tmp_path, content, "a.jsonl")
    assert (found.is_made, found.problems) == (False, ())


def test_a_template_of_ones_own_names_the_files_own_columns(tmp_path: Path) -> None:
    content = "city,country\nParis,France\n"
    found = made_of(tmp_path, content, template="{city} {country}")
    assert (list(rows_of(found).values()), found.columns) == ([{"city": "Paris", "country": "France"}], None)
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert not made(tmp_path, tmp_path / "a.jsonl", template="{question} {answer}").is_made
    assert not made(tmp_path, tmp_path / "a.jsonl", template="{questoin} {answer}").is_made
    found = made(tmp_path, tmp_path / "a.jsonl", template="{prompt} {response}")
    assert list(rows_of(found).values()) == [{"prompt": "a", "response": "b"}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"question": "a b c"}\n',
            "the rows have one column only (question): add a column with the response",
        ),
        ('{"a": "x y", "b": "y z", "c": "z w"}\n', "which columns hold prompt and response is not clear"),
    ],
)
def test_what_is_not_clear_is_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    found = made_of(tmp_path, content * 3, "a.jsonl")
    ((line, problem),) = found.problems
    assert (line, found.rows) == (1, 0)
    assert problem.startswith(said)


def test_a_column_that_is_chosen_and_not_there_is_said_by_line(tmp_path: Path) -> None:
    found = made_of(tmp_path, "a,b\nx,y\nx,y\n", chosen=Columns(("q",), ("b",)))
    assert found.problems[1] == (3, "the column 'q' is missing; columns here: a, b")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: there is no such file"):
        made(tmp_path, tmp_path / "none.csv")


def test_what_is_found_survives_a_process(tmp_path: Path) -> None:
    found = made_of(tmp_path, "question,answer\na,b\nc\n")
    assert convert.from_facts(convert.facts(found)) == found


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_is_kept(home: Path) -> None:
    question = {"template": None, "columns": None}  # its paths are missing, which nobody foresaw
    with pytest.raises(LabError) as caught:
        list(convert._answer(question, Path("rows.csv")))
    assert str(caught.value) == (
        "rows.csv: This failed with an internal error (KeyError: 'target'); try again; if it fails again,"
        " report it. The details are in errors.log of the home folder."
    )
    assert "Traceback (most recent call last)" in (home / "errors.log").read_text()


def test_a_folder_that_cannot_be_written_is_named(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\na,b\n")
    with pytest.raises(LabError, match=r"rows\.csv: \S+/none/made\.jsonl cannot be used \(No such file"):
        list(convert.preparing([path], tmp_path / "none" / "made.jsonl"))
    assert not (home / "errors.log").exists()
