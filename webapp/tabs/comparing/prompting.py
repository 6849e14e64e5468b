"""One prompt asked of up to four columns: their answers as they come, and the conversation that is kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.exports.chat import chat_processes, detaching
from pipeline.inputs.data.telling import ended
from pipeline.runs import check_pool
from webapp import talks, threads
from webapp.home import store
from webapp.talks import Answer, Talk, Turn
from webapp.ui import check_turns, choices, columns, prompt_boxes
from webapp.ui.streams import coalesce

# Between two updates of the page. Each takes Gradio 4 ms of the processor, which the model wants: the first
# word comes at once, then text flows as fast as it is read.
DRAW_SECONDS = (0.25, 0.35, 0.45)
GATHER_SECONDS = 0.1  # in which the model's process puts tokens together, which wakes the page less often
MOST_TOKENS = 1024
STOPPED = ["Ended", "before it was complete"]
NAMES = ("Base", "With adapter", "Third column", "Fourth column")
EDITS = "last"  # what is edited
RUN = "Run"


@dataclass
class _Answers:
    """What the columns show: earlier turns, texts, and the facts below these."""

    talk: Talk
    text: list[str] = field(default_factory=lambda: [""] * columns.MOST)
    facts: list[Any] = field(default_factory=lambda: [None] * columns.MOST)
    said: list[str] = field(default_factory=list)  # what went wrong
    fields: prompt_boxes.Fields = ()  # of the prompt
    earlier: list[Any] = field(default_factory=lambda: [None] * columns.MOST)  # turns, as they are shown

    def take(self, piece: dict[str, Any]) -> None:
        if "error" in piece:
            self.said.append(piece["error"])
            return
        self.text[piece["at"]] += piece.get("text", "")
        if piece.get("done"):
            self.facts[piece["at"]] = measures(piece)

    def turn(self, prompt: str, system: str, asked: Sequence[columns.Column]) -> Turn:
        """What has been answered so far, as it is kept."""
        answers = [
            Answer(one.value, self.text[one.at], self.facts[one.at] or [STOPPED])
            for one in asked
            if self.text[one.at] or self.facts[one.at]
        ]
        return Turn(prompt, system, tuple(answers), self.fields if len(self.fields) > 1 else ())

    def shown(self, notice: Any) -> tuple[Any, ...]:
        """The outputs: all texts, all facts, the earlier turns of all columns, the notice."""
        return *self.text, *self.facts, *self.earlier, notice


def earlier(talk: Talk, named: Sequence[str]) -> list[list[list[str]] | None]:
    """The turns of each column, as `draw.turns` shows them; each prompt is read once."""
    words = {id(turn): prompt_boxes.words(turn.prompt, turn.fields) for turn in talk.turns}
    return [[[words[id(turn)], text] for turn, text in talk.after(column)] or None for column in named]


async def run_both(*given: Any, again: bool = False) -> AsyncGenerator[tuple[Any, ...], None]:
    """The outputs of `compare`; its button is disabled with the first of them.

    Later ones have the button's words alone: for an update Gradio builds a whole component each time,
    which takes time from the model.
    """
    button: Any = gr.update(interactive=False)
    async with contextlib.aclosing(partial(compare, again=again)(*given)) as steps:
        async for shown in steps:
            yield *shown, button
            button = RUN


async def run_again(*given: Any) -> AsyncGenerator[tuple[Any, ...], None]:
    """The same where the last turn is asked once more."""
    async with contextlib.aclosing(run_both(*given, again=True)) as steps:
        async for shown in steps:
            yield shown


async def compare(
    run: str | None,
    also: list[str],
    name: str,
    prompt: str,
    tokens: float,
    temperature: float,
    seed: float,
    system: str = "",
    continues: bool = False,
    edits: str = "",
    again: bool = False,
) -> AsyncGenerator[tuple[Any, ...], None]:
    """Stream the answers: texts, their measures, earlier turns, and a notice.

    `continues` asks after the earlier turns of the conversation `name`; `again` asks the last one once more,
    and with `edits` the prompt takes its place. What was answered is kept, also where it is stopped.
    """
    home, named = store().home, named_columns(run, also)
    kept = await threads.run(threads.COMPARE, talks.load, home, name)
    if again and kept.turns:
        prompt, system = kept.turns[-1].prompt, kept.turns[-1].system
    before = kept.turns[:-1] if again or edits else kept.turns
    answers = _Answers(Talk(run or "", tuple(also), before if continues else ()))
    nothing = not run or not prompt.strip()
    answers.earlier = await threads.run(threads.COMPARE, earlier, kept if nothing else answers.talk, named)
    if not run or nothing:
        yield answers.shown({"text": "Choose a model and write a prompt.", "kind": "bad"})
        return
    yield answers.shown({"text": "Loading the model…"})
    asked: list[columns.Column] = []
    said = ""
    try:
        asked = await threads.run(threads.COMPARE, columns.chosen, store(), run, also)
        answers.fields = prompt_boxes.union(column.fields for column in asked)
        if prompt_boxes.is_blank(prompt, answers.fields):
            raise InputError("Write a prompt: all its boxes are empty.")
        if any(chat_processes.waits(column.source) for column in asked):
            yield answers.shown({"text": chat_processes.WAITS})
        note = None if also else asked[0].source.missing_side
        options = _options(tokens, temperature, seed, system)
        stream = columns.asked(store(), asked, prompt, answers.fields, answers.talk, options)
        async with contextlib.aclosing(coalesce(stream, *DRAW_SECONDS)) as batches:
            async for batch in batches:
                for piece in batch:
                    answers.take(piece)
                yield answers.shown(_notice(answers.said, note))
    except (LabError, OSError) as error:
        said = sentence(error)
    finally:
        unkept = _keep(name, answers, answers.turn(prompt, system, asked))
    if said or unkept:
        yield answers.shown(_notice([said or unkept], None))


def _notice(bad: list[str], note: str | None) -> dict[str, str] | None:
    if bad:
        return {"text": "\n".join(bad), "kind": "bad"}
    return {"text": note} if note else None


def _keep(name: str, answers: _Answers, turn: Turn) -> str:
    """Keep the conversation with one turn more; returns why it cannot be kept, or ""."""
    if not turn.answers:
        return ""
    try:
        talks.save(store().home, name, replace(answers.talk, turns=(*answers.talk.turns, turn)))
    except (LabError, OSError) as error:
        return sentence(error)
    return ""


def named_columns(run: str | None, also: Sequence[str]) -> list[str]:
    """What names the columns, "" for those that are not there."""
    own = [columns.value(side, run or "") for side in columns.SIDES]
    return [*own, *also[: columns.MOST_ALSO], *[""] * (columns.MOST_ALSO - len(also))]


def ready() -> tuple[Any, ...]:
    """Enable the buttons again; nothing is edited any more."""
    return gr.update(interactive=True), gr.update(interactive=True), ""


def edit(name: str) -> tuple[Any, ...]:
    """Take the last turn's prompt and system text back into their boxes; the next answer takes its place."""
    turns = talks.load(store().home, name).turns
    if not turns:
        return gr.skip(), gr.skip(), "", {"text": "Nothing has been asked yet."}
    note = {"text": "Change the prompt, then run it: its answers take the place of the last ones."}
    return turns[-1].prompt, turns[-1].system, EDITS, note


def marks(*texts: str) -> Iterator[tuple[Any, Any]]:
    """The words in which each column differs from the first that has answered, and a notice."""
    said = [(name, text) for name, text in zip(NAMES, texts, strict=True) if text.strip()]
    if len(said) < 2:
        yield None, {"text": "Two columns have to answer first."}
        return
    given = {"texts": [text for _, text in said]}
    try:
        found = yield from check_turns.steps(
            lambda tell: ended(check_pool.ask("pipeline.evaluation.examples.word_diff:asked", given), tell),
            lambda text: (gr.skip(), {"text": "Comparing words…"}),
        )
    except LabError as error:
        yield None, {"text": str(error), "kind": "bad"}
        return
    first, *others = (name for name, _ in said)
    yield {"first": first, "others": [list(one) for one in zip(others, found, strict=True)]}, None


def _options(tokens: float, temperature: float, seed: float, system: str) -> dict[str, Any]:
    return {
        "seed": _whole(seed or 0),
        "max_new_tokens": min(_whole(tokens), MOST_TOKENS),
        "temperature": float(temperature or 0),
        "system": system,
        "gather_seconds": GATHER_SECONDS,
    }


def _whole(number: float) -> int:
    """The whole number in a number box. Raises InputError for NaN, infinity and fractions."""
    if not float(number).is_integer():
        raise InputError(f"{number} is not allowed; allowed: a whole number")
    return int(number)


def measures(piece: dict[str, Any]) -> list[list[str]]:
    """The facts below an answer."""
    return [
        ["Tokens", f"{piece['tokens']}{f' {display.CUT}' if piece.get('cut') else ''}"],
        ["Tokens per second", f"{piece['tokens_per_second']:.1f}"],
        ["First token after", display.duration(piece["first_token_seconds"])],
        *_proof(piece),
    ]


def _proof(piece: dict[str, Any]) -> list[list[str]]:
    """The files that answered, by the beginnings of their checksums, and the whole ones as titles."""
    if "graph" not in piece:
        return []
    digests: dict[str, str] = piece["graph"]
    rows = [["Adapter file", piece["adapter"] or "none"]] + [[name, digests[name]] for name in digests]
    return [[name, detaching.short(told), f"SHA-256 {told}"] for name, told in rows]


async def probe(run: str | None) -> AsyncIterator[tuple[Any, Any]]:
    """Whether the model is its base again once the adapter is taken off: a notice, and the button."""
    off = gr.update(interactive=False)
    yield {"text": "Probing: the model is loaded once more, without its adapter…"}, off
    try:
        if not run:
            raise InputError("Choose a model first.")
        found = await detaching.probe(store().home, choices.source(store(), run))
        told = {"text": f"{'✓' if found.good else '✕'} {found.text}", "kind": "good" if found.good else "bad"}
    except (LabError, OSError) as error:
        told = {"text": sentence(error), "kind": "bad"}
    yield told, gr.update(interactive=True)
