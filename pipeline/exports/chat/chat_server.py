"""`python -m pipeline.exports.chat.chat_server SOURCE`: a process that holds a model and answers prompts.

`chat_client` starts it. It reads one request a line from its standard input and answers with one JSON object
a line:

    {"id": 3, "prompt": "…", "system": "", "sides": ["base", "adapter"], "turns": {}, "seed": 0, …}
    {"id": 3, "side": "base", "text": "The"} … {"id": 3, "side": "base", "done": true, "tokens": 12, …}
    {"id": 3, "end": true}

With `gather_seconds`, a piece has all text of that time, but for the first of a side, which has one token.
The last piece of a side may have text, too, and says which files answered, by their SHA-256: `adapter` (null
for none) and `graph`.

A request {"id": 3, "probe": true} is answered with what `detaching` needs. A whole conversation is

    {"id": 3, "messages": [{"role": "user", "content": "…"}], "adapter": null, "max_new_tokens": 64, …}

with `temperature`, `top_p`, `seed`, `stop` (a list of texts) and `schema` (JSON, or ""); its first piece has
`prompt_tokens`, the last one `done`, `tokens` and `cut`.

A line `{"cancel": 3}` ends a request early. Requests that come meanwhile are answered by turns.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LONGEST_PROBLEM, InputError, LabError, expected, sentence
from pipeline.exports import generation, verify
from pipeline.exports.chat import detaching, loaded_files
from pipeline.exports.chat.chat_processes import LINE_LIMIT
from pipeline.exports.chat.loaded_files import Loaded
from pipeline.exports.chat.sources import Source
from pipeline.inputs import confined
from pipeline.inputs.prompts import conversations, lab_prompt, templates
from pipeline.system import own_process
from pipeline.system.files import to_json

LARGEST_LOG = 8 << 20  # bytes; what is full starts again with the next process, see `files.log`
LONGEST_TRACE = 20_000  # characters
MOST_LETTERS = 200_000  # of an answer: a token of somebody's tokenizer may have megabytes
LONGEST_LINE = LINE_LIMIT * 3 // 4  # bytes; MOST_LETTERS, each of them escaped, take 2.4 MB
TOO_LONG = "The model's process had more to say than can be read; export the model again."
# Its own words could say which files this machine has: whoever made the model decides what it looks for.
UNREAD = "the runtime does not take its files; inference.log in the lab's home says why. Export it again."
WAIT_SECONDS = 0.02  # for checksums, before it is others' turn
MEMORY = 2 << 30  # bytes that the answers of one time may take, beside the model


@dataclass
class _Question:
    """A request, its pieces to come, the bytes that it takes, and the seconds that it has had."""

    number: int
    pieces: Iterator[dict[str, Any]]
    memory: int
    served: float = 0.0


def _serve(source: Source) -> None:
    """Answer requests from standard input until it closes.

    Several are answered by turns. A turn goes to whoever has had the least time, so that a short question
    does not wait until long ones are answered.
    """
    # Checked before the runtime reads the files: its own messages about faulty ones are no help.
    elsewhere: list[Path | None] = [file for file in source.others if file.parent != source.folder]
    for adapter in elsewhere or [source.adapter]:
        found = verify.static(source.folder, adapter)
        verify.require(found, f"its files in {source.folder} are not good")
    loaded = loaded_files.load(source)
    _limit_log()
    inbox = _Inbox()
    _say({"ready": True})
    asked: list[_Question] = []
    while True:
        for request in inbox.take(wait=not asked):
            with _told(request["id"]):
                asked.append(_made(loaded, request))
        asked = [question for question in asked if question.number not in inbox.canceled]
        if asked:
            _turn(asked)
        elif inbox.closed:
            return


def _made(loaded: Loaded, request: dict[str, Any]) -> _Question:
    """A request of any kind made ready. Raises LabError, ValueError if it cannot be answered."""
    if request.get("probe"):
        return _probe(loaded, request)
    return (_conversation if "messages" in request else _question)(loaded, request)


def _turn(asked: list[_Question]) -> None:
    """Generate a piece for one of those who asked, in the order in which they did; remove it at its end."""
    question = min(_that_fit(asked), key=lambda question: (question.served, -question.number))
    began = time.perf_counter()
    ended = True
    with _told(question.number):
        piece = next(question.pieces, None)
        if ended := piece is None:
            _say({"id": question.number, "end": True})
        elif piece.get("text") != "":
            _say({"id": question.number, **piece})
    question.served += time.perf_counter() - began
    if ended:
        asked.remove(question)


def _that_fit(asked: list[_Question]) -> list[_Question]:
    """Those that fit into memory together, those already started first; one always does.

    What does not fit lets others pass, or a few that are large would keep everybody waiting.
    """
    left, found = MEMORY, []
    for question in sorted(asked, key=lambda question: not question.served):
        if question.memory <= left:
            found.append(question)
            left -= question.memory
    return found or asked[:1]


@contextmanager
def _told(number: int) -> Iterator[None]:
    """Tell whoever asked what went wrong; the model stays loaded for others."""
    try:
        yield
    except (LabError, ValueError) as error:
        text = display.cut(str(error), LONGEST_PROBLEM)
        said = f"{text[:1].upper()}{text[1:]}."
        _say({"id": number, "error": said, "refused": True})
    except Exception as error:
        _keep_trace()
        _say({"id": number, "error": sentence(error)})


def _probe(loaded: Loaded, request: dict[str, Any]) -> _Question:
    """A probe: logits with the adapter, and then without it."""

    def pieces() -> Iterator[dict[str, Any]]:
        found: dict[str, str] = {}
        for name in ("on", "off"):
            adapter = next(iter(loaded.model.names), None) if name == "on" else None
            found[name] = loaded.digest(detaching.TEXT, adapter)
            yield {"text": ""}  # others' turn
        while not loaded.is_summed(WAIT_SECONDS):
            yield {"text": ""}
        files = {"adapter": loaded.adapter, "adapter_now": loaded.adapter_now(), "graph": loaded.graph()}
        yield {"probe": {**found, **files}}

    return _Question(request["id"], pieces(), generation.memory(loaded.model, detaching.TEXT, 1))


def _question(loaded: Loaded, request: dict[str, Any]) -> _Question:
    """A request made ready. Raises LabError, ValueError if it cannot be answered."""
    model, merged = loaded.model, loaded.source.merged
    if merged and "base" in request["sides"]:
        raise LabError("The adapter is merged into the weights; ask the adapter side only")
    if not merged and "adapter" in request["sides"] and "adapter" not in model.names:
        raise LabError("There is no adapter; ask the base side only")
    row = templates.asked(model.template, request["prompt"])
    system, turns = request.get("system", "").strip(), request.get("turns", {})
    if system and "system" not in model.reader.optional:
        raise LabError("The prompts of this model have no system text; leave it empty")
    texts = {
        side: model.reader.text(_with_system(_after(row, turns.get(side), model), system))
        for side in request["sides"]
    }
    options = {key: request[key] for key in ("max_new_tokens", "temperature", "seed")}
    answers = {
        side: generation.stream(model, text, side if side in model.names else None, **options)
        for side, text in texts.items()
    }
    memory = sum(generation.memory(model, text, request["max_new_tokens"]) for text in texts.values())
    pieces = _gathered(_pieces(answers, loaded), request.get("gather_seconds", 0.0))
    return _Question(request["id"], pieces, memory)


def _conversation(loaded: Loaded, request: dict[str, Any]) -> _Question:
    """A conversation made ready. Raises LabError, ValueError if it cannot be continued."""
    model, adapter = loaded.model, request["adapter"]
    if adapter is not None and adapter not in model.names:
        raise LabError("There is no adapter of this name")
    text = model.reader.text(_row(model, request["messages"]))
    options = {
        key: request[key] for key in ("max_new_tokens", "temperature", "top_p", "seed", "stop", "schema")
    }
    answer = generation.stream(model, text, adapter, **options)
    memory = generation.memory(model, text, request["max_new_tokens"])
    return _Question(request["id"], _continued(answer), memory)


def _row(model: generation.Model, messages: list[dict[str, str]]) -> dict[str, Any]:
    """The row that a conversation is. Raises LabError where the model's template does not take it."""
    *before, last = messages
    if not isinstance(model.template, templates.ChatTemplate):
        if before:
            raise LabError(
                "This model's template takes one question: send a single user message, without a system text"
            )
        return templates.asked(model.template, last["content"])
    system = [message["content"] for message in before if message["role"] == "system"]
    if system and "system" not in model.reader.optional:
        raise LabError("The prompts of this model have no system text; leave it out")
    if len(before) == len(system) < 2:  # written as training wrote it, also where only its words are known
        return {"prompt": last["content"], **({"system": system[0]} if system and system[0] else {})}
    try:
        row = conversations.asked(to_json({"messages": messages}))
    except InputError as error:
        raise LabError(error.problems[0]) from None
    assert row is not None, "it is a conversation"
    return dict(row)


def _continued(answer: generation.Answer) -> Iterator[dict[str, Any]]:
    """Pieces of one answer, the first of them as soon as the model reads the prompt."""
    left = MOST_LETTERS
    for number, piece in enumerate(answer):
        if not number:
            yield {"prompt_tokens": answer.prompt_tokens}
        yield {"text": piece[:left]}
        left -= len(piece)
        if left < 0:
            answer.cut = True
            break
    yield {"done": True, "tokens": answer.tokens, "cut": answer.cut}


def _pieces(answers: dict[str, generation.Answer], loaded: Loaded) -> Iterator[dict[str, Any]]:
    """Pieces of the answers, one from each side in turn; a text is empty where there is none yet."""
    growing = {side: iter(answer) for side, answer in answers.items()}
    left = dict.fromkeys(answers, MOST_LETTERS)
    while growing:
        for side in list(growing):
            piece = next(growing[side], None)
            left[side] -= len(piece or "")
            if piece is not None:
                yield {"side": side, "text": piece[: left[side]] if left[side] < 0 else piece}
            if piece is not None and left[side] >= 0:
                continue
            del growing[side]
            facts = answers[side].facts()
            del facts["text"]
            if left[side] < 0:
                facts["cut"] = True
            while not loaded.is_summed(WAIT_SECONDS):  # of a large model's first answer
                yield {"side": side, "text": ""}
            active = loaded.adapter if side in loaded.model.names else None
            yield {"side": side, "done": True, **facts, "adapter": active, "graph": loaded.graph()}


def _gathered(pieces: Iterator[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """As many pieces, but with a side's text of `seconds` in one of them, and "" in the others: each with a
    text is a line to write, and wakes whoever reads it."""
    held: dict[str, str] = {}
    due: dict[str, float] = {}
    try:
        for piece in pieces:
            side = piece["side"]
            text = held.pop(side, "") + piece.get("text", "")
            if piece.get("done"):
                yield {**piece, "text": text} if text else piece
            elif (now := time.perf_counter()) >= due.get(side, 0.0):
                due[side] = now + seconds if text else 0.0
                yield {**piece, "text": text}
            else:
                held[side] = text
                yield {**piece, "text": ""}
    except Exception:
        yield from ({"side": side, "text": text} for side, text in held.items())
        raise


def _after(row: dict[str, Any], turns: list[list[str]] | None, model: generation.Model) -> dict[str, Any]:
    """A question after earlier ones with their answers. Raises LabError."""
    if not turns:
        return row
    if not isinstance(model.template, templates.ChatTemplate):
        raise LabError("This model's template knows no earlier turns; ask without them")
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return {"messages": [*said, *lab_prompt.messages_of(row)], **tools}


def _with_system(row: dict[str, Any], system: str) -> dict[str, Any]:
    if not system:
        return row
    if "messages" in row:
        return {**row, "messages": [{"role": "system", "content": system}, *row["messages"]]}
    return {**row, "system": system}


def _limit_log() -> None:
    """From now on no file grows beyond LARGEST_LOG: with every question a runtime may write names of a graph
    to the log, whatever they have. Adapters are copied before.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_LOG, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _keep_trace() -> None:
    """Write where it went wrong to the log: a runtime's message may have all of a model's file in it."""
    with suppress(OSError):  # the log is full
        print(display.cut(traceback.format_exc(), LONGEST_TRACE), file=sys.stderr, flush=True)


class _Inbox:
    """Requests in the order they came; a thread reads ahead, so that a cancel is seen at once."""

    def __init__(self) -> None:
        self.canceled: set[int] = set()
        self.closed = False
        self._came: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def take(self, *, wait: bool) -> list[dict[str, Any]]:
        """What came since; with `wait`, at least one request, or none once the input has ended."""
        found: list[dict[str, Any]] = []
        with suppress(queue.Empty):
            while not self.closed:
                request = self._came.get(block=wait and not found)
                if request is None:
                    self.closed = True
                else:
                    found.append(request)
        return found

    def _read(self) -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if "cancel" in request:
                self.canceled.add(request["cancel"])
            else:
                self._came.put(request)
        self._came.put(None)


def _say(answer: dict[str, Any]) -> None:
    """Write a line; one that the client could not read is an error in its place."""
    line = to_json(answer)
    if len(line) > LONGEST_LINE:  # it is ASCII
        about = {"id": answer["id"]} if "id" in answer else {}
        line = to_json({**about, "error": TOO_LONG})
    print(line, flush=True)


def _main(source: Source) -> int:
    settings.quiet_this_process()
    own_process.expendable()
    # What libraries print must not mix with the answers, so it goes to standard error.
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Anybody can have made the files of a model that was pulled; it opens no others.
    adapters = [path for path in (source.adapter, *source.others) if path]
    confined.to_compute([source.folder, *adapters, Path(tempfile.gettempdir())])
    try:
        _serve(source)
    except Exception as error:  # only the runtime finds some faults of a folder
        _keep_trace()
        _say({"error": f"The model could not be loaded: {expected(error) or UNREAD}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Source.from_words(*sys.argv[1:])))
