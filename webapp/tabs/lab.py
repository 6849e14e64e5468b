"""Lab: choose what to do, see it as a recipe, launch it, and watch the run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import yaml

from pipeline import display, settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.options import AUTO, LONGEST, describe
from pipeline.runs import submit
from pipeline.runs.preflight import presets
from pipeline.stages import recipe as recipes
from pipeline.stages.all_stages import STAGES
from pipeline.system import hardware
from pipeline.system.files import to_json
from webapp import local_models
from webapp.home import known_run, store
from webapp.tabs.evaluating import prompt_file
from webapp.ui import card_view, check_turns, choices, form, parts, preflight_view, views

SAMPLE = settings.SAMPLES / "travel.yaml"
NOT_STARTED = "Nothing was started"
SUITED = tuple(option.name for option in describe(recipes.OPTIONS["finetune"]) if option.auto)


class Lab(NamedTuple):
    """Components that app.py connects with other tabs."""

    data: form.Input
    template: form.Input
    model: form.Input
    leave_out: form.Input
    asked: form.Input  # the file to evaluate on
    run: gr.Textbox
    you: gr.Textbox
    new: gr.Accordion
    inputs: form.Form
    preset: list[gr.components.Component]  # which is chosen, and what it says

    def with_ids(self, function: str) -> str:
        """JavaScript for an event: call a function with the ids of the form's inputs, and their values."""
        ids = to_json([component.elem_id for component in self.inputs.inputs])
        return f"(...given) => ({function})({ids}, ...given)"


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
        yield None, inputs.refused(NOT_STARTED, error), gr.skip(), gr.skip()
        return
    said = views.queued(f"Run {run} is queued. About its data:", notes) if notes else None
    yield said, None, run, gr.update(open=not all(map(presets.tells, notes)))


def launch_sample(owner: str) -> tuple[Any, ...]:
    """Queue the sample recipe: problems, run, and the form closed."""
    try:
        run = submit.submit(store(), recipes.load(SAMPLE), owner)
    except (LabError, OSError) as error:
        return views.problems(NOT_STARTED, error), gr.skip(), gr.skip()
    return None, run, gr.update(open=False)


def preview(inputs: form.Form, *values: Any) -> tuple[Any, ...]:
    """The recipe as YAML, the equivalent command, what is plainly wrong, and Launch, with why it is off."""
    chosen = inputs.collect(values)
    try:
        recipe = _recipe(inputs, values)
    except InputError as error:
        text = yaml.safe_dump(
            _cut(chosen), default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True
        )
        problems = inputs.refused("This recipe cannot run yet", error)
        return text, command(chosen.get("name")), problems, *preflight_view.not_yet(error)
    return recipe.to_yaml(), command(recipe.name), None, *preflight_view.can_launch()


def _cut(chosen: Any) -> Any:
    """A form that was refused, with texts cut to what a recipe may have: to write long ones takes seconds."""
    if isinstance(chosen, dict):
        return {key: _cut(value) for key, value in chosen.items()}
    return display.cut(chosen, LONGEST) if isinstance(chosen, str) else chosen


def choose_preset(inputs: form.Form, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Set the options of a preset to suit the dataset: the notice, and all inputs."""
    *given, name = values
    kept = tuple(gr.skip() for _ in given)
    yield {"text": "Looking at the data…"}, *kept
    try:
        changes, said = yield from check_turns.steps(
            lambda tell: _suited(inputs, tuple(given), name, tell),
            lambda step: ({"text": f"Looking at the data… {step}".strip()}, *kept),
        )
    except (LabError, OSError) as error:
        yield {"text": f"The preset is not set: {sentence(error)}", "kind": "bad"}, *kept
        return
    title = presets.PRESETS[name].title
    notice = {"text": f"{title}: {presets.PRESETS[name].about}.", "note": "\n".join(said)}
    keys = [f"{group}.{option}" for group, option in inputs.keys]
    yield notice, *(changes.get(key, gr.skip()) for key in keys)


def choose_again(inputs: form.Form, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Set the preset that is chosen anew, for another dataset; nothing if none is."""
    if values[-1]:
        yield from choose_preset(inputs, *values)
    else:
        yield tuple(gr.skip() for _ in values)


def _suited(
    inputs: form.Form, values: tuple[Any, ...], name: str, tell: Callable[[str], None]
) -> tuple[presets.Changes, list[str]]:
    """What a preset changes for the dataset, template and model of the form. Raises LabError, OSError."""
    if name not in presets.PRESETS:
        raise InputError("preset: choose one of those on the page")
    given = filled(inputs, values)
    device = "gpu" if hardware.gpus() and given.get("runs_on") != "cpu" else "cpu"
    share = given["eval_fraction"] if isinstance(given["eval_fraction"], float) else 0.1
    steps = presets.suiting(name, Path(given["data"]), str(given["template"]), given["model"], share, device)
    with closing(steps):
        return telling.ended(steps, tell)


def fresh(inputs: form.Form) -> list[Any]:
    """The values of all inputs as a new page has them, no preset, and nothing that it says."""
    values = inputs.fill({})
    samples = sorted(settings.SAMPLES.glob("*.jsonl"))
    values[inputs.keys.index(("", "data"))] = str(samples[0]) if samples else None
    for name in recipes.OPTIONS:
        values[inputs.keys.index((name, ""))] = name not in recipes.LEFT_OUT
    return [*values, None, None]


def command(name: str | None) -> str:
    """The terminal command for the downloaded recipe."""
    return f"{settings.command()} run {file_name(name)}"


def file_name(name: str | None) -> str:
    """A file name that needs no quoting in a shell."""
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name or '').strip('-')[:60] or 'recipe'}.yaml"


def filled(inputs: form.Form, values: tuple[Any, ...], **changes: Any) -> dict[str, Any]:
    """The form's recipe as a mapping with changes, whose model and files are on offer. Raises InputError."""
    chosen = {**inputs.collect(values), **changes}
    problems = []
    offered = partial(choices.known_data, store().home)
    named: list[tuple[dict[str, Any], str, Callable[[Any], Any]]] = [
        (chosen, "model", local_models.known),
        (chosen, "data", offered),
    ]
    stage, option = prompt_file.KEY
    if evaluated := chosen.get(stage):
        named.append((evaluated, option, prompt_file.known))
    for given, name, known in named:
        try:
            given[name] = str(known(given.get(name)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    chosen["name"] = chosen.get("name") or ""
    return chosen


def _recipe(inputs: form.Form, values: tuple[Any, ...], **changes: Any) -> recipes.Recipe:
    return recipes.from_dict(filled(inputs, values, **changes))  # of whole paths: none is looked for


def to_score(inputs: form.Form, values: tuple[Any, ...]) -> recipes.Recipe:
    """The form's recipe without the stages that a scorecard has no use for, whatever they say."""
    return _recipe(inputs, values, finetune=None, evaluate=None)


def _first_steps(inputs: form.Form) -> gr.Radio:
    """The three that everybody chooses: data, model, and how thorough the run is to be."""
    options = {option.name: option for option in describe(recipes.Basics)}
    with gr.Row(elem_classes="steps", equal_height=True):
        with gr.Column(elem_classes="step", min_width=280):
            parts.fixed("<h2>1. Data</h2>")
            data = gr.Dropdown(
                label="Dataset", info="Upload another one on the Data tab", allow_custom_value=True,
                elem_id="data",
            )  # fmt: skip
            inputs.add("", options["data"], data)
        with gr.Column(elem_classes="step", min_width=280):
            parts.fixed("<h2>2. Model</h2>")
            model = gr.Dropdown(
                choices.models(), value=options["model"].default, label="Model",
                info="One of these, or any id of the hub such as org/name", allow_custom_value=True,
                elem_id="model",
            )  # fmt: skip
            inputs.add("", options["model"], model)
        with gr.Column(elem_classes="step", min_width=280):
            parts.fixed("<h2>3. How thorough</h2>")
            preset = gr.Radio(
                [(preset.title, name) for name, preset in presets.PRESETS.items()],
                label="Preset", info="Sets options to suit the data. None: auto, as Balanced would choose",
                elem_id="preset",
            )  # fmt: skip
    return preset


def _all_options(inputs: form.Form) -> prompt_file.Place:
    """Everything else there is to choose, folded away; the place for a file to evaluate on."""
    places: list[prompt_file.Place] = []
    more = {prompt_file.KEY[0]: lambda: places.append(prompt_file.lay_out(inputs))}
    given_elsewhere = {"data", "model", "group"}  # the last is of runs that are started together, not typed
    described = [option for option in describe(recipes.Basics) if option.name not in given_elsewhere]
    with gr.Accordion("All options", open=False, elem_id="all-options"):
        with gr.Row(elem_classes="fields"):
            for option in described:
                if option.name != "runs_on" or hardware.gpus():
                    inputs.add("", option, form.component(option))
        for stage, cls in recipes.OPTIONS.items():
            inputs.stage(stage, cls, _about(stage), stage not in recipes.LEFT_OUT, more.get(stage))
    return places[0]


def _about(stage: str) -> str:
    """The first line of a stage's own description."""
    first = (STAGES[stage].__doc__ or "").strip().splitlines()[0]
    about = first.partition(": ")[2] or first
    return about[:1].upper() + about[1:].removesuffix(".")


def _as_recipe() -> tuple[gr.Code, gr.Code, gr.Button]:
    """The form as a recipe, as a command, and a button for the download."""
    with gr.Accordion("Recipe and command", open=False, elem_id="as-recipe"):
        text = gr.Code(label="Recipe", language="yaml", interactive=False, lines=8, wrap_lines=True,
                       show_line_numbers=False, buttons=["copy"], elem_id="recipe")  # fmt: skip
        same = gr.Code(label="The same in a terminal", language="shell", interactive=False, lines=1,
                       show_line_numbers=False, buttons=["copy"], elem_id="command")  # fmt: skip
        download = gr.Button("Download the recipe", size="sm", elem_id="download-recipe")
    return text, same, download


def _run_view() -> None:
    """The queue, and the run that is looked at; `assets/` draws both."""
    parts.fixed(
        '<section aria-label="Queue"></section>',
        js_on_load=f"({parts.live('mountQueue', 'queue.js')})(element.firstElementChild);",
    )
    parts.fixed(
        '<section class="lab-run" aria-label="Run"></section>',
        js_on_load=f"({parts.live('mount')})(element.firstElementChild);",
        elem_id="run-view",
    )


def build(welcome: gr.Button, welcome_problems: gr.HTML) -> Lab:
    """Lay out the tab. The button of the welcome, which stands above the tabs, launches from here too."""
    inputs = form.Form()
    with gr.Accordion("New run", open=True, elem_id="new-run") as new:
        preset = _first_steps(inputs)
        with gr.Row(elem_classes="launch-bar"):
            start = gr.Button(
                "Launch", variant="primary", size="lg", elem_id="launch", scale=0, min_width=160
            )
            why = parts.drawn("why", elem_id="launch-why")
            reset = gr.Button("Start over", size="sm", elem_id="start-over", scale=0, min_width=110)
        takes = preflight_view.place()
        chosen = parts.drawn("notice", elem_id="preset-notice")
        notice = parts.drawn("notice")
        problems = parts.drawn("refused", module="fields.js", elem_id="lab-problems")
        asked = _all_options(inputs)
        text, same, download = _as_recipe()
    run = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Run", elem_id="run-id")
    you = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Whose run it is")
    _run_view()

    names = ("data", "template", "model", "leave_out")
    data, template, model, leave_out = (inputs.input("", name) for name in names)
    made = Lab(data, template, model, leave_out, asked.chosen, run, you, new, inputs, [preset, chosen])
    # Filling the form changes all inputs at once: one look when they have settled, not one for each, whose
    # answers may overtake each other.
    look = gr.Button("Preview", visible="hidden", elem_classes=parts.HIDDEN, elem_id="preview-now")
    gr.on(
        [component.change for component in inputs.inputs], None, None, None,
        js=f"() => ({parts.live('soon')})('preview-now')", **parts.IN_PAGE,
    )  # fmt: skip
    look.click(
        partial(preview, inputs), inputs.inputs, [text, same, problems, start, why],
        trigger_mode="always_last", **parts.QUICK,
    )  # fmt: skip
    preflight_view.wire(takes, [start, why], inputs, _recipe, look)
    prompt_file.wire(asked, data, template, model, look, reset)
    look.click(None, inputs.inputs, None, js=made.with_ids(parts.live("keep", "draft.js")), **parts.IN_PAGE)
    signed = parts.live("signed", "queue.js")
    start.click(
        partial(launch, inputs),
        [*inputs.inputs, you],
        [notice, problems, run, new],
        js=signed,
        **parts.CHECKS,
    )
    preset.input(
        partial(choose_preset, inputs),
        [*inputs.inputs, preset],
        [chosen, *inputs.inputs],
        trigger_mode="always_last",
        **parts.CHECKS,
    )
    data.input(
        partial(choose_again, inputs),
        [*inputs.inputs, preset],
        [chosen, *inputs.inputs],
        trigger_mode="always_last",
        **parts.CHECKS,
    )
    # By the page alone: an answer that comes late would undo what was chosen or uploaded since.
    reset.click(
        None, None, [*inputs.inputs, preset, chosen],
        js=f"() => ({parts.live('forget', 'draft.js')})({to_json(fresh(inputs))})", **parts.IN_PAGE,
    )  # fmt: skip
    welcome.click(launch_sample, you, [welcome_problems, run, new], js=signed, **parts.CHECKS)
    run.change(None, run, None, js=parts.live("open"), **parts.IN_PAGE)
    download.click(None, [text, inputs.input("", "name")], None, js=parts.live("download"), **parts.IN_PAGE)
    return made


def take(
    data: str | None, template: str, model: str, leave_out: list[str] | None, preset: str | None
) -> tuple[Any, ...]:
    """Start a new run with a dataset, template, model and rows to leave out chosen elsewhere.

    No preset is chosen then: what it says is of another dataset, so what it chose by that is `auto` again.
    """
    given = refresh(data), template, model, card_view.joined(leave_out), gr.update(open=True), None, None
    return *given, *((AUTO if preset else gr.skip()) for _ in SUITED)


def again(inputs: form.Form, run: str) -> list[Any]:
    """Open the form and fill it with the recipe of an earlier run."""
    found = known_run(run)
    given = submit.again(found).to_dict()
    values = inputs.fill({**given, "name": found.name, "group": ""})
    values[inputs.keys.index(("", "data"))] = refresh(_offered(found.data))
    at = inputs.keys.index(prompt_file.KEY)
    values[at] = prompt_file.refresh(_offered(values[at]))
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


def offer(data: str | None) -> Any:
    """The current datasets, and another choice only where the one made is no longer among them."""
    offered = refresh(data)
    # Else the answer would undo what has been chosen meanwhile.
    return gr.update(choices=offered["choices"]) if offered["value"] == data else offered


def sample_is_there() -> bool:
    """Whether this installation has the sample lab."""
    return Path(SAMPLE).is_file()
