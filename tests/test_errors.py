"""A refusal is as long as a person reads, whatever was given."""

from __future__ import annotations

from pipeline.errors import LONGEST_PROBLEM, MOST_PROBLEMS, InputError, LabError


def test_of_many_problems_the_first_are_listed() -> None:
    few = [f"problem {number}" for number in range(MOST_PROBLEMS)]
    assert InputError(few).problems == few
    assert InputError([*few, "and 7 more"]).problems == [*few, "and 7 more"], "which says how many already"
    error = InputError([*few, "x", "y"] * 1000)
    assert error.problems == [*few, "and 21,980 more"]
    assert InputError(error.problems).problems == error.problems
    assert len(str(InputError(["x" * 10**6] * 10**4))) < (LONGEST_PROBLEM + 2) * (MOST_PROBLEMS + 1)


def test_one_sentence_is_as_long_as_a_person_reads() -> None:
    assert str(LabError("Free some space.")) == "Free some space."
    error = LabError("x" * 10**6)
    assert len(str(error)) == LONGEST_PROBLEM
    assert str(error).endswith("…")
    many = InputError(["x" * LONGEST_PROBLEM] * MOST_PROBLEMS)
    assert str(many).count("\n") == MOST_PROBLEMS - 1, "one of many problems is not cut for the others"
    assert "…" not in str(many)
