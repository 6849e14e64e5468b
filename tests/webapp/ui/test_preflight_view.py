"""The table beside Launch, asked for as the page does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.runs.preflight import calibration
from pipeline.stages import recipe
from pipeline.stages.costs import machine
from pipeline.stages.costs.cost import Cost
from pipeline.store import Store
from pipeline.store.run import COST
from tests.helpers import planted
from tests.helpers.page import SAMPLE
from webapp.ui import form, preflight_view


def last(store: Store, file: Path, *changes: str) -> tuple[Any, ...]:
    """Table, notice and problems as they stand on the page in the end."""
    return all_of(store, file, *changes)[:3]


def all_of(store: Store, file: Path, *changes: str) -> tuple[Any, ...]:
    """`last`, with Launch and why it is off."""
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
    assert "whatever its options are" in problems["items"][0]["text"]


def test_rows_left_out_may_be_what_does_not_fit_so_launch_decides(
    store: Store, recipe_file: Path, narrow: Path
) -> None:
    much = f"data={SAMPLE}", "finetune.batch_size=512"
    *_, problems, launch, why = all_of(store, recipe_file, *much)
    assert (len(problems["items"]), launch["interactive"]) == (1, False)
    assert problems["items"][0]["text"] in why
    *_, problems, launch, why = all_of(store, recipe_file, *much, "leave_out=duplicates")
    assert (len(problems["items"]), launch["interactive"], why) == (1, True, None)


def test_how_far_off_predictions_were_so_far_is_said_once_stages_have_finished(
    store: Store, recipe_file: Path
) -> None:
    """From the records that finished stages keep to what stands on the page."""
    assert "Off so far" not in last(store, recipe_file)[1]["note"]
    predicted = Cost.of(1e9, None, 1e6, 100.0).to_dict()
    for seconds, memory in ((125.0, 1.25e9), (200.0, 1.25e9), (50.0, 1e9)):
        run = planted.plant(store)
        planted.finish_all(store, run)
        folder = store.folder(run, "finetune")
        folder.mkdir(parents=True, exist_ok=True)
        measured = {"memory": memory, "disk": 1e6, "seconds": seconds}
        (folder / COST).write_text(json.dumps({"predicted": predicted, "measured": measured}))
    _, notice, _ = last(store, recipe_file)
    said = "Off so far, in the median (of so many stages): finetune memory 20%, time 50% (3)."
    assert said in notice["note"].split("\n")


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

    ((*shown, launch, why),) = preflight_view.show(form.Form(), refuses)
    assert shown == [None, None, None]
    assert (launch["interactive"], why) == (False, "Launch is off until the point below is put right.")


def test_a_dataset_that_is_gone_is_said(store: Store, recipe_file: Path, dataset: Path) -> None:
    chosen = recipe.load(recipe_file)
    dataset.unlink()
    (store.home / machine.FILE).write_text("{}")
    *_, (table, notice, _, launch, why) = preflight_view.show(form.Form(), lambda *_: chosen)
    assert (table, launch["interactive"], why) == (None, True, None)  # launching checks it again
    assert notice["text"].startswith("Memory and time are not predicted: ")
    assert not calibration.wanted(store)
