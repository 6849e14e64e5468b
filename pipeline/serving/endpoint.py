"""The endpoint as an ASGI app: its routes, who may use them, and answers that end when nobody waits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.errors import LabError, sentence
from pipeline.exports.chat.chat_client import Refused
from pipeline.serving import connections, origins, questions, replies
from pipeline.serving.desk import STOPPED, Desk
from pipeline.serving.questions import LARGEST_BODY, Question
from pipeline.serving.replies import Completion, Fault

UNTOLD = (
    "The request has no valid token; send the one that the server printed, as Authorization: Bearer TOKEN."
)
TOO_LARGE = f"The request is larger than {LARGEST_BODY >> 20} MB; shorten its messages."
UNKNOWN = "There is no such address; there are /v1/models and /v1/chat/completions."
LONG = ("the prompt has", "this model reads")  # parts of what says that a prompt is too long
log = logging.getLogger(__name__)


def create(desk: Desk, token: str, names: Collection[str] = ()) -> ASGIApp:
    """The app. `names` are accepted as `Host`, besides localhost and addresses."""

    async def models(_: Request) -> Response:
        return replies.json_response(replies.models(desk.offer))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in desk.offer.names:
            raise Fault("There is no such model; /v1/models lists them.", 404, "model", "model_not_found")
        return replies.json_response(replies.model(desk.offer, name))

    async def complete(request: Request) -> Response:
        return _Answer(desk, questions.parse(await _body(request), desk.offer))

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", complete, methods=["POST"]),
    ]
    handlers: Any = {Fault: _fault, HTTPException: _http_fault, ClientDisconnect: _gone, Exception: _broken}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return _Doors(connections.Bodies(app), token, frozenset(name.lower() for name in names))


async def _fault(_: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return error.response()


async def _http_fault(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        return Fault(
            f"{request.method} is not possible here; {UNKNOWN[0].lower()}{UNKNOWN[1:]}", 405
        ).response()
    return Fault(UNKNOWN, status, code="not_found").response()


async def _gone(_: Request, error: Exception) -> Response:
    raise error  # to `connections.Bodies`


async def _broken(_: Request, error: Exception) -> Response:
    """For a fault of ours, which uvicorn logs."""
    return Fault(sentence(error), 500).response()


async def _body(request: Request) -> bytes:
    """The whole body. Raises Fault for one that is too large, ClientDisconnect for one that does not come."""
    length = request.headers.get("content-length", "0")
    if not (length.isdecimal() and len(length) < 20 and int(length) <= LARGEST_BODY):
        raise Fault(TOO_LARGE, 413, code="request_too_large")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise Fault(TOO_LARGE, 413, code="request_too_large")
    return bytes(body)


class _Doors:
    """ASGI middleware: no page of another site comes in, and nobody without the token."""

    def __init__(self, app: ASGIApp, token: str, names: Collection[str]) -> None:
        self.app = app
        self.names = names
        self._token = _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif (refused := self._refusal(Headers(scope=scope))) is not None:
            await refused.response()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Fault | None:
        if (reason := origins.rebound(headers, self.names)) is not None:
            return Fault(reason, 403, code="host_not_allowed")
        if origins.is_foreign(headers) or origins.crosses(headers):
            return Fault(origins.FOREIGN, 403, code="origin_not_allowed")
        kind, _, given = headers.get("authorization", "").partition(" ")
        told = _digest(given.strip().encode("utf-8", "surrogateescape"))
        if kind.lower() != "bearer" or not hmac.compare_digest(told, self._token):
            return Fault(UNTOLD, 401, code="invalid_api_key")
        return None


def _digest(text: bytes) -> bytes:
    """Of the same length for each text, so that comparing takes as long."""
    return hashlib.sha256(text).digest()


class _Answer(Response):
    """A completion, whole or as events; it ends when the client goes or the server is stopped."""

    def __init__(self, desk: Desk, question: Question) -> None:
        super().__init__()
        self.desk = desk
        self.question = question
        self.grows = Completion(question.model)
        self.started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer until done, or until nobody waits any more."""
        work = asyncio.create_task(self._work(scope, receive, send))
        gone = asyncio.create_task(_disconnected(receive))
        stopped = asyncio.create_task(self.desk.closing.wait())
        tasks = {work, gone, stopped}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            told = stopped.done() and not work.done() and not gone.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if told:
            await self._fail(Fault(STOPPED, 503, code="stopped"), scope, receive, send)
        elif not work.cancelled():
            work.result()

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self.desk.answer(self.question)) as pieces:
                if self.question.stream:
                    await self._stream(pieces, send)
                else:
                    async for piece in pieces:
                        self.grows.take(piece)
                    await replies.json_response(self.grows.whole())(scope, receive, send)
        except (Fault, LabError) as error:
            await self._fail(_as_fault(error), scope, receive, send)
        except OSError as error:
            log.exception("An answer failed")
            await self._fail(Fault(sentence(error), 500), scope, receive, send)

    async def _stream(self, pieces: AsyncGenerator[dict[str, Any], None], send: Send) -> None:
        """Events; the first when the model reads the prompt, so that a refusal still is a status."""
        async for piece in pieces:
            text = self.grows.take(piece)
            if not self.started:
                headers = [(k.lower().encode(), v.encode()) for k, v in replies.STREAM_HEADERS.items()]
                self.started = True
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._send(send, self.grows.piece({"role": "assistant", "content": ""}))
            if text:
                await self._send(send, self.grows.piece({"content": text}))
        await self._send(send, self.grows.piece({}, self.grows.reason))
        if self.question.with_usage:
            await _write(send, replies.event(self.grows.last()))
        await _write(send, replies.DONE, more=False)

    async def _send(self, send: Send, piece: dict[str, Any]) -> None:
        """A piece; with usage to come at the end, each one says that it has none."""
        more = {"usage": None} if self.question.with_usage else {}
        await _write(send, replies.event({**piece, **more}))

    async def _fail(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        """Say what went wrong: as a status, or in the stream that has begun."""
        if not self.started:
            await fault.response()(scope, receive, send)
            return
        with suppress(OSError):
            await _write(send, replies.event(fault.body()) + replies.DONE, more=False)


async def _write(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_fault(error: Fault | LabError) -> Fault:
    """What a model's process refuses is the request's fault; anything else passes, or the model's."""
    if isinstance(error, Fault):
        return error
    if not isinstance(error, Refused):
        return Fault(str(error), 503, code="model_failed")
    is_long = all(part in str(error).lower() for part in LONG)
    return Fault(str(error), 400, "messages", "context_length_exceeded" if is_long else None)
