# mypy: disallow-untyped-decorators=False
"""The user's rows as Olive data: an Olive component that yields token ids with labels.

Named in a workflow as

    {"name": "train", "user_script": ".../pipeline/passes/rows.py",
     "load_dataset_config": {"type": "lab_rows", "params": {...the arguments of lab_rows...}}}
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from olive.data.config import DataConfig
from olive.data.constants import IGNORE_INDEX
from olive.data.registry import Registry
from torch.utils.data import Dataset

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.models import architectures
from pipeline.inputs.models.contents import tokenizer_of
from pipeline.inputs.prompts import model_template, templates, training_ids
from pipeline.inputs.prompts.training_ids import end_tokens, require_known
from pipeline.passes import new_rows


@Registry.register_dataset("lab_rows")
def lab_rows(
    path: str,
    template: str,
    model: str,
    part: str,
    eval_fraction: float,
    seed: int,
    max_length: int,
    loss_on: str = "response",
    limit: int | None = None,
) -> Rows:
    """The `part` of a dataset, tokenized for the model in folder `model`: "train", "eval" (the held-out
    rows), "new", those without near copies of training rows, "validation", those of the training rows that
    choose between adapters, or "learn", the others.

    `loss_on` "response" masks the prompt's labels, "all" masks nothing. `limit` keeps that many, from
    all over the part.
    """
    folder = Path(model)
    parsed = templates.parse(template, model_template.chat_template(folder))
    parts = datasets.split(Path(path), parsed, eval_fraction, seed)
    apart = set(parts.validation)
    new = new_rows.of(Path(path), parts, None, parsed)
    if part == "new":
        new = new.without_copies(Path(path), parts, parsed)
    positions = {
        "train": parts.train,
        "eval": parts.held_out,
        "new": new.positions,
        "validation": parts.validation,
        "learn": [position for position in parts.train if position not in apart],
    }[part]
    wanted = spread(positions, limit)
    found = datasets.load(Path(path), parsed, set(wanted))
    chosen = Rows([found[i] for i in wanted], parsed, folder, max_length, loss_on)
    chosen.positions, chosen.left_out = wanted, new.left_out()
    return chosen


def _vocabulary(folder: Path) -> int | None:
    """Size of the vocabulary of a folder's model; None if only its tokenizer is there."""
    file = folder / "config.json"
    return architectures.vocabulary(json.loads(file.read_text("utf-8"))) if file.is_file() else None


def dataset_of(config: DataConfig | dict[str, Any]) -> Any:
    """The dataset that a pass's data config names, without a copy in the `datasets` library's cache."""
    data = config if isinstance(config, DataConfig) else DataConfig.model_validate(config)
    return data.to_data_container().load_dataset()


class Rows(Dataset[tuple[dict[str, torch.Tensor], torch.Tensor]]):
    """Samples of rows as ({"input_ids", "attention_mask"}, labels), each an int64 tensor of [tokens].

    A row is one sample; only of a conversation that the template rewrites as it continues, each answer is
    one. `cut` has the numbers of the rows that were read so far and did not fit into `max_length`. Of
    `lab_rows`, `positions` has theirs in the dataset, and `left_out` the metrics of `NewRows.left_out`.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        template: templates.Template,
        folder: Path,
        max_length: int,
        loss_on: str,
        tokenizer: Any = None,
    ) -> None:
        """`tokenizer` is the folder's, if it is loaded already."""
        self.rows = rows
        self.template = template
        self.max_length = max_length
        self.loss_on = loss_on
        self.tokenizer = tokenizer or tokenizer_of(folder)
        self.vocabulary = _vocabulary(folder)
        self.ends = end_tokens(self.tokenizer, folder, template.stop)
        self.cut: set[int] = set()
        self.positions: list[int] = []
        self.left_out: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        row, text = self.samples[index]
        sample = training_ids.sample(
            self.tokenizer, self.template, self.rows[row], text, self.ends, self.max_length
        )
        require_known(self.tokenizer, sample.whole, self.vocabulary)
        if sample.cut:
            self.cut.add(row)
        ids = torch.tensor(sample.ids)
        labels = ids.clone()
        if self.loss_on == "response":
            labels[~torch.tensor(sample.learned)] = IGNORE_INDEX
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels

    def length(self, index: int) -> int:
        """Characters of the sample: enough to put those of like length together without tokenizing all."""
        return len(self.samples[index][1].full)

    @cached_property
    def samples(self) -> list[tuple[int, templates.Rendered]]:
        """(position of its row, text) of each sample."""
        return [
            (row, text)
            for row, whole in enumerate(self.texts)
            for text in training_ids.samples(self.tokenizer, whole, self.ends)
        ]

    @cached_property
    def texts(self) -> list[templates.Rendered]:
        """All rows as text, rendered together once: one by one takes ten times as long.

        Raises InputError for one that the template refuses.
        """
        found: list[templates.Rendered] = []
        for text in templates.each(self.template, self.rows):
            if isinstance(text, str):
                raise InputError(text)
            found.append(text)
        return found
