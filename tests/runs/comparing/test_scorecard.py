"""Scorecards: which runs they queue, and what they show of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import terminal
from pipeline.errors import InputError
from pipeline.runs.comparing import scorecard
from pipeline.stages import recipe
from pipeline.stages.recipe import Recipe
from pipeline.store import Store
from pipeline.store.run import FAILED
from pipeline.system import hardware
from tests.helpers.planted import artifact, finish_all, plant


@pytest.fixture
def base(recipe_file: Path) -> Recipe:
    return recipe.load(recipe_file, ["quantize.group_size=32", "optimize.block_size=16"])


MEASURED: dict[str, dict[str, Any]] = {
    "quantize": {"metrics": {"olive_seconds": 12.5, "peak_memory_bytes": 10**9}},
    "optimize": {"metrics": {"model_bytes": 88_000_000}},
    "score": {
        "metrics": {
            "data_perplexity": 9.25,
            "data_divergence": 0.5,
            "general_perplexity": 34.5,
            "general_divergence": 0.25,
            "exported_perplexity": 35.75,
            "exported_divergence": 0.375,
            "tokens_per_second": 120.0,
            "rows": 14,
            "exported_loss": 2.0,
            "exported_data_perplexity": 8.5,
            "float_loss": 1.9,
            "against_float": {"difference": 0.1, "low": 0.05, "high": 0.2, "words": "5 % more loss"},
        }
    },
}


def test_each_way_is_a_run_of_its_own(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    group, refused = scorecard.start(store, base, ["float", "rtn", "gptq", "awq", "rtn"])
    assert refused == {}
    runs = sorted((run for run in store.list()), key=lambda run: run.id)
    rows = scorecard.rows(store, group)
    assert [row.algorithm for row in rows] == ["float", "rtn", "gptq", "awq"]
    assert scorecard.groups(store) == [group]
    by_name = {run.name.split()[0]: run for run in runs}
    assert [stage.name for stage in by_name["awq"].stages] == ["quantize", "optimize", "score"]
    assert [stage.name for stage in by_name["float"].stages] == ["optimize", "score"]
    assert by_name["float"].recipe["optimize"]["precision"] == "fp32"
    for name in ("rtn", "gptq", "awq"):
        chosen = by_name[name].recipe
        assert (chosen["quantize"]["algorithm"], chosen["quantize"]["group_size"]) == (name, 32)
        assert chosen["optimize"]["block_size"] == 16
        assert recipe.from_dict(chosen).group == group


def test_what_the_base_says_of_awq_alone_is_not_taken_to_others(
    store: Store, base: Recipe, no_worker: list[Path]
) -> None:
    from dataclasses import replace

    assert base.quantize is not None
    other = replace(base, quantize=replace(base.quantize, engine="autoawq", compensate=True))
    _, refused = scorecard.start(store, other, ["rtn", "gptq", "awq", "awq-alone"])
    assert refused == {}
    chosen = {run.name.split()[0]: run.recipe["quantize"] for run in store.list()}
    assert {name: (q["engine"], q["compensate"]) for name, q in chosen.items()} == {
        "rtn": ("lab", False),
        "gptq": ("lab", False),
        "awq": ("lab", True),
        "awq-alone": ("lab", False),
    }


def test_a_row_is_named_by_what_was_done(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    group, _ = scorecard.start(store, base, ["awq", "awq-alone"])
    assert [row.algorithm for row in scorecard.rows(store, group)] == ["awq", "awq-alone"]
    given = store.list()[0].recipe
    for more in ({"compensate": "auto", "bits": 8}, {"compensate": False}, {"compensate": True}):
        plant(store, stages=["quantize"], **{**given, "quantize": given["quantize"] | more})
    before = {key: value for key, value in given["quantize"].items() if key != "compensate"}
    plant(store, stages=["quantize"], **{**given, "quantize": before})
    named = [row.algorithm for row in scorecard.rows(store, group)][2:]
    assert named == ["awq-alone", "awq-alone", "awq", "awq-alone"]


def test_a_run_of_another_name_is_still_a_row(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    from dataclasses import replace

    group, _ = scorecard.start(store, base, ["rtn"])
    again = store.list()[0].recipe
    plant(store, stages=["quantize"], **{**again, "name": "mine"})
    assert [row.algorithm for row in scorecard.rows(store, group)] == ["rtn", "rtn"]
    with pytest.raises(InputError, match=r"group: .a/\.\./b. is not allowed"):
        recipe.from_dict(replace(base, group="a/../b").to_dict())


def test_one_that_is_refused_leaves_the_others(
    store: Store, base: Recipe, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    group, refused = scorecard.start(store, base, ["rtn", "autoawq"])
    assert [row.algorithm for row in scorecard.rows(store, group)] == ["rtn"]
    assert list(refused) == ["autoawq"]
    assert "needs an NVIDIA GPU" in refused["autoawq"]
    assert "take quantize.engine: lab" in refused["autoawq"]


@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        (
            [],
            "algorithms: none is given; allowed: float, rtn, gptq, awq, awq-alone, autoawq, joined by commas",
        ),
        (["awq", "q8"], "algorithms: q8; allowed: float"),
        (["autoawq"], "needs an NVIDIA GPU"),
    ],
)
def test_nothing_is_queued_when_nothing_can_be(
    store: Store, base: Recipe, algorithms: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    with pytest.raises(InputError, match=message):
        scorecard.start(store, base, algorithms)
    assert store.list() == []


def test_rows_hold_what_was_measured(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    group, _ = scorecard.start(store, base, ["awq"])
    assert scorecard.rows(store, group)[0].bytes is None
    finish_all(store, scorecard.rows(store, group)[0].run, MEASURED)
    row = scorecard.rows(store, group)[0]
    assert (row.status, row.bytes, row.seconds, row.peak_memory_bytes) == ("done", 88_000_000, 12.5, 10**9)
    assert (row.data_perplexity, row.general_perplexity, row.tokens_per_second) == (9.25, 34.5, 120.0)
    assert (row.data_divergence, row.general_divergence) == (0.5, 0.25)
    assert (row.exported_perplexity, row.exported_divergence) == (35.75, 0.375)
    assert row.peak_gpu_memory_bytes is None
    assert (row.rows, row.exported_loss, row.float_loss, row.of_checkpoint) == (14, 2.0, 1.9, False)
    assert row.exported_data_perplexity == 8.5
    assert row.typical_perplexity == pytest.approx(math.exp(2))
    header, line, _, said = terminal.scores([row]).splitlines()
    assert said == "awq: 5 % more loss"
    assert header.split()[:3] == ["ALGORITHM", "STATUS", "SIZE"]
    assert header.index("KL EXPORTED") == line.index("0.375")
    assert (
        " ".join(line.split()) == "awq done 88.0 MB 8.50 9.25 0.500 34.50 0.250 35.75 0.375 13 s 1.0 GB 120"
    )


def test_what_an_earlier_version_measured_over_all_tokens_is_not_taken_for_the_mean_over_rows(
    store: Store, base: Recipe, no_worker: list[Path]
) -> None:
    group, _ = scorecard.start(store, base, ["awq"])
    old = {k: v for k, v in MEASURED["score"]["metrics"].items() if k != "exported_data_perplexity"}
    finish_all(store, scorecard.rows(store, group)[0].run, {**MEASURED, "score": {"metrics": old}})
    (row,) = scorecard.rows(store, group)
    assert (row.exported_loss, row.float_loss, row.typical_perplexity) == (None, None, None)
    assert row.exported_data_perplexity == pytest.approx(math.exp(2))


def test_options_of_the_export_are_measured_with_every_way(
    store: Store, base: Recipe, no_worker: list[Path]
) -> None:
    from dataclasses import replace

    assert base.optimize is not None
    wanted = replace(base.optimize, lm_head="int8", embedding="int4", block_size=64, adapter="merged")
    scorecard.start(store, replace(base, optimize=wanted), ["float", "rtn"])
    chosen = {run.name.split()[0]: run.recipe["optimize"] for run in store.list()}
    # The float model's graph is float throughout, and without an adapter there is none to merge.
    expected = {"block_size": 64, "adapter": "detachable"}
    for name, given in {
        "float": {"precision": "fp32", "lm_head": "auto", "embedding": "auto"},
        "rtn": {"precision": "int4", "lm_head": "int8", "embedding": "int4"},
    }.items():
        assert chosen[name] | expected | given == chosen[name]


def test_a_failed_one_says_why(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    group, _ = scorecard.start(store, base, ["rtn"])
    run = scorecard.rows(store, group)[0].run
    store.claim("cpu")
    store.finish(run, "quantize", FAILED, error="The disk is full.")
    row = scorecard.rows(store, group)[0]
    assert (row.status, row.note, row.seconds) == (FAILED, "quantize: The disk is full.", None)
    assert terminal.scores([row]).endswith("rtn: quantize: The disk is full.")


def test_without_quantize_there_is_nothing_to_compare(base: Recipe, store: Store) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match="quantize: null leaves nothing to compare"):
        scorecard.start(store, replace(base, quantize=None), ["rtn"])


def row(name: str, size: int, difference: float = 0.0, width: float = 0.01, **more: Any) -> scorecard.Row:
    found = {"difference": difference, "low": difference - width, "high": difference + width}
    given = {"against_float": {**found, "words": f"loses {difference}"}, "bytes": size, "rows": 14, **more}
    return scorecard.Row(name, name, "done", **given)


def test_a_scorecard_of_an_earlier_version_says_that_it_is_of_the_checkpoints() -> None:
    """It has no rows to pair: the smallest of those whose intervals overlap. Exports are not among them."""
    whole = row("float", 600, against_float=None)
    old = [
        row(name, size, loss, rows=None)
        for name, size, loss in (("rtn", 85, 0.2), ("awq", 90, 0.06), ("gptq", 95, 0.05))
    ]
    found = scorecard.best_of_checkpoints([whole, *old])
    assert found.startswith(
        "AWQ with GPTQ suits best: loses 0.06, 15 % of the size. Your rows cannot tell it from GPTQ. This is"
        " an earlier version's, of the checkpoints;"
    )
    assert {each.of_checkpoint for each in old} == {True}
    assert scorecard.best_of_checkpoints(old[:1]) == scorecard.best_of_checkpoints([]) == ""
    assert scorecard.comparable(old) == []
    assert scorecard.best_of_checkpoints([old[0], row("gptq", 80), row("awq", 90)]) == ""


def test_the_newest_of_each_way_whose_export_was_measured_is_compared() -> None:
    broken = row("gptq", 80, against_float={"difference": None, "low": None, "high": None, "words": "no"})
    first, again, other = row("awq", 90), row("awq", 91), row("rtn", 85)
    nothing = row("autoawq", 85, against_float=None)
    assert scorecard.comparable([first, other, again, broken, nothing]) == [again, other]


def test_the_size_is_that_of_the_exported_folder(store: Store, base: Recipe, no_worker: list[Path]) -> None:
    group, _ = scorecard.start(store, base, ["awq"])
    run = scorecard.rows(store, group)[0].run
    exported = {**artifact(store, run, "onnx"), "bytes": 99_000_000}
    finish_all(store, run, MEASURED | {"optimize": {**MEASURED["optimize"], "artifacts": [exported]}})
    assert scorecard.rows(store, group)[0].bytes == 99_000_000


def test_without_an_export_to_measure_it_says_why_and_compares_nothing(
    store: Store, base: Recipe, no_worker: list[Path]
) -> None:
    group, _ = scorecard.start(store, base, ["awq"])
    run = scorecard.rows(store, group)[0].run
    finish_all(store, run, {"score": {"metrics": {"data_perplexity": 9.0, "not_compared": "no graph"}}})
    (found,) = scorecard.rows(store, group)
    assert (found.note, found.against_float) == ("not compared: no graph", None)
    assert scorecard.comparable([found, row("rtn", 85)]) == [row("rtn", 85)]
