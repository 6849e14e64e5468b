"""Compare: which models are asked, with which prompts, and how the tab is laid out; `prompting` asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.evaluation.examples import rows
from pipeline.exports.chat import sources
from pipeline.inputs.data.telling import ended
from pipeline.runs import check_pool
from webapp import talks
from webapp.handler_values import picked
from webapp.home import known_run, store
from webapp.routes import examples
from webapp.tabs.comparing import held_out, prompting, recorded
from webapp.talks import Talk
from webapp.ui import check_turns, choices, columns, parts, prompt_boxes, views

BLANK = (*[""] * columns.MOST, *[None] * columns.MOST * 2)  # outputs of columns where nothing is asked yet


def more(also: list[str]) -> tuple[Any, ...]:
    """The columns of what is asked as well: shown or not, with their labels."""
    labels = {key: label for label, key in columns.offered(store())}
    named = [*also, *[""] * columns.MOST_ALSO][: columns.MOST_ALSO]
    return (
        *(gr.update(visible=bool(one)) for one in named),
        *(gr.update(label=labels.get(one, "Also asked")) for one in named),
    )


def boxes(run: str | None, also: list[str]) -> dict[str, Any] | None:
    """The boxes of what is asked: one a field of the templates of all columns; None for one prompt box."""
    try:
        asked = columns.chosen(store(), run or "", also)
    except (LabError, OSError):  # which is reported when it is asked
        return None
    labels = {value: label for label, value in columns.offered(store()) if value in also}
    return prompt_boxes.drawn([(labels.get(one.value, "the model"), one.fields) for one in asked])


def _fields(run: str | None) -> prompt_boxes.Fields:
    """The prompt fields of a model's template."""
    try:
        return sources.prompt_fields(choices.source(store(), run)) if run else ()
    except (LabError, OSError):
        return ()


def choose(run: str | None) -> tuple[Any, ...]:
    """A model and the held-out prompts of its run, the first one filled in, and the recorded answers.

    The last two outputs are the prompt taken from the list and its system text.
    """
    kept, fields = _recorded(run), _fields(run)
    first = kept.first
    offered = kept.offered(fields)
    picker = gr.update(
        choices=offered, value=kept.value(0), visible=bool(offered),
        info=_held_out(run, kept) + kept.note,
    )  # fmt: skip
    told = recorded.words(kept, fields)
    shown = [{**row, "prompt": words} for row, words in zip(kept.rows, told, strict=False)]
    table = views.evaluation(shown, *_said(run), len(kept.rows), _files(run)) if shown else None
    box = gr.update(value=system(run, first), visible=_takes_system(run))
    return run, picker, first, expected(run, first), table, first, box


def _takes_system(run: str | None) -> bool:
    """Whether the prompts of a model can have a system text."""
    try:
        return run is not None and sources.takes_system(choices.source(store(), run))
    except LabError:  # it cannot answer at all, which is reported when asked
        return False


def system(run: str | None, prompt: str | None) -> str:
    """The system text that the dataset has with a held-out prompt."""
    return _system(_recorded(run).find(prompt or ""))


def _system(row: recorded.Row | None) -> str:
    return display.cut(str(row.get("system") or ""), recorded.LONGEST) if row else ""


def _held_out(run: str | None, kept: recorded.Recorded) -> str:
    """The label of the held-out prompts: whether the adapter has seen them; or the file that they are of."""
    if asked := _said(run)[1]:
        return f"Rows of {display.line(asked)}, which the run was evaluated on"
    return held_out.said(choices.run_behind(store(), run) if run and len(kept.places) == 1 else None)


def chosen(run: str | None, filled_for: str, prompt: str = "", taken: str = "") -> tuple[Any, ...]:
    """`choose` for another model, and empty columns; choosing the same one again keeps what was typed.

    Where templates have several fields, what was typed into those that both models have stays as well:
    `taken` is the prompt that was filled in.
    """
    if run and run == filled_for:
        return (gr.skip(),) * (7 + len(BLANK))
    filled = choose(run)
    if prompt_boxes.same(prompt, taken):
        return *filled, *BLANK
    kept = prompt_boxes.carried(prompt, _fields(filled_for), filled[2], _fields(run))
    return *filled[:2], kept, expected(run, kept), *filled[4:], *BLANK


def take(run: str, event: gr.EventData) -> Iterator[tuple[Any, ...]]:
    """What `build` returns, for an example of a run: its prompt and system text to be asked again."""
    yield from _take(run, event, None)


def take_both(run: str, other: str | None, event: gr.EventData) -> Iterator[tuple[Any, ...]]:
    """`take`, and the side of another run that is asked too: with its adapter, if it has one."""
    found = known_run(other)
    sides = choices.source(store(), found.id).sides
    side = next(side for side in reversed(columns.SIDES) if side in sides)
    offered = columns.offered(store())
    yield from _take(run, event, gr.update(choices=offered, value=[columns.value(side, found.id)]))


def _take(run: str, event: gr.EventData, also: Any) -> Iterator[tuple[Any, ...]]:
    """`take`; `also` changes what is asked as well."""
    number = picked(event)
    if not re.fullmatch(r"-?[0-9]{1,15}", number):
        raise InputError("example: choose one of the table")
    asked = examples.question(run, {"number": int(number)})
    whole = f"{examples.EXAMPLES}.pages:whole"
    untouched = (gr.skip(),) * (8 + len(BLANK))
    found, filled = yield from check_turns.steps(
        lambda tell: (ended(check_pool.ask(whole, asked, "examples"), tell), choose(run)),
        lambda text: (gr.skip(), {"text": "Reading the example…"}, *untouched),
    )
    current, picker, _, _, table, _, _ = filled
    kept, prompt = _recorded(run), found["prompt"]
    picker = {**picker, "value": kept.value(kept.place(prompt))}
    wanted = gr.update(value=found["expected"], visible=bool(found["expected"]))
    system = gr.update(value=found["system"], visible=_takes_system(run))
    offered = gr.update(choices=choices.exports(store()), value=run)
    shown = (offered, None, current, picker, prompt, wanted, table, prompt, system, *BLANK)
    yield *shown, gr.skip() if also is None else also


def pick(run: str | None, event: gr.EventData) -> tuple[Any, ...]:
    """A held-out prompt that was clicked, even if again, and what the dataset has for it."""
    kept = _recorded(run)
    return _with(kept, kept.prompt(picked(event, "value")))


def enter(run: str | None, value: str | None, taken: str) -> tuple[Any, ...]:
    """A prompt chosen by keyboard; if it is the same as before, the list only lost the focus."""
    kept = _recorded(run)
    prompt = kept.prompt(value or "")
    return (gr.skip(),) * 4 if not prompt or prompt == taken else _with(kept, prompt)


def _with(kept: recorded.Recorded, prompt: str) -> tuple[Any, ...]:
    """A held-out prompt, its expected answer, itself once more, and its system text."""
    row = kept.find(prompt)
    return prompt, _wanted(row), prompt, _system(row)


def expected(run: str | None, prompt: str | None) -> Any:
    """The answer the dataset has for a held-out prompt."""
    return _wanted(_recorded(run).find(prompt or ""))


def _wanted(row: recorded.Row | None) -> Any:
    said = display.cut(str(row["expected"]), views.LONGEST_EXAMPLE) if row else ""
    return gr.update(value=said, visible=row is not None)


def typed(run: str | None, prompt: str) -> tuple[Any, ...]:
    """What the dataset has for a typed prompt, and the prompt in the list, if it is held out."""
    kept = _recorded(run)
    at = kept.place(prompt)
    return _wanted(None if at is None else kept.rows[at]), gr.update(value=kept.value(at))


def _said(run: str | None) -> tuple[str, str]:
    """What the evaluation of a model's run says of its adapter, and the file that it asked, if one."""
    behind = choices.run_behind(store(), run) if run else None
    return (behind.verdict, behind.asked) if behind is not None else ("", "")


def _files(run: str | None) -> str:
    """Which files gave the recorded answers of a model's run."""
    behind = choices.run_behind(store(), run) if run else None
    return rows.of_run(behind).answered.sentence if behind is not None else ""


def _recorded(run: str | None) -> recorded.Recorded:
    return recorded.of_run(choices.run_behind(store(), run) if run else None)


def arrive(run: str | None, filled_for: str, name: str, typed: str) -> tuple[Any, ...]:
    """The models that can answer now. The choice and typed text stay; a page that was just opened shows the
    last conversation `name` with what was `typed` since, else the newest run.
    """
    found = choices.exports(store())
    ids = [key for _, key in found]
    kept = Talk() if filled_for else talks.load(store().home, name)
    here = kept.model in ids and run in (None, "", kept.model)
    wanted = kept.model if here else run
    current = wanted if wanted in ids else next(iter(ids), None)
    empty = None if found else {"text": "No finished run yet. When one is done, you can talk to it here."}
    others = gr.update(choices=columns.offered(store()))
    if here:
        others["value"] = list(kept.also)
    filled = chosen(current, filled_for)
    if here and kept.turns:
        filled = _restored(filled[:7], kept, typed)
    goes_on = True if len(kept.turns) > 1 and here else gr.skip()
    return gr.update(choices=found, value=current), others, empty, goes_on, *filled


def _restored(filled: tuple[Any, ...], kept: Talk, typed: str) -> tuple[Any, ...]:
    """What `chosen` fills, with the last turn of a conversation in its columns, and earlier ones above."""
    last, named = kept.turns[-1], prompting.named_columns(kept.model, kept.also)
    said = [last.of(one) for one in named]
    texts = [one.text if one else "" for one in said]
    facts = [one.facts if one else None for one in said]
    before = replace(kept, turns=kept.turns[:-1])
    run, picker, _, _, table, taken, box = filled
    prompt = typed or last.prompt
    here = (run, picker, prompt, expected(kept.model, prompt), table, taken, {**box, "value": last.system})
    return *here, *texts, *facts, *prompting.earlier(before, named)


def _column(at: int) -> tuple[gr.Column, gr.HTML, gr.Textbox, gr.HTML]:
    """One column: earlier turns, the text box of the answer, and the facts below it."""
    name = columns.SIDES[at] if at < len(columns.SIDES) else f"also-{at - 1}"
    with gr.Column(min_width=300, visible=at < len(columns.SIDES)) as column:
        earlier = parts.drawn("turns", module="talk.js")
        text = gr.Textbox(
            label=columns.WORDS.get(name, "Also asked"), lines=8, max_lines=24, interactive=False,
            buttons=["copy"], elem_id=f"answer-{name}",
        )  # fmt: skip
        return column, earlier, text, parts.drawn("facts")


def _question() -> tuple[Any, ...]:
    """What is asked, and of whom."""
    with gr.Column(scale=3, min_width=320):
        run = gr.Dropdown(
            label="Model",
            info="Of finished runs, newest first; then registered here, then pulled from Azure",
            allow_custom_value=True,
            elem_id="compare-run",
        )
        also = gr.Dropdown(
            label="Also ask", info="Up to two sides of other models", multiselect=True,
            allow_custom_value=True, max_choices=columns.MOST_ALSO, elem_id="compare-also",
        )  # fmt: skip
        picker = gr.Dropdown(
            label="Held-out prompts",
            info=held_out.UNSEEN,
            visible=False,
            allow_custom_value=True,
            elem_id="compare-picker",
        )
        prompt = gr.Textbox(label="Prompt", lines=3, max_lines=10, elem_id="compare-prompt")
        fields = parts.drawn("boxes", module="talk.js", elem_id="compare-boxes")
        instructions = gr.Textbox(
            label="System text", info="Instructions before the prompt; may stay empty", lines=1,
            max_lines=6, visible=False, elem_id="compare-system",
        )  # fmt: skip
        wanted = gr.Textbox(label="Expected answer", interactive=False, visible=False, lines=1, max_lines=6)
        return run, also, picker, prompt, fields, instructions, wanted


def _how() -> tuple[Any, ...]:
    """How an answer is drawn."""
    with gr.Column(scale=1, min_width=220):
        tokens = gr.Slider(1, prompting.MOST_TOKENS, value=128, step=1, label="Max tokens")
        temperature = gr.Slider(
            0, 2, value=0, step=0.05, label="Temperature", info="0 always picks the most likely token"
        )
        seed = gr.Number(0, label="Seed", precision=0)
        continues = gr.Checkbox(
            label="Continue the conversation", info="Earlier turns go before the prompt",
            elem_id="compare-continues",
        )  # fmt: skip
        return tokens, temperature, seed, continues


def build(tab: gr.Tab) -> list[gr.components.Component]:
    """Lay out the tab; the outputs of `take`."""
    notice = parts.drawn("notice", elem_id="compare-notice")
    with gr.Row(equal_height=False):
        run, also, picker, prompt, fields, instructions, wanted = _question()
        tokens, temperature, seed, continues = _how()
    with gr.Row():
        go = gr.Button(prompting.RUN, variant="primary", scale=3, elem_id="compare-go")
        anew = gr.Button("Regenerate", scale=1, elem_id="compare-again")
        change = gr.Button("Edit last", scale=1, elem_id="compare-edit")
        stop = gr.Button("Stop", scale=1, elem_id="compare-stop")
        prove = gr.Button("Probe the adapter", scale=1, min_width=200, elem_id="compare-probe")
    proof = parts.drawn("notice", elem_id="compare-proof")
    with gr.Row(equal_height=False):
        made = [_column(at) for at in range(columns.MOST)]
    mark = gr.Button("Mark differences", size="sm", elem_id="compare-mark")
    marked = parts.drawn("marks", module="talk.js", elem_id="compare-marks")
    table = parts.drawn("table", elem_id="compare-recorded")

    filled_for, taken, name, edits = (
        gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label=label)
        for label in ("Run of the prompts", "Prompt of the list", "Conversation", "What is edited")
    )
    shown, earlier, texts, facts = ([*of] for of in zip(*made, strict=True))
    filled = [filled_for, picker, prompt, wanted, table, taken, instructions]
    filled += [*texts, *facts, *earlier]
    from_list = [prompt, wanted, taken, instructions]
    asks = [run, also, name, prompt, tokens, temperature, seed, instructions, continues, edits]
    out = [*texts, *facts, *earlier, notice, go]
    named = parts.live("named", "talk.js")
    answers = [
        gr.on([go.click, prompt.submit], prompting.run_both, asks, out, js=named, **parts.QUEUED),
        anew.click(prompting.run_again, asks, out, js=named, **parts.QUEUED),
    ]
    free = [go, anew, edits]
    for answer in answers:
        answer.then(prompting.ready, None, free, **parts.QUICK)  # after an error, too
    # Shown after the stream has ended, or its last piece would remove it again.
    stop.click(None, None, None, cancels=answers, **parts.QUICK).then(
        lambda: (*prompting.ready(), {"text": "Stopped."}), None, [*free, notice], **parts.QUICK
    )
    mark.click(prompting.marks, texts, [marked, notice], **parts.CHECKS)
    gr.on([go.click, prompt.submit, anew.click], lambda: None, None, marked, **parts.QUICK)
    change.click(
        prompting.edit, name, [prompt, instructions, edits, notice],
        js=parts.live("own", "talk.js"), **parts.QUICK,
    )  # fmt: skip
    also.change(more, also, [*shown[2:], *texts[2:]], trigger_mode="always_last", **parts.QUICK)
    prove.click(prompting.probe, run, [proof, prove], **parts.QUEUED).then(
        lambda: gr.update(interactive=True), None, prove, **parts.QUICK
    )
    run.change(lambda: None, None, proof, **parts.QUICK)
    gr.on([run.change, also.change], boxes, [run, also], fields, trigger_mode="always_last", **parts.QUICK)
    prompt.change(None, prompt, None, js=parts.live("spread", "talk.js"), **parts.IN_PAGE)
    run.input(chosen, [run, filled_for, prompt, taken], filled, trigger_mode="always_last", **parts.QUICK)
    picker.select(pick, run, from_list, trigger_mode="multiple", **parts.QUICK)
    picker.input(enter, [run, picker, taken], from_list, trigger_mode="always_last", **parts.QUICK)
    prompt.change(typed, [run, prompt], [wanted, picker], trigger_mode="always_last", **parts.QUICK)
    prompt.input(None, prompt, None, js=parts.live("typed", "talk.js"), **parts.IN_PAGE)
    typed_before = gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label="Typed before")
    tab.select(
        arrive, [run, filled_for, name, typed_before], [run, also, notice, continues, *filled],
        js=parts.live("arrived", "talk.js"), **parts.QUICK,
    )  # fmt: skip
    return [run, notice, *filled, also]
