"""Answers as OpenAI's API writes them: a whole completion, pieces of one, a list of models, an error."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from pipeline.serving.offer import Offer
from pipeline.system.files import to_json

OWNER = "olive-lab"
# No CORS headers: pages of other sites may not read an answer.
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
STREAM_HEADERS = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"
WRONG, BUSY, FAILED = "invalid_request_error", "rate_limit_error", "server_error"  # types of errors
TYPES = {429: BUSY, 500: FAILED, 503: FAILED}


class Fault(Exception):
    """Why a request is not answered: a sentence, an HTTP status, the field at fault, and a code."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = TYPES.get(self.status, WRONG)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As an HTTP response."""
        more = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
        return json_response(self.body(), self.status, more.get(self.status, {}))


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that no page of another site may read."""
    return Response(to_json(value), status, {**HEADERS, **(headers or {})}, "application/json")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return f"data: {to_json(value)}\n\n".encode()


def models(offer: Offer) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model(offer, name) for name in offer.names]}


def model(offer: Offer, name: str) -> dict[str, Any]:
    """One of them."""
    return {"id": name, "object": "model", "created": offer.created, "owned_by": OWNER}


@dataclass
class Completion:
    """An answer as it grows, for the client that asked `model`."""

    model: str
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    cut: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def take(self, piece: Mapping[str, Any]) -> str:
        """Add a piece of the model's process; returns the text in it."""
        text = str(piece.get("text", ""))
        self.text += text
        self.prompt_tokens = piece.get("prompt_tokens", self.prompt_tokens)
        self.tokens = piece.get("tokens", self.tokens)
        self.cut = piece.get("cut", self.cut)
        return text

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of prompt and answer; the one that ends an answer counts."""
        both = self.prompt_tokens + self.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": both,
        }

    @property
    def reason(self) -> str:
        """Why it ended: at its end or a stop text, or at the length."""
        return "length" if self.cut else "stop"

    def whole(self) -> dict[str, Any]:
        """All of it."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def piece(self, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        """A piece of it."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The piece that has the usage."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
