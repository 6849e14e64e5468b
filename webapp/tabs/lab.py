"""Lab: choose what to do, see it as a recipe, launch it, and watch the run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import yaml

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.options import describe
from pipeline.runs import submit
from pipeline.stages import recipe as recipes
from pipeline.stages.all_stages import STAGES
from pipeline.system import hardware
from pipeline.system.files import to_json
from webapp import local_models
from webapp.home import known_run, store
from webapp.tabs import scorecard, sweep
from webapp.ui import check_turns, choices, form, parts, views

SAMPLE = settings.SAMPLES / "travel.yaml"
NOT_STARTED = "Nothing was started"


class Lab(NamedTuple):
    """Components that app.py connects with other tabs."""

    data: form.Input
    template: form.Input
    model: form.Input
    run: gr.Textbox
    new: gr.Accordion
    inputs: form.Form


def launch(inputs: form.Form, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Check the recipe and queue its run. Problems are shown beside the button, and nothing starts."""
    checking = {"text": "Checking the recipe, the data and the model…"}, None, gr.skip(), gr.skip()
    yield checking
    *given, owner = values
    notes: list[str] = []
    try:
        recipe = _recipe(inputs, tuple(given))
        run = yield from check_turns.steps(
            lambda _: submit.submit(store(), recipe, owner, notes.append), lambda _: checking, to_its_end=True
        )
    except (LabError, OSError) as error:
        yield None, views.problems(NOT_STARTED, error), gr.skip(), gr.skip()
        return
    said = views.queued(f"Run {run} is queued. About its data:", notes) if notes else None
    yield said, None, run, gr.update(open=bool(notes))


def launch_sample(owner: str) -> tuple[Any, ...]:
    """Queue the sample recipe: problems, run, and the form closed."""
    try:
        run = submit.submit(store(), recipes.load(SAMPLE), owner)
    except (LabError, OSError) as error:
        return views.problems(NOT_STARTED, error), gr.skip(), gr.skip()
    return None, run, gr.update(open=False)


def preview(inputs: form.Form, *values: Any) -> tuple[Any, ...]:
    """The recipe as YAML, the equivalent command, and what is plainly wrong with it."""
    chosen = inputs.collect(values)
    try:
        recipe = _recipe(inputs, values)
    except InputError as error:
        text = yaml.safe_dump(
            chosen, default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True
        )
        return (
            text,
            command(chosen.get("name")),
            {"title": "This recipe cannot run yet", "items": error.problems},
        )
    return recipe.to_yaml(), command(recipe.name), None


def command(name: str | None) -> str:
    """The terminal command for the downloaded recipe."""
    return f"{settings.command()} run {file_name(name)}"


def file_name(name: str | None) -> str:
    """A file name that needs no quoting in a shell."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name or '').strip('-')[:60] or 'recipe'}.yaml"


def _chosen(inputs: form.Form, values: tuple[Any, ...]) -> dict[str, Any]:
    """The form's recipe as a mapping. Raises InputError if its model or dataset is not offered."""
    chosen = inputs.collect(values)
    problems = []
    offered = partial(choices.known_data, store().home)
    for name, known in (("model", local_models.known), ("data", offered)):
        try:
            chosen[name] = str(known(chosen.get(name)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    chosen["name"] = chosen.get("name") or ""
    return chosen


def _recipe(inputs: form.Form, values: tuple[Any, ...], **changes: Any) -> recipes.Recipe:
    return recipes.from_dict({**_chosen(inputs, values), **changes})  # paths are absolute


def _recipe_to_score(inputs: form.Form, values: tuple[Any, ...]) -> recipes.Recipe:
    """The form's recipe without the stages that a scorecard does not use, even if they have errors."""
    return _recipe(inputs, values, finetune=None, evaluate=None)


def _basics(inputs: form.Form) -> None:
    """The inputs that concern every stage; model and data are chosen from lists."""
    shown = [option for option in describe(recipes.Basics) if not option.advanced]
    with gr.Row(elem_classes="fields"):
        for option in shown:
            if option.name == "group":
                continue  # set for runs that are started together, not typed
            if option.name == "model":
                made: Any = gr.Dropdown(
                    choices.models(), value=option.default, label="Model", info=option.help,
                    allow_custom_value=True, elem_id="model", min_width=220,
                )  # fmt: skip
            elif option.name == "data":
                made = gr.Dropdown(
                    label="Dataset", info="Upload another one on the Data tab", allow_custom_value=True,
                    elem_id="data", min_width=220,
                )  # fmt: skip
            else:
                made = form.component(option)
            inputs.add("", option, made)
    with gr.Accordion("More options", open=False), gr.Row(elem_classes="fields"):
        for option in describe(recipes.Basics):
            if option.advanced and (option.name != "runs_on" or hardware.gpus()):
                inputs.add("", option, form.component(option))


def _about(stage: str) -> str:
    """The first line of a stage's own description."""
    first = (STAGES[stage].__doc__ or "").strip().splitlines()[0]
    about = first.partition(": ")[2] or first
    return about[:1].upper() + about[1:].removesuffix(".")


def build(tab: gr.Tab, welcome: gr.Button, welcome_problems: gr.HTML) -> Lab:
    """Lay out the tab. It also handles the button of the welcome, which is above the tabs."""
    inputs = form.Form()
    with gr.Accordion("New run", open=True, elem_id="new-run") as new, gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=360):
            _basics(inputs)
            for stage, cls in recipes.OPTIONS.items():
                inputs.stage(stage, cls, _about(stage), on=stage not in recipes.LEFT_OUT)
        with gr.Column(scale=2, min_width=320, elem_classes="beside"):
            text = gr.Code(label="Recipe", language="yaml", interactive=False, lines=8, wrap_lines=True,
                           show_line_numbers=False, buttons=["copy"], elem_id="recipe")  # fmt: skip
            same = gr.Code(label="The same in a terminal", language="shell", interactive=False, lines=1,
                           show_line_numbers=False, buttons=["copy"], elem_id="command")  # fmt: skip
            download = gr.Button("Download the recipe", size="sm", elem_id="download-recipe")
            start = gr.Button("Launch", variant="primary", size="lg", elem_id="launch")
            notice = parts.drawn("notice")
            problems = parts.drawn("problems", elem_id="lab-problems")
    run = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Run", elem_id="run-id")
    you = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Whose run it is")
    scorecard.build(tab, inputs, _recipe_to_score, you)
    sweep.build(inputs, _chosen, run, you)
    parts.fixed(
        '<section aria-label="Queue"></section>',
        js_on_load=f"({parts.live('mountQueue', 'queue.js')})(element.firstElementChild);",
    )
    parts.fixed(
        '<section class="lab-run" aria-label="Run"></section>',
        js_on_load=f"({parts.live('mount')})(element.firstElementChild);",
        elem_id="run-view",
    )

    # Filling the form changes all inputs at once: preview once when they have settled, not for each, because
    # the answers might arrive out of order.
    look = gr.Button("Preview", visible="hidden", elem_classes=parts.HIDDEN, elem_id="preview-now")
    gr.on(
        [component.change for component in inputs.inputs], None, None, None,
        js=f"() => ({parts.live('soon')})('preview-now')", **parts.IN_PAGE,
    )  # fmt: skip
    look.click(
        partial(preview, inputs), inputs.inputs, [text, same, problems],
        trigger_mode="always_last", **parts.QUICK,
    )  # fmt: skip
    ids = to_json([component.elem_id for component in inputs.inputs])
    keep = f"(...given) => ({parts.live('keep', 'draft.js')})({ids}, ...given)"
    look.click(None, inputs.inputs, None, js=keep, **parts.IN_PAGE)
    signed = parts.live("signed", "queue.js")
    start.click(
        partial(launch, inputs),
        [*inputs.inputs, you],
        [notice, problems, run, new],
        js=signed,
        **parts.CHECKS,
    )
    welcome.click(launch_sample, you, [welcome_problems, run, new], js=signed, **parts.CHECKS)
    run.change(None, run, None, js=parts.live("open"), **parts.IN_PAGE)
    download.click(None, [text, inputs.input("", "name")], None, js=parts.live("download"), **parts.IN_PAGE)
    data, template, model = (inputs.input("", name) for name in ("data", "template", "model"))
    return Lab(data, template, model, run, new, inputs)


def take(data: str | None, template: str, model: str) -> tuple[Any, ...]:
    """Start a new run with a dataset, template and model chosen elsewhere."""
    return refresh(data), template, model, gr.update(open=True)


def again(inputs: form.Form, run: str) -> list[Any]:
    """Open the form and fill it with the recipe of an earlier run."""
    found = known_run(run)
    given = submit.again(found).to_dict()
    values = inputs.fill({**given, "name": found.name, "group": ""})
    values[inputs.keys.index(("", "data"))] = refresh(_offered(found.data))
    return [*values, gr.update(open=True)]


def _offered(data: str) -> str:
    """The dataset as the form offers it: a sample by its own path, although runs have a copy."""
    digests = {datasets.sha256(path): str(path) for path in settings.SAMPLES.glob("*.jsonl")}
    return digests.get(Path(data).parent.name, data)


def refresh(data: str | None) -> Any:
    """The current datasets; the choice stays, at first the first sample."""
    found = choices.data(store().home)
    values = [value for _, value in found]
    return gr.update(choices=found, value=data if data in values else next(iter(values), None))


def sample_is_there() -> bool:
    """Whether this installation has the sample lab."""
    return Path(SAMPLE).is_file()
