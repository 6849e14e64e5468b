"""What a program finds that asks with OpenAI's own client: everything that people use of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

QUESTION = "What should I see in Rome?"
TOKENS = 12  # of most answers
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "old": {"type": "boolean"}},
    "required": ["city", "old"],
    "additionalProperties": False,
}


class Asking:
    """A client with the token, without tries of its own, so that each status is seen."""

    def __init__(self, url: str, token: str, model: str) -> None:
        self.url = url
        self.model = model
        self.client = openai.OpenAI(base_url=url, api_key=token, max_retries=0)

    def ask(self, text: str = QUESTION, **given: Any) -> Any:
        messages = given.pop("messages", [{"role": "user", "content": text}])
        options = {"model": self.model, "temperature": 0, "max_tokens": TOKENS, **given}
        return self.client.chat.completions.create(messages=messages, **options)

    def text(self, text: str = QUESTION, **given: Any) -> str:
        return str(self.ask(text, **given).choices[0].message.content)

    def refused(self, kind: type[openai.APIStatusError], text: str = QUESTION, **given: Any) -> str:
        """The sentence of a refusal."""
        with pytest.raises(kind) as found:
            self.ask(text, **given)
        assert isinstance(found.value.body, dict)
        return str(found.value.body["message"])


def check_answers(asking: Asking, expected: dict[str, str], prompt_tokens: int) -> None:
    """Whole and streamed answers of each model are the expected ones, with the right usage."""
    assert {model.id for model in asking.client.models.list()} == expected.keys()
    for model, text in expected.items():
        reply = asking.ask(model=model)
        assert reply.choices[0].message.content.strip() == text
        assert reply.usage.prompt_tokens == prompt_tokens
        assert reply.usage.total_tokens == prompt_tokens + reply.usage.completion_tokens
        pieces = list(asking.ask(model=model, stream=True, stream_options={"include_usage": True}))
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert streamed == reply.choices[0].message.content
        assert pieces[-1].usage == reply.usage
        assert pieces[-2].choices[0].finish_reason == reply.choices[0].finish_reason


def check_options(asking: Asking) -> None:
    """Where answers end, how they are drawn, what shape they have."""
    whole = asking.text()
    word = whole.split()[3]
    stopped = asking.ask(stop=[word, "never there"])
    assert stopped.choices[0].message.content == whole[: whole.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    short = asking.ask(max_completion_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    drawn = [asking.text(temperature=1.5, seed=seed) for seed in (5, 5, 6, 7)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert asking.text(temperature=1.5, top_p=0, seed=9) == whole
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    for seed in (1, 2):
        found = json.loads(asking.text(response_format=wanted, temperature=1, seed=seed, max_tokens=60))
        assert isinstance(found.pop("old"), bool)
        assert list(found) == ["city"]
    turns = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Where is Rome?"},
        {"role": "assistant", "content": "Italy."},
        {"role": "user", "content": [{"type": "text", "text": "And Oslo?"}]},
    ]
    assert asking.ask(messages=turns).usage.prompt_tokens > asking.ask("And Oslo?").usage.prompt_tokens


def check_refusals(asking: Asking, context: int) -> None:
    """Each with its own error and one sentence."""
    assert asking.refused(openai.NotFoundError, model="city").startswith(
        "model: 'city' is not served; there is"
    )
    said = asking.refused(openai.BadRequestError, "many words " * context)
    assert said.endswith(f"this model reads {context}, answer included.")
    assert asking.refused(openai.BadRequestError, n=2).startswith("n: 2 is not possible here")
    stranger = Asking(asking.url, "x" * 43, asking.model)
    assert stranger.refused(openai.AuthenticationError).startswith("The request has no valid token")
    foreign = {"Origin": "https://evil.example"}
    assert "another site" in asking.refused(openai.PermissionDeniedError, extra_headers=foreign)


def check_many(asking: Asking, models: Sequence[str], clients: int = 16) -> None:
    """So many at once get the answers that each gets alone."""
    alone = {model: asking.text(model=model) for model in models}
    chosen = [models[number % len(models)] for number in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda model: asking.text(model=model), chosen))
    assert found == [alone[model] for model in chosen]
