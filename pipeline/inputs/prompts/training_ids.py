"""A row as the token ids that training reads. The check before a run counts with it too, so both agree.

`tokenizer` is what transformers' AutoTokenizer makes of a model's folder. Works without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.inputs.prompts import lab_prompt, literal_prompts
from pipeline.inputs.prompts.templates import Rendered, Row, Template, is_conversation

GENERATION_CONFIG = "generation_config.json"
WAY_OUT = "choose another base model, such as one of the catalogue"
LEAST_SHARE = 4  # a quarter of all ids must be left for an answer that is cut
Ids = list[int]


@dataclass(frozen=True)
class Sample:
    """What training reads of a row: those of the `whole` ids that are kept, by position.

    `answers` are the spans of the whole that are learned, each with its end token.
    """

    whole: Ids
    answers: list[tuple[int, int]]
    kept: Sequence[int]

    @property
    def ids(self) -> Ids:
        return [self.whole[at] for at in self.kept]

    @property
    def learned(self) -> list[bool]:
        """Of each of `ids`, whether it is part of an answer."""
        flags = [False] * len(self.whole)
        for start, stop in self.answers:
            flags[start:stop] = [True] * (stop - start)
        return [flags[at] for at in self.kept]

    @property
    def cut(self) -> bool:
        return len(self.kept) < len(self.whole)


def samples(tokenizer: Any, text: Rendered, ends: Ids) -> list[Rendered]:
    """A row's text as training reads it: one sample where a later turn repeats the earlier ones as they were
    learned, with an end token behind each answer; else a sample for each answer.
    """
    if all(_has_end(tokenizer, text.full[span.stop - span.end : span.stop], ends) for span in text.earlier):
        return [*text.apart, Rendered(text.prompt, text.full, text.earlier)]
    alone = [Rendered(text.full[: span.start], text.full[: span.stop]) for span in text.earlier]
    return [*alone, Rendered(text.prompt, text.full)]


def _has_end(tokenizer: Any, behind: str, ends: Ids) -> bool:
    return any(number in ends for number in _ids_of(tokenizer, behind))


@lru_cache(maxsize=64)
def _ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def sample(tokenizer: Any, template: Template, row: Row, text: Rendered, ends: Ids, most: int) -> Sample:
    """One of `samples` of a row as at most `most` ids.

    A conversation that is longer keeps the turns from its beginning that fit; of the next answer, where there
    is room for it, its beginning and the token that ends it. Where not even one turn fits, and of other rows,
    what `cut` keeps is left.
    """
    prompt, answer = encode(tokenizer, text, ends)
    answers = [*_earlier(tokenizer, text, prompt, ends, most), (len(prompt), len(prompt) + len(answer))]
    whole = [*prompt, *answer]
    if len(whole) <= most:
        return Sample(whole, answers, range(len(whole)))
    fit = [span for span in answers if span[1] <= most]
    if fit:
        next_start, next_stop = answers[len(fit)]
        if most - next_start >= most // LEAST_SHARE:
            return Sample(whole, answers, [*range(most - 1), next_stop - 1])
        return Sample(whole, answers, range(fit[-1][1]))
    start, stop = answers[0]
    opening, closing = frame(tokenizer, template, row, whole[:start])
    kept = cut(list(range(start)), list(range(start, stop)), most, opening, closing)
    return Sample(whole, answers, [*kept[0], *kept[1]])


def _earlier(tokenizer: Any, text: Rendered, prompt: Ids, ends: Ids, most: int) -> list[tuple[int, int]]:
    """Where the answers before the last one stand in the ids of the last one's prompt.

    Each begins where its own prompt ends. A token that spans that border is not learned: at inference, where
    the prompt comes alone, the model would never see it. None is looked for behind `most` ids, but one.
    """
    found: list[tuple[int, int]] = []
    for span in text.earlier:
        asked, answered = _all_prompt_ids(tokenizer, [text.full[: span.start], text.full[: span.stop]])
        same = in_common(asked, prompt)
        start = same + (same < len(asked))
        stop = in_common(answered, prompt)
        while stop > start and prompt[stop - 1] not in ends:  # what the template writes behind the end
            stop -= 1
        if stop > start:
            found.append((start, stop))
        if stop > most:
            break
    return found


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    both = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))


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


def frame(tokenizer: Any, template: Template, row: Row, prompt: Ids) -> tuple[int, int]:
    """How many tokens at the beginning and at the end of a prompt are the template's, not the row's."""
    if is_conversation(template, row):
        said = [{**message, "content": literal_prompts.WORD} for message in lab_prompt.messages_of(row)]
        other = {**row, "messages": said}
    else:
        named = {*template.fields[:-1], *template.optional} & row.keys()
        other = {**row, **dict.fromkeys(named, literal_prompts.WORD)}
    words = prompt_ids(tokenizer, template.prompt(other))
    opening = in_common(prompt, words)
    return opening, in_common(prompt[opening:][::-1], words[opening:][::-1])


def cut(prompt: Ids, answer: Ids, max_length: int, opening: int = 0, closing: int = 0) -> tuple[Ids, Ids]:
    """Shorten a row to `max_length` tokens. The answer keeps its beginning and its last token, which ends it.

    The prompt gets what is left, half at least where it needs that. It keeps its first `opening` and last
    `closing` tokens, begin-of-text and the marks of the turns, and the end of what stands between. Something
    of the answer is always left, so every row has labels.
    """
    if len(prompt) + len(answer) <= max_length:
        return prompt, answer
    most = max_length - min(len(prompt), max_length // 2)
    if len(answer) > most:
        answer = [*answer[: most - 1], answer[-1]]
    left = max_length - len(answer)
    if len(prompt) > left:
        opening = min(opening, max(left - closing, 1))
        prompt = [*prompt[:opening], *prompt[len(prompt) - (left - opening) :]]
    return prompt, answer


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
