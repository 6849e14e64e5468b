"""A file of rows to evaluate on in place of held-out ones: uploaded in the Lab's form, or one of the lab's.

Its field has paths that `choices.data` offers and no others. A process reads the file, with the columns of
the dataset where it has these (`prepare_data.looking`); a good upload is kept as datasets are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display, settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.evaluation.fewest import LEAST_ROWS
from pipeline.inputs.options import describe
from pipeline.runs import disk, kept_datasets
from pipeline.runs.data import prepare_data
from pipeline.runs.data.prepare_data import Checked
from pipeline.stages import evaluate, finetune
from webapp import local_models, uploads
from webapp.home import store
from webapp.ui import check_turns, choices, form, parts, preflight_view, views

KEY = ("evaluate", "data")
HELD_OUT = ""  # the value of the field without a file
NOT_TAKEN = "{} is not taken; what was chosen stays"
READING = "Reading the file…"
FEW = f"A verdict needs {LEAST_ROWS} rows or more."
MOST_KEPT = 64
Notice = dict[str, Any]


class Place(NamedTuple):
    """The field, and what goes with it."""

    chosen: gr.Dropdown
    upload: gr.UploadButton
    remove: gr.Button
    said: gr.HTML  # what the chosen file is
    problems: gr.HTML  # of the last upload


def known(chosen: str | None) -> str:
    """The chosen file, or HELD_OUT. Raises InputError for a path that the page did not offer."""
    if not chosen:
        return HELD_OUT
    if not choices.has_data(store().home, chosen):
        where = ".".join(KEY)
        raise InputError(f"{where}: this file is not in the lab; upload it, or choose held-out rows")
    return chosen


def refresh(chosen: str | None) -> Any:
    """The current choices; the choice stays."""
    kept: dict[str, Any] = {} if chosen is None else {"value": chosen}
    return gr.update(choices=offered(), **kept)


def offered() -> choices.Choices:
    """Held-out rows, then the samples and what was uploaded, newest first."""
    return [("Held-out rows", HELD_OUT), *choices.data(store().home)]


def take(upload: str | None, data: str | None, template: str, model: str) -> Iterator[tuple[Any, ...]]:
    """Check an upload, keep it if it is good, and choose it: what it is, problems, choice, upload."""
    yield {"text": READING}, None, gr.skip(), gr.skip()
    try:
        said, kept = yield from check_turns.steps(
            lambda tell: _taken(upload, data, template, model, tell),
            lambda step: ({"text": f"{READING} {step}".strip()}, None, gr.skip(), gr.skip()),
        )
    except (LabError, OSError) as error:
        name = display.line(Path(upload or "").name) or "The file"
        yield None, views.problems(NOT_TAKEN.format(name), error), gr.skip(), None
        return
    _remember(_asked(str(kept), data, template, model), said)
    yield said, None, gr.update(choices=offered(), value=str(kept)), None


def _taken(
    upload: str | None, data: str | None, template: str, model: str, tell: Callable[[str], None]
) -> tuple[Notice, Path]:
    """What a good upload is, and where it is kept. Raises InputError with its problems, LabError, OSError."""
    with (
        uploads.taken(upload, most_bytes=settings.max_upload_bytes()) as copy,
        prepare_data.work_folder(store().home) as work,
    ):
        found = _found(copy, work, data, template, model, tell)
        if problems := _problems(found):
            raise InputError(problems)
        there = {value for _, value in choices.data(store().home)}
        kept = kept_datasets.keep_made(store().home, found.made)
        disk.look_at(kept, new=str(kept) not in there)
        return _said(copy.name, found), kept


def show(chosen: str | None, data: str | None, template: str, model: str) -> Iterator[tuple[Any, Any]]:
    """What the chosen file is with the form's dataset, template and model; and the button to remove it."""
    remove = gr.update(visible=bool(chosen))
    if not chosen:
        yield None, remove
        return
    asked = _asked(chosen, data, template, model)
    if asked not in _known:
        yield {"text": READING}, remove
    try:
        known(chosen)  # what was found of it is kept, but not the file
        said = _known.get(asked) or (
            yield from check_turns.steps(
                lambda tell: _shown(chosen, data, template, model, tell),
                lambda step: ({"text": f"{READING} {step}".strip()}, gr.skip()),
            )
        )
    except (LabError, OSError) as error:
        yield {"text": sentence(error), "kind": "bad"}, remove
        return
    _remember(asked, said)
    disk.look_at(Path(chosen))
    yield said, remove


def _asked(chosen: str, data: str | None, template: str, model: str) -> tuple[Any, ...]:
    """What the answer about a file depends on."""
    reader = _reader(model)
    return chosen, data, template, model, preflight_view.changed(reader) if reader else 0


def _remember(asked: tuple[Any, ...], said: Notice) -> None:
    while len(_known) >= MOST_KEPT:
        _known.pop(next(iter(_known)), None)
    _known[asked] = said


# What was said of files, the newest last: other fields of the form change nothing about them.
_known: dict[tuple[Any, ...], Notice] = {}


def _shown(chosen: str, data: str | None, template: str, model: str, tell: Callable[[str], None]) -> Notice:
    """Raises LabError, OSError."""
    path = Path(known(chosen))
    with prepare_data.work_folder(store().home) as work:
        found = _found(path, work, data, template, model, tell)
    if problems := _problems(found):
        return {"text": f"{path.name} does not fit: {problems[0]}", "kind": "bad"}
    return _said(path.name, found)


def _found(
    path: Path, work: Path, data: str | None, template: str, model: str, tell: Callable[[str], None]
) -> Checked:
    """What a process finds in the file. Raises InputError, LabError."""
    try:
        like: Path | None = choices.known_data(store().home, data)
    except InputError:  # the field of the dataset says so
        like = None
    most = finetune.Options.max_length
    steps = prepare_data.looking([path], work, template, _reader(model), most, None, like)
    with closing(steps):
        return prepare_data.ended(steps, path, tell)


def _reader(model: str) -> str:
    """The model that reads the rows; "" for one that the page does not take, which its field says."""
    try:
        return local_models.known(model)
    except InputError:
        return ""


def _problems(found: Checked) -> list[str]:
    """Why the file cannot be asked, by its lines; none if it can."""
    if not found.report.good:
        return found.messages()
    return prepare_data.unusable(found, least=1) or [prepare_data.OTHER_FORM] * (not found.is_alike)


def _said(name: str, found: Checked) -> Notice:
    """What was recognised, in a line."""
    told = views.dataset(name, found.report, [FEW] if found.report.rows < LEAST_ROWS else [])
    if found.made.has_chosen:
        told["text"] = f"{told['text'].partition(' · ')[0]} · {prepare_data.described(found.made)}"
    return told


def lay_out(inputs: form.Form) -> Place:
    """Draw the field and what goes with it, and add the field to the form."""
    option = next(option for option in describe(evaluate.Options) if option.name == KEY[1])
    with gr.Row(elem_classes="fields"):
        chosen = gr.Dropdown(
            [("Held-out rows", HELD_OUT)], value=HELD_OUT, label=option.titled(), info=option.help,
            allow_custom_value=True, elem_id="-".join(KEY), min_width=220,
        )  # fmt: skip
        inputs.add(KEY[0], option, chosen)
    with gr.Column(elem_classes="asked"):
        with gr.Row(elem_classes="bar"):
            upload = gr.UploadButton("Upload a prompt file", size="sm", scale=0, min_width=180,
                                     elem_id="evaluate-upload")  # fmt: skip
            remove = gr.Button("Back to held-out rows", size="sm", scale=0, min_width=180, visible=False,
                               elem_id="evaluate-remove")  # fmt: skip
        said = parts.drawn("notice", elem_id="evaluate-said")
        problems = parts.drawn("problems", elem_id="evaluate-problems")
    return Place(chosen, upload, remove, said, problems)


def wire(
    place: Place,
    data: form.Input,
    template: form.Input,
    model: form.Input,
    settled: gr.Button,
    reset: gr.Button,
) -> None:
    """Connect it; the hidden button `settled` is clicked when the form has settled, `reset` starts over."""
    about = [data, template, model]
    outputs = [place.said, place.problems, place.chosen, place.upload]
    shown = [place.chosen, *about], [place.said, place.remove]
    place.upload.upload(
        take, [place.upload, *about], outputs, trigger_mode="always_last", **parts.CHECKS
    ).then(show, *shown, trigger_mode="always_last", **parts.CHECKS)
    # Both by the page alone: an answer that comes late would undo an upload that has come meanwhile.
    place.remove.click(
        None, None, [place.chosen, place.said, place.problems],
        js=f"() => [{HELD_OUT!r}, null, null]", **parts.IN_PAGE,
    )  # fmt: skip
    gr.on([place.chosen.change, reset.click], None, None, place.problems, js="() => null", **parts.IN_PAGE)
    settled.click(show, *shown, trigger_mode="always_last", **parts.CHECKS)
