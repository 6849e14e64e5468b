"""Quantization on an NVIDIA GPU: our AWQ there as on a CPU, and the real AutoAWQ, repacked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stages import quantize
from pipeline.system import hardware
from tests.helpers import tiny
from tests.helpers.carry import context_of, stage
from tests.passes.quantize import test_sensitivity as sensitive
from tests.passes.quantize.test_awq import blocks, logits, prepared, with_large_channels
from tests.passes.quantize.test_awq_search import drawn, grid

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_awq_is_nearer_than_rounding(architecture: str, dtype: str, tmp_path: Path) -> None:
    from pipeline.passes.quantize import awq, rounding

    assert hardware.gpus() > 0, "no GPU answers nvidia-smi"
    exact = logits(with_large_channels(prepared(tmp_path, architecture)))
    rounded, searched = (with_large_channels(prepared(tmp_path, architecture, dtype)) for _ in range(2))
    rounding.pack(rounded, begin=0.0)
    awq.quantize(searched, blocks(16, 64))
    error = [float((logits(wrapper) - exact).pow(2).mean()) for wrapper in (rounded, searched)]
    assert error[1] < error[0] * (0.9 if dtype == "float32" else 1)  # 16 bits round besides


@pytest.mark.parametrize("architecture", sensitive.ARCHITECTURES)
def test_a_choice_is_as_sensitive_as_the_whole_model_says_on_a_cpu(architecture: str, tmp_path: Path) -> None:
    """And afterwards the model lies in main memory, unchanged."""
    import torch

    from pipeline.passes.quantize.sensitivity import sensitivities

    wrapper = sensitive.wrapped(tmp_path, architecture)
    before = {name: tensor.clone() for name, tensor in wrapper.model.state_dict().items()}
    found = sensitivities(wrapper, sensitive.blocks(), sensitive.grid())
    assert all(torch.equal(before[name], tensor) for name, tensor in wrapper.model.state_dict().items())
    for choice, value in found.items():
        assert value == pytest.approx(sensitive.by_running_it(wrapper, choice), rel=0.02), choice


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("bits", "symmetric", "size"),
    [(4, False, 16), (4, True, 32), (4, False, 64), (4, False, 128), (8, False, 64)],
)
def test_kernels_of_our_own_round_as_pytorch_does(bits: int, symmetric: bool, size: int, dtype: str) -> None:
    """The same numbers in bfloat16; among ranges the same, but where two cost the same."""
    import torch

    from pipeline.passes.quantize import awq_search, fused_rounding

    wanted = awq_search.Grid(bits, symmetric, size, getattr(torch, dtype))
    weight, read = (each.cuda() for each in drawn(515, 384))
    weight[3, :size] = 0
    gram, factors = read.T @ read, (0.5 + torch.rand(384)).cuda()
    kernels = fused_rounding.fitting(weight, wanted)
    assert kernels is not None
    assert kernels.clip is not None
    found = kernels.missed(weight, factors, wanted)
    assert torch.equal(found, wanted.nearest(weight * factors).div_(factors).sub_(weight).bfloat16())
    scales, zeros, plain, best = kernels.clipped(weight, gram, wanted)
    groups = weight.unflatten(1, (-1, size))
    whole = wanted.parameters(*wanted.limits(groups))
    assert torch.equal(scales[0], whole[0].squeeze(-1))
    assert torch.equal(zeros[0], whole[1].squeeze(-1))
    assert torch.equal(plain, (wanted.nearest(weight) - weight).bfloat16())
    rounded = wanted.round(groups, scales[1][..., None], zeros[1][..., None]).flatten(1)
    assert torch.equal(best, (rounded - weight).bfloat16())
    slow = awq_search.search_clip(weight, gram, wanted)  # no quick products, so without kernels
    with awq_search.quick_products():
        quick = awq_search.search_clip(weight, gram, wanted)
    assert float((quick[0] == slow[0]).float().mean()) > 0.99
    lost = [
        float(awq_search.cost(wanted.round(groups, s[..., None], z[..., None]).flatten(1) - weight, gram))
        for s, z in (slow, quick)
    ]
    assert lost[1] == pytest.approx(lost[0], rel=1e-3)


def test_kernels_of_our_own_are_compiled_by_a_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which has no context of the driver by itself; where they cannot be made, the log says why, once."""
    import threading

    import torch

    from pipeline.passes.quantize import fused_rounding

    torch.zeros(1, device="cuda").add_(1)
    monkeypatch.setattr(fused_rounding, "_made", {})
    fused_rounding.prepare(32)
    for thread in threading.enumerate():
        if thread.name == "kernels":
            thread.join()
    assert fused_rounding._made[32] is not None
    monkeypatch.setattr(torch.cuda, "_compile_kernel", lambda *_: 1 / 0)
    assert [fused_rounding.kernels(64) for _ in range(2)] == [None, None]
    assert capsys.readouterr().out.count("division by zero") == 1


def test_quick_products_on_a_gpu_choose_the_same_scale() -> None:
    import torch

    from pipeline.passes.quantize import awq_search

    weight, read = (each.cuda() for each in drawn(512, 384))
    asked = [weight[:200].contiguous(), weight[200:].contiguous()], read.T @ read, read.abs().mean(0)
    scale, lost, plain = awq_search.search_scale(*asked, grid(4, False, 64))
    with awq_search.quick_products():
        found = awq_search.search_scale(*asked, grid(4, False, 64))
    assert float(found[1]) != float(lost)
    assert torch.equal(found[0], scale)
    assert [float(each) for each in found[1:]] == pytest.approx([float(lost), float(plain)], rel=3e-3)


def test_compensation_on_a_gpu_loses_what_it_loses_on_a_cpu() -> None:
    from pipeline.passes.quantize.awq_search import cost
    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(512, 1152)
    gram, wanted = read.T @ read, grid(4, False, 64)
    lost = []
    for device in ("cpu", "cuda"):
        rounded = compensated(weight.to(device), gram.to(device), wanted)[0].cpu()
        lost.append(float(cost(rounded - weight, gram)))
    assert lost[1] == pytest.approx(lost[0], rel=0.02)
    assert lost[1] < 0.8 * float(cost(wanted.nearest(weight) - weight, gram))


def test_autoawq_is_repacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAWQ wants outputs in multiples of 64, so every head has values of its own here."""
    pytest.importorskip("awq", reason="requirements.txt names it")
    from olive.model import HfModelHandler

    monkeypatch.setitem(tiny.COMMON, "num_key_value_heads", 4)
    context = context_of(tmp_path, tiny.build("llama", tmp_path / "model"))
    options = quantize.Options(engine="autoawq", group_size=16, calibration_length=64)
    made = stage(context, "quantize", quantize, options).artifacts[0].path
    model = HfModelHandler(str(made), load_kwargs={"torch_dtype": "float16"}).load_model()
    exact = HfModelHandler(str(context.model), load_kwargs={"torch_dtype": "float32"}).load_model()
    ids = blocks(2)
    error = (model(input_ids=ids).logits.float() - exact(input_ids=ids).logits).pow(2).mean()
    assert float(error) < 0.05 * float(exact(input_ids=ids).logits.pow(2).mean())
