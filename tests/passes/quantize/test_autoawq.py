"""AutoAWQ's GEMM tensors in Olive's format: the same weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.chain
GROUP = 16


def gemm(codes: Any) -> Any:
    """Pack codes [rows, columns] as AutoAWQ's WQLinear_GEMM documents it: eight columns to an int32."""
    import torch

    packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int32)
    for column in range(packed.shape[1]):
        for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            packed[:, column] |= codes[:, column * 8 + output].int() << (place * 4)
    return packed


def test_dequantized_weights_are_equal_bit_for_bit(tmp_path: Path) -> None:
    import torch
    from olive.model import HfModelHandler
    from safetensors.torch import load_file, save_file

    from pipeline.passes.quantize.autoawq import repack
    from tests.helpers import tiny

    saved = tiny.build("qwen2", tmp_path / "saved")
    tensors = load_file(saved / "model.safetensors")
    expected, written = {}, {}
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        if ".layers." not in name or not name.endswith("_proj.weight"):
            written[name] = tensor.half()
            continue
        outputs, inputs = tensor.shape
        codes, zeros = (
            torch.randint(0, 16, (inputs, outputs)),
            torch.randint(0, 16, (inputs // GROUP, outputs)),
        )
        scales = torch.rand(inputs // GROUP, outputs).half()
        wide = [each.repeat_interleave(GROUP, dim=0) for each in (zeros, scales)]
        expected[name] = ((codes - wide[0]) * wide[1]).T
        module = name.removesuffix(".weight")
        written |= {
            f"{module}.qweight": gemm(codes),
            f"{module}.qzeros": gemm(zeros),
            f"{module}.scales": scales,
        }
    save_file(written, saved / "model.safetensors")
    (tmp_path / "olive").mkdir()
    repack(saved, tmp_path / "olive", GROUP)
    config = json.loads((tmp_path / "olive" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "olive"
    model = HfModelHandler(str(tmp_path / "olive"), load_kwargs={"torch_dtype": "float16"}).load_model()
    assert len(expected) == 14
    for name, weight in expected.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        mine = layer.unpack_and_dequantize(layer.qweight, layer.scales, layer.qzeros)
        assert mine.dtype == weight.dtype == torch.float16
        assert torch.equal(mine, weight), name
    others = [name for name in written if name.endswith(".weight") or name.endswith(".bias")]
    assert len(others) > 6
    for name in others:
        assert torch.equal(model.state_dict()[name], written[name]), name
