from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import gradio as gr
import pytest

from pipeline import settings
from pipeline.inputs.options import Option, describe, option
from pipeline.stages.recipe import LEFT_OUT, OPTIONS, Recipe, from_dict
from webapp import handler_values
from webapp.ui import form


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    learning_rate: float = option(5e-4, "Size of a step", min=1e-8, max=1.0)
    r: int = option(16, "Rank", min=1, max=512, label="Rank")
    method: Literal["lora", "dora"] = option("lora", "How")
    size: Literal[16, 32, 64, 128] = option(32, "Block")
    group: int | Literal["auto"] = option("auto", "Group", min=16, max=1024)
    modules: Literal["all-linear"] | str = option("all-linear", "Layers", advanced=True)
    saving: bool = option(False, "Save memory", advanced=True)
    note: str = option("", "A note")
    limit: int | None = option(None, "A limit, or none", min=1, max=9)
    passes: float | None = option(None, "Passes, or none", min=0.1, max=9)
    more: bool | Literal["auto"] = option("auto", "More")


ROWS = {row.name: row for row in describe(Options)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("learning_rate", gr.Number), ("r", gr.Number), ("method", gr.Radio), ("size", gr.Dropdown),
        ("group", gr.Dropdown), ("modules", gr.Dropdown), ("saving", gr.Checkbox), ("note", gr.Textbox),
        ("limit", gr.Textbox), ("passes", gr.Textbox), ("more", gr.Radio),
    ],
)  # fmt: skip
def test_each_kind_of_option_has_its_input(name, kind):
    made = form.component(ROWS[name])
    assert type(made) is kind
    assert made.info.startswith(ROWS[name].help)
    assert made.label == {"learning_rate": "Learning rate", "r": "Rank (r)"}.get(name, name.capitalize())


def test_values_that_are_not_among_the_choices_can_be_typed_where_the_option_takes_them():
    assert form.component(ROWS["group"]).allow_custom_value
    assert not form.component(ROWS["size"]).allow_custom_value


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("group", "auto", "auto"), ("group", "64", 64), ("group", "many", "many"), ("modules", "q,v", "q,v"),
        ("modules", "7", "7"), ("note", "12", "12"), ("limit", "", None), ("limit", "5", 5),
        ("limit", "[", "["), ("passes", "", None), ("passes", "1.5", 1.5), ("passes", "2", 2),
        ("passes", "two", "two"), ("more", False, False), ("more", "auto", "auto"), ("more", "true", True),
        ("saving", True, True), ("r", 8, 8), ("size", 64, 64),
    ],
)  # fmt: skip
def test_typed_text_becomes_what_was_meant(name, typed, meant):
    assert form.read(ROWS[name], typed) == meant


def filled(cls: type = Options) -> form.Form:
    with gr.Blocks():
        made = form.Form()
        made.stage("finetune", cls, "about")
    return made


def test_what_may_be_auto_or_true_or_false_is_a_choice_of_three_as_in_a_recipe():
    made = form.component(ROWS["more"])
    assert made.choices == [("auto", "auto"), ("true", True), ("false", False)]
    assert [handler_values.fit(made, value) for _, value in made.choices] == ["auto", True, False]


def test_a_new_field_is_a_new_input_with_nothing_changed_here():
    more = dataclasses.make_dataclass(
        "More", [("extra", int, option(3, "New"))], bases=(Options,), frozen=True
    )
    before, after = filled(), filled(more)
    assert set(after.keys) - set(before.keys) == {("finetune", "extra")}


def test_a_stage_switched_off_is_null():
    made = filled()
    values = [component.value for component in made.inputs]
    assert made.collect([False, *values[1:]]) == {"finetune": None}
    assert made.collect(values)["finetune"]["group"] == "auto"


def test_the_form_untouched_is_the_default_recipe_but_for_what_may_follow_the_data(tmp_path):
    with gr.Blocks():
        made = form.Form()
        for stage, cls in OPTIONS.items():
            made.stage(stage, cls, "about", on=stage not in LEFT_OUT)
    chosen = made.collect([component.value for component in made.inputs])
    found = from_dict({"name": "run", "data": "x.jsonl", **chosen}, tmp_path)
    auto = ("finetune.max_steps", "finetune.batch_size", "finetune.max_length")
    assert found == Recipe(name="run", data=str(tmp_path / "x.jsonl"), auto=auto)


def test_a_form_filled_with_a_recipe_gives_it_back(tmp_path):
    with gr.Blocks():
        made = form.Form()
        for stage, cls in OPTIONS.items():
            made.stage(stage, cls, "about", on=stage not in LEFT_OUT)
    given = from_dict(
        {
            "name": "run",
            "data": "x.jsonl",
            "quantize": {"group_size": 32, "bits": 8, "symmetric": True, "compensate": False},
            "finetune": {"r": 4, "learning_rate": 0.003, "max_steps": 7, "target_modules": "q_proj,v_proj",
                         "max_length": "auto"},
            "evaluate": None,
        },
        tmp_path,
    )  # fmt: skip
    assert given.auto == ("finetune.max_length",)
    values = made.fill(given.to_dict())
    assert values != [component.value for component in made.inputs]
    found = from_dict({"name": "run", "data": "x.jsonl", **made.collect(values)}, tmp_path)
    assert found == given


def test_every_option_of_every_stage_has_an_input():
    with gr.Blocks():
        made = form.Form()
        for stage, cls in OPTIONS.items():
            made.stage(stage, cls, "about")
    options = {(stage, row.name): row.page for stage, cls in OPTIONS.items() for row in describe(cls)}
    assert set(made.keys).intersection(options) == {key for key, on_page in options.items() if on_page}


def test_no_generated_form_takes_the_path_of_a_file_to_evaluate_on():
    """Whoever can name one in a browser reads what the server can. Who offers some draws a field for them."""
    drawn: list[list[tuple[str, str]]] = []
    with gr.Blocks():
        made = form.Form()
        made.stage("evaluate", OPTIONS["evaluate"], "about", True, lambda: drawn.append(list(made.keys)))
    assert ("evaluate", "checks") in made.keys
    assert ("evaluate", "data") not in made.keys
    (before,) = drawn  # above the folded ones
    assert ("evaluate", "rows") in before
    assert ("evaluate", "checks") not in before
    assert all(isinstance(row, Option | None) for row in made.options)
    assert settings.SAMPLES.is_dir()


BOMB = "[" + ", ".join(["&a [x, x, x]", *["[*a, *a, *a]"] * 20]) + "]"


@pytest.mark.parametrize(
    "typed",
    [BOMB, "2020-13-45", "9" * 5000, "9" * 90, "!!int ''", "[" * 50, "&a [*a]", "x" * 100_000, "\0", "\x1b"],
)
@pytest.mark.parametrize("name", ["group", "limit", "passes", "r", "learning_rate"])
def test_what_is_typed_for_a_number_is_read_as_one_or_left_as_it_is(name, typed):
    assert form.read(ROWS[name], typed) in (typed, 10**90 - 1)


def test_what_no_input_gives_is_cut_before_anything_else_sees_it():
    nested = []
    for _ in range(5000):
        nested = [nested]
    for given in (nested, {"a": nested}, ["x"] * 100_000):
        for row in ROWS.values():
            read = form.read(row, given)
            assert isinstance(read, str)
            assert len(read) <= 80
