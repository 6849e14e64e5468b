from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.comparing.scorecard import Row
from pipeline.store.run import CANCELED, DONE, FAILED, StageRun
from tests.helpers import planted
from webapp.ui import views


def test_the_history_of_an_empty_home_says_what_to_do():
    table = views.history([])
    assert table["rows"] == []
    assert "Lab tab" in table["empty"]


def test_the_history_has_losses_and_durations(store):
    run = planted.finished(store)
    table = views.history(store.list())
    row = table["rows"][0]
    assert table["ids"] == [run]
    assert row[0] == {"status": "done", "word": None}
    assert row[-1] == "3.1 → 1.42"
    assert row[4] != ""


def test_a_stage_shows_its_error_rather_than_its_numbers(store):
    run = planted.running(store)
    store.finish(run, "finetune", FAILED, error="It broke.", metrics={"loss": 1.0})
    rows = {row[0]: row for row in views.stages(store.get(run))["rows"]}
    assert rows["finetune"][-1] == "It broke."
    assert rows["quantize"][2:] == ["13 s", "123.5 MB", "layers: 210"]


def test_a_stage_that_is_not_run_here_says_so(store):
    run = planted.running(store)
    reason = "optimize for npu with QNNExecutionProvider is not run here"
    store.finish(run, "finetune", "done", metrics={"not_run_here": reason})
    rows = {row[0]: row for row in views.stages(store.get(run))["rows"]}
    assert rows["finetune"][-1] == f"not run here: {reason}"


def test_reused_stages_say_so(store):
    run = planted.finished(store)
    assert views.stages(store.get(run))["rows"][2][2] == "reused (9.0 s)"


def test_a_verdict_in_words_comes_before_the_figures(store):
    said = "Better: 62 % less loss on your held-out answers (58–65), 14 of 14 rows."
    run = store.get(planted.finished(store, verdict={"outcome": "better", "text": said}))
    assert views.stages(run)["rows"][3][4] == f"{said} base tokens per second: 41.25"
    shown = views.evaluation(views.answers(run), run.verdict)["caption"]
    assert shown == f"{said} Held-out prompts, as the run recorded them"


def test_other_adapters_have_their_verdicts_and_answers_their_files(store):
    planted_run = store.get(planted.finished(store))
    told = {"adapters": {"french": {"verdict": {"text": "Cannot tell from 3 rows."}}}}
    stages = [replace(one, metrics=told) if one.name == "evaluate" else one for one in planted_run.stages]
    run = replace(planted_run, stages=tuple(stages))
    assert views.stages(run)["rows"][3][4] == "Adapter french: Cannot tell from 3 rows."
    shown = views.evaluation(views.answers(run), files="Answered by: Base: adapter none.")["caption"]
    assert shown.endswith("as the run recorded them. Answered by: Base: adapter none.")


def test_the_file_that_was_asked_is_named(store):
    run = store.get(planted.finished(store, changes=["evaluate.data=prompts.jsonl"]))
    assert views.stages(run)["rows"][3][4].startswith("Evaluated on prompts.jsonl.")
    shown = views.evaluation(views.answers(run), run.verdict, run.asked)["caption"]
    assert shown == "Prompts of prompts.jsonl, as the run recorded them"


def test_a_recorded_answer_may_lack_its_adapter(store):
    run = planted.finished(
        store, answers=[{"prompt": "a", "expected": "b", "base": {"text": "c"}, "adapter": None}]
    )
    assert views.evaluation(views.answers(store.get(run)))["rows"] == [["a", "b", "c", ""]]


def test_answers_are_read_once_and_only_if_they_are_of_a_size_to_show(store, monkeypatch):
    run = store.get(planted.finished(store, answers=[{"prompt": "a", "expected": "b"}]))
    assert views.answers(run) is views.answers(run)
    path = Path(run.artifact("answers"))
    path.write_text(json.dumps({"rows": [{"prompt": "other", "expected": "b"}]}))
    assert views.answers(run)[0]["prompt"] == "other"
    monkeypatch.setattr(views, "LARGEST_ANSWERS", 3)
    path.write_text(json.dumps({"rows": []}))
    assert views.answers(run) == []
    views.read_answers.cache_clear()


def test_answers_of_an_unfinished_run_are_none(store):
    assert views.answers(store.get(planted.running(store))) == []


def test_a_stage_that_was_never_begun_was_not_run():
    assert views.status(StageRun("evaluate", status=CANCELED))["word"] == "Not run"
    assert views.status(StageRun("evaluate", status=CANCELED, started=1.0))["word"] is None


def test_a_runs_duration_is_what_its_stages_took_whatever_the_clock_did():
    stages = (
        StageRun("quantize", status=DONE, started=1000.0, finished=90_000.0, seconds=12.5),
        StageRun("finetune", status=FAILED, started=90_001.0, finished=5.0, seconds=3.0),
        StageRun("evaluate", status=CANCELED),
        StageRun("publish", status=DONE, started=1.0, finished=2.0, seconds=60.0),
    )
    assert views.duration(planted.record(*stages, status=FAILED)) == 15.5


def test_a_scorecard_names_the_best_way_and_the_chart_has_its_interval() -> None:
    found = {"difference": 0.1, "low": 0.0, "high": 0.2, "words": "10 % more loss"}
    exported: dict[str, Any] = {
        "rows": 14, "exported_loss": math.log(11), "data_perplexity": 10.5, "exported_data_perplexity": 12.0
    }  # fmt: skip
    rows = [
        Row("float", "1", "done", bytes=400, data_perplexity=10.0, general_perplexity=20.0),
        Row("rtn", "2", "done", bytes=99, data_perplexity=20.0, general_perplexity=30.0),
        Row("awq", "3", "done", bytes=100, general_perplexity=21.0, against_float=found, **exported),
    ]
    shown = views.scorecard(rows)
    assert [point.get("data_range") for point in shown["points"]] == [
        None,
        None,
        [pytest.approx(11 * math.exp(-0.1)), pytest.approx(11 * math.exp(0.1))],
    ]
    assert [point["data"] for point in shown["points"]] == [10.0, 20.0, pytest.approx(11)]
    assert shown["table"]["rows"][2][3:5] == ["12", "10.5"]  # over all tokens, beside each other
    old = replace(rows[2], exported_loss=None)  # its interval is of the mean over rows, which is not known
    assert (views._data_perplexity(old), views._data_range(old)) == (12.0, None)
    assert shown["table"]["caption"].startswith("Measured")
    assert shown["ended"] is True
    named = views.scorecard(rows, "AWQ suits best: 10 % more loss, 25 % of the size.")
    assert named["table"]["caption"].startswith("AWQ suits best: 10 % more loss, 25 % of the size. Measured")
    assert views.scorecard(rows, None)["ended"] is False  # the ways are still being compared
