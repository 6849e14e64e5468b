"""The preflight as the page asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import telling
from pipeline.runs import submit
from pipeline.runs.preflight import report
from pipeline.stages import recipe
from pipeline.store import Store

AUTO = ("finetune.max_steps=auto", "finetune.batch_size=auto", "finetune.max_length=auto")


def asked(chosen: recipe.Recipe, known: dict[str, Any] | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = telling.ended(report.answer(chosen.to_dict(), known))
    return facts


def test_auto_is_what_submit_makes_of_it(
    store: Store, recipe_file: Path, bytes_as_tokens: Path, dataset: Path, no_worker: list[Path]
) -> None:
    row = {"prompt": "Where?", "response": "x" * 600}
    dataset.write_text(dataset.read_text() + f"{json.dumps(row)}\n" * 10)
    chosen = recipe.load(recipe_file, ["quantize=null", *AUTO])
    said: list[str] = []
    run = store.get(submit.submit(store, chosen, note=said.append))
    facts, by_hand = asked(chosen), asked(recipe.from_dict({**run.recipe, "data": chosen.data}))
    assert (facts["stages"], facts["passes"]) == (by_hand["stages"], by_hand["passes"])
    assert facts["auto"] == [text for text in said if "(auto)" in text]
    assert len(facts["auto"]) == 3
    plain = asked(recipe.load(recipe_file, ["quantize=null"]))
    assert plain["auto"] == []
    assert plain["stages"]["finetune"] != facts["stages"]["finetune"]


def test_plain_text_is_read_as_submit_reads_it(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    story = recipe_file.parent / "story.txt"
    story.write_text("".join(f"In valley {i} lies a town. It is town {i}.\n" for i in range(9)))
    run = store.get(submit.submit(store, recipe.load(recipe_file, ["data=story.txt"])))
    whole = recipe.from_dict({**run.recipe, "data": run.data})
    form = recipe.from_dict({**whole.to_dict(), "template": "chat", "finetune": {"max_steps": 7}})
    facts, plain = asked(form), asked(whole.settled({"finetune.max_steps": 7}))
    assert facts["stages"] == plain["stages"]
    assert facts["auto"][0].startswith("template is {prompt}{response}")
    assert plain["auto"] == []


def test_what_is_known_of_data_and_model_is_not_asked_again(
    store: Store, recipe_file: Path, model_folder: Path
) -> None:
    chosen = recipe.load(recipe_file, [*AUTO])
    first = asked(chosen)
    shutil.rmtree(model_folder)  # as a hub that cannot be reached
    assert asked(chosen, first["known"])["stages"] == first["stages"]
    with pytest.raises(InputError):
        asked(chosen)


def test_what_was_known_before_auto_was_chosen_is_completed(store: Store, recipe_file: Path) -> None:
    plain = asked(recipe.load(recipe_file))
    assert "lengths" not in plain["known"]
    chosen = recipe.load(recipe_file, [*AUTO])
    assert asked(chosen, plain["known"])["stages"] == asked(chosen)["stages"]
