"""Several rows in one sequence, none of which sees another.

Source: Krell et al., Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027; the order
of rows is its best fit of the longest first. The boundary is in the positions, which start at zero in
every row: from them transformers makes a mask in which a token sees the tokens before it in its own row.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort

import torch
import transformers
from olive.data.constants import IGNORE_INDEX
from torch.utils.data import Dataset

from pipeline.errors import LabError
from pipeline.passes.rows import Rows

Sample = tuple[dict[str, torch.Tensor], torch.Tensor]


class Packs(Dataset[Sample]):
    """`Rows` as packs of at most `length` tokens: ({"input_ids", "position_ids"}, labels), int64 [tokens].

    A row's first token has no label, because the token before it belongs to another row. Rows longer
    than `length` must have been cut.
    """

    def __init__(self, rows: Rows, length: int, seed: int) -> None:
        self.rows = [_small(rows[i]) for i in range(len(rows))]
        self.packs = pack([len(ids) for ids, _ in self.rows], length, seed)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Sample:
        return join([self.rows[i] for i in self.packs[index]])

    def length(self, index: int) -> int:
        """Tokens of the pack."""
        return sum(len(self.rows[i][0]) for i in self.packs[index])


def join(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> Sample:
    """One pack of rows given as (ids, labels), each [tokens]."""
    labels = torch.cat([labels for _, labels in rows]).long()
    positions = torch.cat([torch.arange(len(ids)) for ids, _ in rows])
    labels[positions == 0] = IGNORE_INDEX
    return {"input_ids": torch.cat([ids for ids, _ in rows]).long(), "position_ids": positions}, labels


def pack(sizes: list[int], length: int, seed: int) -> list[list[int]]:
    """Put items of these sizes into packs of `length` by best fit; return the indices in each pack.

    Each pack holds at most `length`, unless a single item is larger. The seed decides the order of items of
    equal size.
    """
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a shuffle, not a secret
    order.sort(key=lambda index: -sizes[index])
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), fewest first
    for index in order:
        at = bisect_left(room, (sizes[index], -1))
        if at < len(room):
            free, number = room.pop(at)
        else:
            free, number = length, len(packs)
            packs.append([])
        packs[number].append(index)
        insort(room, (free - sizes[index], number))
    return packs


@torch.no_grad()
def check_boundaries(model: transformers.PreTrainedModel) -> None:
    """Check that the model keeps the rows of a pack apart. Raises LabError if it does not.

    Recurrent layers and unusual positions ignore the boundaries. So this runs a short row after two different
    rows: its logits must be the same as when it runs alone.
    """
    size = min(8, model.config.get_text_config().vocab_size // 2)
    row = torch.arange(1, size + 1, device=model.device)
    positions = torch.arange(size, device=model.device).repeat(2)
    was_training = model.training
    model.eval()
    try:
        alone = model(input_ids=row[None], use_cache=False).logits[0].float()
        behind = [
            model(input_ids=torch.cat([first, row])[None], position_ids=positions[None], use_cache=False)
            .logits[0, size:]
            .float()
            for first in (row.flip(0), torch.full_like(row, size + 1))
        ]
    finally:
        model.train(was_training)
    # Where rows mix, logits change by about their own size.
    allowed = max(1e-3, 8 * torch.finfo(model.dtype).eps) * float(alone.abs().max())
    differences = (behind[0] - behind[1], behind[0] - alone)
    if max(float(difference.abs().max()) for difference in differences) > allowed:
        raise LabError(
            f"finetune.packing: models of type {model.config.model_type} let rows in one sequence see each"
            " other; set packing to false."
        )


def _small(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels) in half the bytes: all rows are kept."""
    inputs, labels = sample
    return inputs["input_ids"].int(), labels.int()
