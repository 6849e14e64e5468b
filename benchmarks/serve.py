"""`serve` with many clients at once, beside a bare loop of ONNX Runtime GenAI over the same folder.

    python -m benchmarks.serve [RUN|FOLDER] [--clients 16] [--tokens 48] [--turns 5]

The bare loop and GenAI's batching engine run in a process of their own, the engine for the base alone: it has
no adapters. The clients ask over HTTP and read streams, all at the same moment, every second one with the
adapter if there is one. Everything has answered before; speeds are of whole answers, the reading of the
prompt included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from benchmarks.streaming import PROMPT, named
from pipeline import settings
from pipeline.exports import generation
from pipeline.serving import offer

TOKEN = "the-token-of-the-benchmark"
spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Timed:
    """What so many answers took: tokens, seconds, and the median seconds to the first piece of text."""

    tokens: int
    seconds: float
    first: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second, of all answers together."""
        return self.tokens / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a run or an exported folder; default: the newest run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    folder = str(named(args.model).folder)
    models = offer.of(settings.home(), folder).names[:2]
    here, there = spawn.Pipe()
    process = spawn.Process(target=bare, args=(there, folder, args.tokens, args.clients), daemon=True)
    process.start()
    environment = settings.child_environment(OLIVE_LAB_SERVE_TOKEN=TOKEN)
    words = [sys.executable, "-m", "pipeline", "serve", folder, "--port", "0"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        found: dict[str, list[Timed]] = {}
        for turn in range(args.turns + 1):
            for name, timed in turn_of(here, url, models, args.tokens, args.clients):
                found.setdefault(name, []).extend([timed] if turn else [])  # in the first, buffers are made
        server.terminate()
    here.send("")
    process.join()
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; medians of {args.turns}")
    print(told(found))


def turn_of(
    pipe: Connection, url: str, models: Sequence[str], tokens: int, clients: int
) -> list[tuple[str, Timed]]:
    """Each of the ways once."""
    found = []
    for name in ("bare loop", "batching engine"):
        pipe.send(name)
        timed = pipe.recv()
        found += [(name, timed)] if timed else []
    for number in (1, clients):
        chosen = [models[at % len(models)] for at in range(number)]
        found.append((f"{number} client{'s' * (number > 1)}", asyncio.run(asked(url, chosen, tokens))))
    return found


def told(found: dict[str, list[Timed]]) -> str:
    """A table of medians; ratios are to the bare loop of the same turn."""
    lines = ["                 tokens/s   of the bare loop   first text after, s"]
    for name, timed in found.items():
        speed = statistics.median(one.speed for one in timed)
        ratio = statistics.median(
            one.speed / alone.speed for one, alone in zip(timed, found["bare loop"], strict=True)
        )
        first = statistics.median(one.first for one in timed)
        lines.append(f"{name:15}  {speed:8.1f}   {ratio:16.2f}   {first:19.2f}")
    return "\n".join(lines)


async def asked(url: str, models: Sequence[str], tokens: int) -> Timed:
    """Ask at once, a client a model. An error of any of them ends the benchmark."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(_one(client, model, tokens, began) for model in models))
        seconds = time.perf_counter() - began
    return Timed(
        sum(count for count, _ in answers), seconds, statistics.median(first for _, first in answers)
    )


async def _one(client: httpx.AsyncClient, model: str, tokens: int, began: float) -> tuple[int, float]:
    """Tokens of an answer, and seconds to its first text."""
    body = {
        "model": model, "messages": [{"role": "user", "content": PROMPT}], "temperature": 0,
        "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    first, used = 0.0, 0
    async with client.stream("POST", "/chat/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            piece: Any = json.loads(line[6:]) if line.startswith("data: {") else {}
            assert "error" not in piece, piece
            used = (piece.get("usage") or {}).get("completion_tokens", used)
            if not first and piece.get("choices") and piece["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
    return used, first


def bare(pipe: Connection, folder: str, tokens: int, clients: int) -> None:
    """Time the loop, or the engine, as often as asked; None for an engine that does not take the export."""
    settings.quiet_this_process()
    model = generation.load(Path(folder))
    ids = model.reader.encode(model.reader.text({"prompt": PROMPT}))
    while way := pipe.recv():
        try:
            pipe.send(
                _loop(model, ids, tokens) if way == "bare loop" else _engine(model, ids, tokens, clients)
            )
        except RuntimeError:
            pipe.send(None)


def _loop(model: generation.Model, ids: list[int], tokens: int) -> Timed:
    import onnxruntime_genai as og

    began = time.perf_counter()
    params = og.GeneratorParams(model.model)
    params.set_search_options(max_length=len(ids) + tokens, do_sample=False)
    generator = og.Generator(model.model, params)
    generator.append_tokens(ids)
    decoder = model.tokenizer.create_stream()
    count, first = 0, 0.0
    while not generator.is_done():
        generator.generate_next_token()
        decoder.decode(int(generator.get_next_tokens()[0]))
        first = first or time.perf_counter() - began
        count += 1
    return Timed(count, time.perf_counter() - began, first)


def _engine(model: generation.Model, ids: list[int], tokens: int, clients: int) -> Timed:
    """All answers by GenAI's engine, in batches of as many as it takes."""
    import numpy as np
    import onnxruntime_genai as og

    engine = og.Engine(model.model)
    buffer = engine.create_event_buffer(64)
    began = time.perf_counter()
    requests = []
    for _ in range(clients):
        requests.append(engine.create_request())
        options = og.TurnOptions(requests[-1])
        options.set_max_generated_tokens(tokens)
        options.set_do_sample(False)
        requests[-1].begin_turn(np.array(ids, dtype=np.int32), options)
    count, first = 0, 0.0
    while engine.has_pending_requests():
        for event in engine.run(buffer):
            count += event.token is not None
            first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began
    for request in requests:
        request.close()
    return Timed(count, seconds, first)


if __name__ == "__main__":
    main()
