"""What a request for a completion may hold: every fault is one sentence that names its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.exports.chat.sources import Source
from pipeline.serving import questions
from pipeline.serving.offer import Offer
from pipeline.serving.replies import Fault

OFFER = Offer(Source("x", Path("/x"), None, False, (Path("/x/town.onnx_adapter"),)), 1)
HI = [{"role": "user", "content": "Hi"}]


def parse(offer: Offer = OFFER, **given: Any) -> questions.Question:
    return questions.parse(json.dumps({"model": "base", "messages": HI, **given}).encode(), offer)


def fault(body: bytes = b"", **given: Any) -> Fault:
    with pytest.raises(Fault) as found:
        _ = questions.parse(body, OFFER) if body else parse(**given)
    return found.value


def test_what_is_left_out_is_as_openai_has_it() -> None:
    one, other = parse(), parse()
    assert (one.temperature, one.top_p, one.stream, one.stop, one.schema) == (1.0, 1.0, False, (), "")
    assert one.max_new_tokens == questions.TOKENS
    assert one.seed != other.seed, "without a seed, each answer is drawn anew"
    assert one.adapter is None


def test_everything_is_read() -> None:
    asked = parse(
        model="town", stream=True, stream_options={"include_usage": True}, max_tokens=5,
        max_completion_tokens=7, temperature=0.5, top_p=0.25, seed=-1, stop=["a", "b"], user="u",
        metadata={}, n=1, tools=None, frequency_penalty=0, logprobs=False, response_format={"type": "text"},
    )  # fmt: skip
    assert asked == questions.Question(
        model="town", adapter="town", messages=tuple(HI), stream=True, with_usage=True, max_new_tokens=7,
        temperature=0.5, top_p=0.25, seed=2**31 - 1, stop=("a", "b"),
    )  # fmt: skip
    assert parse(max_tokens=5).max_new_tokens == 5
    assert parse(seed=3.0).seed == 3
    assert parse(stop="x").stop == ("x",)


def test_the_likeliest_token_is_meant_where_nothing_else_is_left() -> None:
    for given in ({"temperature": 0}, {"temperature": 1e-30}, {"top_p": 0}):
        assert parse(**given).temperature == 0.0


def test_a_merged_model_is_merged() -> None:
    merged = Offer(Source("x", Path("/x"), None, True), 1)
    assert parse(merged, model="merged").adapter is None
    with pytest.raises(Fault, match="'base' is not served; there is merged"):
        parse(merged)


def test_messages_of_all_kinds() -> None:
    parts = [{"type": "text", "text": "One?"}, {"type": "text", "text": "Two?"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "Yes.", "tool_calls": None, "refusal": None},
        *HI,
    ]
    assert parse(messages=messages).messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?\nTwo?"},
        {"role": "assistant", "content": "Yes."},
        *HI,
    )


def test_schemas_are_compact_unless_they_say_otherwise() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert json.loads(parse(response_format=wrapped).schema) == {**questions.COMPACT, **schema}
    assert json.loads(parse(response_format={"type": "json_object"}).schema)["type"] == "object"
    own = {"x-guidance": {"whitespace_flexible": True}}
    wrapped["json_schema"]["schema"] = own  # type: ignore[index]
    assert json.loads(parse(response_format=wrapped).schema) == own


def said(*given: Any) -> dict[str, Any]:
    return {"messages": [*given]}


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"not": made}
    return made


def schema(given: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": given}}}


@pytest.mark.parametrize(
    ("given", "param", "part"),
    [
        ({"model": "city"}, "model", "'city' is not served; there is base, town"),
        ({"model": None}, "model", "missing; there is base, town"),
        ({"model": ["base"]}, "model", "['base'] is not served"),
        ({"n": 2}, "n", "2 is not possible here; leave it out, or give 1"),
        ({"tools": [{}]}, "tools", "is not possible here"),
        ({"logprobs": True}, "logprobs", "is not possible here"),
        ({"min_p": 0.1}, "min_p", "unknown here; leave it out"),
        ({"x" * 5000: 1}, None, "unknown here"),
        ({"temperature": 2.5}, "temperature", "2.5 is not allowed; allowed: a number from 0 to 2"),
        ({"temperature": True}, "temperature", "True is not allowed"),
        ({"temperature": "1"}, "temperature", "'1' is not allowed"),
        ({"top_p": -0.1}, "top_p", "allowed: a number from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens", "a whole number from 1 to"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "1.5 is not allowed"),
        ({"seed": "x"}, "seed", "'x' is not allowed"),
        ({"seed": 2**70}, "seed", "is not allowed"),
        ({"stream": "yes"}, "stream", "allowed: true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream: true"),
        ({"stream": True, "stream_options": []}, "stream_options", "it must be an object"),
        ({"stop": ["a"] * 5}, "stop", "up to 4 texts"),
        ({"stop": ""}, "stop", "1 to 1,000 letters"),
        ({"stop": {"a": 1}}, "stop", "up to 4 texts"),
        ({"messages": []}, "messages", "a list of 1 to 1,000 messages"),
        ({"messages": "Hi"}, "messages", "a list of 1 to 1,000 messages"),
        ({"messages": HI * 1001}, "messages", "a list of 1 to 1,000 messages"),
        (said(*HI, {"role": "assistant", "content": "x"}), "messages", "the last one must be the user's"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages", "the last one is empty"),
        ({"messages": ["Hi"]}, "messages[0]", "an object with role and content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "the role 'tool' is unknown here"),
        ({"messages": [{"role": {}, "content": "x"}]}, "messages[0]", "is unknown here"),
        ({"messages": [{"content": "x"}]}, "messages[0]", "it has no role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "content must be a text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0]", "content must be a text"),
        (said({"role": "user", "content": [{"type": "image_url"}]}), "messages[0]", "the type text only"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]", "half of a character"),
        (said({"role": "assistant", "content": "x", "tool_calls": [{}]}, *HI), "messages[0]", "tool_calls"),
        ({"response_format": "json"}, "response_format", "type must be"),
        ({"response_format": {"type": "xml"}}, "response_format", "type must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "must have a schema"),
        (schema(True), "response_format", "a schema"),
        (schema({"enum": ["x" * 70_000]}), "response_format", "letters; allowed: 64,000"),
        (schema({"type": "array", "minItems": 10**9}), "response_format", "minItems is 1000000000; all"),
        (schema({"items": [{"anyOf": [{"maxLength": 1e300}]}]}), "response_format", "maxLength is 1e+300"),
        (schema(deep(900)), "response_format", "the schema is nested deeper than 64 levels"),
    ],
)  # fmt: skip
def test_every_fault_names_its_field(given: dict[str, Any], param: str | None, part: str) -> None:
    found = fault(**given)
    assert part in str(found)
    assert str(found).endswith(".")
    assert len(str(found)) < 500
    assert param is None or found.param == param
    assert found.status == (404 if "model" in given else 400)


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{", b"\xff", b'{"temperature": NaN}', b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert fault(body or b" ").status == 400
