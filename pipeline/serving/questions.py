"""The body of a request for a chat completion, read and checked: every fault is a sentence with its field.

What would change an answer and cannot be done here is refused; what changes nothing is ignored.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import display
from pipeline.serving.offer import Offer
from pipeline.serving.replies import Fault
from pipeline.system.files import to_json

LARGEST_BODY = 1 << 20  # bytes
TOKENS = 1024  # of an answer whose request names no limit
MOST_TOKENS = 1_000_000
MOST_MESSAGES = 1000
MOST_STOPS, LONGEST_STOP = 4, 1000  # texts that end an answer, and letters of one
DEEPEST_SCHEMA = 64
MOST_COUNTED = 10_000
COUNTS = {f"{end}{what}" for end in ("min", "max") for what in ("Items", "Length", "Properties", "Contains")}
LARGEST_SCHEMA = 64_000  # letters: a schema is compiled while others' answers wait
HOTTEST = 2.0
COLDEST = 0.001  # below that, logits would become infinite; the likeliest token is meant
SEEDS = 1 << 31
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
}  # fmt: skip
# Values of what cannot be done here that ask for nothing; null is one as well.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,),
    "top_logprobs": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],),
}  # fmt: skip
KNOWN = {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "seed", "stop", "response_format",
}  # fmt: skip
ANY_OBJECT = {"type": "object"}
# A small model that may write spaces between JSON's marks writes nothing else until its limit.
COMPACT = {"x-guidance": {"whitespace_flexible": False}}


@dataclass(frozen=True)
class Question:
    """What a client asks; `adapter` is None for the base, `schema` is JSON or ""."""

    model: str
    adapter: str | None
    messages: tuple[dict[str, str], ...]
    stream: bool = False
    with_usage: bool = False
    max_new_tokens: int = TOKENS
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    schema: str = ""

    def request(self) -> dict[str, Any]:
        """As `chat_server` reads it."""
        names = ("adapter", "max_new_tokens", "temperature", "top_p", "seed", "schema")
        given = {name: getattr(self, name) for name in names}
        return {**given, "messages": list(self.messages), "stop": list(self.stop)}


def parse(body: bytes, offer: Offer) -> Question:
    """A request's body. Raises Fault."""
    try:
        given = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Fault("The request is not JSON; send an object as OpenAI's API describes it.") from None
    if not isinstance(given, dict):
        raise Fault("The request must be a JSON object with model and messages.")
    given = {name: value for name, value in given.items() if value is not None}
    _require_known(given)
    model = _model(given, offer)
    temperature = _number(given, "temperature", 1.0, HOTTEST)
    top_p = _number(given, "top_p", 1.0, 1.0)
    return Question(
        model=model,
        adapter=None if model == offer.plain else model,
        messages=_messages(given.get("messages")),
        stream=_flag(given, "stream"),
        with_usage=_with_usage(given),
        max_new_tokens=_tokens(given),
        temperature=0.0 if temperature < COLDEST or top_p < COLDEST else temperature,
        top_p=max(top_p, COLDEST),
        seed=_whole(given, "seed", secrets.randbelow(SEEDS), -(2**63), 2**63) % SEEDS,
        stop=_stops(given.get("stop")),
        schema=_schema(given.get("response_format")),
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _require_known(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            allowed = " or ".join(to_json(one) for one in NEUTRAL[name])
            raise _fault(
                name, f"{display.value(value)} is not possible here; leave it out, or give {allowed}"
            )
        if name not in KNOWN | IGNORED | NEUTRAL.keys():
            raise _fault(display.short(name), "unknown here; leave it out")


def _fault(name: str, problem: str, code: str | None = None, status: int = 400) -> Fault:
    return Fault(f"{name}: {problem}.", status, name, code)


def _model(given: Mapping[str, Any], offer: Offer) -> str:
    name = given.get("model")
    if isinstance(name, str) and name in offer.names:
        return name
    told = f"{display.value(name)} is not served" if name is not None else "missing"
    raise _fault("model", f"{told}; there is {display.names(offer.names)}", "model_not_found", 404)


def _number(given: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise _fault(name, f"{display.value(value)} is not allowed; allowed: a number from 0 to {most:g}")
    return float(value)


def _whole(given: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = given.get(name, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        allowed = f"a whole number from {least} to {most}"
        raise _fault(name, f"{display.value(value)} is not allowed; allowed: {allowed}")
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise _fault(name, f"{display.value(value)} is not allowed; allowed: true or false")
    return value


def _with_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not options.keys() <= {"include_usage", "include_obfuscation"}:
        raise _fault("stream_options", "it must be an object with include_usage")
    if not given.get("stream"):
        raise _fault("stream_options", "allowed only with stream: true")
    return _flag(options, "include_usage")


def _tokens(given: Mapping[str, Any]) -> int:
    old = _whole(given, "max_tokens", TOKENS, 1, MOST_TOKENS)
    return _whole(given, "max_completion_tokens", old, 1, MOST_TOKENS)


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise _fault("stop", f"it must be a text or a list of up to {MOST_STOPS} texts")
    if not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise _fault("stop", f"each text must have 1 to {LONGEST_STOP:,} letters")
    return tuple(stops)


def _messages(given: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(given, list) or not 0 < len(given) <= MOST_MESSAGES:
        raise _fault("messages", f"it must be a list of 1 to {MOST_MESSAGES:,} messages")
    found = tuple(_message(message, f"messages[{at}]") for at, message in enumerate(given))
    if found[-1]["role"] != "user":
        raise _fault("messages", "the last one must be the user's")
    if not found[-1]["content"].strip():
        raise _fault("messages", "the last one is empty; type a question first")
    return found


def _message(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise _fault(where, "it must be an object with role and content")
    given = {name: value for name, value in given.items() if value is not None}
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        told = f"the role {display.value(role)} is unknown here" if role is not None else "it has no role"
        raise _fault(where, f"{told}; known: {', '.join(ROLES)}")
    if more := sorted(given.keys() - {"role", "content", "name"}):
        raise _fault(where, f"{display.names(more)}: unknown here; leave it out")
    return {"role": ROLES[role], "content": _content(given.get("content"), where)}


def _content(given: Any, where: str) -> str:
    """The text of a message, which may come in parts."""
    parts = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(parts, list) or not parts:
        raise _fault(where, "content must be a text")
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else None
        if not isinstance(text, str):
            raise _fault(where, "content may have parts of the type text only: this model reads nothing else")
        if display.valid(text) != text:
            raise _fault(where, "content has half of a character; type it again")
        texts.append(text)
    return "\n".join(texts)


def _schema(given: Any) -> str:
    """The JSON schema that an answer must have; "" for none."""
    kind = given.get("type") if isinstance(given, dict) else None
    if given is None or kind == "text":
        return ""
    schema: Any = ANY_OBJECT
    if kind == "json_schema":
        wrapped = given.get("json_schema")
        schema = wrapped.get("schema") if isinstance(wrapped, dict) else None
    elif kind != "json_object":
        raise _fault("response_format", "type must be text, json_object or json_schema")
    if not isinstance(schema, dict):
        raise _fault("response_format", "json_schema must have a schema, which is an object")
    if wrong := _unfit(schema):
        raise _fault("response_format", wrong)
    text = to_json({**COMPACT, **schema})
    if len(text) > LARGEST_SCHEMA:
        raise _fault("response_format", f"the schema has {len(text):,} letters; allowed: {LARGEST_SCHEMA:,}")
    return text


def _unfit(schema: dict[str, Any]) -> str:
    """Why a schema is not followed: the runtime makes a state for each item that an answer must have, in
    gigabytes of memory where there are a thousand million."""
    level: list[Any] = [schema]
    for _ in range(DEEPEST_SCHEMA):
        for one in level:
            for name in COUNTS & one.keys() if isinstance(one, dict) else ():
                if isinstance(one[name], int | float) and not one[name] <= MOST_COUNTED:
                    return (
                        f"the schema's {name} is {display.value(one[name])}; allowed: up to {MOST_COUNTED:,}"
                    )
        inner = (
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        )
        level = [one for each in inner for one in each]
        if not level:
            return ""
    return f"the schema is nested deeper than {DEEPEST_SCHEMA} levels; write a flatter one"
