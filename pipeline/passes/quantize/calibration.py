# mypy: disallow-untyped-decorators=False
"""What quantization is calibrated on: the user's rows, then a bundled general text, in equal blocks.

Named in a workflow like `lab_rows`, with "user_script": ".../pipeline/passes/quantize/calibration.py".

The bundled text alternates between News from Nowhere (William Morris, 1890: talk and description) and An
Introduction to Mathematics (A. N. Whitehead, 1911: exposition), both in the public domain.
`calibration.txt` and `scoring.txt` have no paragraph in common.
"""

from __future__ import annotations

from pathlib import Path

import torch
from olive.data.registry import Registry
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from pipeline.inputs.data.sampling import scattered
from pipeline.passes.rows import Rows, lab_rows

TEXTS = Path(__file__).parent.parent / "text"


@Registry.register_dataset("lab_calibration")
def lab_calibration(
    path: str,
    template: str,
    model: str,
    eval_fraction: float,
    seed: int,
    blocks: int,
    length: int,
    general: float,
) -> Blocks:
    """`blocks` blocks of `length` tokens for the model in folder `model`, the share `general` of it from the
    bundled text, the rest from the training rows. If one is short, the other fills up, unless its share
    is 0; if both are short, there are fewer blocks."""
    rows = lab_rows(path, template, model, "train", eval_fraction, seed, max_length=length, loss_on="all")
    wanted = blocks * length
    text = text_tokens(rows.tokenizer, "calibration") if general else []
    from_text = min(len(text), round(wanted * general))
    ids = row_tokens(rows, wanted - from_text) if general < 1 else []
    return Blocks(cut(ids + text[: wanted - len(ids)], length))


class Blocks(Dataset[tuple[dict[str, Tensor], Tensor]]):
    """Blocks as ({"input_ids", "attention_mask"}, labels), each int64 [tokens]: what Olive's passes read."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        if not 0 <= index < len(self.ids):
            raise IndexError(index)
        block = self.ids[index]
        return {"input_ids": block, "attention_mask": torch.ones_like(block)}, block


def row_tokens(rows: Rows, most: int) -> list[int]:
    """Up to `most` token ids of rows, one after the other; if not all fit, of rows from all over."""
    ids: list[int] = []
    for index in scattered(len(rows)):
        if len(ids) >= most:
            break
        ids += rows[index][0]["input_ids"].tolist()
    return ids[:most]


def text_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """Token ids of a bundled text: "calibration" or "scoring"."""
    text = (TEXTS / f"{name}.txt").read_text("utf-8")
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def cut(ids: list[int], length: int) -> Tensor:
    """Token ids as int64 [blocks, length]; what does not fill a block is left out. Fewer ids than `length`
    are one short block."""
    length = min(length, len(ids))
    count = len(ids) // length if length else 0
    return torch.tensor(ids[: count * length], dtype=torch.int64).reshape(count, length)
