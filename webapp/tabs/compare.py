"""Compare: one prompt, the answers of base and adapter side by side, from one loaded model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.exports import chat_client
from pipeline.runs import submit
from webapp.handler_values import picked
from webapp.home import store
from webapp.ui import choices, parts, views
from webapp.ui.streams import coalesce

SIDES = ("base", "adapter")
DRAW_SECONDS = 0.08
MOST_TOKENS = 1024
UNSEEN = "Rows held out of training"
SEEN = "Rows held out of training; but all rows have this prompt, so the adapter has seen it"


async def run_both(*given: Any) -> AsyncIterator[tuple[Any, ...]]:
    """The outputs of `compare`; its button is disabled meanwhile."""
    async with contextlib.aclosing(compare(*given)) as steps:
        async for shown in steps:
            yield *shown, gr.update(interactive=False)


async def compare(
    run: str | None, prompt: str, tokens: float, temperature: float, seed: float, system: str = ""
) -> AsyncGenerator[tuple[Any, ...], None]:
    """Stream both answers: texts, their measures, and a notice."""
    text = dict.fromkeys(SIDES, "")
    facts: dict[str, Any] = dict.fromkeys(SIDES)

    def shown(notice: Any) -> tuple[Any, ...]:
        return text["base"], text["adapter"], facts["base"], facts["adapter"], notice

    if not run or not prompt.strip():
        yield shown({"text": "Choose a model and write a prompt.", "kind": "bad"})
        return
    yield shown({"text": "Loading the model…"})
    try:
        source = choices.source(store(), run)
        said = source.missing_side
        async with contextlib.aclosing(
            _batches(source, prompt, tokens, temperature, seed, system)
        ) as batches:
            async for batch in batches:
                for piece in batch:
                    text[piece["side"]] += piece.get("text", "")
                    if piece.get("done"):
                        facts[piece["side"]] = measures(piece)
                yield shown({"text": said} if said else None)
    except (LabError, OSError) as error:
        yield shown({"text": sentence(error), "kind": "bad"})


def ready() -> Any:
    """Enable the button again."""
    return gr.update(interactive=True)


def _batches(
    source: chat_client.Source, prompt: str, tokens: float, temperature: float, seed: float, system: str
) -> AsyncGenerator[list[dict[str, Any]], None]:
    answers = chat_client.stream(
        store().home, source, prompt,
        seed=_whole(seed or 0), max_new_tokens=min(_whole(tokens), MOST_TOKENS),
        temperature=float(temperature or 0), system=system,
    )  # fmt: skip
    return coalesce(answers, DRAW_SECONDS)


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
    ]


def choose(run: str | None) -> tuple[Any, ...]:
    """A model and the held-out prompts of its run, the first one filled in, and the recorded answers.

    The last two outputs are the prompt taken from the list and its system text.
    """
    answers = _recorded(run)
    prompts = [answer["prompt"] for answer in answers]
    first = prompts[0] if prompts else ""
    picker = gr.update(
        choices=prompts, value=first or None, visible=bool(prompts), info=_held_out(run, prompts)
    )
    recorded = views.evaluation(answers, _verdict(run)) if answers else None
    box = gr.update(value=system(run, first), visible=_takes_system(run))
    return run, picker, first, expected(run, first), recorded, first, box


def _takes_system(run: str | None) -> bool:
    """Whether the prompts of a model can have a system text."""
    try:
        return run is not None and chat_client.takes_system(choices.source(store(), run))
    except LabError:  # it cannot answer at all, which is reported when asked
        return False


def system(run: str | None, prompt: str | None) -> str:
    """The system text that the dataset has with a held-out prompt."""
    return next((answer.get("system", "") for answer in _recorded(run) if answer["prompt"] == prompt), "")


def _held_out(run: str | None, prompts: list[str]) -> str:
    """The label of the held-out prompts: whether the adapter has seen them."""
    behind = choices.run_behind(store(), run) if run and len(set(prompts)) == 1 else None
    return SEEN if behind is not None and submit.one_prompt(behind) else UNSEEN


def chosen(run: str | None, filled_for: str) -> tuple[Any, ...]:
    """`choose` for another model; choosing the same one again keeps what was typed."""
    return (gr.skip(),) * 7 if run and run == filled_for else choose(run)


def pick(run: str | None, event: gr.EventData) -> tuple[Any, ...]:
    """A held-out prompt that was clicked, even if again, and what the dataset has for it."""
    return _with(run, picked(event, "value"))


def enter(run: str | None, prompt: str | None, taken: str) -> tuple[Any, ...]:
    """A prompt chosen by keyboard; if it is the same as before, the list only lost the focus."""
    return (gr.skip(),) * 4 if not prompt or prompt == taken else _with(run, prompt)


def _with(run: str | None, prompt: str) -> tuple[Any, ...]:
    """A held-out prompt, its expected answer, itself once more, and its system text."""
    return prompt, expected(run, prompt), prompt, system(run, prompt)


def expected(run: str | None, prompt: str | None) -> Any:
    """The answer the dataset has for a held-out prompt."""
    answers = _recorded(run)
    found = [answer["expected"] for answer in answers if answer["prompt"] == prompt]
    return gr.update(value=found[0] if found else "", visible=bool(found))


def typed(run: str | None, prompt: str) -> tuple[Any, ...]:
    """What the dataset has for a typed prompt, and the prompt in the list, if it is held out."""
    listed = any(answer["prompt"] == prompt for answer in _recorded(run))
    return expected(run, prompt), gr.update(value=prompt if listed else None)


def _verdict(run: str | None) -> str:
    """What the evaluation of a model's run says of its adapter."""
    behind = choices.run_behind(store(), run) if run else None
    return behind.verdict if behind is not None else ""


def _recorded(run: str | None) -> list[dict[str, Any]]:
    behind = choices.run_behind(store(), run) if run else None
    return views.answers(behind) if behind else []


def arrive(run: str | None, filled_for: str) -> tuple[Any, ...]:
    """The models that can answer now. The choice and typed text stay; at first the newest run is chosen."""
    found = choices.exports(store())
    ids = [value for _, value in found]
    current = run if run in ids else next(iter(ids), None)
    empty = None if found else {"text": "No finished run yet. When one is done, you can talk to it here."}
    return gr.update(choices=found, value=current), empty, *chosen(current, filled_for)


def _answer(label: str, name: str) -> tuple[gr.Textbox, gr.HTML]:
    """The text box of one answer, and the facts below it."""
    with gr.Column(min_width=300):
        text = gr.Textbox(
            label=label, lines=8, max_lines=24, interactive=False, buttons=["copy"], elem_id=name
        )
        return text, parts.drawn("facts")


def build(tab: gr.Tab) -> None:
    """Lay out the tab."""
    notice = parts.drawn("notice", elem_id="compare-notice")
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown(
                label="Model",
                info="Of finished runs, newest first; then registered here, then pulled from Azure",
                allow_custom_value=True,
                elem_id="compare-run",
            )
            picker = gr.Dropdown(
                label="Held-out prompts",
                info=UNSEEN,
                visible=False,
                allow_custom_value=True,
                elem_id="compare-picker",
            )
            prompt = gr.Textbox(label="Prompt", lines=3, max_lines=10, elem_id="compare-prompt")
            instructions = gr.Textbox(
                label="System text", info="Instructions before the prompt; may stay empty", lines=1,
                max_lines=6, visible=False, elem_id="compare-system",
            )  # fmt: skip
            wanted = gr.Textbox(
                label="Expected answer", interactive=False, visible=False, lines=1, max_lines=6
            )
        with gr.Column(scale=1, min_width=220):
            tokens = gr.Slider(1, MOST_TOKENS, value=128, step=1, label="Max tokens")
            temperature = gr.Slider(
                0, 2, value=0, step=0.05, label="Temperature", info="0 always picks the most likely token"
            )
            seed = gr.Number(0, label="Seed", precision=0)
    with gr.Row():
        go = gr.Button("Run both", variant="primary", scale=3, elem_id="compare-go")
        stop = gr.Button("Stop", scale=1, elem_id="compare-stop")
    with gr.Row(equal_height=False):
        base, base_facts = _answer("Base", "answer-base")
        adapter, adapter_facts = _answer("With adapter", "answer-adapter")
    recorded = parts.drawn("table", elem_id="compare-recorded")

    filled_for, taken = (
        gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label=label)
        for label in ("Run of the prompts", "Prompt of the list")
    )
    filled = [filled_for, picker, prompt, wanted, recorded, taken, instructions]
    from_list = [prompt, wanted, taken, instructions]
    answer = gr.on(
        [go.click, prompt.submit], run_both, [run, prompt, tokens, temperature, seed, instructions],
        [base, adapter, base_facts, adapter_facts, notice, go],
        **parts.QUEUED,
    )  # fmt: skip
    answer.then(ready, None, go, **parts.QUICK)  # after an error, too
    # Shown after the stream has ended, or its last piece would remove it again.
    stop.click(None, None, None, cancels=[answer], **parts.QUICK).then(
        lambda: ({"text": "Stopped."}, ready()), None, [notice, go], **parts.QUICK
    )
    run.input(chosen, [run, filled_for], filled, trigger_mode="always_last", **parts.QUICK)
    picker.select(pick, run, from_list, trigger_mode="multiple", **parts.QUICK)
    picker.input(enter, [run, picker, taken], from_list, trigger_mode="always_last", **parts.QUICK)
    prompt.change(typed, [run, prompt], [wanted, picker], trigger_mode="always_last", **parts.QUICK)
    tab.select(arrive, [run, filled_for], [run, notice, *filled], js=parts.live("preferred"), **parts.QUICK)
