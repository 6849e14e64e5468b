"""Data: upload or pick a dataset, see what is wrong with it, and what the model will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.prompts import templates
from pipeline.runs import data_check, submit
from pipeline.stages import finetune
from webapp import local_models, uploads
from webapp.home import store
from webapp.tabs import learned
from webapp.ui import check_turns, choices, parts, views

MISFIT = "The rows do not fit this template; change one of them and check again"
BROKEN = "This file cannot be used"
CUSTOM = "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>"


class Data(NamedTuple):
    """Components that app.py connects with other tabs."""

    picked: gr.Dropdown
    template: gr.Textbox
    model: gr.Dropdown
    use: gr.Button
    shown: list[gr.components.Component]  # the outputs of `arrive`


def look(uploaded: str | None, picked: str | None, template: str, model: str) -> Iterator[tuple[Any, ...]]:
    """Check an upload, or else the picked dataset: yields progress, then the findings.

    A good upload is kept. A hub model may take a minute.
    """
    yield _reading()
    try:
        shown = yield from check_turns.steps(
            lambda tell: _looked(uploaded, picked, template, model, tell), _reading
        )
    except (LabError, OSError) as error:
        problems = views.problems("This cannot be checked or kept yet", error)
        choice = gr.update(value=None) if uploaded else gr.skip()
        shown = None, problems, None, None, gr.skip(), choice, gr.update(interactive=False)
    yield shown


def _looked(
    uploaded: str | None, picked: str | None, template: str, model: str, tell: Callable[[str], None]
) -> tuple[Any, ...]:
    """The final outputs of `look`. Raises LabError, OSError."""
    with _dataset(uploaded, picked) as path:
        offered, not_offered = _offered(model)
        steps = data_check.looking(path, template, offered, max_length=finetune.Options.max_length)
        with closing(steps):
            report, unknown, has_chat = datasets.ended(steps, tell)
        unknown = not_offered or unknown
        note = _without(template, model, unknown, has_chat)
        fits, rows = report.good, report.good or report.has_rows
        taken = _take(path, fits, rows) if uploaded else (gr.skip(), gr.skip())
    return (
        _summary(path, report, note),
        None if fits else views.listed(MISFIT if rows else BROKEN, _short(report, path)),
        views.first_rows(report) if rows and report.first else None,
        views.example(report) if rows and report.example else None,
        *taken,
        gr.update(interactive=fits),
    )


def found(uploaded: str | None, picked: str | None, template: str, model: str) -> tuple[Any, ...]:
    """The final outputs of `look`: summary, problems, rows, example, upload, choice, use."""
    *_, last = look(uploaded, picked, template, model)
    return last


def _reading(step: str = "") -> tuple[Any, ...]:
    """The outputs while a dataset is read; `step` is the progress."""
    text = f"Reading the dataset… {step}".strip()
    return {"text": text}, None, None, None, gr.skip(), gr.skip(), gr.update(interactive=False)


def arrive() -> tuple[Any, ...]:
    """What the tab shows at first: the first dataset, usually the sample."""
    first = next((value for _, value in choices.data(store().home)), None)
    if first is None:
        return gr.skip(), {"text": "Upload a dataset to see what is in it."}, *(gr.skip(),) * 4
    summary, problems, rows, example, *_, use = found(None, first, templates.CHAT, "starter")
    return refresh(first), summary, problems, rows, example, use


def refresh(picked: str | None) -> Any:
    """The current datasets; the choice stays."""
    known: dict[str, Any] = (
        {"value": picked} if picked else {}
    )  # called before `arrive` has answered: keep its choice
    return gr.update(choices=choices.data(store().home), **known)


def _offered(model: str) -> tuple[str, str]:
    """The model if the page takes it, "" if not; and why not."""
    try:
        return local_models.known(model), ""
    except InputError as error:
        return "", error.problems[0]


def _without(template: str, model: str, unknown: str, has_chat: bool) -> str:
    """What cannot be known of the data because the model is not, or has no chat template."""
    chat = template.strip() == templates.CHAT
    if unknown:
        return f"{'The example cannot be rendered' if chat else 'Lengths are not counted'}: {unknown}"
    return f"{model} has no chat template, so write a template of your own." if chat and not has_chat else ""


@contextmanager
def _dataset(uploaded: str | None, picked: str | None) -> Iterator[Path]:
    """The file to check: a temporary copy of an upload, or else the picked dataset."""
    if uploaded:
        with uploads.taken(uploaded, most_bytes=settings.max_upload_bytes()) as path:
            yield path
    else:
        yield choices.known_data(store().home, picked)


def _take(path: Path, fits: bool, rows: bool) -> tuple[Any, Any]:
    """Move a good upload into the home and choose it: new values of the upload box and the choice.

    An upload that does not fit stays in its box if another template may fit it. No dataset is chosen then, to
    show that the upload was checked.
    """
    if not fits:
        return gr.skip() if rows else None, gr.update(value=None)
    kept = submit.keep_dataset(store().home, path)
    return None, gr.update(choices=choices.data(store().home), value=str(kept))


def _short(report: datasets.Report, path: Path) -> list[str]:
    """The problems with `line 7` instead of the full path."""
    named = f"{display.plain(str(path))}:"
    return [f"Line {m.removeprefix(named)}" if m.startswith(named) else m for m in report.messages()]


def _summary(path: Path, report: datasets.Report, note: str) -> dict[str, Any]:
    notes = [note, *report.notes, report.unasked]
    return views.dataset(path.name, report, [text for text in notes if text])


def build() -> Data:
    """Lay out the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            picked = gr.Dropdown(
                label="Dataset",
                info="A sample, or one you have uploaded",
                elem_id="data-pick",
                allow_custom_value=True,
            )
            upload = gr.File(label="Upload JSON lines (.jsonl)", elem_id="data-upload", height=160)
            parts.fixed("<i hidden></i>", js_on_load=f"({parts.live('nameUpload')})('data-upload');")
            template = gr.Textbox(
                templates.CHAT,
                label="Template",
                info="chat is the model's own; or a text with {placeholders}, the last one is the response",
                placeholder=CUSTOM,
                elem_id="data-template",
            )
            model = gr.Dropdown(
                choices.models(), value="starter", label="Model whose chat template is used",
                allow_custom_value=True, elem_id="data-model",
            )  # fmt: skip
            with gr.Row():
                again = gr.Button("Check again", elem_id="data-check")
                use = gr.Button("Use in the Lab", variant="primary", interactive=False, elem_id="data-use")
        with gr.Column(scale=3, min_width=360):
            summary = parts.drawn("notice", elem_id="data-summary")
            problems = parts.drawn("problems", elem_id="data-problems")
            rows = parts.drawn("table", elem_id="data-rows")
            example = parts.drawn("example", elem_id="data-example")
            learned.build(picked, template, model)

    shown = [summary, problems, rows, example, upload, picked, use]
    given = [upload, picked, template, model]
    event: dict[str, Any] = {"inputs": given, "outputs": shown, **parts.CHECKS}
    upload.upload(look, **event)
    template.submit(look, **event)
    again.click(look, **event)
    gr.on(
        [picked.input, model.input],
        lambda picked, template, model: (yield from look(None, picked, template, model)),
        **{**event, "inputs": given[1:]},
    )
    return Data(picked, template, model, use, [picked, summary, problems, rows, example, use])
