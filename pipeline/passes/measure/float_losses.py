"""Losses of the float model on single rows, by PyTorch: what an exported graph is compared with.

In float32, whatever the machine trains in: then they are those of a float32 export to within 0.001 nats a
token on every row; bfloat16 is off by more. `benchmarks/exported_losses.py` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from olive.data.constants import IGNORE_INDEX
from olive.model import HfModelHandler
from olive.passes.pytorch.train_utils import load_hf_base_model

from pipeline.exports.token_losses import Loss
from pipeline.passes.finetune.quant_lora import unpack_where_it_fits
from pipeline.passes.measure.perplexity import judge
from pipeline.passes.measure.row_losses import Measure


@contextmanager
def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Iterator[Measure]:
    """A function like `token_losses.measure` for the model in a Hugging Face folder, without adapters.

    The model is in memory as long as that is. Raises what transformers raises for a folder it cannot load.
    """
    placed = {"": 0} if torch.cuda.is_available() else None
    model: Any = load_hf_base_model(HfModelHandler(str(folder)), torch_dtype=dtype, device_map=placed)
    model.eval()
    unpack_where_it_fits(model, dtype)

    def measure(ids: Sequence[int], counted: Sequence[bool], _: str | None = None) -> Loss:
        read = torch.tensor(ids)
        labels = torch.where(torch.tensor(counted), read, IGNORE_INDEX)
        tokens = int((labels[1:] != IGNORE_INDEX).sum())
        if not tokens:
            return Loss(0.0, 0)
        return Loss(judge(model, [(read, labels)]).losses[0] * tokens, tokens)

    yield measure
