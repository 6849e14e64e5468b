"""Forms generated from option dataclasses: a new field becomes a new input without any change here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs import safe_yaml
from pipeline.inputs.options import AUTO, Option, describe
from webapp import handler_values

MOST_RADIO_CHOICES = 3
# Further choices by an option's plain types, where these and its literal values are all that it may be.
CLOSED: dict[tuple[type, ...], tuple[bool | None, ...]] = {
    (): (),
    (type(None),): (None,),
    (bool,): (True, False),
}
# What a number may be: YAML that is nested takes long to read.
PLAIN = re.compile(r"[\w+.~-]{1,100}", re.ASCII)
Input = Any  # a component of Gradio, which makes their events at run time


@dataclass
class Form:
    """The inputs of a form in order. `keys` are (group, option); an option of "" is the group's switch."""

    keys: list[tuple[str, str]] = field(default_factory=list)
    options: list[Option | None] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)

    def add(self, group: str, option: Option, component: Input) -> None:
        """Add an input to the form."""
        self.keys.append((group, option.name))
        self.options.append(option)
        self.inputs.append(component)

    def input(self, group: str, name: str) -> Input:
        """The input of one option."""
        return self.inputs[self.keys.index((group, name))]

    def refused(self, title: str, error: LabError | OSError) -> dict[str, Any]:
        """What is wrong with the form, for a place that draws `refused`."""
        items = error.problems if isinstance(error, InputError) else [sentence(error)]
        return {"title": title, "items": [self.named(display.valid(item)) for item in items]}

    def named(self, problem: str) -> dict[str, str]:
        """A problem as the page shows it: at which field, by its label; one of a stage is at its switch.

        `at` is "" where it is at none.
        """
        key, colon, said = problem.partition(": ")
        group, _, name = (key, "", "") if (key, "") in self.keys else key.rpartition(".")
        if not colon or (group, name) not in self.keys:
            return {"at": "", "text": problem}
        index = self.keys.index((group, name))
        label = self.inputs[index].label
        if group and name:
            label = f"{group.capitalize()}, {label}"
        return {"at": self.inputs[index].elem_id, "text": f"{label}: {said}", "said": said}

    def fields(self, group: str, cls: type, more: Callable[[], None] | None = None) -> None:
        """Draw an input for each option of a dataclass, the advanced ones folded away below `more`."""
        offered = [option for option in describe(cls) if option.page]
        plain = [option for option in offered if not option.advanced]
        advanced = [option for option in offered if option.advanced]
        with gr.Row(elem_classes="fields"):
            for option in plain:
                self.add(group, option, component(option, group))
        if more is not None:
            more()
        if advanced:
            with gr.Accordion("More options", open=False), gr.Row(elem_classes="fields"):
                for option in advanced:
                    self.add(group, option, component(option, group))

    def stage(
        self, name: str, cls: type, about: str, on: bool = True, more: Callable[[], None] | None = None
    ) -> None:
        """Draw a stage: a switch that leaves it out, and its options, with what `more` draws."""
        with gr.Group(elem_classes="stage"):
            switch = gr.Checkbox(
                on, label=name.capitalize(), info=about, elem_classes="stage-switch", elem_id=f"{name}-on"
            )
            self.keys.append((name, ""))
            self.options.append(None)
            self.inputs.append(switch)
            with gr.Column(elem_classes="stage-options"):
                self.fields(name, cls, more)

    def fill(self, recipe: dict[str, Any]) -> list[Any]:
        """Values of all inputs for a recipe's mapping; missing options get their default."""
        values: list[Any] = []
        for (group, name), option in zip(self.keys, self.options, strict=True):
            if option is None:
                values.append(recipe.get(group) is not None)
                continue
            given = recipe if group == "" else recipe.get(group) or {}
            value = given.get(name, first(option))
            typed = option.auto or (not option.choices and not set(option.types) <= {int, float, bool})
            values.append(("" if value is None else word(value)) if typed else value)
        return values

    def collect(self, values: Sequence[Any]) -> dict[str, Any]:
        """The choices as a recipe's mapping: group "" at the top level, a stage that is off is null."""
        chosen: dict[str, Any] = {}
        for (group, name), option, value in zip(self.keys, self.options, values, strict=True):
            if option is None:
                chosen[group] = {} if value else None
            elif group == "":
                chosen[name] = read(option, value)
            elif chosen.setdefault(group, {}) is not None:
                chosen[group][name] = read(option, value)
        return chosen


def component(option: Option, group: str = "", **kwargs: Any) -> Input:
    """The input that fits an option. Its hint names the bounds; `options.coerce` enforces them."""
    common = {
        "label": option.titled(),
        "info": hint(option),
        "value": option.default,
        "elem_id": f"{group}-{option.name}" if group else option.name,
        "min_width": 220,
        **kwargs,
    }
    if option.types == (bool,) and not option.choices:
        return gr.Checkbox(**common)
    if option.auto:  # a number or a word; one line makes it an input like those of numbers
        return gr.Textbox(**{**common, "value": first(option)}, max_lines=1)
    if option.types in ((int,), (float,)) and not option.choices:
        return gr.Number(**common, step=1 if option.types == (int,) else 0.0001)
    if option.choices and option.types in CLOSED:
        choices = [*option.choices, *CLOSED[option.types]]
        words = [(word(choice), choice) for choice in choices]
        return gr.Radio(words, **common) if len(words) <= MOST_RADIO_CHOICES else gr.Dropdown(words, **common)
    if option.choices:
        made = gr.Dropdown([(word(c), c) for c in option.choices], allow_custom_value=True, **common)
        setattr(made, handler_values.TYPED_TOO, option.types)  # a recipe that fills the form has these types
        return made
    return gr.Textbox(**{**common, "value": "" if option.default is None else word(option.default)})


def first(option: Option) -> Any:
    """What stands in a form that nobody filled: `auto` where an option may be that, else its default."""
    return AUTO if option.auto else option.default


def read(option: Option, value: Any) -> Any:
    """The value a user meant: typed text becomes a number or null where the option takes one."""
    if value is not None and not isinstance(value, (str, int, float)):
        return display.value(value)  # our inputs never give lists; a caller that sends one gets an error
    if not isinstance(value, str) or value in option.choices:
        return value
    if not value.strip() and type(None) in option.types:
        return None
    others = tuple(kind for kind in option.types if kind is not str)
    if not others or not PLAIN.fullmatch(value.strip()):
        return value
    try:
        meant = safe_yaml.load(value)
    except ValueError:
        return value
    return meant if type(meant) in others or (isinstance(meant, int) and float in others) else value


def hint(option: Option) -> str:
    """What the option does, and its bounds if it has both."""
    if option.min is None or option.max is None or bool in option.types:
        return option.help
    auto = f", or {AUTO}" if option.auto else ""
    return f"{option.help} ({option.min:,.10g} to {option.max:,.10g}{auto})"


def word(choice: Any) -> str:
    """A choice as it is written in a recipe."""
    if isinstance(choice, bool):
        return str(choice).lower()
    return "none" if choice is None else str(choice)
