"""`python -m pipeline.exports.chat_server SOURCE`: a process that holds a model loaded and answers prompts.

`chat_client` starts it. It reads one request a line from its standard input and answers with one JSON object
a line:

    {"id": 3, "prompt": "…", "system": "", "sides": ["base", "adapter"], "seed": 0, "max_new_tokens": 64, …}
    {"id": 3, "side": "base", "text": "The"} … {"id": 3, "side": "base", "done": true, "tokens": 12, …}
    {"id": 3, "end": true}

A line `{"cancel": 3}` ends a request early.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, reason, sentence
from pipeline.exports import generation, verify
from pipeline.exports.chat_client import Source
from pipeline.inputs.prompts import templates
from pipeline.system.files import to_json


def _serve(source: Source) -> None:
    """Answer requests from standard input until it closes. One request at a time, its sides in turn."""
    # Checked before the runtime reads the files: its own messages about faulty ones are no help.
    verify.require(verify.static(source.folder, source.adapter), f"its files in {source.folder} are not good")
    model = generation.load(source.folder, {"adapter": source.adapter} if source.adapter else {})
    canceled: set[int] = set()
    requests = _requests(canceled)
    _say({"ready": True})
    for request in requests:
        number = request["id"]
        try:
            for piece in _answer(model, request, source.merged):
                if number in canceled:
                    break
                _say({"id": number, **piece})
            _say({"id": number, "end": True})
        except (LabError, ValueError) as error:
            _say({"id": number, "error": f"{str(error)[:1].upper()}{str(error)[1:]}."})
        except Exception as error:  # the model stays loaded for the next prompt
            traceback.print_exc()
            _say({"id": number, "error": sentence(error)})


def _answer(
    model: generation.Model, request: dict[str, Any], merged: bool = False
) -> Iterator[dict[str, Any]]:
    """Pieces of the answers, one token from each side in turn.

    `merged` says that the weights have the adapter in them.
    """
    if merged and "base" in request["sides"]:
        raise LabError("The adapter is merged into the weights; ask the adapter side only")
    if not merged and "adapter" in request["sides"] and "adapter" not in model.names:
        raise LabError("There is no adapter; ask the base side only")
    row = templates.asked(model.template, request["prompt"])
    if system := request.get("system", "").strip():
        if "system" not in model.reader.optional:
            raise LabError("The prompts of this model have no system text; leave it empty")
        row = _with_system(row, system)
    text = model.reader.text(row)
    options = {key: request[key] for key in ("max_new_tokens", "temperature", "seed")}
    answers = {
        side: generation.stream(model, text, side if side in model.names else None, **options)
        for side in request["sides"]
    }
    growing = {side: iter(answer) for side, answer in answers.items()}
    while growing:
        for side in list(growing):
            piece = next(growing[side], None)
            if piece is not None:
                yield {"side": side, "text": piece}
                continue
            del growing[side]
            facts = answers[side].facts()
            del facts["text"]
            yield {"side": side, "done": True, **facts}


def _with_system(row: dict[str, Any], system: str) -> dict[str, Any]:
    if "messages" in row:
        return {**row, "messages": [{"role": "system", "content": system}, *row["messages"]]}
    return {**row, "system": system}


def _requests(canceled: set[int]) -> Iterator[dict[str, Any]]:
    """Requests in the order they came; a thread reads ahead so that a cancel is seen at once."""
    waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if "cancel" in request:
                canceled.add(request["cancel"])
            else:
                waiting.put(request)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (request := waiting.get()) is not None:
        if request["id"] not in canceled:
            yield request


def _say(answer: dict[str, Any]) -> None:
    print(to_json(answer), flush=True)


def _main(source: Source) -> int:
    settings.quiet_this_process()
    # What libraries print must not mix with the answers, so it goes to standard error.
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _serve(source)
    except Exception as error:  # only the runtime finds some faults of a folder
        traceback.print_exc()
        _say({"error": f"The model could not be loaded: {reason(error)}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Source.from_words(*sys.argv[1:])))
