"""AWQ: folding changes nothing, the search never loses, and what is packed is what was found."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import LabError
from tests.helpers import tiny

pytestmark = pytest.mark.chain
ARCHITECTURES = ["llama", "phi3", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gemma"]
TOLERANCE = 1e-4  # of the largest logit, in float32: folding multiplies and divides by the same numbers


def prepared(folder: Path, architecture: str = "llama", dtype: str = "float32", **changes: Any) -> Any:
    """A small model with `quant_info` on its matrices, as Olive prepares it."""
    from olive.model import HfModelHandler
    from olive.passes.pytorch.quant_utils import prepare_model

    if not (folder / "config.json").exists():
        tiny.build(architecture, folder)
    config = {"bits": 4, "sym": False, "group_size": 16, "lm_head": False, "overrides": None, **changes}
    handler = HfModelHandler(str(folder), load_kwargs={"torch_dtype": dtype})
    return prepare_model(handler, SimpleNamespace(**config))[0]


def blocks(count: int = 4, length: int = 24) -> Any:
    import torch

    return torch.randint(3, 259, (count, length), generator=torch.Generator().manual_seed(1))


def logits(wrapper: Any) -> Any:
    import torch

    with torch.no_grad():
        return wrapper.model(input_ids=blocks(2)).logits.float()


def with_biases(wrapper: Any) -> None:
    """Random biases, where a random model's are zero."""
    import torch

    for name, parameter in wrapper.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("values", [2, 4])  # of four heads: shared by two each, or each its own
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_scales_leaves_the_model_as_it_was(
    architecture: str, values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipeline.passes.quantize import awq
    from pipeline.passes.quantize.running import layer_inputs

    monkeypatch.setitem(tiny.COMMON, "num_key_value_heads", values)
    wrapper = prepared(tmp_path, architecture)
    with_biases(wrapper)
    before = logits(wrapper)
    folded = 0
    with torch.no_grad():
        hidden, calls = layer_inputs.layer_inputs(wrapper, blocks(), torch.device("cpu"))
        for index, layer in enumerate(wrapper.get_layer_wrappers()):
            work = awq.LayerWork(wrapper, layer, f"model.layers.{index}", calls[index])
            outputs = work.calibrate(hidden)
            work.scale(hidden, outputs, "gram")
            for group in work.groups:
                scaled = group.factor is not None
                assert scaled == (values == 4 or group.readers != ["self_attn.o_proj"]), group.readers
                if group.factor is None:
                    continue
                folded += bool((group.factor != 1).any())
            for name, weight in work.exact.items():
                work.module.get_submodule(name).weight.data = weight
            hidden = outputs
    assert folded >= 5  # of six or eight groups; a scale of 1 may be the best
    after = logits(wrapper)
    assert (after - before).abs().max() < TOLERANCE * before.abs().max()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantized_is_nearer_than_rounded(bits: int, symmetric: bool, dtype: str, tmp_path: Path) -> None:
    from pipeline.passes.quantize import awq, rounding

    exact = logits(prepared(tmp_path, "qwen2"))
    errors = {}
    for name in ("rtn", "awq"):
        wrapper = prepared(tmp_path, "qwen2", dtype, bits=bits, sym=symmetric)
        if name == "rtn":
            rounding.pack(wrapper, begin=0.0)
        else:
            awq.quantize(wrapper, blocks(16, 64))
        errors[name] = float((logits(wrapper) - exact).pow(2).mean())
    # In 16 bit the other roundings hide what 8-bit weights lose.
    assert errors["awq"] < errors["rtn"] * (1.5 if bits == 8 and dtype != "float32" else 0.95)


def with_large_channels(wrapper: Any) -> Any:
    """A few channels that carry most, as in trained models."""
    for layer in wrapper.get_layer_wrappers():
        for norm in (layer.get_first_layer_norm(False), layer.get_second_layer_norm(False)):
            norm.weight.data[::16] *= 6
    return wrapper


@pytest.mark.parametrize(
    ("architecture", "objective", "most"),
    [("llama", "layer", 0.8), ("llama", "gram", 0.8), ("phi3", "gram", 0.8), ("gemma3", "gram", 0.85)],
)
def test_what_matters_is_found(architecture: str, objective: str, most: float, tmp_path: Path) -> None:
    from pipeline.passes.quantize import awq, rounding

    exact = logits(with_large_channels(prepared(tmp_path, architecture)))
    rounded, searched = (with_large_channels(prepared(tmp_path, architecture)) for _ in range(2))
    rounding.pack(rounded, begin=0.0)
    awq.quantize(searched, blocks(16, 64), objective=objective)
    error = [float((logits(wrapper) - exact).pow(2).mean()) for wrapper in (rounded, searched)]
    assert error[1] < most * error[0]


def test_gptq_on_scaled_weights_is_nearer_still(tmp_path: Path) -> None:
    from pipeline.passes.quantize import awq

    exact = logits(prepared(tmp_path))
    plain, compensated = prepared(tmp_path), prepared(tmp_path)
    awq.quantize(plain, blocks(16, 64))
    awq.quantize(compensated, blocks(16, 64), compensate=True)
    error = [float((logits(wrapper) - exact).pow(2).mean()) for wrapper in (plain, compensated)]
    assert error[1] < error[0]


def test_matrices_of_one_input_may_have_their_own_bits(tmp_path: Path) -> None:
    """As mixed precision gives them; then they are not compensated together."""
    from pipeline.passes.quantize import awq

    exact = logits(prepared(tmp_path))
    mixed = {f"model.layers.{layer}.mlp.up_proj": {"bits": 8} for layer in range(2)}
    wrappers = [prepared(tmp_path), prepared(tmp_path, overrides=mixed)]
    for wrapper in wrappers:
        awq.quantize(wrapper, blocks(16, 64), compensate=True)
    assert wrappers[1].get_layers(False)[0].mlp.up_proj.quantizer.bits == 8
    errors = [float((logits(wrapper) - exact).pow(2).mean()) for wrapper in wrappers]
    assert errors[1] < errors[0]


def test_a_layer_that_does_not_bear_folding_is_left_unscaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the norm feeds a third reader that nobody scales, as it does in architectures we do not know."""
    import torch

    from pipeline.passes.quantize import awq
    from pipeline.passes.quantize.running import layer_inputs

    wrapper = prepared(tmp_path)
    layer = wrapper.get_layer_wrappers()[0]
    forward = layer.layer.mlp.forward
    layer.layer.mlp.forward = lambda read: forward(read) + read
    said: list[Any] = []
    monkeypatch.setattr(awq, "emit", lambda **facts: said.append(facts["message"]))
    with torch.no_grad():
        hidden, calls = layer_inputs.layer_inputs(wrapper, blocks(), torch.device("cpu"))
        work = awq.LayerWork(wrapper, layer, "model.layers.0", calls[0])
        before = {name: weight.clone() for name, weight in layer.layer.state_dict().items()}
        work.scale(hidden, work.calibrate(hidden), "gram")
    assert said == ["model.layers.0: scales do not fold into this layer; it is rounded without them"]
    assert all(torch.equal(before[name], weight) for name, weight in layer.layer.state_dict().items())
    assert all(torch.equal(before[f"{name}.weight"], weight) for name, weight in work.exact.items())


def test_the_output_layer_is_clipped_too(tmp_path: Path) -> None:
    from olive.common.quant.nn import QuantLinear

    from pipeline.passes.quantize import awq

    wrapper = prepared(tmp_path, "qwen2", lm_head=True)  # its embeddings are tied
    embedding = wrapper.get_embeds(False)[0].weight.clone()
    awq.quantize(wrapper, blocks())
    assert isinstance(wrapper.get_lm_head(False), QuantLinear)
    assert (wrapper.get_embeds(False)[0].weight == embedding).all()


def test_nan_in_activations_names_the_layer(tmp_path: Path) -> None:
    from pipeline.passes.quantize import awq

    wrapper = prepared(tmp_path)
    wrapper.get_layers(False)[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(LabError, match=r"model\.layers\.1\.self_attn\.q_proj reads numbers that are not fin"):
        awq.quantize(wrapper, blocks())
    wrapper = prepared(tmp_path)
    wrapper.get_layers(False)[0].mlp.down_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(LabError, match=r"model\.layers\.0\.mlp\.down_proj holds numbers that are not finite"):
        awq.quantize(wrapper, blocks())


def test_inputs_that_are_all_zero(tmp_path: Path) -> None:
    """A layer that never gets anything is rounded to nearest."""
    import torch

    from pipeline.passes.quantize import awq, rounding

    wrapper, plain = prepared(tmp_path), prepared(tmp_path)
    for one in (wrapper, plain):
        one.get_layers(False)[0].input_layernorm.weight.data.zero_()
    awq.quantize(wrapper, blocks())
    rounding.pack(plain, begin=0.0)
    mine, theirs = (one.get_layers(False)[0].self_attn.q_proj for one in (wrapper, plain))
    assert torch.isfinite(logits(wrapper)).all()
    assert torch.equal(mine.scales, theirs.scales)
    assert torch.equal(mine.qweight, theirs.qweight)


def test_progress_is_told_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.passes.quantize import awq

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(awq, "emit", lambda **facts: told.append(facts))
    awq.quantize(prepared(tmp_path), blocks())
    assert [facts["message"] for facts in told] == ["Quantized layer 1 of 2", "Quantized layer 2 of 2"]
    assert told[0]["eta_seconds"] > 0
    assert told[1]["eta_seconds"] == 0


def test_no_two_batches_are_probed_by_the_same_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of one combination averages out over batches only if each has another."""
    import torch

    from pipeline.passes.quantize import awq
    from pipeline.passes.quantize.running import layer_inputs

    probes = []
    monkeypatch.setattr(layer_inputs, "BATCH", {"cpu": 1})
    original = torch.autograd.grad

    def grad(output: Any, inputs: Any, probe: Any) -> Any:
        probes.append(probe)
        return original(output, inputs, probe)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    wrapper = prepared(tmp_path, "llama")
    awq.quantize(wrapper, blocks(3))
    assert len(probes) == 3 * len(list(wrapper.get_layers(return_name=False)))
    assert not any(torch.equal(one, other) for one, other in combinations(probes[:3], 2))
