"""A refusal is as long as a person reads, whatever was given."""

from __future__ import annotations

import errno

import pytest

from pipeline.errors import LONGEST_PROBLEM, MOST_PROBLEMS, InputError, LabError, sentence


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


@pytest.mark.parametrize(
    "error",
    [
        LabError("no exporter for Llama\ud800"),
        InputError(["its name is \udcff", "and 2 more"]),
        PermissionError(errno.EACCES, "Permission denied", "/models/x\udcff.json"),
        OSError(errno.EROFS, "Read-only file system", "/models/x\udcff.json"),
        ValueError("x\ud800"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_sentence_can_be_kept_and_shown_whatever_was_given(error: Exception) -> None:
    """Names of files need not be Unicode, and JSON may have half surrogates; no database takes either."""
    assert sentence(error).encode("utf-8")
    if isinstance(error, InputError):
        assert "".join(error.problems).encode("utf-8")
