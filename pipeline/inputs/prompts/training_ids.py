"""A row as the token ids that training reads. The check before a run counts with it too, so both agree.

`tokenizer` is what transformers' AutoTokenizer makes of a model's folder. Works without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.inputs.prompts.templates import Rendered

GENERATION_CONFIG = "generation_config.json"
WAY_OUT = "choose another base model, such as one of the catalogue"
Ids = list[int]


def encode(tokenizer: Any, text: Rendered, ends: list[int]) -> tuple[Ids, Ids]:
    """Token ids of (prompt, answer) of a row; see `encode_all`."""
    return encode_all(tokenizer, [text], ends)[0]


def encode_all(tokenizer: Any, texts: Sequence[Rendered], ends: list[int]) -> list[tuple[Ids, Ids]]:
    """Token ids of (prompt, answer) of rows. Each answer ends with one of `ends`.

    If the ids of the whole text begin with those of the prompt, the answer's are the rest. Else a token spans
    the border, and the two are tokenized separately: at inference the prompt comes alone, so the model would
    never see that token again.
    """
    prompts = _all_prompt_ids(tokenizer, [text.prompt for text in texts])
    wholes = _all_prompt_ids(tokenizer, [text.full for text in texts])
    found = []
    for text, asked, whole in zip(texts, prompts, wholes, strict=True):
        answer = whole[len(asked) :]
        if whole[: len(asked)] != asked:
            answer = tokenizer(text.full[len(text.prompt) :], add_special_tokens=False)["input_ids"]
        if answer[-1:] not in [[end] for end in ends]:
            answer = [*answer, ends[0]]
        found.append((asked, answer))
    return found


def prompt_ids(tokenizer: Any, prompt: str) -> Ids:
    """Token ids of a rendered prompt, after those that the tokenizer puts before every text.

    If the template wrote those as text, they are not added again. An end token that the tokenizer puts after
    a text is left out, because the answer follows.
    """
    return _all_prompt_ids(tokenizer, [prompt])[0]


def _all_prompt_ids(tokenizer: Any, prompts: list[str]) -> list[Ids]:
    first = before(tokenizer)
    every: list[Ids] = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    return [ids if ids[: len(first)] == first else [*first, *ids] for ids in every]


def put_before(plain: list[int], whole: list[int]) -> list[int]:
    """The ids in `whole` before `plain`."""
    starts = range(len(whole) - len(plain) + 1)
    return whole[: next((at for at in starts if whole[at : at + len(plain)] == plain), 0)]


@lru_cache(maxsize=4)
def before(tokenizer: Any) -> Ids:
    """The ids that a tokenizer puts before every text: usually begin-of-text, or none."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return put_before(plain, whole)


def require_known(tokenizer: Any, ids: Iterable[int], vocabulary: int | None) -> None:
    """Check that a model with that many tokens knows all of `ids`. Raises LabError naming the highest."""
    highest = max(ids, default=0)
    if vocabulary is not None and highest >= vocabulary:
        token = display.quoted(tokenizer.convert_ids_to_tokens(highest))
        raise LabError(
            f"This model's tokenizer has a token that the model does not know: {token} is number {highest:,},"
            f" and vocab_size in its config.json is {vocabulary:,}; resize the model's embeddings to its"
            f" tokenizer, or {WAY_OUT}."
        )


def always_read(tokenizer: Any) -> set[int]:
    """Ids that occur in ordinary text: of plain words, and of what is put before, after and between texts.

    Others, such as an image token that a text model does not know, occur only where a text names them.
    """
    added = set(tokenizer.added_tokens_decoder)
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    plain = {number for number in tokenizer.get_vocab().values() if number not in added}
    return plain | {number for number in named if number is not None}


def end_tokens(tokenizer: Any, folder: Path, stop: str = "") -> Ids:
    """Tokens that end an answer: the tokenizer's, the generation config's, the template's if it is one token.

    The first one ends an answer whose template writes no end. Raises LabError if there is none.
    """
    ends = [tokenizer.eos_token_id]
    config = folder / GENERATION_CONFIG
    if config.is_file():
        listed = json.loads(config.read_text("utf-8")).get("eos_token_id")
        ends += listed if isinstance(listed, list) else [listed]
    if stop:
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
        ends += ids if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder else []
    found = list(dict.fromkeys(end for end in ends if end is not None))
    if not found:
        raise LabError(
            "This model's tokenizer has no token that ends a text; set eos_token in its"
            f" tokenizer_config.json, or {WAY_OUT}."
        )
    return found
