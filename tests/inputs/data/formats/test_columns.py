"""Which columns are proposed, which are chosen, and what is wrong with a cell."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data.formats import columns
from pipeline.inputs.data.formats.columns import Columns

LONG = "It is a long story about many things."


@pytest.mark.parametrize(
    ("row", "chosen", "sure"),
    [
        ({"prompt": "a", "response": "b", "n": 1}, "prompt=prompt,response=response", True),
        ({" Prompt ": "a", "COMPLETION": "b"}, "prompt= Prompt ,response=COMPLETION", True),
        ({"q": "x", "a": "y"}, "prompt=q,response=a", True),
        ({"instruction": "a", "input": "b", "output": "c"}, "prompt=instruction+input,response=output", True),
        ({"instruction": "a", "context": "b", "response": "c", "category": "d"},
         "prompt=instruction+context,response=response", True),
        ({"system": "s", "question": "a", "answer": "b"},
         "prompt=question,response=answer,system=system", True),
        ({"text": "a", "label": 1}, "prompt=text,response=label", True),
        ({"id": "x-17", "Frage": LONG, "Antwort": LONG}, "prompt=Frage,response=Antwort", True),
        ({"question": LONG, "when": "2026-01-01", "Antwort": LONG}, "prompt=question,response=Antwort", True),
        ({"eins": "a b", "zwei": "c d", "drei": LONG}, "prompt=eins,response=drei", False),
        ({"question": "a b", "zwei": "c d", "drei": LONG}, "prompt=question,response=drei", False),
        ({"question": ["a"], "eins": "x y", "zwei": LONG}, "prompt=eins,response=zwei", True),
        ({"text": "a"}, None, False),
        ({"n": 1, "m": 2.5}, None, False),
        ({}, None, False),
        ({"": LONG, "Frage": LONG, "\0": LONG, "\ud800": LONG, "x" * 1001: LONG}, None, False),
        ({"question": LONG, "": LONG, "Antwort": LONG}, "prompt=question,response=Antwort", True),
    ],
)  # fmt: skip
def test_columns_are_proposed_by_name_and_content(
    row: dict[str, Any], chosen: str | None, sure: bool
) -> None:
    found, is_sure = columns.proposed([row] * 3, list(row))
    assert (None if found is None else str(found), is_sure) == (chosen, sure)


def test_a_choice_is_written_as_a_text_or_as_a_mapping() -> None:
    chosen = columns.parse("prompt=a+b, response=c")
    assert chosen == Columns(("a", "b"), ("c",))
    assert columns.parse({"prompt": ["a", "b"], "response": "c", "system": []}) == chosen
    assert columns.parse(chosen.to_dict()) == columns.parse(str(chosen)) == chosen


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a", "columns: 'a' is not understood; write it as prompt=question,response=answer"),
        ("prompt=a,prompt=b,response=c", "is not understood"),
        ("prompt=a", "columns.response: is missing; name a column"),
        ({"prompt": ["a"], "respnse": ["b"]}, "columns.respnse: unknown key; allowed: prompt,"),
        ({"prompt": [7], "response": ["b"]}, "columns.prompt: [7] is not allowed; allowed: up to 20 names"),
        ({"prompt": ["a\0"], "response": ["b"]}, "columns.prompt:"),
        ({"prompt": ["x" * 1001], "response": ["b"]}, "columns.prompt:"),
        ({"prompt": list(map(str, range(21))), "response": ["b"]}, "columns.prompt:"),
        ({"prompt": ["a", "b"], "response": ["b"]}, "columns: 'b' is both asked and answered"),
        (["prompt"], "columns: ['prompt'] is not allowed"),
    ],
)  # fmt: skip
def test_a_bad_choice_names_its_key(given: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        columns.parse(given)
    assert caught.value.problems[0].startswith(said) or said in caught.value.problems[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "'a' is empty, so there is nothing asked in this row"),
        (" ", "'a' is empty"),
        (math.nan, "'a' is empty"),
        (math.inf, "'a' is too large a number"),
        (True, "'a' must be text or a number, not true or false"),
        ([1], "'a' must be text or a number, not a list"),
        ({"x": 1}, "'a' must be text or a number, not an object"),
        (b"x", "'a' must be text or a number, not binary data"),
        ("x\0", "'a' has a NUL character"),
    ],
)
def test_a_bad_cell_names_its_column(value: Any, said: str) -> None:
    found = columns.applied({"a": value, "b": 7}, Columns(("a",), ("b",)))
    assert isinstance(found, str)
    assert found.startswith(said)


def test_numbers_are_written_as_text() -> None:
    assert columns.applied({"a": 1.5, "b": 7}, Columns(("a",), ("b",))) == {"prompt": "1.5", "response": "7"}


def test_what_is_proposed_can_be_chosen() -> None:
    row = {"question": "a", "answer": "b", **{f"input{'!' * number}": "c" for number in range(40)}}
    found, _ = columns.proposed([row], list(row))
    assert found is not None
    assert len(found.names) == columns.MOST_NAMES - 1  # a system may be one more
    assert columns.parse(found.to_dict()) == found


def test_what_a_record_keeps_of_columns_has_an_end() -> None:
    many = [str(number) for number in range(columns.MOST_NAMES)]
    with pytest.raises(InputError, match="21 columns are too many; choose up to 20 in all"):
        columns.parse({"prompt": many, "response": ["answer"]})
    with pytest.raises(InputError, match=r"columns\.response"):
        columns.parse({"prompt": ["question"], "response": ["x" * (columns.LONGEST_NAME + 1)]})
