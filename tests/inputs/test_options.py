from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pipeline.errors import InputError
from pipeline.inputs.options import LONGEST, describe, option, parse


@dataclass(frozen=True)
class Options:
    method: Literal["fast", "slow"] = option("fast", "How")
    bits: Literal[4, 8] = option(4, "Bits")
    group: int | Literal["auto"] = option("auto", "Group", min=16, max=1024)
    rate: float = option(0.5, "Rate", min=0.0, max=1.0, advanced=True)
    steps: int = option(1, "Steps", min=1)
    flag: bool = option(False, "Flag")
    note: str | None = option(None, "Note")
    passes: float | None = option(None, "Passes", min=0.5, max=9)
    level: Literal[0, 1] = option(0, "Level")
    more: bool | Literal["auto"] = option("auto", "More")


def problem(**given: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse(Options, given, "stage")
    return str(caught.value)


def test_a_text_has_an_end() -> None:
    """A sweep keeps it a hundred times, and every list of runs reads it again."""
    assert parse(Options, {"note": "x" * LONGEST}, "stage").note == "x" * LONGEST
    assert problem(note="x" * (LONGEST + 1)) == "stage.note: has more than 4,000 letters; shorten it"


def test_defaults_are_taken_where_nothing_is_given() -> None:
    assert parse(Options, {}, "stage") == Options()


def test_given_values_are_kept() -> None:
    given = {
        "method": "slow",
        "bits": 8,
        "group": 64,
        "rate": 0.25,
        "steps": 7,
        "flag": True,
        "note": "x",
        "passes": 2.5,
    }
    assert parse(Options, given, "stage") == Options(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1, 1.0), ("5e-4", 0.0005), ("0.25", 0.25), (0.0, 0.0)],
)
def test_a_float_may_be_written_as_yaml_reads_it(given: Any, expected: float) -> None:
    rate = parse(Options, {"rate": given}, "stage").rate
    assert (rate, type(rate)) == (expected, float)


@pytest.mark.parametrize(("given", "expected"), [(None, None), (2, 2.0), ("1.5", 1.5)])
def test_a_number_may_be_left_out(given: Any, expected: float | None) -> None:
    passes = parse(Options, {"passes": given}, "stage").passes
    assert (passes, type(passes)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("given", "shown", "allowed"),
    [
        ({"method": "medium"}, "stage.method: 'medium'", "'fast' or 'slow'"),
        ({"bits": 5}, "stage.bits: 5", "4 or 8"),
        ({"bits": True}, "stage.bits: True", "4 or 8"),
        ({"bits": "4"}, "stage.bits: '4'", "4 or 8"),
        ({"group": 8}, "stage.group: 8", "'auto' or a whole number from 16 to 1024"),
        ({"group": 2048}, "stage.group: 2048", "'auto' or a whole number from 16 to 1024"),
        ({"rate": 1.5}, "stage.rate: 1.5", "a number from 0.0 to 1.0"),
        ({"rate": 5}, "stage.rate: 5 is", "a number from 0.0 to 1.0"),
        ({"rate": "nan"}, "stage.rate: 'nan'", "a number from 0.0 to 1.0"),
        ({"rate": 10**400}, "stage.rate: 1", "a number from 0.0 to 1.0"),
        ({"rate": True}, "stage.rate: True", "a number from 0.0 to 1.0"),
        ({"steps": 0}, "stage.steps: 0", "a whole number of at least 1"),
        ({"steps": 1.5}, "stage.steps: 1.5", "a whole number of at least 1"),
        ({"steps": True}, "stage.steps: True", "a whole number of at least 1"),
        ({"flag": 1}, "stage.flag: 1", "true or false"),
        ({"flag": "yes"}, "stage.flag: 'yes'", "true or false"),
        ({"level": True}, "stage.level: True", "0 or 1"),
        ({"more": 1}, "stage.more: 1", "'auto', true or false"),
        ({"more": "yes"}, "stage.more: 'yes'", "'auto', true or false"),
        ({"note": 3}, "stage.note: 3", "a text or null"),
        ({"passes": 0.1}, "stage.passes: 0.1", "a number from 0.5 to 9 or null"),
        ({"passes": True}, "stage.passes: True", "a number from 0.5 to 9 or null"),
        ({"note": "a\0b"}, "stage.note: 'a\\x00b'", "a text or null"),
        ({"note": "\ud800"}, "stage.note: '\\ud800'", "a text or null"),
        ({"steps": ["a"]}, "stage.steps: ['a']", "a whole number of at least 1"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(
    given: dict[str, Any], shown: str, allowed: str
) -> None:
    message = problem(**given)
    assert message.startswith(shown)
    assert message.endswith(f"is not allowed; allowed: {allowed}")


def test_an_unknown_key_is_named_with_those_there_are() -> None:
    assert problem(metod="fast") == (
        "stage.metod: unknown key; allowed: method, bits, group, rate, steps, flag, note, passes, level, more"
    )


def test_all_problems_are_told_at_once() -> None:
    assert len(problem(bits=5, flag="x", other=1).splitlines()) == 3


def test_options_must_be_a_mapping() -> None:
    with pytest.raises(InputError, match=r"stage: \[1\] is not allowed; allowed: a mapping of options"):
        parse(Options, [1], "stage")


def test_a_huge_value_is_not_shown_whole() -> None:
    assert len(problem(steps="x" * 100_000)) < 400


def test_describe_gives_what_a_form_needs() -> None:
    options = {o.name: o for o in describe(Options)}
    names = ["method", "bits", "group", "rate", "steps", "flag", "note", "passes", "level", "more"]
    assert list(options) == names
    assert (options["more"].types, options["more"].choices) == ((bool,), ("auto",))
    assert options["method"].choices == ("fast", "slow")
    assert (options["group"].types, options["group"].choices) == ((int,), ("auto",))
    assert (options["rate"].min, options["rate"].max, options["rate"].advanced) == (0.0, 1.0, True)
    assert (options["rate"].help, options["rate"].default) == ("Rate", 0.5)
    assert options["note"].types == (str, type(None))
