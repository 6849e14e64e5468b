"""The inference process: a small script in its place, and prompts asked of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pipeline.exports.chat import chat_client, chat_processes, sources
from pipeline.store.run import Run

SCRIPT = """#!{python}
import json, os, signal, sys
signal.alarm(200)
def say(**answer):
    print(json.dumps(answer), flush=True)
{start}
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" in request:
        open(os.environ["OLIVE_LAB_HOME"] + "/canceled", "w").write(str(request["cancel"]))
        continue
    n, prompt = request["id"], request["prompt"]
    if prompt == "die":
        os._exit(1)
    if prompt == "nonsense":
        say(error="no id here")
        os._exit(1)
    if prompt == "endless":
        print("x" * (32 << 20), flush=True)
        continue
    if prompt == "refuse":
        say(id=n, error="The prompt is too long.")
        continue
    for side in request["sides"]:
        say(id=n, side=side, text=prompt + str(os.getpid()))
        if prompt == "wait":
            break
        say(id=n, side=side, done=True, tokens=2, tokens_per_second=1.5, first_token_seconds=0.1)
    else:
        say(id=n, end=True)
"""


async def pieces(
    home: Path, run: Run, prompt: str, sides: tuple[str, ...] | None = None
) -> list[dict[str, Any]]:
    return [piece async for piece in chat_client.stream(home, sources.of_run(run), prompt, sides)]


def ask(home: Path, run: Run, *prompts: str) -> list[list[dict[str, Any]]]:
    """Answers to prompts asked one after the other of one process."""

    async def all_of_them() -> list[list[dict[str, Any]]]:
        try:
            return [await pieces(home, run, prompt) for prompt in prompts]
        finally:
            await chat_processes.shutdown()

    return asyncio.run(all_of_them())
