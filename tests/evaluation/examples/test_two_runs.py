"""The same rows in two runs."""

from __future__ import annotations

from dataclasses import replace

from pipeline.evaluation.examples import rows, two_runs
from pipeline.inputs.data.datasets import ended
from pipeline.store import Store
from tests.helpers import examples


def test_rows_come_in_the_order_asked_with_both_answers_and_their_differences(store: Store) -> None:
    one, other = (rows.of_run(store.get(run)) for run in examples.two(store))
    told = ended(two_runs.told(one, other, [20, 3], "adapter"))
    assert [(row["line"], row["prompt"], row["expected"]) for row in told] == [
        (20, "What is 20?", "It is 20."),
        (3, "What is 3?", "It is 3."),
    ]
    assert [answer["text"] for answer in told[0]["answers"]] == ["It is nothing.", "It is 20."]
    assert told[0]["words"] == [(0, "It is"), (1, " nothing"), (2, " 20"), (0, ".")]
    assert (told[1]["answers"], told[1]["words"]) == ([None, None], None)
    (base,) = ended(two_runs.told(one, other, [20], "base"))
    assert [answer["text"] for answer in base["answers"]] == ["No.", "No."]


def test_a_row_whose_data_is_gone_is_there_without_texts(store: Store) -> None:
    one, other = (replace(rows.of_run(store.get(run)), data=None) for run in examples.two(store))
    (row,) = ended(two_runs.told(one, other, [3], "adapter"))
    assert (row["line"], row["prompt"], row["answers"]) == (3, "", [None, None])
    (row,) = ended(two_runs.told(one, rows.of_run(store.get(examples.two(store)[0])), [3], "adapter"))
    assert row["prompt"] == "What is 3?", "one of them is enough"
