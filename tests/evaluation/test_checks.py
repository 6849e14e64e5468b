"""Checks as a user writes them, and what is said of those that cannot be used."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.evaluation import checks

WHERE = "evaluate.checks"


def test_each_kind_is_read_from_its_line() -> None:
    text = (
        "contains: Paris\n\nregex: ^\\d+$\nnumber: -5 to 1e2\nnumber: to 7\njson\n"
        'json_schema: {"type": "object"}\n'
    )
    found = checks.read(text, WHERE)
    assert [(check.kind, check.given) for check in found] == [
        ("contains", "Paris"),
        ("regex", "^\\d+$"),
        ("number", (-5.0, 100.0)),
        ("number", (-math.inf, 7.0)),
        ("json", None),
        ("json_schema", {"type": "object"}),
    ]
    assert checks.problems(text, WHERE) == []
    assert checks.read("", WHERE) == []


def test_a_list_of_a_recipe_becomes_the_same_lines() -> None:
    given = [
        {"contains": "Paris"},
        {"contains": " two\nlines "},
        {"contains": '"quoted"'},
        {"contains": 7},
        {"regex": "a: b"},
        {"number": {"low": 0, "high": 2.5}},
        {"number": {"high": 3}},
        "json",
        {"json": None},
        {"json_schema": {"type": "object"}},
    ]
    text = checks.as_text(given, WHERE)
    assert [check.given for check in checks.read(text, WHERE)] == [
        "Paris", " two\nlines ", '"quoted"', "7", "a: b", (0.0, 2.5), (-math.inf, 3.0), None, None,
        {"type": "object"},
    ]  # fmt: skip
    assert checks.as_text({"contains": "x"}, WHERE) == "contains: x"
    assert checks.as_text("contains: x", WHERE) == "contains: x"
    assert checks.as_text(3, WHERE) == 3  # the option refuses it


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"contain": "x"}, "is not allowed; allowed: 'contains: TEXT'"),
        ({"contains": "a", "regex": "b"}, "is not allowed"),
        ({"contains": ["a"]}, "is not allowed"),
        ({"number": {"lowest": 1}}, "is not allowed"),
        ({"json": "x"}, "is not allowed"),
        ({"json_schema": {"const": math.nan}}, "has what JSON cannot have"),
        (None, "is not allowed"),
    ],
)
def test_an_item_that_is_no_check_is_named(item: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        checks.as_text([{"contains": "x"}, item], WHERE)
    assert caught.value.problems[0].startswith(f"{WHERE}: check 2: ")
    assert said in caught.value.problems[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Paris", "'Paris' is not allowed; allowed: 'contains: TEXT'"),
        ("contains:", "contains: says nothing"),
        ("json: {}", "json: takes nothing behind it"),
        ("number: 5", "number: '5' is no range; write it as 0 to 100"),
        ("number: to", "number: 'to' is no range"),
        ("number: 5 to 1", "number: '5 to 1' has no number in it"),
        ("json_schema: {", "json_schema: is not valid JSON: "),
        ("json_schema: [1]", "json_schema: is not a schema"),
        (f"json_schema: {'[' * 100_000}", "json_schema: is nested too deeply"),
    ],
)
def test_a_line_that_is_no_check_is_named(line: str, said: str) -> None:
    for found in (checks.problems(f"json\n{line}", WHERE), problems_of(f"json\n{line}")):
        assert len(found) == 1
        assert found[0].startswith(f"{WHERE}: check 2: {said}")


def problems_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        checks.read(text, WHERE)
    return caught.value.problems


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("regex: (a", "regex: '(a' is not a pattern: missing )"),
        ("regex: a{99999999999999999999}", "is not a pattern: "),
        (f"regex: {'(' * 3000}{')' * 3000}", "regex: "),
        ('json_schema: {"type": "thing"}', "json_schema: is not a schema: 'thing' is not valid"),
        ('json_schema: {"pattern": "("}', "json_schema: is not a schema: '(' is not a 'regex'"),
        ('json_schema: {"$ref": "https://example.org/a"}', "leads out of the schema, and nothing is fetched"),
        ('json_schema: {"items": [{"$ref": "file:///etc/passwd"}]}', "json_schema: "),
        ('json_schema: {"anyOf": [{"$dynamicRef": "other.json"}]}', "leads out of the schema"),
    ],
)
def test_what_cannot_be_applied_is_said_before_anything_starts(line: str, said: str) -> None:
    found = checks.problems(f"contains: x\n{line}", WHERE)
    assert len(found) == 1
    assert found[0].startswith(f"{WHERE}: check 2: ")
    assert said in found[0]


def test_many_checks_are_too_many() -> None:
    assert problems_of("json\n" * 21) == [f"{WHERE}: 21 checks are too many; allowed: 20"]
