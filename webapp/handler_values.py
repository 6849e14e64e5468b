"""Checks the values that reach a handler. Anybody who reaches the port can call any handler with any values.

So before a handler runs, every value is checked against its component: a text box sends a text, a file box an
upload. A refusal, here or by the handler, is answered with one sentence and not with status 500.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import gradio as gr
from fastapi import HTTPException
from gradio.exceptions import InvalidPathError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline import display
from pipeline.errors import NO_MORE, InputError, LabError, expected, sentence
from webapp import uploads

LONGEST_TEXT = 1 << 16  # characters
LONGEST_LIST = 200
SHORT_AT_ONCE = 12  # handlers outside the queue; they share 40 threads with all else
LONGEST_REFUSAL = 500  # characters of what Gradio says
LARGEST_NUMBER = 2**53  # above it a browser has no whole numbers
REFUSED = "olive_lab_refused"  # in the scope of a request: a list, shared by copies of the scope
UNFIT = "This request does not fit the page; reload the page and try again."
BROKEN = "Something went wrong in the lab; its log says what. Reload the page and try again."
FILES = (gr.File, gr.UploadButton)
TEXTS = (gr.Textbox, gr.Code)
TYPED_TOO = (
    "olive_lab_types"  # attribute of a dropdown: types, besides text, of values that are not in its list
)
KINDS: list[tuple[Any, tuple[type, ...]]] = [
    (gr.Checkbox, (bool, type(None))),
    (gr.Slider, (int, float)),
    (gr.Number, (int, float, type(None))),
]
log = logging.getLogger(__name__)


class Handlers(dict[int, Any]):
    """The handlers of a page by number. An unknown number is the caller's fault, not an internal error."""

    def __missing__(self, number: object) -> Any:
        raise HTTPException(404, UNFIT)


class Page(gr.Blocks):
    """Blocks that check the values they are called with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._short = asyncio.Semaphore(SHORT_AT_ONCE)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """As in Gradio, after checking the values. Raises InputError."""
        values = fitting(block_fn.inputs, inputs)
        return list(await super().preprocess_data(block_fn, values, state, explicit_call))

    async def process_api(self, block_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in Gradio; every error becomes one sentence for the caller. Raises gradio.Error."""
        try:
            if not block_fn.fn:
                raise InputError(UNFIT)  # it runs only in the browser
            # Gradio resolves every path in these, on the thread that serves everybody.
            if not block_fn.collects_event_data:
                kwargs["event_data"] = None
            elif kwargs.get("event_data") is not None:
                _require_flat(kwargs["event_data"]._data)
            if block_fn.queue is not False:
                return await super().process_api(block_fn, *args, **kwargs)
            async with self._short:
                return await super().process_api(block_fn, *args, **kwargs)
        except LabError as error:
            said = sentence(error)
        except InvalidPathError:  # from Gradio's own check of a file, after ours
            said = uploads.NOT_HERE
        except gr.Error as error:  # a choice that is not in the list, or a number out of bounds
            said = display.cut(str(error.message), LONGEST_REFUSAL)
        except Exception as error:
            said = NO_MORE if expected(error) == NO_MORE else BROKEN
            if said == BROKEN:
                log.exception("A handler failed")
        request = getattr(kwargs.get("request"), "request", None)
        if request is not None:
            request.scope.get(REFUSED, []).append(said)
        raise gr.Error(said, print_exception=False)


async def unnamed(request: Request, error: Exception) -> JSONResponse:
    """The answer to a call of an unknown handler."""
    return JSONResponse({"detail": UNFIT}, status_code=404)


def fitting(components: list[Any], values: list[Any]) -> list[Any]:
    """The values, if each has a type that its component sends. Raises InputError."""
    if len(values) < len(components):
        raise InputError(UNFIT)
    return [fit(component, value) for component, value in zip(components, values, strict=False)]


def fit(component: Any, value: Any) -> Any:
    """The value of one component; an empty text for none. Raises InputError."""
    if isinstance(component, FILES):
        return None if value is None else _uploads(component, value)
    if isinstance(component, TEXTS):
        return _require("" if value is None else value, str)
    if isinstance(component, gr.CheckboxGroup):
        if not isinstance(value, list) or len(value) > LONGEST_LIST:
            raise InputError(UNFIT)
        return [_require(one, str, bool, int, float) for one in value]
    if isinstance(component, gr.Dropdown) and component.multiselect:
        if not isinstance(value, list | None) or len(value or []) > LONGEST_LIST:
            raise InputError(UNFIT)
        return [_require(one, str) for one in value or []]
    if isinstance(component, (gr.Dropdown, gr.Radio)):
        choices = {type(choice) for _, choice in component.choices or []}
        return _require(value, str, type(None), *choices, *getattr(component, TYPED_TOO, ()))
    kinds = next((kinds for classes, kinds in KINDS if isinstance(component, classes)), ())
    return _require(value, *kinds)  # other components send nothing


def _require(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise InputError(UNFIT)
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise InputError(f"This text is longer than the {LONGEST_TEXT:,} characters allowed here.")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise InputError("This text has a character that cannot be stored; type it again.")
    if type(value) in (int, float) and not abs(value) <= LARGEST_NUMBER:  # NaN compares false
        raise InputError("This number is too large.")
    return value


def _require_flat(given: Any) -> None:
    """Check that the data of an event is a flat mapping of short values. Raises InputError."""
    values = given.values() if isinstance(given, dict) else [given]
    for value in values:
        for one in value if isinstance(value, list) and len(value) <= LONGEST_LIST * 10 else [value]:
            _require(one, str, bool, int, float, type(None))


def _uploads(component: Any, value: Any) -> Any:
    """What is left of the files of a box, one or several, as it takes them. Raises InputError."""
    if getattr(component, "file_count", "single") == "single":
        return _upload(value)
    named = value if isinstance(value, list) else [value]
    if len(named) > uploads.MOST_FILES:
        raise InputError(f"Upload {uploads.MOST_FILES} files or fewer at a time.")
    return [_upload(one) for one in named] or None


def _upload(value: Any) -> dict[str, Any]:
    """A file as a request may name it: only the path of an upload, without any instructions."""
    path = uploads.known(value.get("path") if isinstance(value, dict) else None)
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def picked(event: gr.EventData, name: str = "id") -> str:
    """The id in an event. Raises InputError."""
    return str(_require(_of(event).get(name), str))


def ticked(event: gr.EventData, name: str = "ids") -> list[str]:
    """The ids in an event. Raises InputError."""
    given = _of(event).get(name)
    if not isinstance(given, list) or len(given) > LONGEST_LIST * 10:
        raise InputError(UNFIT)
    return [_require(one, str) for one in given]


def number(event: gr.EventData, name: str) -> int:
    """A whole number of an event. Raises InputError."""
    return int(_require(_of(event).get(name), int))


def _of(event: gr.EventData) -> dict[str, Any]:
    if not isinstance(event._data, dict):
        raise InputError(UNFIT)
    return event._data


class Refusals:
    """ASGI middleware: what `Page` refused is answered with 422, not 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: list[str] = []

        async def send_status(message: Message) -> None:
            if refused and message["type"] == "http.response.start" and message["status"] == 500:
                message["status"] = 422
            await send(message)

        await self.app({**scope, REFUSED: refused}, receive, send_status)
