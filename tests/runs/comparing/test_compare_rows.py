"""Two runs judged on the same rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import InputError
from pipeline.evaluation.examples.rows import MOST_ROWS
from pipeline.inputs.data import telling
from pipeline.runs.comparing import compare_rows
from pipeline.store import Store
from pipeline.store.run import CANCELED, Run
from tests.helpers import examples
from tests.helpers.planted import artifact, finish_all, plant, queued, running


def evaluated(
    store: Store,
    better: float = 0.0,
    sides: tuple[str, ...] = ("base", "adapter"),
    rows: int = 20,
    coarse: float = 0.0,
    **more: Any,
) -> Run:
    """A run whose evaluation has kept losses; its adapter's are lower by so many nats a token, both sides'
    higher by `coarse`."""
    run = plant(store, **more)
    told = artifact(store, run, "row_losses")
    file = Path(told["path"]) / "rows.jsonl"
    draw = random.Random(0)
    lines = [json.dumps({"inputs": {}})]
    for number in range(1, rows + 1):
        loss = {"base": 40 + draw.random(), "adapter": 20 + draw.random() - 10 * better}
        loss = {side: total + 10 * coarse for side, total in loss.items()}
        totals = {side: loss[side] for side in sides}
        lines.append(json.dumps({"kind": "held_out", "line": number, "tokens": 10, **totals}))
    lines.append(json.dumps({"kind": "trained", "line": 99, "tokens": 10, "adapter": 5.0}))
    file.write_text("\n".join(lines) + "\n")
    return finish_all(store, run, {"evaluate": {"artifacts": [{**told, "path": str(file)}]}})


def test_the_better_adapter_is_found_and_equal_bases_are_equal(store: Store) -> None:
    one, other = evaluated(store), evaluated(store, better=0.5)
    found = compare_rows.judge(one, other)
    assert (found["runs"], found["rows"]) == ([one.id, other.id], 20)
    assert found["adapter"]["outcome"] == "better"
    assert found["adapter"]["difference"] == pytest.approx(-0.5)
    assert found["base"]["outcome"] == "cannot_tell"
    said = compare_rows.sentences(found)
    assert said[0].startswith(f"{other.id} against {one.id}, with their adapters: Better: 24 % less loss")
    assert said[1].endswith("without adapters: No difference: equal losses on all 20 rows.")
    assert compare_rows.judge(other, one)["adapter"]["outcome"] == "worse"


def test_the_better_quantization_is_found_by_the_models_without_adapters(store: Store) -> None:
    """Also of a run that has no adapter at all."""
    one = evaluated(store, quantize={"algorithm": "awq"})
    other = evaluated(store, quantize={"algorithm": "rtn"}, coarse=0.2, sides=("base",), finetune=None)
    found = compare_rows.judge(one, other)
    assert found["base"]["outcome"] == "worse"
    assert found["base"]["difference"] == pytest.approx(0.2)
    (said,) = compare_rows.sentences(found)
    assert said.startswith(f"{other.id} against {one.id}, without adapters: Worse: 4.9 % more loss")


def test_only_sides_that_both_have_are_compared(store: Store) -> None:
    found = compare_rows.judge(evaluated(store), evaluated(store, sides=("base",)))
    assert "adapter" not in found
    with pytest.raises(InputError, match="have no side in common, with or without an adapter"):
        compare_rows.judge(evaluated(store, sides=("adapter",)), evaluated(store, sides=("base",)))
    with pytest.raises(InputError, match="have no held-out row in common"):
        compare_rows.judge(evaluated(store), evaluated(store, rows=0))


def test_rows_that_are_no_numbers_are_worse(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    file = Path(str(other.artifact("row_losses")))
    lines = file.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "adapter": None})
    file.write_text("\n".join(lines))
    assert compare_rows.judge(one, other)["adapter"]["text"].startswith("Worse: what it predicts")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": "/elsewhere/rows.jsonl"},
            "were evaluated on different data, .* repeat one with the other's",
        ),
        ({"data": f"/home/{'a' * 64}/rows.jsonl"}, "were evaluated on different data"),
        ({"template": "{a}\n{b}"}, "differ in template, .* repeat one with the other's template"),
        ({"eval_fraction": 0.3}, "differ in eval_fraction"),
        ({"seed": 5}, "differ in seed"),
    ],
)
def test_rows_that_are_no_pairs_are_refused_and_not_offered(
    store: Store, changes: dict[str, Any], said: str
) -> None:
    home = f"/home/{'b' * 64}/rows.jsonl"
    one, other = evaluated(store, data=home), evaluated(store, **{"data": home, **changes})
    with pytest.raises(InputError, match=said):
        compare_rows.judge(one, other)
    assert compare_rows.offered(one, [other]) == []


def test_on_one_prompt_file_runs_may_differ_in_what_was_held_out(store: Store) -> None:
    own = {"evaluate": {"data": "/home/prompts.jsonl"}}
    one, other = evaluated(store, **own), evaluated(store, seed=5, eval_fraction=0.3, **own)
    assert compare_rows.judge(one, other)["rows"] == 20
    with pytest.raises(InputError, match="different data"):
        compare_rows.judge(one, evaluated(store, evaluate={"data": "/home/others.jsonl"}))


def test_runs_that_can_be_compared_are_offered(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    unfit = [evaluated(store, seed=3), store.get(plant(store)), finish_all(store, plant(store))]
    assert compare_rows.offered(one, [other, one, *unfit]) == [other]
    assert compare_rows.offered(unfit[1], [one, other]) == []


def test_runs_without_rows_say_what_to_do(store: Store) -> None:
    """Whatever a run is like: it runs, has failed, was never to be evaluated, is deleted, lost its file."""
    good = evaluated(store)
    ended = queued(store)
    store.request_cancel(ended)
    assert store.get(ended).status == CANCELED
    bare = finish_all(store, plant(store, stages=["quantize"])).id
    going = running(store)
    deleted, lost = evaluated(store).id, evaluated(store)
    store.delete(deleted)
    Path(str(lost.artifact("row_losses"))).unlink()
    for run, said in {
        going: "has no evaluation that is done; wait for it to compare it",
        ended: "has no evaluation that is done; retry it to compare it",
        bare: "was not evaluated; use its recipe again with evaluate",
        deleted: "is deleted; restore it",
        lost.id: "has no losses row by row; use its recipe again with evaluate.rows above 0",
        good.id: "is compared with itself; choose another run",
    }.items():
        with pytest.raises(InputError, match=f"{run}: {said}"):
            compare_rows.judge(good, store.get(run))


def test_a_process_is_asked_for_the_rows_that_differ_most_too(store: Store) -> None:
    one, other = examples.two(store)
    steps = list(compare_rows.asked(one, other))
    assert f"Reading losses of {other}: 0 rows…" in steps
    found = telling.ended(compare_rows.asked(one, other))
    assert {**found["adapter"], "means": None}["outcome"] == "better"
    assert (found["adapter"]["better"], found["adapter"]["worse"]) == (19, 1)
    before, after = found["adapter"]["means"]
    assert after - before == pytest.approx(found["adapter"]["difference"])
    told = found["apart"]
    assert (told["side"], len(told["rows"])) == ("adapter", compare_rows.MOST_SHOWN)
    first = told["rows"][0]
    assert (first["line"], first["prompt"], first["losses"]) == (20, "What is 20?", [1.0, 0.1])
    assert [answer["text"] for answer in first["answers"]] == ["It is nothing.", "It is 20."]
    gaps = [abs(row["losses"][0] - row["losses"][1]) for row in told["rows"]]
    assert gaps == sorted(gaps, reverse=True)
    assert (found["answered"], found["changed"]) == ([], [])
    examples.prove(store, other)
    found = telling.ended(compare_rows.asked(one, other))
    assert found["answered"] == [
        f"{other}: Answered by: Base: adapter none, model.onnx {'b' * 12};"
        f" With adapter: adapter {'a' * 12}, model.onnx {'b' * 12}."
    ]
    assert "no longer" in found["changed"][0]
    equal = examples.measured(store, examples.rows(20), like=one)
    assert telling.ended(compare_rows.asked(one, equal))["apart"]["rows"] == []


def test_a_row_that_only_one_run_predicts_comes_first_and_is_laid_on_no_adapter(store: Store) -> None:
    one, other = (evaluated(store, sides=("base",)) for _ in range(2))
    file = Path(str(other.artifact("row_losses")))
    lines = file.read_text().splitlines()
    lines[7] = json.dumps({**json.loads(lines[7]), "base": None})
    file.write_text("\n".join(lines))
    found = telling.ended(compare_rows.asked(one.id, other.id))
    assert found["base"]["text"] == "Worse: what it predicts is not a number in 1 of 20 rows."
    assert (found["base"]["means"][1], found["apart"]["rows"][0]["losses"][1]) == (None, None)
    assert [row["line"] for row in found["apart"]["rows"]] == [7]
    said = telling.ended(compare_rows.asked(other.id, one.id))["base"]["text"]
    assert said == f"Cannot tell: what {other.id} predicts is not a number in some of 20 rows."


def test_a_page_compares_no_more_than_a_process_has_memory_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = evaluated(store), evaluated(store)
    monkeypatch.setattr(compare_rows, "LARGEST_ASKED", 100)
    with pytest.raises(InputError, match=f"too many to compare here; use {settings.command()} compare"):
        telling.ended(compare_rows.asked(one.id, other.id))
    assert compare_rows.judge(one, other)["rows"] == 20


def test_of_more_rows_than_the_table_lists_the_page_is_told_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare_rows.MOST_ASKED <= MOST_ROWS
    one, other = evaluated(store), evaluated(store)
    monkeypatch.setattr(compare_rows, "MOST_ASKED", 19)
    with pytest.raises(InputError, match="too many to compare here"):
        telling.ended(compare_rows.asked(one.id, other.id))


def test_rows_that_are_no_number_in_either_run_make_neither_worse(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    for run in (one, other):
        file = Path(str(run.artifact("row_losses")))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[3]["adapter"] = None
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare_rows.judge(one, other)["adapter"]["text"] == "No difference: equal losses on all 20 rows."
    assert compare_rows.judge(one, other)["adapter"]["outcome"] == "cannot_tell"


def test_the_prompt_file_of_both_is_named(store: Store) -> None:
    one, other = (evaluated(store, better=gain, evaluate={"data": "/home/mine.jsonl"}) for gain in (0, 0.5))
    assert "less loss on the answers of mine.jsonl (" in compare_rows.judge(one, other)["adapter"]["text"]


def test_another_tokenizer_is_refused(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    file = Path(str(other.artifact("row_losses")))
    file.write_text(file.read_text().replace('"line": 7, "tokens": 10', '"line": 7, "tokens": 11'))
    with pytest.raises(InputError, match="read line 7 as other tokens"):
        compare_rows.judge(one, other)


def test_a_run_without_losses_is_named(store: Store) -> None:
    one, other = evaluated(store), finish_all(store, plant(store))
    with pytest.raises(InputError, match=f"{other.id}: has no losses row by row"):
        compare_rows.judge(one, other)
