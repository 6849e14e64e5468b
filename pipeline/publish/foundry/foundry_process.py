"""The program that Foundry Local's own environment runs: it knows its package, and nothing of ours.

    python -I foundry_process.py FOLDER

In the folder, `request.json` says what to do, and `result.json` what came of it:
    {"do": "answer", "model": FOLDER, "id": ID, "asked": [{"messages": [...], "most": 24}, ...]}
    {"do": "register", "cache": FOLDER, "model": FOLDER, "id": ID, "texts": {...}}
    {"answers": [{"text": ..., "prompt_tokens": ...}, ...], "versions": {...}} or {"error": ...}
Nothing is sent anywhere: the local catalogue needs no network, and the caller sets what turns telemetry off.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from foundry_local_sdk import (
    CatalogType,
    ChatSession,
    Configuration,
    FoundryLocalManager,
    MessageItem,
    ModelInfoBuilder,
    Request,
    RequestOptions,
    SearchOptions,
    TextItem,
)

APP = "olive-lab"
PACKAGES = ("foundry-local-sdk", "onnxruntime", "onnxruntime-genai-core")
SAY = {"system": MessageItem.system, "user": MessageItem.user, "assistant": MessageItem.assistant}


def answer(request: dict[str, Any], work: Path) -> dict[str, Any]:
    """Load a model that no other catalogue learns of, and ask it, each time in a session of its own."""
    model = _registered(_catalogue(work, work / "models"), request)
    model.load()
    answers = [_asked(model, asked) for asked in request["asked"]]
    model.unload()
    return {"answers": answers, "versions": {name: importlib.metadata.version(name) for name in PACKAGES}}


def register(request: dict[str, Any], work: Path) -> dict[str, Any]:
    """Enter a model into the local catalogue of a folder of models; that an id had before gives way."""
    catalogue = _catalogue(work, Path(request["cache"]))
    with suppress(Exception):  # it raises where there is none
        catalogue.unregister_model(request["id"])
    _registered(catalogue, request)
    return {"models": [model.id for model in catalogue.list_models()]}


def _catalogue(work: Path, models: Path) -> Any:
    settings = Configuration(
        app_name=APP,
        app_data_dir=str(work / "app"),
        logs_dir=str(work / "logs"),
        model_cache_dir=str(models),
        disable_nonessential_telemetry=True,
    )
    FoundryLocalManager.initialize(settings)
    assert FoundryLocalManager.instance is not None
    return FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)


def _registered(catalogue: Any, request: dict[str, Any]) -> Any:
    with ModelInfoBuilder() as about:
        about.set_string_property("task", "chat-completion")
        for name, text in request.get("texts", {}).items():
            about.set_string_property(name, text)
        return catalogue.register_model(model_path=request["model"], model_id=request["id"], metadata=about)


def _asked(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The likeliest answer to messages."""
    items = [SAY[message["role"]](message["content"]) for message in asked["messages"]]
    greedy = SearchOptions(temperature=0.0, max_output_tokens=asked["most"])
    with ChatSession(model) as session, Request() as request:
        session.set_options(RequestOptions(search=greedy))
        for item in items:
            request.add_item(item)
        with session.process_request(request) as response:
            texts = [
                part.text
                for item in response
                if isinstance(item, MessageItem)
                for part in item.parts
                if isinstance(part, TextItem)
            ]
            return {"text": "".join(texts), "prompt_tokens": response.get_usage().prompt_tokens}


def _main(work: Path) -> None:
    with suppress(OSError):  # on Linux: let this process end first where memory runs out
        Path("/proc/self/oom_score_adj").write_text("800\n")
    os.chdir(work)
    request = json.loads((work / "request.json").read_text("utf-8"))
    try:
        result = {"answer": answer, "register": register}[request["do"]](request, work)
    except Exception as error:  # whatever the runtime raises for this model
        result = {"error": str(error) or type(error).__name__}
    (work / "result.json").write_text(json.dumps(result, allow_nan=False), "utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
    os._exit(0)  # the result is written; nothing of a library's end may hold it back
