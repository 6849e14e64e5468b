"""What a row's texts show by themselves: no answer, one word, a repeated prompt, control characters."""

from __future__ import annotations

import re

SEARCHED = 20_000  # letters of a text that are looked at: a row may have a million
LEAST_PROMPT = 12  # letters; a shorter prompt may well begin its answer
# C0 and C1 but for tab and line breaks, marks that turn the direction of writing, and a byte order mark.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
# Thai, Lao, Khmer, Burmese, Japanese and Chinese: written without spaces between words.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def of(prompt: str, answer: str) -> list[str]:
    """The findings of a row. Of each text the first SEARCHED letters are looked at."""
    prompt, answer = prompt[:SEARCHED], answer[:SEARCHED]
    found = []
    words = answer.split(None, 2)
    if not words:
        found.append("empty_answers")
    elif len(words) == 1 and not _UNSPACED.search(answer):
        found.append("one_word_answers")
    if _repeats(prompt, answer):
        found.append("repeated_prompts")
    if _CONTROL.search(prompt) or _CONTROL.search(answer):
        found.append("control_characters")
    return found


def _repeats(prompt: str, answer: str) -> bool:
    asked = " ".join(prompt.casefold().split())
    if not asked:
        return False
    said = " ".join(answer[: 2 * len(prompt) + SEARCHED // 10].casefold().split())
    return said == asked or (len(asked) >= LEAST_PROMPT and said.startswith(asked))
