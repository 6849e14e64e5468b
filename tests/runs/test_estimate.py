from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runs import estimate
from pipeline.stages.costs.cost import Cost
from pipeline.store.run import DONE, FAILED, PREFLIGHT, QUEUED, RUNNING, Run, StageRun
from tests.helpers.planted import record

NAMES = ("quantize", "finetune", "optimize", "evaluate")
EXPECTED = dict(zip(NAMES, (60.0, 100.0, 10.0, 30.0), strict=True))


def done(seconds: tuple[float, ...] = (60.0, 100.0, 10.0, 30.0), **given: object) -> Run:
    stages = [
        StageRun(name, DONE, seconds=s, **given)  # type: ignore[arg-type]
        for name, s in zip(NAMES, seconds, strict=True)
    ]
    return record(*stages, status=DONE)


class TestExpected:
    queued = record(*(StageRun(name) for name in NAMES), status=QUEUED)

    def test_the_newest_run_that_took_its_time_says_it(self) -> None:
        reused, newest, oldest = done((0.1,) * 4, reused=True), done(), done((1.0,) * 4)
        assert estimate.expected(self.queued, [reused, newest, oldest]) == {
            "quantize": 60.0, "finetune": 100.0, "optimize": 10.0, "evaluate": 30.0
        }  # fmt: skip

    def test_the_same_options_come_before_a_newer_run(self) -> None:
        wanted = record(StageRun("finetune", options={"max_steps": 60}), status=QUEUED)
        newer = record(StageRun("finetune", DONE, {"max_steps": 6}, seconds=10.0))
        older = record(StageRun("finetune", DONE, {"max_steps": 60}, seconds=100.0))
        assert estimate.expected(wanted, [newer, older]) == {"finetune": 100.0}
        assert estimate.expected(wanted, [newer]) == {"finetune": 10.0}

    def test_other_models_and_stages_that_failed_say_nothing(self) -> None:
        failed = record(StageRun("quantize", FAILED, seconds=3.0))
        other = record(*done().stages, status=DONE, model="larger")
        assert estimate.expected(self.queued, [failed, other]) == {}

    def test_the_preflight_comes_after_the_same_options_and_before_any_others(self, tmp_path: Path) -> None:
        wanted = record(
            StageRun("quantize"), StageRun("finetune", options={"max_steps": 60}), StageRun("optimize")
        )
        same = record(StageRun("finetune", DONE, {"max_steps": 60}, seconds=100.0))
        other = record(StageRun("quantize", DONE, {"bits": 8}, seconds=10.0))
        costs = {
            name: Cost.of(1.0, None, 1.0, seconds).to_dict()
            for name, seconds in (("quantize", 20.0), ("finetune", 50.0), ("optimize", 5.0))
        }
        (tmp_path / PREFLIGHT).write_text(json.dumps({"stages": costs}))
        predicted = estimate.predicted(tmp_path)
        assert predicted == {"quantize": 20.0, "finetune": 50.0, "optimize": 5.0}
        assert estimate.expected(wanted, [same, other], predicted) == {**predicted, "finetune": 100.0}

    @pytest.mark.parametrize(
        "kept", [None, "[]", "{", '{"stages": 3}', '{"stages": {"quantize": 1}}', '{"stages": {"a": {}}}']
    )
    def test_a_preflight_that_is_none_predicts_nothing(self, tmp_path: Path, kept: str | None) -> None:
        if kept is not None:
            (tmp_path / PREFLIGHT).write_text(kept)
        assert estimate.predicted(tmp_path) == {}


class TestProgress:
    def at(self, *, quantized: float | None = None) -> Run:
        """The first stage runs; or it took `quantized` seconds, and the second runs."""
        if quantized is None:
            begun = [StageRun("quantize", RUNNING), StageRun("finetune")]
        else:
            begun = [StageRun("quantize", DONE, seconds=quantized), StageRun("finetune", RUNNING)]
        return record(*begun, StageRun("optimize"), StageRun("evaluate"))

    def test_what_the_stage_says_and_what_later_ones_took(self) -> None:
        facts = {"progress": 0.5, "eta_seconds": 45.0}
        told = estimate.progress(self.at(quantized=50.0), facts, 55.0, EXPECTED)
        assert told["eta_seconds"] == told["at_least_seconds"] == 85.0
        assert told["fraction"] == pytest.approx((50 + 0.5 * 100) / (50 + 100 + 10 + 30))

    def test_a_stage_that_says_nothing_goes_by_what_it_took_before(self) -> None:
        told = estimate.progress(self.at(), {"progress": 0.0}, 15.0, EXPECTED)
        assert told["eta_seconds"] == 45.0 + 140.0
        assert told["fraction"] == pytest.approx(15 / 200)

    def test_a_stage_that_takes_longer_goes_by_its_own_progress(self) -> None:
        told = estimate.progress(self.at(), {"progress": 0.5}, 90.0, EXPECTED)
        assert told["eta_seconds"] == 90.0 + 140.0
        late = estimate.progress(self.at(), {}, 90.0, EXPECTED)
        assert late["eta_seconds"] is None
        assert late["fraction"] is not None
        assert late["fraction"] < 60 / 200

    def test_without_any_earlier_run_stages_weigh_the_same_and_the_end_is_not_known(self) -> None:
        told = estimate.progress(self.at(), {"progress": 0.5}, None, {})
        assert told == {"fraction": 0.125, "eta_seconds": None, "at_least_seconds": 0}

    def test_an_unknown_later_stage_makes_it_at_least(self) -> None:
        facts = {"progress": 0.5, "eta_seconds": 45.0}
        known = {"optimize": 10.0}
        told = estimate.progress(self.at(quantized=50.0), facts, 55.0, known)
        assert (told["eta_seconds"], told["at_least_seconds"]) == (None, 55.0)

    def test_a_reused_stage_hardly_counts(self) -> None:
        told = estimate.progress(self.at(quantized=0.0), {"progress": 0.0, "eta_seconds": 100.0}, 0.0, {})
        assert told["fraction"] == 0.0

    def test_publishing_is_not_part_of_it(self) -> None:
        stages = (*done().stages, StageRun("publish", RUNNING))
        told = estimate.progress(record(*stages), {"progress": 0.1}, 1.0, {})
        assert told == {"fraction": 1.0, "eta_seconds": 0.0, "at_least_seconds": 0.0}

    @pytest.mark.parametrize("facts", [{"progress": None}, {"progress": "x"}, {"eta_seconds": True}, {}])
    def test_facts_may_be_missing_or_odd(self, facts: dict[str, object]) -> None:
        told = estimate.progress(self.at(), facts, None, {})
        assert (told["fraction"], told["eta_seconds"]) == (0.0, None)

    def test_it_never_goes_back_while_a_stage_goes_on(self) -> None:
        steps = [({"progress": 0.1 * n, "eta_seconds": 100.0 - 10 * n}, 10.0 * n) for n in range(11)]
        found = [estimate.progress(self.at(quantized=60.0), f, t, EXPECTED)["fraction"] for f, t in steps]
        assert found == sorted(found)  # type: ignore[type-var]
