# mypy: disallow-untyped-decorators=False
"""The user's rows as Olive data: an Olive component that yields token ids with labels.

Named in a workflow as

    {"name": "train", "user_script": ".../pipeline/passes/rows.py",
     "load_dataset_config": {"type": "lab_rows", "params": {...the arguments of lab_rows...}}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from olive.data.config import DataConfig
from olive.data.constants import IGNORE_INDEX
from olive.data.registry import Registry
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline import datasets, templates


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
    """The `part` ("train" or "eval") of a dataset, tokenized for the model in folder `model`.

    `loss_on` "response" masks the prompt's labels, "all" masks nothing. `limit` keeps the first rows.
    """
    folder = Path(model)
    parsed = templates.parse(template, templates.chat_template(folder))
    parts = datasets.split(Path(path), parsed, eval_fraction, seed)
    wanted = (parts.train if part == "train" else parts.held_out)[:limit]
    found = datasets.load(Path(path), parsed.fields, set(wanted))
    return Rows([found[i] for i in wanted], parsed, folder, max_length, loss_on)


def dataset_of(config: DataConfig | dict[str, Any]) -> Any:
    """The dataset that a pass's data config names, without a copy in the `datasets` library's cache."""
    data = config if isinstance(config, DataConfig) else DataConfig.model_validate(config)
    return data.to_data_container().load_dataset()


class Rows(Dataset[tuple[dict[str, torch.Tensor], torch.Tensor]]):
    """Rows as ({"input_ids", "attention_mask"}, labels), each an int64 tensor of [tokens]."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        template: templates.Template,
        folder: Path,
        max_length: int,
        loss_on: str,
    ) -> None:
        self.rows = rows
        self.template = template
        self.max_length = max_length
        self.loss_on = loss_on
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.ends = end_tokens(self.tokenizer, folder, template)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        prompt, answer = encode(self.tokenizer, self.template, self.rows[index], self.ends)
        prompt, answer = cut(prompt, answer, self.max_length)
        ids = torch.tensor(prompt + answer)
        labels = ids.clone()
        if self.loss_on == "response":
            labels[: len(prompt)] = IGNORE_INDEX
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels

    def length(self, index: int) -> int:
        """Characters of the row: enough to put rows of like length together without tokenizing all."""
        return len(self.template.full(self.rows[index]))


def encode(
    tokenizer: PreTrainedTokenizerBase, template: templates.Template, row: templates.Row, ends: list[int]
) -> tuple[list[int], list[int]]:
    """Token ids of (prompt, answer). The answer ends with one of `ends`.

    The two are tokenized apart, because at inference the prompt comes alone: a token that spans the
    border would be one the model never sees again.
    """
    prompt = template.prompt(row)
    answer = template.full(row)[len(prompt) :]
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if answer_ids[-1:] not in [[end] for end in ends]:
        answer_ids = [*answer_ids, ends[0]]
    return prompt_ids(tokenizer, prompt), answer_ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, with the begin-of-text token once if the model uses one."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return ids[1:]  # the chat template wrote it as text already
    return ids


def cut(prompt: list[int], answer: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Shorten a row to `max_length` tokens: the prompt loses its beginning, a very long answer its end.

    Something of the answer is always left, so every row has labels.
    """
    if len(prompt) + len(answer) > max_length:
        prompt = prompt[-(max_length - min(len(answer), max_length // 2)) :]
        answer = answer[: max_length - len(prompt)]
    return prompt, answer


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, folder: Path, template: templates.Template | None = None
) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the generation config's, the template's if it is one token.

    The first one is what an answer gets when its template writes no end.
    """
    ends = [tokenizer.eos_token_id]
    config = folder / "generation_config.json"
    if config.is_file():
        listed = json.loads(config.read_text("utf-8")).get("eos_token_id")
        ends += listed if isinstance(listed, list) else [listed]
    if template is not None and template.stop:
        ids = tokenizer(template.stop, add_special_tokens=False)["input_ids"]
        ends += ids if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder else []
    return list(dict.fromkeys(end for end in ends if end is not None))
