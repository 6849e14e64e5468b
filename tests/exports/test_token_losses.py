"""Losses by the runtime's own logits, on a small export that really computes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.exports import generation, token_losses
from tests.helpers import exports

pytestmark = pytest.mark.chain

IDS = [int(word) for word in np.random.default_rng(0).integers(3, exports.WORDS, 256)]


@pytest.fixture(scope="module")
def model(written_export: Path) -> generation.Model:
    return generation.load(written_export, {"adapter": written_export / exports.ADAPTER})


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_they_are_those_of_the_graph_that_onnx_runtime_computes(
    model: generation.Model, written_export: Path, adapter: str | None
) -> None:
    import torch

    from pipeline.passes.measure.graph_logits import logits_of
    from pipeline.passes.measure.perplexity import loss_of_logits

    ids = IDS[:100]
    labels = torch.tensor([word if at >= 40 else -100 for at, word in enumerate(ids)])
    alone = logits_of(written_export, written_export / exports.ADAPTER if adapter else None)
    right = loss_of_logits(alone, [(torch.tensor(ids), labels)])
    found = token_losses.measure(model, ids, [at >= 40 for at in range(100)], adapter)
    assert found.tokens == 60
    assert found.mean == pytest.approx(right, rel=1e-6)


def test_an_adapter_changes_them_and_does_not_stay(model: generation.Model) -> None:
    every = [True] * len(IDS)
    base = token_losses.measure(model, IDS, every)
    assert token_losses.measure(model, IDS, every, "adapter").total != base.total
    assert token_losses.measure(model, IDS, every) == base


def test_parts_of_a_text_add_up(model: generation.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [at % 3 == 0 for at in range(len(IDS))]
    whole = token_losses.measure(model, IDS, counted, "adapter")
    monkeypatch.setattr(token_losses, "LOGITS", exports.WORDS * 7)
    parts = token_losses.measure(model, IDS, counted, "adapter")
    assert parts.tokens == whole.tokens == 85  # the first is given
    assert parts.total == pytest.approx(whole.total)


def test_what_does_not_fit_is_refused_and_nothing_counted_costs_nothing(model: generation.Model) -> None:
    with pytest.raises(ValueError, match="257 tokens are more than the 256 that the model reads"):
        token_losses.measure(model, [*IDS, 5], [True] * 257)
    assert token_losses.measure(model, IDS, [True] + [False] * 255).tokens == 0


def test_logits_that_are_no_numbers_make_a_loss_that_is_none() -> None:
    logits = np.array([[1.0, math.nan, 2.0]], np.float32)
    assert math.isnan(token_losses._summed(logits, np.array([0])))
    exact = token_losses._summed(np.array([[1000.0, 0.0, 0.0]], np.float32), np.array([1]))
    assert exact == pytest.approx(1000.0)
