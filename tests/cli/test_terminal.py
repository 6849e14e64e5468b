from __future__ import annotations

import hashlib
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import terminal
from pipeline.exports.findings import Finding, Status
from pipeline.stages import events
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, Run, StageRun
from tests.helpers.planted import finished as planted_run
from tests.helpers.planted import one_stage, plant


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "POLL_SECONDS", 0.01)


def on_each_look(monkeypatch: pytest.MonkeyPatch, *actions: Any) -> None:
    """Let one thing happen after each look at the store; a look too many is an error."""
    left = list(actions)
    monkeypatch.setattr("pipeline.worker.loop.ensure", lambda home: left.pop(0)())


def test_a_run_is_followed_stage_by_stage_to_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant(store, stages=["finetune", "evaluate"])
    told = store.folder(run, "finetune") / "events.jsonl"
    told.parent.mkdir()
    events.append(told, {"attempt": True})
    events.append(told, {"loss": 9.0, "step": 50, "total_steps": 60, "progress": 0.9})

    def begin() -> None:
        store.claim("cpu")
        events.append(told, {"attempt": True, "message": "Starting", "progress": 0.0})

    def train() -> None:
        events.append(told, {"step": 30, "total_steps": 60, "progress": 0.5, "loss": None, "eta_seconds": 75})

    def improve() -> None:
        events.append(told, {"loss": 1.25, "progress": 0.75})

    def end() -> None:
        metrics = {"eval_loss_before": 2.5, "eval_loss_after": 1.25}
        artifacts = [{"name": "adapter", "kind": "adapter", "path": "/a", "bytes": 2_500_000}]
        store.finish(run, "finetune", DONE, seconds=12.34, metrics=metrics, artifacts=artifacts)
        store.claim_next(run, "cpu")

    def reuse() -> None:
        store.finish(run, "evaluate", DONE, seconds=0.1, reused=True)
        store.claim_next(run, "cpu")

    on_each_look(monkeypatch, begin, train, improve, end, reuse)
    assert terminal.run(store, run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["finetune", "░" * 24, "0%", "Starting"]  # nothing of the earlier attempt
    assert lines[1] == f"finetune  {'█' * 12}{'░' * 12}  50%  1 min 15 s left  step 30/60  Starting"
    assert "75%" in lines[2]
    assert "loss 1.250" in lines[2]
    assert lines[3] == "finetune  done  12 s  2.5 MB  held-out loss 2.500 -> 1.250"
    assert lines[4].startswith("evaluate ")
    assert "evaluate  reused  0.1 s" in lines
    assert f"Run {run} (trip): done" in lines


def test_a_run_that_fails_is_told_with_its_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant(store)
    store.claim("cpu")
    store.finish(run, "quantize", FAILED, error="It broke.", seconds=1.0)
    on_each_look(monkeypatch)
    assert terminal.run(store, run) == 1
    assert "quantize  failed  1.0 s  It broke." in capsys.readouterr().out


def test_on_a_terminal_the_line_is_rewritten(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size((30, 24)))
    line = terminal._Line()
    line.show("x" * 100)
    line.settle("done")
    assert capsys.readouterr().out == "\r\x1b[2K" + "x" * 29 + "\r\x1b[2Kdone\n"


def test_a_worker_that_died_is_replaced_while_one_follows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_stage(store)
    store.claim("cpu")
    asked: list[Path] = []

    def ensure(home: Path) -> None:
        asked.append(home)
        store.finish(run, "quantize", DONE)
        store.claim_next(run, "cpu")

    monkeypatch.setattr("pipeline.worker.loop.ensure", ensure)
    assert terminal.until_ended(store, run).status == DONE
    assert asked == [store.home]


def test_a_log_is_followed_to_the_end_of_its_stage(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant(store)
    store.claim("cpu")
    log = store.folder(run, "quantize") / "log.txt"

    def write(data: bytes) -> None:
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            file.write(data)

    def end() -> None:
        write(b"ss\nbad \xff byte\n")
        store.finish(run, "quantize", DONE)

    on_each_look(
        monkeypatch,
        lambda: write(b"first\n"),
        lambda: write("Grö".encode()[:-1]),
        lambda: write("ö".encode()[1:]),
        end,
    )
    terminal.log(store, run, "quantize", wait=True)
    assert capsys.readouterr().out == "first\nGröss\nbad \ufffd byte\n"


def test_a_log_is_shown_as_far_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant(store)
    on_each_look(monkeypatch)
    terminal.log(store, run, "quantize", wait=False)
    (store.folder(run, "quantize")).mkdir()
    (store.folder(run, "quantize") / "log.txt").write_text("x" * 200_000)
    terminal.log(store, run, "quantize", wait=False)
    assert capsys.readouterr().out == "x" * 200_000


def test_a_log_of_a_stage_that_never_began_ends_with_its_run(store: Store, no_worker: list[Path]) -> None:
    run = plant(store)
    threading.Timer(0.1, store.request_cancel, [run]).start()
    terminal.log(store, run, "evaluate", wait=True)
    assert store.get(run).stage("evaluate").status == CANCELED


def test_an_answer_that_was_cut_is_marked() -> None:
    base = {"text": "In the", "cut": True, "tokens_per_second": 20.0}
    rows = [
        {"prompt": "Where?", "base": base, "adapter": {**base, "cut": False}, "adapter fr": base, "line": 3}
    ]
    assert terminal._answers(rows)[1:4] == [
        "base     In the … [cut at the limit] (20 tokens/s)",
        "adapter  In the (20 tokens/s)",
        "adapter fr In the … [cut at the limit] (20 tokens/s)",
    ]


def test_the_summary_has_figures_and_held_out_answers(finished: Run) -> None:
    text = terminal.summary(finished)
    assert f"Run {finished.id} (finished): done" in text
    assert "finetune done 1.5 s held-out loss 2.500 -> 1.250" in " ".join(text.split())
    assert "base 20 tokens/s, adapter 18 tokens/s" in text
    assert "PROMPT   Where is town 1?\nbase     In the valley. (20 tokens/s)\nadapter  In the valley." in text


def test_the_summary_shows_a_few_of_many_answers(store: Store) -> None:
    many = [{"prompt": f"Where is {n}?"} for n in range(20)]
    text = terminal.summary(store.get(run := planted_run(store, answers=many)))
    assert text.count("PROMPT ") == terminal.MOST_ANSWERS
    assert text.endswith(f"\n15 more prompts with answers: {store.get(run).artifact('answers')}")


def test_the_summary_has_the_verdict_in_words(store: Store) -> None:
    silent: list[dict[str, Any]] = [{"prompt": "Where?"}]
    run = planted_run(store, answers=silent, verdict={"outcome": "better", "text": "Better: all\x1b[31m."})
    said = terminal.summary(store.get(run))
    assert "\n\nBetter: all" in said
    assert "\x1b" not in said
    assert "Better" not in terminal.summary(store.get(planted_run(store, answers=silent)))


def test_the_summary_has_other_adapters_the_files_that_answered_and_the_probe(store: Store) -> None:
    silent: list[dict[str, Any]] = [{"prompt": "Where?"}]
    planted = store.get(planted_run(store, answers=silent))
    export = Path(str(planted.artifact("onnx")))
    export.mkdir(parents=True, exist_ok=True)
    (export / "model.onnx").write_text("graph")
    digest = hashlib.sha256(b"graph").hexdigest()
    metrics = {
        "adapters": {"fr\x1b[31mench": {"verdict": {"text": "Worse on 9 of 14."}}, "odd": 1},
        "files": {"base": {"adapter": "none", "graph": {"model.onnx": digest}}},
        "probe": {"good": True, "text": "They equal bit for bit."},
    }
    stages = [
        replace(one, metrics={**one.metrics, **metrics}) if one.name == "evaluate" else one
        for one in planted.stages
    ]
    run = replace(planted, stages=tuple(stages))
    said = terminal.summary(run)
    assert "ench: Worse on 9 of 14." in said
    assert "\x1b" not in said
    assert f"Answered by: Base: adapter none, model.onnx {digest[:12]}.\nProbe: They equal" in said
    (export / "model.onnx").write_text("another")
    assert "model.onnx is no longer the file that answered" in terminal.summary(run)


def test_the_summary_says_which_file_was_asked(store: Store, finished: Run) -> None:
    silent: list[dict[str, Any]] = [{"prompt": "Where?"}]
    run = planted_run(store, answers=silent, changes=["evaluate.data=prompts.jsonl"])
    assert "Evaluated on prompts.jsonl, not on held-out rows." in terminal.summary(store.get(run))
    assert "Evaluated on" not in terminal.summary(finished)


def test_a_summary_does_without_what_is_missing(finished: Run) -> None:
    Path(str(finished.artifact("answers"))).unlink()
    assert "PROMPT" not in terminal.summary(finished)
    empty = StageRun("evaluate", metrics={"base_tokens_per_second": None, "eval_loss_before": None})
    assert terminal._result(empty) == ""
    trained = {"eval_loss_before": 2.5, "eval_loss_after": 1.25, "rows_cut": 3, "held_out_cut": 1}
    said = terminal._result(StageRun("finetune", metrics=trained))
    assert said == "held-out loss 2.500 -> 1.250, 4 rows cut to max_length"
    assert terminal._result(StageRun("evaluate", metrics={"left_out": 1})) == "1 prompt too long to ask"
    left = {"copies_left_out": 2, "left_out": 0, "long_rows_left_out": 1}
    said = "2 rows nearly repeat training rows, 1 row too long to measure"
    assert terminal._result(StageRun("evaluate", metrics=left)) == said
    late = terminal._result(StageRun("evaluate", metrics={"not_asked": 3}))
    assert late == "3 prompts not asked for lack of time (evaluate.answer_minutes)"


def test_what_merging_lost_and_what_was_not_run_are_said() -> None:
    measured = {"held_out_perplexity_merged": 2.5, "held_out_perplexity_detachable": 2.25}
    merged = StageRun("optimize", metrics=measured)
    assert terminal._result(merged) == "held-out perplexity merged 2.500, detachable 2.250"
    lost = StageRun("optimize", metrics={"eval_loss_graph": 1.6504, "eval_loss_trained": 1.6441})
    assert terminal._result(lost) == "held-out loss of the graph 1.650, trained 1.644"
    only = StageRun("evaluate", metrics={"adapter_tokens_per_second": 120.4})
    assert terminal._result(only) == "adapter 120 tokens/s"
    reason = "optimize for npu with QNNExecutionProvider is not run here"
    assert terminal._result(StageRun("optimize", metrics={"not_run_here": reason})) == reason


def test_the_table_is_aligned(store: Store, finished: Run) -> None:
    plant(store, "x")
    lines = terminal.table(store.list()).splitlines()
    assert len(lines) == 3
    assert (
        len({line.index(word) for line, word in zip(lines, ("STATUS", "queued", "done"), strict=True)}) == 1
    )


def test_what_a_waiting_run_waits_for_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, run = plant(store, "first"), plant(store)
    store.claim("cpu")

    def turn() -> None:
        store.pause(False)
        store.request_cancel(run)

    on_each_look(
        monkeypatch, lambda: store.finish(first, "quantize", FAILED), lambda: store.pause(True), turn
    )
    assert terminal.run(store, run, summarize=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Waiting for 1 run ahead of it"
    assert lines[1].startswith("The queue is paused")


def test_of_very_many_checks_the_first_are_shown() -> None:
    few = [Finding(f"adapter {number}", Status.FAILED, "is none") for number in range(terminal.MOST_CHECKS)]
    assert len(terminal.checks(few).splitlines()) == terminal.MOST_CHECKS + 1
    shown = terminal.checks([*few, *few]).splitlines()
    assert len(shown) == terminal.MOST_CHECKS + 2
    assert shown[-1].split() == ["200", "more", "--json", "has", "them", "all"]
