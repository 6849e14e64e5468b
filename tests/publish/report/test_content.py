"""What a report says of a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import terminal
from pipeline.evaluation.examples import answered_by
from pipeline.publish.report import content
from pipeline.publish.report.content import Report, Table, Text
from pipeline.runs import kept_datasets
from pipeline.runs.data import data_card
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers import examples
from tests.helpers.planted import finish_all, plant
from tests.runs.data.test_data_card import ended

VERDICT = {
    "outcome": "better", "text": "Better: 45 % less loss.", "metric": "response_loss", "difference": -2.75,
    "low": -3.01, "high": -2.48, "rows": 14, "better": 14, "worse": 0,
}  # fmt: skip


def section(report: Report, title: str) -> str:
    """All text of a section."""
    found = next(one for one in report.sections if one.title == title)
    return json.dumps([dataclasses.asdict(block) for block in found.blocks], ensure_ascii=False)


def test_a_report_has_verdict_figures_curves_recipe_and_data(store: Store) -> None:
    run = examples.measured(store, examples.rows(4), [], verdict=VERDICT)
    report = content.of(store.home, store.get(run), True)
    assert "45 % less loss" in section(report, "Verdict")
    assert "-3.01 to -2.48" in section(report, "Verdict")
    assert "eval loss after" in section(report, "Figures")
    assert '"training", [1, 2' in section(report, "Curves")
    assert "What is 3?" in section(report, "Examples")
    assert "4 rows" in section(report, "Data")
    assert "quantize" in section(report, "Recipe")
    assert run in section(report, "Made with")


def test_other_adapters_have_their_verdicts(store: Store, finished: Run) -> None:
    told = {"french": {"verdict": {"text": "Worse on 9 of 14."}}}
    found = section(content.of(store.home, with_metrics(store, finished, adapters=told), False), "Verdict")
    assert '["french", "Worse on 9 of 14."]' in found


def test_it_says_which_file_was_asked(store: Store) -> None:
    asked = {"evaluate": {"data": "/home/datasets/0/prompts.jsonl"}}
    run = finish_all(store, plant(store, stages=asked))
    said = "It was evaluated on the rows of prompts.jsonl, not on held-out rows."
    assert said in section(content.of(store.home, run, False), "Verdict")
    assert said not in section(content.of(store.home, finish_all(store, plant(store)), False), "Verdict")


def test_it_says_what_is_left_out_and_why_there_are_no_answers(store: Store) -> None:
    why = "No answers: all 3 prompts are longer than the 256 tokens that this model reads."
    metrics = {"copies_left_out": 2, "left_out": 3, "why_no_answers": why}
    run = finish_all(store, plant(store), {"evaluate": {"metrics": metrics}})
    said = section(content.of(store.home, run, False), "Verdict")
    assert "in no figure: 2 rows nearly repeat training rows, 3 prompts too long to ask." in said
    assert why in said
    assert why in terminal.summary(run)


def test_the_float_models_answers_have_a_column_where_it_was_asked(store: Store) -> None:
    told = {"token_f1": {"base": 0.25, "adapter": 0.75}, "float_prompts": 3}
    for more, last in ({}, "0.75"), ({"float": 0.5}, "0.5"):
        answers = {**told, "token_f1": {**told["token_f1"], **more}}
        run = finish_all(store, plant(store), {"evaluate": {"metrics": {"answers": answers}}})
        report = content.of(store.home, run, False)
        table = next(block for one in report.sections for block in one.blocks
                     if isinstance(block, Table) and block.columns[0] == "Answers, mean")  # fmt: skip
        assert (table.columns[-1] == "Float", table.rows[0][-1]) == (bool(more), last)
        assert ("(float 0.50)" in terminal.summary(run)) == bool(more)


def test_without_rows_it_has_none(store: Store) -> None:
    run = examples.measured(store, examples.rows(4), [])
    report = content.of(store.home, store.get(run), False)
    found = next(one for one in report.sections if one.title == "Examples")
    assert found.blocks == [Text(content.NO_ROWS)]


def test_the_figures_of_a_kept_card_are_in_it(store: Store, dataset: Path) -> None:
    kept = kept_datasets.keep(store.home, dataset)
    ended(data_card.card(data_card.Question(kept, "{prompt} {response}", None, 512)))
    run = finish_all(store, plant(store, data=kept))
    found = section(content.of(store.home, run, False), "Data")
    assert '"Rows", "20"' in found
    (store.home / "cards" / "broken").mkdir()
    (store.home / "cards" / "broken" / "card.json").write_text('{"path": [1]')
    assert section(content.of(store.home, run, False), "Data") == found


def test_checksums_are_its_proof(store: Store, finished: Run) -> None:
    report = content.of(store.home, finished, False)
    assert "adapter_weights.onnx_adapter" in section(report, "Proof")
    speeds = next(one for one in report.sections if one.title == "Cost in speed").blocks[0]
    assert isinstance(speeds, Table)
    assert speeds.rows[0] == ("Tokens per second", "20", "18")


def test_the_files_that_answered_and_the_probe_are_its_proof(store: Store, finished: Run) -> None:
    """Beside the examples too; what is another file by now is named."""
    export = Path(str(finished.artifact("onnx")))
    graph = {"model.onnx": checksums.of(export, ["model.onnx"])["model.onnx"]}
    adapter = checksums.of(export, ["adapter_weights.onnx_adapter"])["adapter_weights.onnx_adapter"]
    files = {"base": {"adapter": "none", "graph": graph}, "adapter": {"adapter": adapter, "graph": graph}}
    probe = {"good": True, "text": "They equal bit for bit."}
    run = with_metrics(store, finished, files=files, probe=probe)
    report = content.of(store.home, run, True)
    for title in ("Examples", "Proof"):
        found = section(report, title)
        assert '["Base", "adapter", "none"]' in found
        assert f'["With adapter", "adapter", "{adapter}"]' in found
        assert f'["With adapter", "model.onnx", "{graph["model.onnx"]}"]' in found
        assert "no longer" not in found
    assert "They equal bit for bit." in section(report, "Proof")
    (export / "adapter_weights.onnx_adapter").write_bytes(b"another")
    changed = content.of(store.home, run, True)
    for title in ("Examples", "Proof"):
        assert "adapter_weights.onnx_adapter is no longer the file that answered" in section(changed, title)
    bare = content.of(store.home, with_metrics(store, finished), False)
    assert content.NO_PROBE in section(bare, "Proof")
    assert answered_by.UNKNOWN in section(bare, "Proof")


def with_metrics(store: Store, run: Run, **metrics: Any) -> Run:
    """The run with further metrics of its evaluation."""
    stages = [
        replace(one, metrics={**one.metrics, **metrics}) if one.name == "evaluate" else one
        for one in run.stages
    ]
    return replace(run, stages=tuple(stages))


@pytest.mark.parametrize("stages", [["quantize"], ["finetune", "optimize"]])
def test_a_run_of_any_stages_has_one(store: Store, stages: list[str]) -> None:
    report = content.of(store.home, finish_all(store, plant(store, stages=stages)), True)
    assert report.sections[0].blocks == [Text(content.NO_VERDICT)]


def test_what_the_adapter_costs_and_which_checks_pass(store: Store) -> None:
    side = {"decode_tokens_per_second": 20.0, "first_token_seconds": 0.5, "memory_bytes": 10**9}
    answers = {
        "token_f1": {"base": 0.25, "adapter": 0.75},
        "checks": [{"check": "contains: Rome", "base": 0.0, "adapter": 1.0}],
    }
    metrics = {
        "tax": {"base": side, "adapter": {**side, "decode_tokens_per_second": 16.0}},
        "answers": answers,
    }
    run = finish_all(store, plant(store), {"evaluate": {"metrics": metrics}})
    report = content.of(store.home, run, False)
    assert '"Tokens per second", "20", "16"' in section(report, "Cost in speed")
    assert '"Memory", "1.0 GB", "1.0 GB"' in section(report, "Cost in speed")
    assert '"token f1", "0.25", "0.75"' in section(report, "Figures")
    assert '"passes contains: Rome", "0", "1"' in section(report, "Figures")
