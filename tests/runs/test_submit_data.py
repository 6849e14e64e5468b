"""The lab's copy of the data that is submitted: its rows, its name, its original, rows left out of it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.publish import card
from pipeline.runs import submit
from pipeline.runs.data import prepare_data
from pipeline.runs.preflight import fitting
from pipeline.stages import recipe
from pipeline.store import Store
from tests.helpers.submitting import problem


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


def test_the_same_data_is_kept_once(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
) -> None:
    first = store.get(submit.submit(store, recipe.load(recipe_file))).data
    assert store.get(submit.submit(store, recipe.load(recipe_file))).data == first
    dataset.write_text(dataset.read_text() + json.dumps({"prompt": "x", "response": "y"}) + "\n")
    assert store.get(submit.submit(store, recipe.load(recipe_file))).data != first
    assert len(list((store.home / "datasets").iterdir())) == 2


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
