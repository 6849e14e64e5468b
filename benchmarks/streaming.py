"""Answers streamed through the chat process beside a bare loop of ONNX Runtime GenAI over the same folder.

    python -m benchmarks.streaming [RUN|FOLDER] [--tokens 128] [--turns 15] [--repeat 1 40] [--page]

The bare loop runs in a process of its own: it reads the prompt's text, generates, and decodes each token. The
other side is `chat_client.stream`, as the page and the command line use it: a process that checks, generates
by turns and writes JSON lines, which are read and parsed here. With `--page` it is the whole page instead, in
a process of its own and a home of its own: the question is put into its queue as a browser does, and its
stream of events is read until the answer's facts are there, and a line says what the page's own process took
of the processor, in how many messages. Each side is a model of its own then. Both use as many threads, have
answered before, and have to write the same text. `--repeat` makes the question so many
times as long: the chat process reads a prompt in pieces, the bare loop whole.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import page_stream
from pipeline import settings
from pipeline.exports import generation
from pipeline.exports.chat import chat_client, chat_processes, sources
from pipeline.exports.chat.sources import Source
from pipeline.store import Store

PROMPT = "What should I see in Athens, and where can I eat well in the evening?"
LEAST_RATIO, MOST_MS = 0.97, 100.0  # the goals: speed, and what the first token may take longer
HEAD = "side     prompt  of the bare loop's speed  first token later by, ms   tokens  tokens/s bare"
spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Timed:
    """An answer: seconds to its first token and from there to its end, how many tokens, and its text."""

    first: float
    rest: float
    tokens: int
    text: str
    prompt: int = 0  # tokens
    processor: float = 0.0  # seconds that the page's own process took
    messages: int = 0  # of the page's stream

    @property
    def speed(self) -> float:
        """Tokens a second after the first one."""
        return (self.tokens - 1) / self.rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a run or an exported folder; default: the newest run")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument(
        "--repeat", type=int, nargs="*", default=[1, 40], help="how often the question is asked"
    )
    parser.add_argument("--page", action="store_true", help="ask the running page, not the chat process")
    args = parser.parse_args()
    source = named(args.model)
    print(HEAD, flush=True)
    if args.page:
        with tempfile.TemporaryDirectory() as home:
            through_page(source, Path(home), args)
        return
    for repeat in args.repeat:
        prompt = " ".join([PROMPT] * repeat)
        for side in source.sides:
            ask = partial(stream, source, side, prompt, args.tokens)
            print(asyncio.run(compared(source, side, prompt, args.tokens, args.turns, ask)), flush=True)


def through_page(source: Source, home: Path, args: argparse.Namespace) -> None:
    """The same lines for the page, over a home that has each side as a model."""
    sides = page_stream.planted(source, home)
    with page_stream.served(home) as page:
        for repeat in args.repeat:
            prompt = " ".join([PROMPT] * repeat)
            for own, side in sides:

                async def ask(side: str = side, prompt: str = prompt) -> Timed:
                    found = await asyncio.to_thread(page.ask, side, prompt, args.tokens)
                    timed = found.first, found.rest, found.tokens, found.text
                    return Timed(*timed, processor=found.processor, messages=found.messages)

                print(asyncio.run(compared(own, side, prompt, args.tokens, args.turns, ask)), flush=True)


def named(model: str | None) -> Source:
    """The exported model that is asked."""
    if model is not None and Path(model).is_dir():
        return sources.of_folder(Path(model).resolve(), model)
    store = Store(settings.home())
    if model is not None:
        return sources.of_run(store.get(model))
    return sources.of_run(next(run for run in store.list() if run.artifact("onnx")))


async def compared(
    source: Source, side: str, prompt: str, tokens: int, turns: int, streaming: Callable[[], Awaitable[Timed]]
) -> str:
    """Let the bare loop and `streaming` answer in turns: a line of what they took."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=bare, args=(there, source, side, prompt, tokens), daemon=True)
    process.start()

    async def ask() -> Timed:
        here.send(True)
        found = await asyncio.to_thread(here.recv)
        assert isinstance(found, Timed)
        return found

    try:
        pairs = []
        for turn in range(turns + 1):
            if turn % 2:
                streamed, alone = await streaming(), await ask()
            else:
                alone, streamed = await ask(), await streaming()
            assert streamed.text == alone.text, "both have to answer alike"
            pairs.append((streamed, alone))
    finally:
        here.send(False)
        process.join()
        await chat_processes.shutdown()
    return told(side, pairs[1:])  # in the first turn both make their buffers


def told(side: str, pairs: Sequence[tuple[Timed, Timed]]) -> str:
    """A line: ratio and difference of the medians, and the middle half of those within a turn."""
    ratios = [streamed.speed / alone.speed for streamed, alone in pairs]
    later = [1000 * (streamed.first - alone.first) for streamed, alone in pairs]
    streamed, alone = ([pair[at] for pair in pairs] for at in (0, 1))
    speed = statistics.median(one.speed for one in alone)
    ratio = statistics.median(one.speed for one in streamed) / speed
    after = 1000 * (
        statistics.median(one.first for one in streamed) - statistics.median(one.first for one in alone)
    )
    low, _, high = statistics.quantiles(ratios, n=4)
    soon, _, late = statistics.quantiles(later, n=4)
    return (
        f"{side:8} {alone[0].prompt:6}  {ratio:.3f} ({low:.3f}–{high:.3f})"
        f"      {after:5.0f} ({soon:.0f} to {late:.0f})"
        f"   {alone[0].tokens:6}   {speed:.0f}"
        f"   {'good' if ratio >= LEAST_RATIO and after <= MOST_MS else 'MISSED'}{_taken(streamed)}"
    )


def _taken(streamed: Sequence[Timed]) -> str:
    """What the page's own process took for an answer: nothing of it depends on the load of the machine."""
    if not streamed[0].messages:
        return ""
    took, messages = (
        statistics.median(of)
        for of in ([one.processor for one in streamed], [one.messages for one in streamed])
    )
    return f"   page: {1000 * took:.0f} ms of processor in {messages:.0f} messages"


async def stream(source: Source, side: str, prompt: str, tokens: int) -> Timed:
    """An answer as the page and the command line get it."""
    began = time.perf_counter()
    first, count, text = 0.0, 0, ""
    asked = chat_client.stream(settings.home(), source, prompt, (side,), max_new_tokens=tokens)
    async with aclosing(asked) as pieces:
        async for piece in pieces:
            if piece.get("text") and not first:
                first = time.perf_counter()
            text += piece.get("text", "")
            if piece.get("done"):
                ended, count = time.perf_counter(), piece["tokens"]
    return Timed(first - began, ended - first, count, text)


def bare(pipe: Connection, source: Source, side: str, question: str, tokens: int) -> None:
    """Answer as often as asked, with nothing between the loop and its figures."""
    import onnxruntime_genai as og

    settings.quiet_this_process()
    adapters = {"adapter": source.adapter} if source.adapter else {}
    loaded = generation.load(source.folder, adapters)  # with the threads that the chat process has
    active = side if side in loaded.names else None
    prompt = loaded.reader.text({"prompt": question})
    while pipe.recv():
        began = time.perf_counter()
        ids = loaded.tokenizer.encode(prompt)
        params = og.GeneratorParams(loaded.model)
        params.set_search_options(max_length=len(ids) + tokens, do_sample=False)
        generator = og.Generator(loaded.model, params)
        if active is not None:
            generator.set_active_adapter(loaded.adapters, active)
        generator.append_tokens(ids)
        decoder = loaded.tokenizer.create_stream()
        first, count, text = 0.0, 0, ""
        while not generator.is_done():
            generator.generate_next_token()
            text += decoder.decode(int(generator.get_next_tokens()[0]))
            first = first or time.perf_counter()
            count += 1
        pipe.send(Timed(first - began, time.perf_counter() - first, count, text, len(ids)))


if __name__ == "__main__":
    main()
