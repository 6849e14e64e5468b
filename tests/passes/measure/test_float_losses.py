"""Losses of the float model row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import tiny

pytestmark = pytest.mark.chain


def test_they_are_the_models_own(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.passes.measure import float_losses

    folder = tiny.build("llama", tmp_path / "model")
    ids = torch.randint(3, 259, (20,))
    counted = [at >= 15 for at in range(20)]
    labels = torch.where(torch.tensor(counted), ids, -100)
    with float_losses.loaded(folder) as measure:
        found = measure(ids.tolist(), counted)
        nothing = measure(ids.tolist(), [False] * 20)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        right = float(model(input_ids=ids[None], labels=labels[None]).loss)
    assert found.tokens == 5
    assert found.mean == pytest.approx(right, rel=1e-4)
    assert nothing.tokens == 0
