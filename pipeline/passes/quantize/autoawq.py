# mypy: disallow-subclassing-any=False
"""AutoAWQ as another engine for AWQ, its result repacked into Olive's format.

AutoAWQ 0.2.9 is archived. It needs CUDA, and transformers 5 does not load what it saves; but its codes,
zero points and scales are an affine grid like Olive's, so they are moved over unchanged.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from olive.common.quant.hf_utils import OliveHfQuantizationConfig
from olive.common.quant.utils import pack_to_uint8
from olive.model import HfModelHandler
from olive.passes.pytorch.autoawq import AutoAWQQuantizer
from olive.passes.pytorch.common import inherit_hf_from_hf
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit

# In AutoAWQ's GEMM layout an int32 holds eight codes of one row; position i holds the output ORDER[i].
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LONGEST = 512  # tokens of a block: AutoAWQ drops longer blocks, and fails with fewer tokens in total


class LabAutoAwq(AutoAWQQuantizer):
    """Olive's AutoAWQ pass on our calibration blocks, written as a checkpoint with `quant_method: olive`."""

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Quantizing with AutoAWQ; it takes minutes and reports no progress", progress=0.05)
        ids = dataset_of(config.data_config).ids
        tokens = ids.flatten().repeat(1 + (LONGEST - 1) // max(1, ids.numel()))
        blocks = tokens[: len(tokens) // LONGEST * LONGEST].view(-1, LONGEST)
        # Olive passes on what is under `data_name`; AutoAWQ takes lists of token ids there.
        lists = SimpleNamespace(load_dataset_params={"data_name": blocks.tolist()}, pre_process_params={})
        config = config.model_copy(update={"data_config": lists})
        folder = Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            super()._run_for_config(model, config, scratch)
            emit(message="Repacking into Olive's format", progress=0.9)
            repack(Path(scratch), folder, config.q_group_size)
        return inherit_hf_from_hf(model, output_model_path, adapter_path=model.adapter_path)


def repack(source: Path, folder: Path, group_size: int) -> None:
    """Write a checkpoint that AutoAWQ saved in its GEMM layout as one in Olive's format."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            found |= {f"{module}.{key}": value for key, value in _olive(tensors, module).items()}
        elif kind not in ("qzeros", "scales"):
            found[name] = tensor.contiguous()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    for file in source.iterdir():
        if (
            file.suffix != ".safetensors"
            and not file.name.endswith(".safetensors.index.json")
            and file.is_file()
        ):
            shutil.copyfile(file, folder / file.name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["quantization_config"] = OliveHfQuantizationConfig(
        bits=4, symmetric=False, group_size=group_size
    ).to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def unpack(packed: Tensor) -> Tensor:
    """int32 [rows, columns / 8] in AutoAWQ's order to codes uint8 [rows, columns]."""
    codes = torch.empty(*packed.shape, 8, dtype=torch.uint8)
    for place, output in enumerate(ORDER):
        codes[..., output] = ((packed >> (4 * place)) & 15).to(torch.uint8)
    return codes.flatten(1)


def _olive(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """A matrix's tensors, AutoAWQ's [inputs, outputs] transposed to Olive's [outputs, inputs]."""
    codes, zeros = (unpack(tensors[f"{module}.{kind}"]).T for kind in ("qweight", "qzeros"))
    return {
        "qweight": pack_to_uint8(codes.contiguous(), 4),
        "qzeros": pack_to_uint8(zeros.contiguous(), 4),
        "scales": tensors[f"{module}.scales"].T.contiguous(),
    }
