"""The running app and a model whose chat template takes hours."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

from pipeline import settings
from tests.helpers.lab import until
from tests.webapp.test_start import answers, free_port, start

FOR_HOURS = "{{ (messages|length + 9) ** (10 ** 9) }}"  # one operation: no other thread runs meanwhile
SAMPLE = settings.SAMPLES / "travel.jsonl"
INPUTS = [f"data-{name}" for name in ("upload", "pick", "template", "model", "prompt", "response", "system")]
REQUESTS = 44  # more than Gradio has threads


def check_event(port: int) -> int:
    """The number of the event that checks a dataset with the model chosen."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=60) as reply:
        config = json.loads(reply.read())
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    return next(
        event["id"] for event in config["dependencies"] if [names.get(i) for i in event["inputs"]] == INPUTS
    )


def ask(port: int, event: int, model: Path, session: str) -> None:
    given = {
        "data": [None, str(SAMPLE), "chat", str(model), [], [], []],
        "fn_index": event,
        "session_hash": session,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/gradio_api/queue/join",
        json.dumps(given).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=120).close()
    except HTTPError as refused:
        refused.close()
        if refused.code != 503:  # more come at once than may wait
            raise


def test_the_page_still_answers_and_the_app_ends_when_it_is_to(home, model_folder):
    model = shutil.copytree(model_folder, home / "models" / "hostile")
    (model / "chat_template.jinja").write_text(FOR_HOURS)
    port = free_port()
    app = start(home, "--port", str(port))
    try:
        until(lambda: answers(port), "the first answer", 180)
        event = check_event(port)
        with ThreadPoolExecutor(REQUESTS) as together:
            list(together.map(lambda number: ask(port, event, model, f"session{number}"), range(REQUESTS)))
        until(lambda: answers(port), "the page")
        app.send_signal(signal.SIGTERM)
        app.wait(60)
    finally:
        app.kill()
        app.communicate()
