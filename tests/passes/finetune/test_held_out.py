"""Looking at held-out rows while training: the best adapter is kept, and no improvement ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pipeline.stages import finetune
from pipeline.stages.context import Context
from tests.helpers.carry import OPTIONS, stage

pytestmark = pytest.mark.chain


def weights(model: Any) -> dict[str, Any]:
    return {
        name.replace(".default", ""): weight.detach().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def run(
    context: Context, monkeypatch: pytest.MonkeyPatch, losses: dict[int, float], **changes: Any
) -> tuple[dict[str, Any], Path, dict[int, dict[str, Any]]]:
    """Train with given validation losses by step; return (record, adapter, the weights at each look).

    The held-out loss is 0.1 before and 7.0 after.
    """
    from pipeline.passes.finetune import held_out

    seen: dict[int, dict[str, Any]] = {}

    def measure(self: Any, step: int, when: str, drawn: bool = True) -> float:
        assert drawn == (self.name == "Validation")
        if self.name != "Validation":
            return 7.0 if step else 0.1
        seen[step] = weights(self.loss.model)
        return losses[step]

    monkeypatch.setattr(held_out.HeldOut, "measure", measure)
    made = stage(context, "finetune", finetune, replace(OPTIONS, **changes))
    return made.metrics, made.artifacts[0].path, seen


def test_the_best_adapter_is_kept(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    losses = {0: 0.1, 3: 4.0, 6: 2.0, 9: 3.0, 11: 2.0}  # what was before training is no adapter to keep
    record, adapter, seen = run(context, monkeypatch, losses, eval_every=3, max_steps=11)
    assert list(seen) == [0, 3, 6, 9, 11]
    assert (record["best_step"], record["stopped_early"], record["steps"]) == (6, False, 11)
    # The best of many looks is no judgement: other rows than those that chose give the loss.
    assert (record["eval_loss_before"], record["eval_loss_after"], record["validation_loss"]) == (
        0.1,
        7.0,
        2.0,
    )
    saved = load_file(adapter / "adapter_model.safetensors")
    assert saved.keys() == seen[6].keys()
    for name, weight in saved.items():
        assert (weight == seen[6][name]).all(), name
    assert any((weight != seen[11][name]).any() for name, weight in saved.items())


@pytest.mark.parametrize(("patience", "steps"), [(1, 4), (2, 10), (3, 12)])
def test_no_better_loss_for_long_enough_ends_it(
    context: Context, monkeypatch: pytest.MonkeyPatch, patience: int, steps: int
) -> None:
    losses = {0: 6.0, 2: 4.0, 4: 5.0, 6: 3.0, 8: 3.0, 10: 3.5, 12: 1.0}
    record, _, _ = run(context, monkeypatch, losses, eval_every=2, early_stop=patience)
    assert record["steps"] == steps
    assert record["stopped_early"] == (steps < 12)
    assert record["best_step"] == {4: 2, 10: 6, 12: 12}[steps]


def test_looks_are_events_with_their_step_and_change_nothing(
    context: Context, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    found = {}
    for every in (4, 6):
        before = len(reported())
        options = replace(OPTIONS, dropout=0.1, eval_every=every)
        looked = stage(context, f"every {every}", finetune, options).metrics
        looks = {event["step"]: event["eval_loss"] for event in reported()[before:] if "eval_loss" in event}
        assert list(looks) == [0, *range(every, 13, every)]
        assert looked["validation_loss"] == min(value for step, value in looks.items() if step)
        assert looks[looked["best_step"]] == looked["validation_loss"] != looked["eval_loss_after"]
        found[every] = looks[12], looked["train_loss"]
    assert found[4] == found[6]
    plain = stage(context, "plain", finetune, OPTIONS).metrics
    assert not {"best_step", "validation_loss"} & plain.keys()


def test_rows_that_choose_are_not_those_that_judge_nor_learned(context: Context) -> None:
    from pipeline.passes.rows import lab_rows

    given = (str(context.data), "chat", str(context.model))
    parts = {
        part: {row["response"] for row in lab_rows(*given, part, 0.2, 0, 512).rows}
        for part in ("train", "learn", "validation", "eval")
    }
    assert parts["learn"] | parts["validation"] == parts["train"]
    assert not parts["learn"] & parts["validation"]
    assert not parts["eval"] & parts["train"]
    assert all(parts.values())


def test_with_two_prompts_the_held_out_rows_choose_and_it_is_said(
    context: Context, tmp_path: Path, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    data = tmp_path / "two.jsonl"
    data.write_text('{"prompt": "Why?", "response": "So."}\n{"prompt": "How?", "response": "Thus."}\n')
    options = replace(OPTIONS, eval_every=6, max_steps=6)
    found = stage(replace(context, data=data), "two", finetune, options).metrics
    assert found["eval_loss_after"] == found["validation_loss"]
    assert any("the held-out loss is too optimistic" in event.get("message", "") for event in reported())


def test_what_is_known_survives_a_checkpoint(tmp_path: Path) -> None:
    import torch

    from pipeline.passes.finetune.held_out import HeldOut

    model = torch.nn.Linear(2, 2)
    first = HeldOut(SimpleNamespace(model=model), None, None, patience=2)  # type: ignore[arg-type]
    first.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    found = iter([3.0, 2.0, 2.5])
    first.measure = lambda step, when: next(found)  # type: ignore[method-assign]
    for step in (1, 2, 3):
        first.look(step)
        with torch.no_grad():
            model.weight += 1
    first.save(tmp_path)
    start = model.weight.detach().clone()
    second = HeldOut(SimpleNamespace(model=model), None, None, patience=2)  # type: ignore[arg-type]
    second.load(tmp_path)
    assert (second.best_step, second.best_loss, second.waited, second.stops) == (2, 2.0, 1, False)
    second.restore()
    torch.testing.assert_close(model.weight.detach(), start - 2)


def test_what_is_measured_comes_from_all_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes.finetune import held_out

    monkeypatch.setattr(held_out, "MOST_ROWS", 4)
    measured: list[int] = []

    class Positions:
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> int:
            measured.append(index)
            return index

        def length(self, index: int) -> int:
            return 1

    loss = Mock(side_effect=lambda batch: (torch.zeros(()), 1), model=torch.nn.Linear(1, 1))
    looks = held_out.HeldOut(loss, Positions(), lambda rows: {})  # type: ignore[arg-type]
    looks.measure(0, "now")
    assert measured == [0, 25, 50, 75]
