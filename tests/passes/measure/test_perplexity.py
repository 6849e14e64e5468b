"""Perplexity against its definition."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny

pytestmark = pytest.mark.chain


def loaded(folder: Path, architecture: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.build(architecture, folder)).eval()


def counted(texts: list[Any]) -> list[tuple[Any, Any]]:
    """Texts of which every token counts."""
    return [(text, text) for text in texts]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # Gemma 2 caps its logits
def test_it_is_exp_of_the_mean_loss(architecture: str, tmp_path: Path) -> None:
    import torch

    from pipeline.passes.measure.perplexity import judge

    model = loaded(tmp_path, architecture)
    texts = counted([torch.randint(3, 259, (n,)) for n in (12, 30, 12, 7, 1)])
    with torch.no_grad():
        losses = [float(model(input_ids=t[None], labels=t[None]).loss) * (len(t) - 1) for t, _ in texts[:4]]
    told: list[int] = []
    found = judge(model, texts, told.append)
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / (11 + 29 + 11 + 6)), rel=1e-4)
    assert found.divergence is None
    assert told == [2, 3, 4]


def test_losses_are_told_text_by_text(tmp_path: Path) -> None:
    """Also where logits are computed in pieces that cross from one text to the next."""
    import torch

    from pipeline.passes.measure import perplexity

    exact, model = loaded(tmp_path / "exact", "llama"), loaded(tmp_path / "model", "llama")
    for parameter in model.parameters():
        parameter.data += 0.01
    texts = counted([torch.randint(3, 259, (n,)) for n in (12, 30, 12, 7)])
    texts[1] = texts[1][0], texts[1][0].clone()
    texts[1][1][:20] = -100
    known = perplexity.read(exact, texts)
    whole = perplexity.judge(model, texts, exact=known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perplexity, "LOGITS", model.config.vocab_size * 5)
        pieces = perplexity.judge(model, texts, exact=known)
    order = [0, 2, 1, 3]  # texts of one length run together
    with torch.no_grad():
        right = [float(model(input_ids=texts[n][0][None], labels=texts[n][1][None]).loss) for n in order]
    assert whole.losses == pytest.approx(right, rel=1e-4)
    assert pieces.losses == pytest.approx(right, rel=1e-4)


def test_tokens_without_a_label_do_not_count(tmp_path: Path) -> None:
    import torch

    from pipeline.passes.measure.perplexity import judge

    model = loaded(tmp_path, "llama")
    ids = torch.randint(3, 259, (20,))
    labels = ids.clone()
    labels[:15] = -100
    with torch.no_grad():
        loss = float(model(input_ids=ids[None], labels=labels[None]).loss)
    assert judge(model, [(ids, labels)]).perplexity == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_divergence_is_the_mean_kl_and_zero_for_the_model_itself(architecture: str, tmp_path: Path) -> None:
    import torch

    from pipeline.passes.measure.perplexity import judge, read

    model = loaded(tmp_path, architecture)
    texts = counted([torch.randint(3, 259, (n,)) for n in (12, 30, 12)])
    exact = read(model, texts)
    assert judge(model, texts, exact=exact).divergence == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        right = [model(input_ids=t[None]).logits[0, :-1].log_softmax(-1) for t, _ in texts]
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        wrong = [model(input_ids=t[None]).logits[0, :-1].log_softmax(-1) for t, _ in texts]
    expected = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(right, wrong, strict=True)]).mean()
    found = judge(model, texts, exact=exact).divergence  # the head that was read is not the changed one
    assert expected > 1e-3
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_work_in_pieces_is_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes.measure import perplexity

    model = loaded(tmp_path, "llama")
    texts = counted([torch.randint(3, 259, (20,)) for _ in range(3)])
    exact = perplexity.read(loaded(tmp_path / "other", "llama"), texts)
    whole = perplexity.judge(model, texts, exact=exact)
    monkeypatch.setattr(perplexity, "LOGITS", 320 * 7)
    pieces = perplexity.judge(model, texts, exact=exact)
    assert pieces.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert pieces.divergence == pytest.approx(whole.divergence, rel=1e-4, abs=1e-7)


def test_logits_of_one_text_at_a_time_are_judged_as_the_model_is(tmp_path: Path) -> None:
    import torch

    from pipeline.passes.measure.perplexity import judge, judge_logits, read

    model, other = loaded(tmp_path, "gemma2"), loaded(tmp_path / "other", "llama")
    texts = [(ids, ids.clone()) for ids in torch.randint(3, 259, (11, 20))]
    texts[0][1][:9] = -100
    exact = read(model, texts)

    def logits(ids: Any) -> Any:
        with torch.no_grad():
            return other(input_ids=ids[None]).logits[0]

    told: list[int] = []
    found, expected = judge_logits(logits, texts, exact, told.append), judge(other, texts, exact=exact)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-5)
    assert found.divergence == pytest.approx(expected.divergence, rel=1e-5)
    assert told == list(range(1, 12))
    # Of more texts, those that were read first.
    assert judge_logits(logits, texts[:8], exact).divergence == pytest.approx(
        judge(other, texts[:8], exact=exact).divergence, rel=1e-5
    )
    with pytest.raises(ValueError, match="read on other texts"):
        judge_logits(logits, texts[1:], exact)
    with pytest.raises(ValueError, match="no text of two tokens"):
        judge_logits(logits, [], exact)


def test_without_text_there_is_nothing_to_measure(tmp_path: Path) -> None:
    from pipeline.passes.measure.perplexity import judge

    with pytest.raises(ValueError, match="no text of two tokens"):
        judge(loaded(tmp_path, "llama"), [])


def test_the_exact_model_is_gone_when_the_other_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of 3.8 billion parameters do not fit where one does."""
    import torch

    from pipeline.passes.measure import score

    made: list[Any] = []

    def load(*_: Any, **__: Any) -> Any:
        assert not any(earlier() for earlier in made), "an earlier model is still in memory"
        model = loaded(tmp_path, "llama")
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(score, "load_hf_base_model", load)
    texts = {"general": counted([torch.randint(3, 259, (12,))])}
    found, _ = score._judged(Any, texts, Any)  # type: ignore[arg-type]
    assert found["general_divergence"] == pytest.approx(0, abs=1e-6)
    assert len(made) == 2
