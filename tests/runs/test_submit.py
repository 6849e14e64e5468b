"""What is checked before a run is queued, and what is queued."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store, records
from pipeline.store.run import PREFLIGHT, QUEUED
from tests.helpers.submitting import problem


def test_a_good_recipe_is_queued_and_a_worker_asked_for(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    chosen = recipe.load(recipe_file, ["quantize=null"])
    found = store.get(submit.submit(store, chosen))
    assert (found.name, found.status) == ("trip", QUEUED)
    assert recipe.from_dict(found.recipe) == chosen
    assert [stage.name for stage in found.stages] == ["finetune", "optimize", "evaluate"]
    assert found.stages[0].options["r"] == chosen.stages()["finetune"].r
    assert no_worker == [store.home]


def test_a_run_is_done_again_with_changes_from_the_labs_copy_of_its_data(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.get(submit.submit(store, recipe.load(recipe_file, ["group=x"])))
    dataset.unlink()
    chosen = submit.again(first, ["finetune.r=4", "name=small"])
    found = store.get(submit.submit(store, chosen))
    assert (found.name, found.recipe["finetune"]["r"], found.data) == ("small", 4, first.data)
    assert chosen.group == ""
    assert chosen.quantize == recipe.from_dict(first.recipe).quantize
    assert first.recipe == store.get(first.id).recipe
    (dataset.parent / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(dataset.parent)
    elsewhere = dataclasses.replace(first, recipe={**first.recipe, "model": "org/name"})
    assert submit.again(elsewhere).model == "org/name"  # what it meant then, whatever folder this is
    assert submit.again(first, ["data=more.jsonl"]).data == str(dataset.parent / "more.jsonl")
    with pytest.raises(InputError, match=r"finetune\.r: 0 is not allowed"):
        submit.again(first, ["finetune.r=0"])


ON_NPU = ("optimize.device=npu", "optimize.provider=QNNExecutionProvider")


def test_an_export_that_is_not_run_here_leaves_no_stage_that_needs_a_graph(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    said = problem(store, recipe_file, *ON_NPU)
    assert said.startswith("evaluate: needs a graph, and optimize for npu with QNNExecutionProvider is not")
    found = store.get(submit.submit(store, recipe.load(recipe_file, [*ON_NPU, "evaluate=null"])))
    assert [stage.name for stage in found.stages] == ["quantize", "finetune", "optimize"]


def test_a_gpu_is_asked_for_only_where_the_export_runs(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 0)
    on_gpu = ["optimize.device=gpu", "evaluate=null"]
    said = problem(store, recipe_file, *on_gpu, "optimize.provider=CUDAExecutionProvider")
    assert "optimize.device: 'gpu' needs an NVIDIA GPU" in said
    submit.submit(store, recipe.load(recipe_file, [*on_gpu, "optimize.provider=DmlExecutionProvider"]))


def test_options_of_the_export_are_checked_beside_the_other_stages(store: Store, recipe_file: Path) -> None:
    without = ("quantize=null", "optimize.precision=fp32", "optimize.lm_head=int8")
    assert problem(store, recipe_file, *without).startswith("optimize.lm_head: 'int8' does not go with")
    merged = ("finetune=null", "optimize.adapter=merged")
    assert problem(store, recipe_file, *merged).startswith("optimize.adapter: 'merged' needs the finetune")


def test_a_missing_model_is_refused(store: Store, recipe_file: Path, model_folder: Path) -> None:
    shutil.rmtree(model_folder)
    assert problem(store, recipe_file) == f"model: {model_folder}: no such folder"


def test_missing_data_is_refused(store: Store, recipe_file: Path, dataset: Path) -> None:
    dataset.unlink()
    assert "there is no such file" in problem(store, recipe_file)


def test_data_that_cannot_be_read_is_refused(store: Store, recipe_file: Path) -> None:
    assert "cannot be read" in problem(store, recipe_file, "data=/proc/self/mem")


def test_a_data_path_that_is_too_long_is_refused(store: Store, recipe_file: Path) -> None:
    assert "File name too long" in problem(store, recipe_file, "data=" + "x" * 500)


def test_broken_data_is_refused_by_line(store: Store, recipe_file: Path, dataset: Path) -> None:
    lines = dataset.read_text().splitlines()
    lines[6] = '{"prompt": '
    dataset.write_text("\n".join(lines))
    assert f"{dataset}:7: " in problem(store, recipe_file)


def test_a_template_that_fits_no_row_is_refused(store: Store, recipe_file: Path) -> None:
    assert "'question'" in problem(store, recipe_file, "template={question} {response}")


def test_chat_needs_a_model_with_a_chat_template(store: Store, recipe_file: Path, model_folder: Path) -> None:
    (model_folder / "tokenizer_config.json").unlink()
    message = problem(store, recipe_file)
    assert message.startswith(f"template: {model_folder} has no chat template; write one like")


def test_an_impossible_group_size_is_refused_naming_the_layer(store: Store, recipe_file: Path) -> None:
    message = problem(store, recipe_file, "quantize.group_size=64")
    assert "quantize.group_size: 64 does not divide" in message
    assert "96" in message


def test_too_few_rows_are_refused(store: Store, recipe_file: Path, dataset: Path) -> None:
    dataset.write_text(json.dumps({"prompt": "x", "response": "y"}) + "\n")
    assert problem(store, recipe_file).startswith(f"{dataset}: the data has 1 row; at least 2 are needed")


def test_faults_of_model_and_data_are_told_together(
    store: Store, recipe_file: Path, dataset: Path, model_folder: Path
) -> None:
    shutil.rmtree(model_folder)
    dataset.write_text("")
    message = problem(store, recipe_file)
    assert "no such folder" in message
    assert f"{dataset}:1: the file is empty" in message


def noted(recipe_file: Path, *changes: str) -> list[str]:
    notes: list[str] = []
    submit.check(recipe.load(recipe_file, list(changes)), notes.append)
    return notes


def test_notes_on_the_data_reach_who_submits(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    notes: list[str] = []
    submit.submit(store, recipe.load(recipe_file), note=notes.append)
    assert notes == []
    dataset.write_text(dataset.read_text() * 2)
    submit.submit(store, recipe.load(recipe_file), note=notes.append)
    assert notes == ["20 of 40 rows are copies of an earlier one."]
    notes.clear()
    several = [recipe.load(recipe_file, [f"seed={seed}"]) for seed in (1, 1, 1)]
    submit.submit_all(store, several, note=notes.append)
    assert notes == ["20 of 40 rows are copies of an earlier one."]


def test_faults_of_data_that_several_recipes_share_are_told_for_each(
    store: Store, recipe_file: Path, dataset: Path
) -> None:
    dataset.write_text("x,y\n1,2\n")
    with pytest.raises(InputError) as caught:
        submit.submit_all(store, [recipe.load(recipe_file)] * 2)
    assert [said.count("which columns hold") for said in caught.value.problems] == [1, 1]


def test_rows_longer_than_the_recipes_max_length_are_noted(
    recipe_file: Path, dataset: Path, bytes_as_tokens: Path
) -> None:
    assert noted(recipe_file) == []
    (note,) = noted(recipe_file, "finetune.max_length=32")
    assert note.startswith(
        "All 20 rows are longer than 32 tokens (finetune.max_length) and will be cut: lines 1,"
    )
    assert noted(recipe_file, "finetune=null") == []


def test_a_run_whose_held_out_prompts_the_model_cannot_read_is_refused(
    store: Store, recipe_file: Path, dataset: Path, bytes_as_tokens: Path
) -> None:
    rows = [{"prompt": "a" * 3000 + str(i), "response": "b"} for i in range(10)]
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = problem(store, recipe_file)
    assert said.startswith(f"{dataset}: No held-out prompt can be answered: each fills what the model reads")
    _, unread = noted(recipe_file, "evaluate=null")
    assert unread.startswith("All 10 prompts are longer than the 2,048 tokens that the model reads")
    rows[:9] = [{"prompt": str(i), "response": "b"} for i in range(9)]
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(noted(recipe_file, "eval_fraction=0.5")) == 2


def test_a_model_without_a_tokenizer_file_is_noted_only_where_it_matters(
    recipe_file: Path, dataset: Path, model_folder: Path
) -> None:
    assert noted(recipe_file) == []
    said = f"The lengths of long rows are not counted: {model_folder} has no tokenizer.json;"
    (note,) = noted(recipe_file, "finetune.max_length=32")
    assert note.startswith(said)


def test_a_run_has_but_one_prompt(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    assert not submit.one_prompt(store.get(submit.submit(store, recipe.load(recipe_file))))
    dataset.write_text('{"prompt": "a", "response": "b"}\n' * 9)
    run = store.get(submit.submit(store, recipe.load(recipe_file)))
    assert submit.one_prompt(run)
    assert not submit.one_prompt(dataclasses.replace(run, recipe={**run.recipe, "template": "{"}))


def test_a_gpu_export_needs_a_gpu_here(
    home: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = home / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n' * 10)
    given = {
        "data": str(data),
        "model": str(model_folder),
        "optimize": {"device": "gpu", "provider": "CUDAExecutionProvider"},
    }
    chosen = recipe.from_dict(given, home)
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 0)
    with pytest.raises(InputError, match=r"optimize\.device: 'gpu' needs an NVIDIA GPU"):
        submit.check(chosen)
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 1)
    submit.check(chosen)


def test_what_does_not_fit_is_refused_with_what_does(
    store: Store, recipe_file: Path, no_worker: list[Path], little_memory: Path
) -> None:
    with pytest.raises(InputError) as refused:
        submit.submit(store, recipe.load(recipe_file, ["finetune.batch_size=512"]))
    assert any(" of memory, and 630.0 MB can be used here" in problem for problem in refused.value.problems)
    assert store.list() == []
    assert no_worker == []


def test_what_a_run_takes_is_kept_in_its_folder(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    run = submit.submit(store, recipe.load(recipe_file))
    kept = json.loads((store.folder(run) / PREFLIGHT).read_text())
    assert list(kept["stages"]) == ["quantize", "finetune", "optimize", "evaluate"]
    assert kept["passes"] == pytest.approx(60 * 4 / 18)
    assert kept["problems"] == []


def test_a_recipe_that_is_too_long_for_a_record_is_refused_by_the_check(
    store: Store, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LONGEST", 500)
    said = problem(store, recipe_file)
    assert said.startswith("The recipe has ")
    assert said.endswith("and a run keeps up to 500; shorten its texts, paths and names of columns")
