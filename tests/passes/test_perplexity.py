"""Perplexity against its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.chain


def loaded(folder: Path, architecture: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.build(architecture, folder)).eval()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # Gemma 2 caps its logits
def test_it_is_exp_of_the_mean_loss(architecture: str, tmp_path: Path) -> None:
    import torch

    from pipeline.passes.perplexity import perplexity

    model = loaded(tmp_path, architecture)
    texts = [torch.randint(3, 259, (n,)) for n in (12, 30, 12, 7, 1)]
    with torch.no_grad():
        losses = [float(model(input_ids=t[None], labels=t[None]).loss) * (len(t) - 1) for t in texts[:4]]
    told: list[int] = []
    found = perplexity(model, texts, told.append)
    assert found == pytest.approx(math.exp(sum(losses) / (11 + 29 + 11 + 6)), rel=1e-4)
    assert told == [2, 3, 4]


def test_work_in_pieces_is_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes import perplexity

    model = loaded(tmp_path, "llama")
    texts = [torch.randint(3, 259, (20,)) for _ in range(3)]
    whole = perplexity.perplexity(model, texts)
    monkeypatch.setattr(perplexity, "LOGITS", 320 * 7)
    assert perplexity.perplexity(model, texts) == pytest.approx(whole, rel=1e-5)


def test_without_text_there_is_nothing_to_measure(tmp_path: Path) -> None:
    from pipeline.passes.perplexity import perplexity

    with pytest.raises(ValueError, match="no text of two tokens"):
        perplexity(loaded(tmp_path, "llama"), [])
