"""A run judged against another one: what is offered, shown and refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.store.run import StageRun
from tests.helpers import examples, planted
from webapp.tabs import compare
from webapp.tabs.comparing import comparison, judged


@pytest.fixture
def two(store):
    return examples.two(store, changes=["finetune.r=8"])


def told(run, against):
    """The last of what is shown."""
    *_, last = judged.judge(run, against)
    return last


def test_runs_of_the_same_rows_are_offered_newest_first(store, two):
    one, other = two
    third = examples.measured(store, examples.rows(20), like=one)
    examples.measured(store, examples.rows(20))  # on data of its own
    picker, drawn = judged.offer(one)
    assert (drawn, picker["visible"], picker["value"]) == ({"run": one}, True, None)
    assert [run for _, run in picker["choices"]] == [third, other]
    assert picker["choices"][1][0].startswith("second · ")
    assert picker["info"] == judged.ABOUT


def test_a_run_that_nothing_compares_to_says_how_to_make_one_that_does(store):
    picker, _ = judged.offer(examples.measured(store, examples.rows(20)))
    assert (picker["choices"], picker["visible"], picker["info"]) == ([], True, judged.NONE)
    assert judged.offer(planted.running(store))[0]["visible"] is False


def test_the_verdict_comes_in_words_then_numbers_then_rows(two):
    one, other = two
    steps = list(judged.judge(other, one))
    assert all(step["text"] for step in steps[:-1])
    found = steps[-1]
    assert (found["run"], found["against"], found["names"]) == (other, one, ["first", "second"])
    better, equal = found["said"]
    assert (better["outcome"], better["lead"]) == ("better", "With their adapters this run is better:")
    assert " % less loss on your held-out answers (" in better["text"]
    assert better["text"].endswith("19 of 20 rows.")
    assert equal["lead"] == "Without adapters:"
    assert equal["text"] == "No difference: equal losses on all 20 rows."
    assert found["differ"] == "The recipes differ in finetune.r 8 here, 16 there."
    row = dict(zip(found["numbers"]["columns"], found["numbers"]["rows"][0], strict=True))
    assert row["Measured"] == "Loss with adapter"
    assert float(row["This run"]) < float(row["The other run"])
    assert row["Difference (95 % interval)"].startswith("−0.")
    assert row["Rows"] == "19 better, 1 worse"
    assert found["apart"]["rows"][0]["line"] == 20
    worse = told(one, other)["said"][0]
    assert worse["lead"] == "With their adapters this run is worse:"


def test_the_size_of_both_models_stands_below_the_losses():
    runs = [
        planted.record(StageRun("optimize", "done", metrics={"model_bytes": size}))
        for size in (200_000_000, 100_000_000)
    ]
    verdict = {"means": [1.0, None], "difference": None, "low": None, "high": None, "better": 0, "worse": 1}
    table = judged._numbers(tuple(runs), {"rows": 1, "base": verdict}, ["base"])
    assert table["rows"][0] == ["Loss without adapter", "", "1.000", "", "0 better, 1 worse"]
    assert table["rows"][1] == ["Size of the model", "100.0 MB", "200.0 MB", "−50 %", ""]


@pytest.mark.parametrize("named", ["/etc/passwd", "../runs.db", "x" * 200, "nope", "\u202e", 7])
def test_what_names_no_run_of_this_home_is_a_sentence(two, named):
    for pair in ((two[0], named), (named, two[0])):
        assert told(*pair)["refused"].startswith(("run: ", f"{named}: no such run", "No run"))


def test_a_run_of_another_home_is_no_run_of_this_one(two, tmp_path):
    (tmp_path / "other").mkdir()
    there = examples.measured(Store(tmp_path / "other"), examples.rows(20))
    assert there in told(two[0], there)["refused"]


def test_runs_that_are_no_pair_are_refused_with_what_to_do(store, two):
    seed = examples.measured(store, examples.rows(20), like=two[0], changes=["seed=3"])
    for run, said in {
        planted.running(store): "wait for it",
        planted.one_stage(store): "use its recipe again with evaluate",
        planted.finished(store): "use its recipe again with evaluate.rows above 0",
        seed: "repeat one with the other's seed",
        two[0]: "choose another run",
    }.items():
        assert said in told(two[0], run)["refused"]
        assert run not in [value for _, value in judged.offer(two[0])[0]["choices"]]


def test_nothing_chosen_is_nothing_drawn(two):
    assert list(judged.judge(two[0], None)) == list(judged.judge(two[0], "")) == [{"run": two[0]}]


def test_the_pair_of_an_address_is_chosen_and_shown_again(two):
    (picker, _), *_, (_, found) = judged.again(two[1], two[0])
    assert picker["value"] == two[0]
    assert (found["against"], found["seen"]) == (two[0], True)
    with pytest.raises(InputError):
        list(judged.again("nope", two[0]))


def test_two_runs_side_by_side_lead_to_the_verdict_or_say_why_there_is_none(store, two):
    one, other = two
    for checked in (f"{one},{other}", f"{other},{one}"):
        drawn = side_by_side(checked)
        assert (drawn["judged"], drawn["why"]) == ([other, one], ""), "the newer one against the older"
    waiting = planted.queued(store)
    assert f"{waiting}: has no evaluation that is done" in side_by_side(f"{one},{waiting}")["why"]
    assert "judged" not in side_by_side(f"{one},{other},{waiting}")


def side_by_side(checked: str) -> Any:
    """What is drawn in the end."""
    return list(comparison.compare(checked))[-1][0]


def test_a_row_is_asked_of_both_runs_in_compare(store, two):
    one, other = two
    *_, shown = compare.take_both(other, one, SimpleNamespace(_data={"id": "3"}))
    run, *_, also = shown
    assert (run["value"], shown[4]) == (other, "What is 3?")
    assert also["value"] == [f"adapter@{one}"]
    merged = examples.measured(store, examples.rows(20), like=one, adapter=False)
    *_, shown = compare.take_both(other, merged, SimpleNamespace(_data={"id": "3"}))
    assert shown[-1]["value"] == [f"base@{merged}"]
    for hostile in ("../x", "nope", None):
        with pytest.raises(InputError):
            list(compare.take_both(other, hostile, SimpleNamespace(_data={"id": "3"})))
