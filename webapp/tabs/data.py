"""Data: upload or pick a dataset, see what is wrong with it, and what the model will read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import telling
from pipeline.inputs.data.formats import columns
from pipeline.inputs.data.formats.columns import PARTS, Columns
from pipeline.inputs.data.hub import dataset_id
from pipeline.inputs.prompts import templates
from pipeline.runs import disk, kept_datasets
from pipeline.runs.data import prepare_data
from pipeline.runs.data.prepare_data import Checked
from pipeline.stages import finetune
from webapp import local_models, uploads
from webapp.home import store
from webapp.tabs import learned
from webapp.ui import card_view, check_turns, choices, parts, views

LISTS = (gr.skip(),) * len(PARTS)
MISFIT = "The rows do not fit this template; change one of them and check again"
UNFIT = "The rows cannot be used with these columns; choose others, or correct the lines"
BROKEN = "This file cannot be used"
HELP = (
    "What is asked; several are joined with a blank line. Without one, each text is learned as a whole",
    "What the model learns to answer",
    "What it is told before, if anything",
)
MOST_FIRST_LOOKS = 2  # at a time, by pages that have just opened
CUSTOM = "<|user|>\\n{prompt}<|end|>\\n<|assistant|>\\n{response}<|end|>"


class Data(NamedTuple):
    """Components that app.py connects with other tabs."""

    picked: gr.Dropdown
    template: gr.Textbox
    model: gr.Dropdown
    leave_out: gr.CheckboxGroup
    use: gr.Button
    shown: list[gr.components.Component]  # the outputs of `arrive`


def look(
    uploaded: list[str] | str | None, picked: str | None, template: str, model: str, *lists: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Check an upload, or else the picked dataset: yields progress, then the findings.

    `lists` are the columns chosen as prompt, response and system; as recognised if there are none. A good
    upload is kept. A hub model may take a minute.
    """
    yield _reading()
    try:
        chosen = _chosen(lists)
        shown = yield from check_turns.steps(
            lambda tell: _looked(uploaded, picked, template, model, chosen, tell), _reading
        )
    except (LabError, OSError) as error:
        problems = views.problems("This cannot be checked or kept yet", error)
        choice = gr.update(value=None) if uploaded else gr.skip()
        shown = None, problems, None, None, *LISTS, gr.skip(), choice, gr.update(interactive=False)
    yield shown


def _chosen(lists: tuple[list[str], ...]) -> Columns | None:
    """The columns chosen, None if there are none. Raises InputError."""
    if not any(lists):
        return None
    return columns.parse(dict(zip(PARTS, lists, strict=True)))


def _looked(
    uploaded: list[str] | str | None, picked: str | None, template: str, model: str, chosen: Columns | None,
    tell: Callable[[str], None],
) -> tuple[Any, ...]:  # fmt: skip
    """The final outputs of `look`. Raises LabError, OSError."""
    with (
        _dataset(uploaded, picked, tell) as (paths, source),
        prepare_data.work_folder(store().home) as work,
    ):
        offered, not_offered = _offered(model)
        steps = prepare_data.looking(paths, work, template, offered, finetune.Options.max_length, chosen)
        with closing(steps):
            found = replace(prepare_data.ended(steps, paths[0], tell), source=source)
        note = _without(template, model, not_offered or found.unknown, found.has_chat)
        made, report = found.made, found.report
        fits = report.good
        rows = fits or report.has_rows or (made.is_made and bool(made.fields))
        # A dataset of the hub; or other columns of what was made here before.
        new = uploaded or dataset_id.is_id(picked or "") or (made.is_made and fits)
        taken = _take(found, fits, rows) if new else (gr.skip(), gr.skip())
    title = (UNFIT if made.is_made else MISFIT) if rows else BROKEN
    return (
        _summary(paths, found, note),
        None if fits else views.listed(title, found.messages()),
        views.first_rows(report) if rows and report.first else None,
        views.example(report) if rows and report.example else None,
        *_lists(found, rows, chosen),
        *taken,
        gr.update(interactive=fits),
    )


def _lists(found: Checked, rows: bool, chosen: Columns | None) -> tuple[Any, ...]:
    """The lists of columns: all there are, and those that were taken or are proposed."""
    made = found.made
    names = list(made.fields) if rows else []
    values = (made.columns or chosen or made.proposed) if rows else None
    taken = values.to_dict() if values else {}
    return tuple(
        gr.update(
            choices=names,
            value=[name for name in taken.get(part, []) if name in names],
            interactive=bool(names),
        )
        for part in PARTS
    )


def found(
    uploaded: list[str] | str | None, picked: str | None, template: str, model: str, *lists: list[str]
) -> tuple[Any, ...]:
    """The final outputs of `look`: summary, problems, rows, example, three lists, upload, choice, use."""
    *_, last = look(uploaded, picked, template, model, *lists)
    return last


def _reading(step: str = "") -> tuple[Any, ...]:
    """The outputs while a dataset is read; `step` is the progress."""
    text = f"Reading the dataset… {step}".strip()
    return {"text": text}, None, None, None, *LISTS, gr.skip(), gr.skip(), gr.update(interactive=False)


def arrive() -> tuple[Any, ...]:
    """What the tab shows at first: the first dataset, usually the sample.

    Every page asks for it, outside the queue, so it is looked at once, and few wait for that.
    """
    first = next((value for _, value in choices.data(store().home)), None)
    if first is None:
        return gr.skip(), {"text": "Upload a dataset to see what is in it."}, *(gr.skip(),) * 7
    shown = _first_look(first)
    if shown is None:
        text = {"text": "Choose the dataset once more to see what is in it."}
        return gr.update(**_offer(), value=first), text, *(gr.skip(),) * 7
    return gr.update(**_offer(), value=first), *shown


def _first_look(path: str) -> tuple[Any, ...] | None:
    """What is found in a dataset, and whether it can be used; None where too many look at one just now."""
    try:
        facts = Path(path).stat()
    except OSError:
        return None
    key = path, facts.st_mtime_ns, facts.st_size
    if (known := _looked_at.get(key)) is not None:
        return known
    if not _first_looks.acquire(blocking=False):
        return None
    try:
        *shown, _, _, use = found(None, path, templates.CHAT, "starter")
    finally:
        _first_looks.release()
    if shown[1] is None:  # no problem, which may pass
        _looked_at.clear()
        _looked_at[key] = *shown, use
    return *shown, use


_first_looks = threading.BoundedSemaphore(MOST_FIRST_LOOKS)
_looked_at: dict[tuple[str, int, int], tuple[Any, ...]] = {}


def refresh() -> Any:
    """The current datasets. Not the choice, which may have changed by the time of the answer."""
    return gr.update(**_offer())


def _offer() -> dict[str, Any]:
    return {"choices": choices.data(store().home)}


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
def _dataset(
    uploaded: list[str] | str | None, picked: str | None, tell: Callable[[str], None]
) -> Iterator[tuple[Sequence[Path], str]]:
    """The files to check: temporary copies of uploads, or else the picked dataset, fetched if it is an id of
    the hub; and where they are from, if from there."""
    if not uploaded and dataset_id.is_id(picked or ""):
        with closing(prepare_data.bringing(Path(picked or ""), own_login=local_models.hub_login())) as steps:
            yield telling.ended(steps, tell)
        return
    with ExitStack() as copies:
        named = [uploaded] if isinstance(uploaded, str) else uploaded or []
        most = settings.max_upload_bytes()
        taken = [copies.enter_context(uploads.taken(one, most_bytes=most)) for one in named]
        known = [] if taken else [choices.known_data(store().home, picked)]
        yield taken or known, "" if taken else prepare_data.source_of(known[0])


def _take(found: Checked, fits: bool, rows: bool) -> tuple[Any, Any]:
    """Move a good upload into the home and choose it: new values of the upload box and the choice.

    An upload that does not fit stays in its box if another template may fit it. No dataset is chosen then, to
    show that the upload was checked, or still the hub's, with its commit.
    """
    if not fits:
        return gr.skip() if rows else None, gr.update(value=found.source if rows and found.source else None)
    kept = kept_datasets.keep_made(store().home, found.made, source=found.source)
    kept.with_name(disk.LOOKED_AT).unlink(missing_ok=True)  # it is a dataset now, which stays
    return None, gr.update(choices=choices.data(store().home), value=str(kept))


def _summary(paths: Sequence[Path], found: Checked, note: str) -> dict[str, Any]:
    report, made = found.report, found.made
    read = f"Checked as {prepare_data.described(made)}" if made.is_made and made.rows else ""
    notes = [note, f"From {found.source}" if found.source else "", read, *report.notes, report.unasked]
    name = " + ".join(path.name for path in paths)
    return views.dataset(name, report, [text for text in notes if text])


def build() -> Data:
    """Lay out the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            picked = gr.Dropdown(
                label="Dataset",
                info="A sample, one you have uploaded, or one of the Hugging Face Hub, typed as hub:org/name",
                elem_id="data-pick",
                allow_custom_value=True,
            )
            upload = gr.File(
                file_count="multiple", label="Upload JSONL, JSON, CSV, TSV, Parquet or text",
                elem_id="data-upload", height=160,
            )  # fmt: skip
            parts.fixed("<i hidden></i>", js_on_load=f"({parts.live('nameUpload')})(element, 'data-upload');")
            lists = [
                gr.Dropdown(
                    [], value=[], multiselect=True, label=f"{part.capitalize()} columns", info=info,
                    allow_custom_value=True, interactive=False, elem_id=f"data-{part}",
                )
                for part, info in zip(PARTS, HELP, strict=True)
            ]  # fmt: skip
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
            now = gr.Button("Check", visible="hidden", elem_classes=parts.HIDDEN, elem_id="data-check-now")
        with gr.Column(scale=3, min_width=360):
            summary = parts.drawn("notice", elem_id="data-summary")
            problems = parts.drawn("problems", elem_id="data-problems")
            rows = parts.drawn("table", elem_id="data-rows")  # hidden once the table of all rows is there
            all_rows = parts.drawn("rows", module="card.js", elem_id="data-all-rows")
            example = parts.drawn("example", elem_id="data-example")
            leave_out = card_view.build(picked, template, model, again, all_rows)
            learned.build(picked, template, model)

    found = [summary, problems, rows, example, *lists]
    given = [upload, picked, template, model, *lists]
    checked = now.click(
        look, given, [*found, upload, picked, use], trigger_mode="always_last", **parts.CHECKS
    )
    # All by one event, and what it does for an earlier choice is given up: a late answer would hide the last.
    # Given up first, as listeners are called in their order: else it could be the check of this choice.
    asked = [template.submit, model.input, again.click, *(one.input for one in lists)]
    gr.on([*asked, upload.upload, picked.input], None, None, None, cancels=checked, **parts.IN_PAGE)
    soon = f"({parts.live('checkSoon')})()"
    gr.on(asked, None, None, None, js=f"() => {soon}", **parts.IN_PAGE)
    upload.upload(None, None, lists, js=f"() => {soon} && [[], [], []]", **parts.IN_PAGE)
    picked.input(None, None, [upload, *lists], js=f"() => {soon} && [null, [], [], []]", **parts.IN_PAGE)
    return Data(picked, template, model, leave_out, use, [picked, *found, use])
