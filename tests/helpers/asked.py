"""Prompts asked on the Compare tab, as Gradio calls its handlers, and models that answer at once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

from tests.helpers import planted
from webapp.tabs.comparing import prompting
from webapp.ui import columns

TALK = "conversation-of-a-test"  # a name as browsers choose it: 22 letters


def collect(stream):
    async def all_of_it():
        return [shown async for shown in stream]

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


async def answering(home, source, prompt, sides, **options):
    for n in range(3):
        for side in source.sides:
            yield {"side": side, "text": f"{side}{n} "}
    for side in source.sides:
        yield {
            "side": side,
            "done": True,
            "tokens": 3,
            "tokens_per_second": 41.234,
            "first_token_seconds": 0.25,
        }


def ask(run, prompt="Where?", also=(), **more):
    """What `compare` shows in the end, by name."""
    given = {"tokens": 64, "temperature": 0, "seed": 0, **more}
    return seen(collect(prompting.compare(run, [*also], TALK, prompt, **given))[-1])


def seen(shown):
    """The outputs of `compare` by name."""
    most = columns.MOST
    texts, facts, earlier = (shown[at * most : (at + 1) * most] for at in range(3))
    return SimpleNamespace(texts=texts, facts=facts, earlier=earlier, notice=shown[3 * most])


def fielded(store, *names, template="{%s}", answers=None):
    """A finished run whose template has these prompt fields."""
    run = planted.finished(store, answers=answers)
    lab = Path(store.get(run).artifact("onnx"), "lab.json")
    lab.write_text(json.dumps({"template": template, "fields": names, "reading": {}}))
    return run
