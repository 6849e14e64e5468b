"""What an evaluation reads and writes in all, as its time follows from it."""

from __future__ import annotations

import pytest

from pipeline.passes.measure import tax
from pipeline.stages import evaluate, optimize
from pipeline.stages.costs import evaluate_cost, shape
from pipeline.stages.costs.cost import Rows
from pipeline.stages.costs.machine import Machine
from tests.stages.costs.test_memory_parts import CONFIG

ROWS = Rows(36, 4, 120.0, 140.0)
NONE = evaluate.Options(rows=0, prompts=0)


def parts(sides: int, options: evaluate.Options = NONE, **changes: int) -> dict[str, float]:
    """Seconds of each kind of work, of a machine that does one product and copies one byte a second."""
    sizes = shape.of({**CONFIG, **changes})
    assert sizes is not None
    machine = Machine(product_fp32=1.0, copy=1.0)
    return evaluate_cost.seconds_parts(options, sizes, ROWS, machine, 1.0, sides)


def test_the_speed_of_an_adapter_is_measured_in_turns_of_both_sides() -> None:
    turns = 2 * tax.TURNS
    assert (turns * tax.PROMPT, turns * tax.NEW) == (evaluate_cost.TAX_READ, evaluate_cost.TAX_MADE)
    assert parts(1)["tokens"] == 0
    assert parts(2)["tokens"] == evaluate_cost.TAX_MADE


def test_answers_take_no_longer_than_they_may() -> None:
    """On a machine that copies a hundred kilobytes a second, and a graph of some millions of them."""
    sizes = shape.of(CONFIG)
    assert sizes is not None
    slow = Machine(copy=100_000.0)

    def seconds(prompts: int, minutes: int) -> float:
        asked = evaluate.Options(rows=0, prompts=prompts, answer_minutes=minutes)
        return evaluate_cost.estimate(asked, sizes, ROWS, slow, optimize.Options(), 1).seconds.likely

    assert seconds(20, 30) - seconds(20, 10) == pytest.approx(20 * 60)
    assert seconds(1, 1440) < seconds(2, 1440)


def test_what_is_read_for_its_loss_has_logits_at_each_token() -> None:
    small, large = (parts(1, vocab_size=count)["prompts"] for count in (1000, 2000))
    read = evaluate_cost.GENERAL_TOKENS
    assert large - small == 2.0 * read * 1000 * CONFIG["hidden_size"]
