"""Losses of the float model on single rows, by PyTorch: what an exported graph is compared with.

In float32, whatever the machine trains in: then they are those of a float32 export to within 0.001 nats a
token on every row; bfloat16 is off by more. `benchmarks/exported_losses.py` measures both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from olive.data.constants import IGNORE_INDEX
from olive.model import HfModelHandler
from olive.passes.pytorch.train_utils import load_hf_base_model

from pipeline.exports.token_losses import Loss
from pipeline.passes.finetune.quant_lora import unpack_where_it_fits
from pipeline.passes.measure.known.known_rows import Known
from pipeline.passes.measure.perplexity import judge
from pipeline.passes.measure.row_losses import Measure
from pipeline.stages.events import emit


@contextmanager
def known_or_loaded(folder: Path, known: Known) -> Iterator[Measure]:
    """As `loaded`, for rows of which some are known; the model is loaded for the first one that is not."""
    with ExitStack() as stack:
        model: list[Measure] = []

        def now(ids: Sequence[int], counted: Sequence[bool]) -> Loss:
            if not model:
                emit(message="Loading the float model")
                model.append(stack.enter_context(loaded(folder)))
            return model[0](ids, counted, None)

        yield lambda ids, counted, _: known.loss(ids, counted, lambda: now(ids, counted))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model in a Hugging Face folder, ready to predict. Raises what transformers raises for a folder it
    cannot load."""
    placed = {"": 0} if torch.cuda.is_available() else None
    model: Any = load_hf_base_model(HfModelHandler(str(folder)), torch_dtype=dtype, device_map=placed)
    model.eval()
    unpack_where_it_fits(model, dtype)
    return model


@contextmanager
def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Iterator[Measure]:
    """A function like `token_losses.measure` for the model in a Hugging Face folder, without adapters.

    The model is in memory as long as that is. Raises what `load` raises.
    """
    model = load(folder, dtype)

    def measure(ids: Sequence[int], counted: Sequence[bool], _: str | None = None) -> Loss:
        read = torch.tensor(ids)
        labels = torch.where(torch.tensor(counted), read, IGNORE_INDEX)
        tokens = int((labels[1:] != IGNORE_INDEX).sum())
        if not tokens:
            return Loss(0.0, 0)
        return Loss(judge(model, [(read, labels)]).losses[0] * tokens, tokens)

    yield measure
