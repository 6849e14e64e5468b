from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.publish import card
from pipeline.runs import submit
from pipeline.runs.data import prepare_data
from pipeline.runs.preflight import fitting
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.store.run import PREFLIGHT, QUEUED
from pipeline.system import files
from tests.helpers.formats import made as made_of


def problem(store: Store, path: Path, *changes: str) -> str:
    """What submitting says; nothing may be queued or written then."""
    before = sorted(store.home.rglob("*"))
    with pytest.raises(InputError) as caught:
        submit.submit(store, recipe.load(path, list(changes)))
    assert store.list() == []
    assert sorted(store.home.rglob("*")) == before
    return str(caught.value)


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


def test_later_changes_to_the_data_do_not_reach_the_run(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    text = dataset.read_text()
    kept = Path(store.get(submit.submit(store, recipe.load(recipe_file))).data)
    dataset.write_text("changed")
    assert kept.read_text() == text
    assert kept.name == dataset.name
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


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


def test_the_same_data_is_kept_once(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    first = store.get(submit.submit(store, recipe.load(recipe_file))).data
    assert store.get(submit.submit(store, recipe.load(recipe_file))).data == first
    dataset.write_text(dataset.read_text() + json.dumps({"prompt": "x", "response": "y"}) + "\n")
    assert store.get(submit.submit(store, recipe.load(recipe_file))).data != first
    assert len(list((store.home / "datasets").iterdir())) == 2


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


def test_a_full_disk_leaves_no_half_copy(home: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "x")
    store = Store(home)
    kept = submit.keep_dataset(store.home, dataset)
    kept.unlink()
    arriving = home / "datasets" / "x.part"
    arriving.mkdir()
    (arriving / f".{dataset.name}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        submit.keep_dataset(store.home, dataset)
    assert list(kept.parent.iterdir()) == []
    assert not arriving.exists()


def test_a_dataset_is_named_by_what_was_copied(
    home: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def changed_meanwhile(source: Path, target: Path) -> None:
        source.write_text('{"prompt": "a", "response": "b"}\n')
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", changed_meanwhile)
    kept = submit.keep_dataset(home, dataset)
    assert kept.parent.name == datasets.sha256(kept) == datasets.sha256(dataset)
    assert list((home / "datasets").iterdir()) == [kept.parent]


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


def test_a_table_is_made_into_json_lines_and_kept_with_its_original(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    table = dataset.with_name("towns.csv")
    table.write_text("Town;Land;Id\n" + "".join(f"town {i};land {i};x{i}\n" for i in range(9)))
    changes = ["data=towns.csv", "columns={prompt: [Town], response: [Land]}"]
    run = store.get(submit.submit(store, recipe.load(recipe_file, changes)))
    made = Path(run.data)
    assert (made.name, datasets.kept_sha256(made)) == ("towns.jsonl", datasets.sha256(made))
    assert json.loads(made.read_text().split("\n")[1]) == {"prompt": "town 0", "response": "land 0"}
    assert (made.parent / "original" / "towns.csv").read_bytes() == table.read_bytes()
    assert run.recipe["columns"] == {"prompt": ["Town"], "response": ["Land"], "system": []}
    assert [path.name for path in (store.home / "datasets").iterdir()] == [made.parent.name]
    table.unlink()
    same = store.get(submit.submit(store, submit.again(run)))
    assert (same.data, same.recipe["columns"]) == (run.data, run.recipe["columns"])
    other = store.get(submit.submit(store, submit.again(run, ["columns.response=[Id]"])))
    assert json.loads(Path(other.data).read_text().split("\n")[1]) == {"prompt": "town 0", "response": "x0"}


def test_what_was_recognised_is_recorded(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    plain = store.get(submit.submit(store, recipe.load(recipe_file)))
    assert "columns" not in plain.recipe
    dataset.write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n')
    run = store.get(submit.submit(store, recipe.load(recipe_file)))
    assert run.recipe["columns"] == {"prompt": ["question"], "response": ["answer"], "system": []}
    assert submit.again(run).to_yaml().count("question") == 1


def test_plain_text_is_trained_as_a_whole_and_the_recipe_says_so(
    store: Store, recipe_file: Path, model_folder: Path, no_worker: list[Path]
) -> None:
    (model_folder / "tokenizer_config.json").unlink()  # text needs no chat template
    story = recipe_file.parent / "story.txt"
    story.write_text("".join(f"In valley {i} lies a town. It is town {i}.\n\n" for i in range(9)))
    said: list[str] = []
    run = store.get(submit.submit(store, recipe.load(recipe_file, ["data=story.txt"]), note=said.append))
    assert (run.recipe["template"], run.recipe["finetune"]["loss_on"]) == ("{prompt}{response}", "all")
    assert run.recipe["columns"] == {"prompt": [], "response": ["text"], "system": []}
    assert run.stage("finetune").options["loss_on"] == "all"
    assert said[-2:] == [
        "template is {prompt}{response}: the rows are plain text, whose beginning is the prompt.",
        "finetune.loss_on is all: plain text is learned as a whole.",
    ]
    assert [row for _, row in datasets.rows(Path(run.data))][3] == {
        "prompt": "In valley 3", "response": " lies a town. It is town 3.",
    }  # fmt: skip
    same = store.get(submit.submit(store, submit.again(run)))
    assert (same.data, same.recipe["template"]) == (run.data, run.recipe["template"])
    own = ["data=story.txt", "template='{prompt} ~{response}'"]  # a choice that is respected
    run = store.get(submit.submit(store, recipe.load(recipe_file, own)))
    assert (run.recipe["template"], run.recipe["finetune"]["loss_on"]) == ("{prompt} ~{response}", "response")


def test_plain_text_is_evaluated_on_plain_text(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    text = "".join(f"In valley {i} lies a town. It is town {i}.\n" for i in range(9))
    for name in ("story.txt", "asked.txt"):
        (recipe_file.parent / name).write_text(text)
    other = problem(store, recipe_file, "evaluate.data=asked.txt")
    assert other == f"evaluate.data: asked.txt: {prepare_data.OTHER_FORM}"
    given = recipe.load(recipe_file, ["data=story.txt", "evaluate.data=asked.txt"])
    run = store.get(submit.submit(store, given))
    assert len(list(datasets.rows(Path(run.recipe["evaluate"]["data"])))) == 9


def test_a_bad_row_of_a_table_is_refused_by_its_own_line_and_nothing_is_left(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    dataset.with_name("t.csv").write_text('question,answer\n"a\nb",c\nd,\ne,"\\u0000"\n')
    with pytest.raises(InputError) as caught:
        submit.submit(store, recipe.load(recipe_file, ["data=t.csv"]))
    path = dataset.with_name("t.csv")
    assert caught.value.problems == [
        f"{path}:4: 'answer' is empty, so there is nothing to learn from this row"
    ]
    assert (store.list(), (store.home / "datasets").exists()) == ([], False)


def test_rows_of_findings_are_left_out_of_the_copy_for_good(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    rows = dataset.read_text().splitlines()
    dataset.write_text("\n".join([rows[0], *rows]) + "\n")
    notes: list[str] = []
    chosen = recipe.load(recipe_file, ["leave_out=duplicates"])
    first = store.get(submit.submit(store, chosen, note=notes.append))
    assert "1 row is left out (leave_out: duplicates)." in notes
    assert Path(first.data).read_text().splitlines() == [rows[0], "", *rows[1:]]
    assert first.recipe["leave_out"] == "duplicates"
    again = store.get(submit.submit(store, submit.again(first)))
    assert (again.data, again.recipe["leave_out"]) == (first.data, "duplicates")
    assert datasets.kept_sha256(Path(first.data)) == datasets.sha256(Path(first.data))


def test_nobody_s_choice_of_rows_becomes_another_s(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    """Where nothing goes, and where what is left is what another has brought."""
    rows = dataset.read_text().splitlines()
    mine = store.get(submit.submit(store, recipe.load(recipe_file)))
    submit.submit(store, recipe.load(recipe_file, ["leave_out=duplicates"]))
    dataset.write_text("\n".join([*rows, rows[0]]) + "\n")
    theirs = store.get(submit.submit(store, recipe.load(recipe_file, ["leave_out=duplicates"])))
    assert datasets.sha256(Path(theirs.data)) != datasets.sha256(dataset)
    assert Path(theirs.data).parent != Path(mine.data).parent
    assert not list(Path(mine.data).parent.glob(".left*"))


def test_rows_of_findings_are_left_out_of_what_a_table_is_made_into(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    table = dataset.with_name("towns.csv")
    table.write_text("question,answer\na,one\na,one\n" + "".join(f"q{i},r{i}\n" for i in range(9)))
    chosen = recipe.load(recipe_file, ["data=towns.csv", "leave_out=duplicates"])
    notes: list[str] = []
    first = store.get(submit.submit(store, chosen, note=notes.append))
    assert "1 row is left out (leave_out: duplicates)." in notes
    made = Path(first.data)
    assert made.name == "towns.jsonl"
    assert len(list(datasets.rows(made))) == 10
    assert (made.parent / "original" / "towns.csv").read_bytes() == table.read_bytes()
    again = store.get(submit.submit(store, submit.again(first)))
    assert (again.data, again.recipe["columns"]) == (first.data, first.recipe["columns"])


def test_files_that_give_equal_rows_do_not_take_each_other_s_place(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    """Somebody may know the rows of another's table, and upload one that means others beside them."""
    table = dataset.with_name("towns.csv")
    rows = [(f"q{i}", f"r{i}") for i in range(9)]
    table.write_text("question,answer\n" + "".join(f"{q},{r}\n" for q, r in rows))
    first = store.get(submit.submit(store, recipe.load(recipe_file, ["data=towns.csv"])))
    mine = table.read_bytes()
    table.write_text("Q2,A2,question,answer\n" + "".join(f"{q},{r},x {q},poison\n" for q, r in rows))
    columns = "columns={prompt: [Q2], response: [A2]}"
    second = store.get(submit.submit(store, recipe.load(recipe_file, ["data=towns.csv", columns])))
    assert Path(first.data).read_text() == Path(second.data).read_text()
    assert (Path(first.data).parent / "original" / "towns.csv").read_bytes() == mine
    again = submit.again(first, ["columns={prompt: [question], response: [answer]}"])
    assert "poison" not in Path(store.get(submit.submit(store, again)).data).read_text()
    assert datasets.kept_sha256(Path(first.data)) == datasets.sha256(Path(first.data))


def test_originals_of_one_name_are_all_kept(store: Store, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/2 a.csv", "b/a.csv", "c/a.csv")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text("question,answer\n" + "".join(f"q{number}{row},r\n" for row in range(4)))
    kept = submit.keep(store.home, made_of(tmp_path, *paths))
    originals = (kept.parent / "original").iterdir()
    assert {path.read_text() for path in originals} == {path.read_text() for path in paths}


def test_names_of_ours_are_not_those_of_datasets(store: Store, dataset: Path) -> None:
    for given, kept in ((".made.json", "made.json"), ("original", "original.jsonl"), ("...", "dataset")):
        source = dataset.with_name(given)
        if not source.exists():
            source.write_bytes(dataset.read_bytes())
        assert submit.keep_dataset(store.home, source).name == kept


def test_a_copy_leaves_room_on_the_disk(store: Store, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=files.KEPT_FREE + 10))
    with pytest.raises(LabError, match="disk is nearly full"):
        submit.keep_dataset(store.home, dataset)
    assert not list((store.home / "datasets").iterdir())


def test_rows_without_an_answer_can_be_left_out_and_problems_name_the_file(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    dataset.write_text(dataset.read_text() + '{"prompt": "a", "response": " "}\n')
    submit.submit(store, recipe.load(recipe_file, ["leave_out=empty_answers"]))
    dataset.write_text(dataset.read_text() + '{"prompt": "a", "response": []}\n')
    with pytest.raises(InputError) as caught:
        submit.submit(store, recipe.load(recipe_file, ["leave_out=empty_answers"]))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{dataset}:22: ")


def test_a_finding_that_is_none_is_refused(recipe_file: Path) -> None:
    with pytest.raises(InputError, match="leave_out: 'dupes' is not allowed"):
        recipe.load(recipe_file, ["leave_out=dupes"])


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


def test_rows_to_evaluate_on_are_checked_and_kept_beside_the_data(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    prompts = recipe_file.parent / "prompts.csv"
    prompts.write_text("prompt,response\nWhere is it?,Here.\n")
    run = store.get(submit.submit(store, recipe.load(recipe_file, ["evaluate.data=prompts.csv"])))
    kept = Path(run.recipe["evaluate"]["data"])
    assert kept.parent.parent == store.home / "datasets"
    assert run.stage("evaluate").options["data"] == str(kept)
    assert [row["response"] for _, row in datasets.rows(kept)] == ["Here."]
    assert kept.parent.name in {
        Path(path).parent.name for path in store.inventory().data
    }  # freeing leaves it
    assert str(store.home) not in json.dumps(card.shown(run)["evaluate"])
    repeated = submit.again(run)
    assert repeated.evaluate is not None
    assert repeated.evaluate.data == str(kept)


def test_all_rows_of_a_file_are_asked_back_about_before_days_of_work(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file's own rows, not by those that are held out of the data; a number is not refused."""
    monkeypatch.setattr(fitting, "LONGEST", 0.0)
    prompts = recipe_file.parent / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Where is {n}?", "response": "Here."}}\n' for n in range(620)))
    said = problem(store, recipe_file, "evaluate.data=prompts.jsonl", "evaluate.rows=all")
    assert " for 620 rows; 500 from all over them take about " in said
    assert said.endswith("Give a number; 620 reads all of them anyway")
    submit.submit(store, recipe.load(recipe_file, ["evaluate.data=prompts.jsonl", "evaluate.rows=620"]))
    submit.submit(store, recipe.load(recipe_file, ["evaluate.rows=all"]))  # two rows are held out
    assert len(store.list()) == 2


def test_rows_to_evaluate_on_that_cannot_be_read_are_named(store: Store, recipe_file: Path) -> None:
    missing = problem(store, recipe_file, "evaluate.data=nowhere.jsonl")
    assert missing.startswith("evaluate.data: ")
    assert missing.endswith("nowhere.jsonl: there is no such file")
    (recipe_file.parent / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": 1}\n')
    assert "bad.jsonl:2: " in problem(store, recipe_file, "evaluate.data=bad.jsonl")
    (recipe_file.parent / "empty.jsonl").write_text("")
    assert "the file is empty" in problem(store, recipe_file, "evaluate.data=empty.jsonl")


def test_rows_to_evaluate_on_are_read_with_the_columns_of_the_data_where_they_have_them(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    rows = "eins,zwei,drei\n" + "".join(f"a{n} b,c{n} d,e{n} f\n" for n in range(20))
    (recipe_file.parent / "towns.csv").write_text(rows)
    (recipe_file.parent / "asked.csv").write_text("drei,eins,zwei\ng h,i j,k l\n")
    (recipe_file.parent / "other.csv").write_text("question,answer\nm n,o p\n")
    changes = ["data=towns.csv", "columns={prompt: [drei], response: [zwei]}"]

    def asked(name: str) -> list[dict[str, str]]:
        given = recipe.load(recipe_file, [*changes, f"evaluate.data={name}"])
        run = store.get(submit.submit(store, given))
        return [row for _, row in datasets.rows(Path(run.recipe["evaluate"]["data"]))]

    assert asked("asked.csv") == [{"prompt": "g h", "response": "k l"}]
    assert asked("other.csv") == [{"prompt": "m n", "response": "o p"}]
