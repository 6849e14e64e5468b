"""The table beside Launch, asked for as the page does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.runs.preflight import calibration
from pipeline.stages import recipe
from pipeline.stages.costs import machine
from pipeline.store import Store
from webapp.ui import form, preflight_view


def last(store: Store, file: Path, *changes: str) -> tuple[Any, Any, Any]:
    """What stands on the page in the end."""
    (store.home / machine.FILE).write_text("{}")  # so that none is measured beside other tests
    chosen = recipe.load(file, list(changes))
    *_, shown = preflight_view.show(form.Form(), lambda *_: chosen)
    return shown


def test_each_stage_has_a_row_and_passes_are_said(store: Store, recipe_file: Path) -> None:
    table, notice, problems = last(store, recipe_file)
    assert [row[0] for row in table["rows"]] == ["quantize", "finetune", "optimize", "evaluate", "all"]
    assert "This machine has " in notice["text"]
    assert "Training makes 13 passes over the 18 rows" in notice["note"]
    assert problems is None


def test_what_does_not_fit_is_named(store: Store, recipe_file: Path) -> None:
    table, _, problems = last(store, recipe_file, "finetune.batch_size=1024", "finetune.r=512")
    assert table is not None
    assert problems is None  # a tiny model fits whatever is done with it
    config = json.loads((recipe_file.parent / "tiny-llama" / "config.json").read_text())
    config |= {"hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 200}
    (recipe_file.parent / "tiny-llama" / "config.json").write_text(json.dumps(config))
    _, _, problems = last(store, recipe_file)
    assert problems["title"] == preflight_view.LACKING
    assert "whatever its options are" in problems["items"][0]


def test_a_form_that_changes_asks_for_its_model_once(store: Store, recipe_file: Path) -> None:
    first, notice, _ = last(store, recipe_file, "finetune.max_steps=auto")
    assert "finetune.max_steps is 60 (auto): " in notice["note"]
    for file in (recipe_file.parent / "tiny-llama").glob("*[!g].*"):
        file.unlink()  # all but config.json: as a hub that cannot be reached
    again, _, _ = last(store, recipe_file, "finetune.max_steps=auto", "name=other")
    assert again == first


def test_a_form_that_cannot_run_shows_nothing(store: Store) -> None:
    def refuses(*_: Any) -> recipe.Recipe:
        raise InputError("data: is missing")

    assert list(preflight_view.show(form.Form(), refuses)) == [(None, None, None)]


def test_a_dataset_that_is_gone_is_said(store: Store, recipe_file: Path, dataset: Path) -> None:
    chosen = recipe.load(recipe_file)
    dataset.unlink()
    (store.home / machine.FILE).write_text("{}")
    *_, (table, notice, _) = preflight_view.show(form.Form(), lambda *_: chosen)
    assert table is None
    assert notice["text"].startswith("Memory and time are not predicted: ")
    assert not calibration.wanted(store)
