"""Plain text: where a text is cut, what the rows of a text file are, and that no token is cut in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats import columns, plain_text
from pipeline.inputs.data.formats.columns import Columns
from pipeline.inputs.prompts import templates, training_ids
from tests.helpers import zoo
from tests.helpers.formats import made_of, rows_of

LONG = "It rained. " * 400
SIGNS = [
    "a", "It", "rained", "don't", "12345", "é", "e\u0301", "你好", "世界", "，", "。", "...", ".", "!",
    '"', "(", ")", " ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u2028", "▁", "Ġ",
    "\u200d", "🙂", "-", "'", "###",
]  # fmt: skip
texts = st.lists(st.sampled_from(SIGNS), max_size=60).map("".join)


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("two words", "two"),
        ("a b c d e f", "a b c"),
        ("The sun rose over it. Then the whole village woke, and all of them went to the river.",
         "The sun rose over it."),
        ("line one\nline two\nline three\nline four", "line one\nline two"),
        (" leading space", " leading"),
        ("a  b c", "a  b"),
        ("你好世界，今天天气很好。", "你好世界"),
    ],
)  # fmt: skip
def test_a_text_is_cut_at_a_sentence_a_line_or_a_word(text: str, beginning: str) -> None:
    assert plain_text.halves(text) == (beginning, text[len(beginning) :])


@pytest.mark.parametrize("text", ["", " ", "word", " word\n", "https://a.example/b", "你好", "a \u0301b"])
def test_a_text_of_one_word_is_not_cut(text: str) -> None:
    assert plain_text.halves(text) is None


def test_the_beginning_of_a_long_text_is_short() -> None:
    beginning, rest = plain_text.halves(LONG) or ("", "")
    assert beginning.endswith(".")
    assert len(beginning) <= plain_text.NEAR * plain_text.LONGEST_BEGINNING
    assert beginning + rest == LONG


@given(texts)
@settings(deadline=None, derandomize=True, database=None, max_examples=300)
def test_both_halves_are_the_text_and_neither_is_blank(text: str) -> None:
    halves = plain_text.halves(text)
    if halves is not None:
        assert "".join(halves) == text
        assert all(half.strip() for half in halves)
        assert halves[0] == halves[0].rstrip(" ")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tokenizers import Tokenizer

    root = tmp_path_factory.mktemp("zoo")
    found = {}
    for name, kind in zoo.KINDS.items():
        zoo.write(kind, root / name)
        found[name] = Tokenizer.from_file(str(root / name / "tokenizer.json"))
    return found


class Plain:
    """As training asks a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: str | list[str], add_special_tokens: bool) -> dict[str, Any]:
        many = [text] if isinstance(text, str) else text
        ids = [one.ids for one in self.tokenizer.encode_batch(many, add_special_tokens=add_special_tokens)]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}


@pytest.mark.chain
def test_no_token_of_any_tokenizer_spans_the_cut(tokenizers: dict[str, Any]) -> None:
    template = templates.parse(templates.CONTINUED)

    @given(texts)
    @settings(deadline=None, derandomize=True, database=None, max_examples=200)
    def look(text: str) -> None:
        row = columns.applied({"text": text}, Columns((), ("text",)))
        if isinstance(row, str):
            return
        asked, full = template.prompt(row), template.full(row)
        assert full == text
        for name, one in tokenizers.items():
            tokenizer = Plain(one)
            prompt, answer = training_ids.encode(tokenizer, templates.Rendered(asked, full), [2])
            whole = training_ids.prompt_ids(tokenizer, text)
            assert [*prompt, *answer][: len(whole)] == whole, name

    look()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("One two.\nThree.\n\n\nFour five.\n", {1: "One two.\nThree.", 5: "Four five."}),
        ("One two.\nThree four.\n", {1: "One two.", 2: "Three four."}),
        ("\nTITLE\n\nOne two.\n\n***\n\nThree four.\n\nEnd\n",
         {2: "TITLE\n\nOne two.", 6: "***\n\nThree four.\n\nEnd"}),
        ("Hello, you\nAnd, you, too\n", {1: "Hello, you", 2: "And, you, too"}),
        ("[Verse 1] hey\nla la\n", {1: "[Verse 1] hey", 2: "la la"}),
        ("{so} it is\nla la\n", {1: "{so} it is", 2: "la la"}),
        ("one two\r\n\r\nthree four", {1: "one two", 3: "three four"}),
    ],
)  # fmt: skip
def test_a_text_file_has_paragraphs_or_lines(tmp_path: Path, content: str, lines: dict[int, str]) -> None:
    for data in (content.encode(), content.encode("utf-16")):
        found = made_of(tmp_path, data, "a.txt")
        assert (found.container, found.shape, found.problems) == ("txt", "plain text", ())
        assert {n: row["prompt"] + row["response"] for n, row in rows_of(found).items()} == lines
    assert found.columns == Columns((), ("text",))
    assert found.template("chat") == "{prompt}{response}"
    assert found.template("{prompt} {response}") == "{prompt} {response}"
    assert datasets.check(found.path, "{prompt}{response}").good


@pytest.mark.parametrize(
    ("content", "container"),
    [
        ('{"prompt": "a", "response": "b"}\n', "jsonl"),
        ('[{"prompt": "a", "response": "b"}]', "json"),
        ("question,answer\na,b\nc,d\n", "csv"),
        ("question\tanswer\na\tb\n", "tsv"),
    ],
)
def test_a_text_file_may_hold_rows_of_other_kinds(tmp_path: Path, content: str, container: str) -> None:
    assert made_of(tmp_path, content, "a.txt").container == container


def test_a_web_page_is_no_text(tmp_path: Path) -> None:
    found = made_of(tmp_path, "<!DOCTYPE html>\n<html><body>One two three.</body></html>\n", "a.txt")
    report = datasets.check(found.path, "chat")
    assert "the file is a web page (HTML)" in report.problems[0]


def test_texts_that_cannot_be_used_are_said_by_line(tmp_path: Path) -> None:
    rows = ["one two", "word", "", "x y\0", "a b\n### Instruction:\nc\n### Response:\nd", "one two"]
    content = "".join(json.dumps({"text": text}) + "\n" for text in rows)
    found = made_of(tmp_path, content, "a.jsonl")
    assert list(rows_of(found)) == [1, 6]
    begins = ["is too short: plain text", "is empty", "has a NUL", "holds the markers of a conversation"]
    for (line, problem), said in zip(found.problems, begins, strict=True):
        assert problem.startswith(f"'text' {said}"), line


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"content": "One two."}, "content"),
        ({"text": "One two.", "title": "A title", "url": "https://a.example/1", "n": 7}, "text"),
        ({"text": "One two.", "label": "good"}, ""),
        ({"text": "One two.", "mood": "good one"}, ""),
        ({"prompt": "One two."}, ""),
        ({"answer": "One two."}, ""),
        ({"text": "word"}, ""),
        ({"text": ["One two."]}, ""),
    ],
)
def test_which_column_is_the_only_text(row: dict[str, Any], text: str) -> None:
    assert columns.only_text([row] * 3, list(row)) == text


def test_a_column_is_chosen_as_text(tmp_path: Path) -> None:
    chosen = columns.parse("response=answer")
    assert chosen == columns.parse({"prompt": [], "response": ["answer"]}) == Columns((), ("answer",))
    found = made_of(tmp_path, "question,answer\na,b c\n", chosen=chosen)
    assert list(rows_of(found).values()) == [{"prompt": "b", "response": " c"}]
    content = '{"prompt": "a", "response": "b c"}\n'
    for template in ("chat", "{prompt}{response}"):
        found = made_of(tmp_path, content, "a.jsonl", chosen=Columns((), ("response",)), template=template)
        assert list(rows_of(found).values()) == [{"prompt": "b", "response": " c"}]
