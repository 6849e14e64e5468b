"""Checks applied to answers, in a process that hostile ones cannot hang."""

from __future__ import annotations

import pytest

from pipeline.evaluation import checker, checks
from pipeline.evaluation.checker import Checker


@pytest.mark.parametrize(
    ("line", "passing", "failing"),
    [
        ("contains: Straße", "In der STRASSE.", "Strand"),
        ("regex: ^[A-Z]\\w+\\.$", "Paris.", "paris."),
        ("number: 0 to 100", "First 3, then 1e2", "3, then 101"),
        ("number: 0 to 2000", "It costs 1,999.50 €", "none"),
        ("number: -2 to", "at -1.5", "at -3"),
        ("json", '[1, {"a": null}]', "NaN"),
        ("json", '"x"', "```json\n{}\n```"),
        ("json", "{}", "[" * 100_000),
        (
            'json_schema: {"type": "object", "required": ["a"], "$defs": {"n": {"type": "number"}},'
            ' "properties": {"a": {"$ref": "#/$defs/n"}}}',
            '{"a": 1}',
            '{"a": "1"}',
        ),
    ],
)
def test_each_kind(line: str, passing: str, failing: str) -> None:
    (check,) = checks.read(line, "")
    assert checker.passes(check, passing)
    assert not checker.passes(check, failing)


CATASTROPHES = [
    ("regex: ^(([a-z ])+.)+[A-Z]([a-z])+$", "to be or not " * 2500),  # an answer of 8,000 tokens
    ('json_schema: {"pattern": "^(a|aa)+$"}', f'"{"a" * 80}b"'),
    (
        'json_schema: {"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}],'
        ' "not": {"type": "null"}}',
        "[" * 60 + "null" + "]" * 60,
    ),
]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processor, so a machine that is busy changes nothing."""
    monkeypatch.setattr(checker, "SECONDS", 0.3)


@pytest.mark.usefixtures("hasty")
def test_what_takes_too_long_is_said_and_the_other_checks_are_applied() -> None:
    text = "\n".join(["contains: a", *(line for line, _ in CATASTROPHES)])
    with Checker(text) as found:
        for number, (_, answer) in enumerate(CATASTROPHES, 1):
            assert found._apply(number, answer) == checker.SLOW, number
            assert found._apply(0, answer) is ("a" in answer)


@pytest.mark.usefixtures("hasty")
def test_a_check_that_keeps_failing_is_not_tried_further() -> None:
    with Checker("regex: ^(a+)+$\ncontains: a") as found:
        answers = ["a" * 40 + "b"] * (checker.MOST_FAILURES + 2)
        outcomes = [found.apply(answer) for answer in answers]
    assert [outcome[0] for outcome in outcomes] == [checker.SLOW] * 2 + [checker.UNTRIED] * 2
    assert [outcome[1] for outcome in outcomes] == [True] * 4


def test_a_schema_that_refers_to_itself_and_one_from_elsewhere_are_said() -> None:
    """Nor is anything fetched: the second one's address would be asked for, by the library's own registry."""
    text = 'json_schema: {"$ref": "#"}\njson_schema: {"$ref": "http://localhost:9/schema"}\njson'
    with Checker(text) as found:
        itself, elsewhere, plain = found.apply("{}")
    assert "refers to itself without end" in str(itself)
    assert elsewhere == "it cannot be applied: _WrappedReferencingError"
    assert plain is True


def test_memory_is_bounded() -> None:
    with Checker("contains: x\nregex: (?s)(.|\\n)*(?=y)") as found:
        assert found.apply("x")[0] is True
        process = found._process
        assert process is not None
        with open(f"/proc/{process.pid}/limits") as file:  # noqa: PTH123
            limit = next(line for line in file if line.startswith("Max address space"))
    assert int(limit.split()[3]) == checker.MEMORY


def test_without_checks_there_is_no_process() -> None:
    with Checker("") as found:
        assert found.apply("anything") == []
        assert found._process is None


def test_the_process_ends_with_the_checker() -> None:
    with Checker("json") as found:
        found.apply("{}")
        process = found._process
    assert process is not None
    assert process.returncode is not None
