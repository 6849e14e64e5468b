"""What the evaluate stage says of the losses of both sides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.evaluation.measured import Measured, MeasuredRows
from tests.helpers import exports

pytestmark = pytest.mark.chain


def rows(adapter: float | None, base: float | None = 4.0, count: int = 12) -> Any:
    sides = {"base": base, "adapter": adapter}
    return MeasuredRows(
        Measured(n, 10, {side: 10 * loss + n / 10 for side, loss in sides.items() if loss is not None})
        for n in range(count)
    )


def compared(**given: Any) -> Any:
    from pipeline.passes.measure.rows_compared import Compared

    defaults = {
        "held_out": rows(2.0),
        "trained": rows(1.8, None),
        "general": rows(4.0),
        "copies": 0,
        "too_long": 0,
    }
    return Compared(**defaults | given)


SPOKEN = [
    {"base": {"tokens": 60, "tokens_per_second": 100.0}, "adapter": {"tokens": 60, "tokens_per_second": 75.0}}
]


def test_the_verdict_says_all_that_is_known() -> None:
    found = compared(copies=3).metrics(SPOKEN)
    assert found["verdict"]["text"].startswith("Better: ")
    assert found["verdict"]["text"].endswith(", 12 of 12 rows; forgot nothing measurable; costs 25 % speed.")
    assert found["verdict"]["metric"] == "response_loss"
    assert (found["rows"], found["copies_left_out"], found["long_rows_left_out"]) == (12, 3, 0)
    assert found["base_loss"] - found["adapter_loss"] == pytest.approx(2.0)
    for side in ("base", "adapter"):
        assert found[f"{side}_perplexity"] == pytest.approx(math.exp(found[f"{side}_loss"]))
    assert "overfitting" not in found
    json.dumps(found, allow_nan=False)


def test_losses_beside_the_verdict_count_each_row_once_and_perplexity_each_token() -> None:
    """One row is long, and the adapter does badly on it."""
    lengths = [10] * 11 + [1000]
    uneven = MeasuredRows(
        Measured(n, length, {"base": 4.0 * length, "adapter": (2.0 if length == 10 else 5.0) * length})
        for n, length in enumerate(lengths)
    )
    found = compared(held_out=uneven).metrics([])
    assert found["adapter_loss"] == pytest.approx((11 * 2 + 5) / 12)
    assert found["adapter_loss"] - found["base_loss"] == pytest.approx(found["verdict"]["difference"])
    assert math.log(found["adapter_perplexity"]) == pytest.approx((11 * 20 + 5000) / 1110)


def test_speed_is_that_of_alternating_turns() -> None:
    tax = {"new_tokens": 32, "base": {"decode_turns": [100.0] * 5}, "adapter": {"decode_turns": [90.0] * 5}}
    assert compared().metrics(SPOKEN, tax)["verdict"]["text"].endswith("; costs 10 % speed.")


def test_the_float_model_is_a_third_side() -> None:
    exact = MeasuredRows(Measured(n, 10, {"float": 38.0 + n / 10 + n % 3 / 10}) for n in range(12))
    found = compared(floats=exact).metrics(SPOKEN)
    assert found["float_loss"] < found["base_loss"]
    assert found["against_float"]["base"]["outcome"] == "worse"
    assert found["against_float"]["adapter"]["outcome"] == "better"
    said = "; the base without it has 4.9 % more loss than float on your rows (4.8–5.1); costs 25 % speed."
    assert found["verdict"]["text"].endswith(said)
    json.dumps(found, allow_nan=False)


def test_rows_learned_by_heart_are_named() -> None:
    heart = "memorized rows: a loss of 0.55 where it was trained, 3.05 on new rows"
    better = compared(held_out=rows(3.0), trained=rows(0.5, None)).metrics([], None, "recites rows")
    assert better["verdict"]["text"].startswith("Better: ")
    said = f"12 of 12 rows; {heart}; recites rows; forgot nothing measurable."
    assert better["verdict"]["text"].endswith(said)
    assert better["overfitting"] == heart
    worse = compared(held_out=rows(3.0, 2.0), trained=rows(0.5, None)).metrics([])
    assert worse["verdict"]["text"].startswith("Worse: ")
    assert heart in worse["verdict"]["text"]


def test_what_is_said_beside_the_verdict_is_corrected_together() -> None:
    """Also with what is claimed of answers: each general block but one became worse, which alone would do."""
    from pipeline.evaluation.verdict import Metric

    general = MeasuredRows(
        Measured(n, 10, {"base": 40.0, "adapter": 40.0 + (-0.1 if n == 0 else 1 + n / 10)}) for n in range(12)
    )
    measured = compared(general=general)
    assert "predicts general text 3.6 % worse" in measured.metrics([])["verdict"]["text"]
    nothing = [0.0, 1.0] * 6
    others = {str(n): (Metric(str(n), "token F1"), (nothing, nothing[::-1])) for n in range(8)}
    told = measured.judged(others)
    assert {*told.verdicts} == {"general", *others}
    text = measured.metrics([], told=told)["verdict"]["text"]
    assert text.startswith("Better: ")  # which is tested alone
    assert "forgot nothing measurable" in text


@pytest.mark.parametrize(
    ("copies", "too_long", "why"),
    [
        (3, 0, "each held-out row is the same, or nearly, as one that is trained on"),
        (0, 3, "each held-out row is longer than what the model reads"),
        (1, 2, "each held-out row is nearly one that is trained on, or longer than what the model reads"),
    ],
)
def test_without_rows_it_says_why(copies: int, too_long: int, why: str) -> None:
    found = compared(
        held_out=MeasuredRows(), trained=MeasuredRows(), copies=copies, too_long=too_long
    ).metrics(SPOKEN)
    assert found["verdict"]["outcome"] == "cannot_tell"
    assert found["verdict"]["text"] == f"Cannot tell: {why}."
    assert "base_loss" not in found


def test_rows_of_a_file_are_named_by_it() -> None:
    found = compared(asked="prompts.jsonl").metrics([])["verdict"]
    assert " less loss on the answers of prompts.jsonl (" in found["text"]
    assert found["metric"] == "response_loss"
    nothing = MeasuredRows()
    none = compared(held_out=nothing, trained=nothing, copies=3, asked="prompts.jsonl").metrics([])["verdict"]
    assert none["text"].startswith("Cannot tell: each row of prompts.jsonl is the same")


def test_one_side_alone_is_measured() -> None:
    base = compared(held_out=rows(None), trained=MeasuredRows(), general=rows(None)).metrics([])
    assert "verdict" not in base
    assert "adapter_loss" not in base
    merged = compared(held_out=rows(2.0, None), general=rows(2.0, None)).metrics([])
    assert merged["verdict"]["text"].startswith("Cannot tell: the adapter is merged into the weights")
    assert merged["adapter_loss"] > 0


def evaluated(export: Path, target: Path, data: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """What the stage writes: half of the rows are held out."""
    from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
    from olive.model import ONNXModelHandler

    from pipeline.passes.measure.answers import COMPARED, Answers

    target.mkdir(exist_ok=True)
    file = target / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data))
    given = {
        "data": str(file), "eval_fraction": 0.5, "seed": 0, "prompts": 2, "max_new_tokens": 9,
        "minutes": 10,
        "adapter": str(export / exports.ADAPTER), "merged": False, "rows": 500, "tokenizer": str(export),
        "kept": str(target / "kept"), "checks": None, "asked": None, "exact": None, "known": None,
        "probe": False,
        **options,
    }  # fmt: skip
    step = Answers(DEFAULT_CPU_ACCELERATOR, given, True)
    model = ONNXModelHandler(str(export), onnx_file_name="model.onnx")
    step._run_for_config(model, SimpleNamespace(**given), str(target / "out"))
    written: dict[str, Any] = json.loads((target / "out" / COMPARED).read_text())
    return written


VARIED = [
    {"prompt": f"{n * 7919} town {n}", "response": f"{n * 104729} in valley {n * n}"} for n in range(40)
]


def test_a_worse_adapter_is_found_out(export: Path, tmp_path: Path) -> None:
    """The small export's adapter is random, so it predicts nothing."""
    found = evaluated(export, tmp_path / "a", VARIED)
    assert found["rows"] == 20
    assert found["verdict"]["outcome"] == "worse"
    assert found["verdict"]["worse"] == 20
    assert " predicts general text " in found["verdict"]["text"]
    assert found["adapter_loss"] > found["base_loss"]
    assert found["tax"]["adapter"]["decode_tokens_per_second"] > 0
    kinds = [
        json.loads(line).get("kind")
        for line in (tmp_path / "a" / "out" / "rows.jsonl").read_text().splitlines()
    ]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        None: 1,
        "held_out": 20,
        "trained": 20,
        "general": 12,
    }


def test_answers_are_checked_and_keep_their_figures(export: Path, tmp_path: Path) -> None:
    """The small export never ends an answer by itself, and answers no JSON."""
    asked = json.dumps({"checks": 'json\nregex: (?s)^.*$\ncontains: "\\u0000"'})
    found = evaluated(export, tmp_path, VARIED, checks=asked, rows=0)
    listed = found["answers"]["checks"]
    assert [(entry["base"], entry["adapter"]) for entry in listed] == [(0.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    assert {entry["verdict"]["outcome"] for entry in listed} == {"cannot_tell"}
    assert found["answers"]["ended"] == {"base": 0.0, "adapter": 0.0}
    for row in json.loads((tmp_path / "out" / "answers.json").read_text())["rows"]:
        for side in ("base", "adapter"):
            assert row[side]["checks"] == [False, True, False]
            assert row[side]["ended"] is False
            assert set(row[side]["nearness"]) == {"exact_match", "token_f1", "rouge_l", "chrf"}


def test_answers_that_recite_training_rows_are_counted(tmp_path: Path) -> None:
    """Only rows that were trained on are read, of conversations each answer."""
    from pipeline.inputs.data.splitting import Parts
    from pipeline.inputs.prompts import templates
    from pipeline.passes.measure import answers

    poem = "The market opens at nine and closes when the last of the farmers has gone home to the hills. "
    other = "Nobody knows when it opens, and so people from the hills come whenever they have to sell. "
    talk = [
        {"role": role, "content": text}
        for role, text in (("user", "Hi"), ("assistant", poem * 2), ("user", "?"), ("assistant", "Yes."))
    ]
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "response": other * 2}, {"messages": talk}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    side = {"text": poem * 2}
    answered = [{"expected": other * 2, "base": {"text": other * 2}, "adapter": side}]
    template = templates.parse("chat", None)
    shares = answers._overlap(
        answered, ["base", "adapter"], data, template, Parts([1], [0], [0], [], "prompts")
    )
    assert shares == {"base": 0.0, "adapter": 1.0, "expected": 0.0}


def test_rows_of_a_file_take_the_place_of_held_out_ones(export: Path, tmp_path: Path) -> None:
    """Near copies of training rows and rows that are too long are left out and counted."""
    brought = tmp_path / "prompts.jsonl"
    long, fits = {"prompt": "x" * 300, "response": "long"}, {"prompt": "New?", "response": "Brand new."}
    copy = {**VARIED[0], "response": "The market of the old town, and then the river with its bridges. " * 3}
    brought.write_text("".join(json.dumps(row) + "\n" for row in (long, fits, copy, fits, fits)))
    data = [copy, *({**row, "prompt": f"{row['prompt']}!"} for row in VARIED)]
    for number, wanted in ((1, 3), (2, 2)):
        found = evaluated(export, tmp_path / str(number), data, asked=str(brought), rows=wanted, prompts=4)
        assert found["verdict"]["outcome"] == "cannot_tell"
        assert found["rows"] + found["long_rows_left_out"] + found["copies_left_out"] >= wanted
        written = json.loads((tmp_path / str(number) / "out" / "answers.json").read_text())
        asked = [row["prompt"] for row in written["rows"]]
        assert asked == ["New?"], "a copy is no more asked than measured"
        assert written["left_out"] == 1
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps(fits) + "\n")
    found = evaluated(export, tmp_path / "one", data, asked=str(one))
    assert (found["rows"], found["verdict"]["rows"]) == (1, 1)
    said = "Cannot tell from 1 row; 10 are the fewest that say anything, 50 say more"
    assert found["verdict"]["text"].startswith(said)


def test_one_held_out_row_is_measured_and_answered_and_tells_nothing(export: Path, tmp_path: Path) -> None:
    found = evaluated(export, tmp_path, VARIED[:5], eval_fraction=0.2)
    assert (found["rows"], found["verdict"]["rows"], found["verdict"]["outcome"]) == (1, 1, "cannot_tell")
    said = "Cannot tell from 1 row; 10 are the fewest that say anything, 50 say more"
    assert found["verdict"]["text"].startswith(said)
    assert found["verdict"]["low"] is None
    assert len(json.loads((tmp_path / "out" / "answers.json").read_text())["rows"]) == 1
    assert found["answers"]["token_f1"]["verdict"]["outcome"] == "cannot_tell"


def test_of_a_long_prompt_file_only_what_is_asked_is_measured(export: Path, tmp_path: Path) -> None:
    """It is passed through for near copies and prompts; rows that nobody asked for are not kept or read."""
    brought = tmp_path / "prompts.jsonl"
    with brought.open("w") as file:
        for number in range(6000):
            row = {"prompt": f"{number * 7919}?", "response": f"{number * 31} miles"}
            file.write(json.dumps(row) + "\n")
    found = evaluated(export, tmp_path / "a", VARIED, asked=str(brought), rows=12, prompts=2)
    assert (found["rows"], found["verdict"]["rows"]) == (12, 12)
    lines = [json.loads(line) for line in (tmp_path / "a" / "out" / "rows.jsonl").read_text().splitlines()]
    held_out = [entry["line"] for entry in lines if entry.get("kind") == "held_out"]
    assert held_out == [1 + 500 * number for number in range(12)]
    written = json.loads((tmp_path / "a" / "out" / "answers.json").read_text())["rows"]
    assert [row["prompt"] for row in written] == ["0?", f"{3000 * 7919}?"]


def test_rows_are_limited_and_spread_and_copies_are_left_out(export: Path, tmp_path: Path) -> None:
    assert evaluated(export, tmp_path / "few", VARIED, rows=3)["verdict"]["rows"] == 3
    assert evaluated(export, tmp_path / "all", VARIED, rows=-1)["rows"] == 20
    alike = [
        {
            "prompt": f"What is there to see in the old town of valley number {n}?",
            "response": "The market, then the river." * 4,
        }
        for n in range(40)
    ]
    found = evaluated(export, tmp_path / "alike", alike)
    assert (found["rows"], found["copies_left_out"]) == (0, 20)
    assert found["verdict"]["outcome"] == "cannot_tell"
    written = json.loads((tmp_path / "alike" / "out" / "answers.json").read_text())
    why = "No answers: each held-out row is the same, or nearly, as one that is trained on."
    assert (written["rows"], written["why_none"], found["answers"]) == ([], why, {})
    without = evaluated(export, tmp_path / "alike", alike, rows=0, checks=json.dumps({"checks": "json"}))
    assert (without["copies_left_out"], without["answers"]) == (20, {}), "also where no loss is measured"


def test_of_very_many_rows_copies_are_looked_for_in_a_sample_and_it_says_so(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of a file are measured, and the record is resumed where it ended."""
    from pipeline.inputs.data.card import near_copies
    from pipeline.passes.measure import row_losses

    monkeypatch.setattr(near_copies, "MOST_ROWS", 100)
    monkeypatch.setattr(row_losses, "BATCH", 64)
    brought = tmp_path / "prompts.jsonl"
    with brought.open("w") as file:
        for number in range(400):
            row = {"prompt": f"{number * 7919}?", "response": f"{number * 31} miles"}
            file.write(json.dumps(row) + "\n")
    found = evaluated(export, tmp_path / "a", VARIED, asked=str(brought), rows=-1, prompts=1)
    assert (found["rows"], found["verdict"]["rows"], found["copies_sampled"]) == (400, 400, True)
    kept = tmp_path / "a" / "kept" / "rows.jsonl"
    whole = kept.read_bytes()
    kept.write_bytes(b"".join(whole.splitlines(keepends=True)[:150]))
    again = evaluated(export, tmp_path / "a", VARIED, asked=str(brought), rows=-1, prompts=1)
    assert again["verdict"]["difference"] == found["verdict"]["difference"]
    assert kept.read_bytes() == whole
    assert "copies_sampled" not in evaluated(export, tmp_path / "few", VARIED[:20], rows=3, prompts=1)
