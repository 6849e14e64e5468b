"""The file to evaluate on, in the Lab's form: its handlers as Gradio calls them, and the recipe with it."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml

from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.runs import disk
from pipeline.runs.data import prepare_data
from pipeline.stages.evaluate import Options
from tests.helpers import planted
from tests.helpers.page import FULL, SAMPLE, full_disk, values
from webapp import local_models, uploads
from webapp.home import store
from webapp.tabs import data, lab
from webapp.tabs.evaluating import prompt_file

ROWS = b"question,answer\nWhere?,Here.\nWhen?,Now.\n"
TEMPLATE = "{prompt} {response}"
SKIP = gr.skip()


def taken(upload: str | None, picked: str | None = SAMPLE, template: str = TEMPLATE) -> tuple[Any, ...]:
    """What it is, problems, the choice and the upload box in the end."""
    *_, last = prompt_file.take(upload, picked, template, "starter")
    return last


def shown(chosen: str, picked: str = SAMPLE, template: str = TEMPLATE) -> tuple[Any, bool]:
    """What the chosen file is, and whether it can be removed."""
    *_, (said, remove) = prompt_file.show(chosen, picked, template, "starter")
    return said, remove["visible"]


@pytest.fixture
def kept(home: Path, uploaded: Any) -> str:
    """A good file that was uploaded."""
    return str(taken(uploaded(ROWS, "prompts.csv"))[2]["value"])


@pytest.mark.parametrize(("name", "pack"), [("prompts.csv", bytes), ("prompts.csv.gz", gzip.compress)])
def test_a_good_upload_is_kept_as_datasets_are_and_chosen(home, uploaded, name, pack):
    content = pack(ROWS)
    said, problems, choice, box = taken(uploaded(content, name))
    container = "csv.gz" if pack is gzip.compress else "csv"
    line = f"{name}: 2 rows · {container}, question/answer: prompt = question, response = answer"
    assert (said["text"], said["note"]) == (line, prompt_file.FEW)
    assert (problems, box) == (None, None)
    file = Path(choice["value"])
    assert file.parent.parent == home / "datasets"
    assert [row for _, row in datasets.rows(file)][1] == {"prompt": "When?", "response": "Now."}
    assert (file.parent / "original" / name).read_bytes() == content
    assert choice["choices"][0] == ("Held-out rows", "")
    assert str(file) in [value for _, value in choice["choices"]]
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []
    assert shown(str(file)) == (said, True)


@pytest.mark.parametrize(
    ("content", "template", "words"),
    [
        (ROWS + b"one cell\n", TEMPLATE, "Line 4: the row has 1 cell"),
        (b"", TEMPLATE, "Line 1: the file is empty"),
        (b"PK\x03\x04\x00\x00\x00", TEMPLATE, "Line 1: the file is compressed (ZIP)"),
        (ROWS, "{city} {response}", "Line 2: the field 'city' of the template is missing"),
        (ROWS, "{city", "template"),
    ],
)
def test_an_upload_that_cannot_be_asked_is_refused_with_its_line_and_not_kept(
    home, uploaded, content, template, words
):
    said, problems, choice, box = taken(uploaded(content, "prompts.csv"), template=template)
    assert problems["title"].startswith("prompts.csv is not taken")
    assert words in problems["items"][0]
    assert str(home) not in str(problems)
    assert (said, choice, box) == (None, SKIP, None)  # what was chosen stays
    assert not (home / "datasets").exists()
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_one_that_no_run_uses_goes_after_a_day_unless_somebody_chooses_it(home, uploaded, kept):
    other = data.found(uploaded(b"prompt,response\na,b\n", "rows.csv"), None, TEMPLATE, "")[8]["value"]
    used = taken(uploaded(ROWS + b"Who?,I.\n", "used.csv"))[2]["value"]
    planted.plant(store(), stages={"evaluate": {"data": used}})

    def age() -> None:
        for folder in (home / "datasets").iterdir():
            for path in (folder, *folder.iterdir()):
                os.utime(path, (time.time() - 2 * disk.DAY,) * 2)

    age()
    shown(kept)
    assert disk.tidy_prompts(store()) == []
    age()
    assert disk.tidy_prompts(store()) == [Path(kept).name]
    assert [Path(path).exists() for path in (kept, other, used)] == [False, True, True]


def test_what_is_no_upload_or_finds_no_room_is_a_sentence(home, uploaded, monkeypatch):
    for named in (None, str(home / "runs.db"), "/etc/passwd"):
        assert taken(named)[1]["items"] == [uploads.NOT_HERE]
    monkeypatch.setattr(prompt_file.kept_datasets, "keep_made", full_disk)
    assert taken(uploaded(ROWS, "prompts.csv"))[1]["items"] == [FULL]


def test_a_file_is_read_with_the_columns_of_the_dataset_where_it_has_them(home, uploaded):
    towns = uploaded(b"eins,zwei,drei\na b,c d,e f\ng h,i j,k l\n", "towns.csv")
    picked = data.found(towns, None, "chat", "", ["eins", "drei"], ["zwei"], [])[8]["value"]
    said, *_ = taken(uploaded(b"drei,eins,zwei\np q,r s,t u\n", "prompts.csv"), picked, "chat")
    assert said["text"].endswith(": prompt = eins + drei, response = zwei")
    said, *_ = taken(uploaded(ROWS, "other.csv"), picked, "chat")
    assert said["text"].endswith(": prompt = question, response = answer")
    *_, problems, _, _ = taken(uploaded(b"eins,zwei,drei\na b,c d,e f\n", "prompts.csv"), SAMPLE, "chat")
    assert "which columns hold prompt and response is not clear" in problems["items"][0]


def test_plain_text_goes_with_plain_text_alone(home, uploaded):
    """As when the run is queued; the dataset may be another one by the time the file is looked at again."""
    text = b"".join(b"In valley %d lies a town. It is town %d.\n\n" % (n, n) for n in range(3))
    said, problems, choice, _ = taken(uploaded(text, "asked.txt"), SAMPLE, "chat")
    assert (said, problems["items"], choice) == (None, [prepare_data.OTHER_FORM], SKIP)
    story = data.found(uploaded(text, "story.txt"), None, "chat", "")[8]["value"]
    _, problems, choice, _ = taken(uploaded(text, "asked.txt"), story, "chat")
    assert problems is None
    assert shown(choice["value"], SAMPLE, "chat")[0]["text"].endswith(prepare_data.OTHER_FORM)
    _, problems, *_ = taken(uploaded(ROWS, "prompts.csv"), story, "chat")
    assert problems["items"] == [prepare_data.OTHER_FORM]


def test_the_chosen_file_is_looked_at_again_only_for_another_template_or_dataset(kept, monkeypatch):
    said, _ = shown(kept)
    assert shown("") == (None, False)
    misfit, removable = shown(kept, template="{city} {response}")
    assert (misfit["kind"], removable) == ("bad", True)
    assert misfit["text"].startswith("prompts.jsonl does not fit: Line 2: the field 'city' of the")
    monkeypatch.setattr(prompt_file.prepare_data, "looking", None)
    assert shown(kept) == (said, True)
    assert shown("/etc/passwd")[0]["text"].startswith("evaluate.data: this file is not in the lab")


def test_the_recipe_has_only_files_that_the_page_offers(store, kept, inputs):
    text, _, problems, *_ = lab.preview(inputs, *values(inputs, evaluate_data=kept))
    assert (yaml.safe_load(text)["evaluate"]["data"], problems) == (kept, None)
    outside = Path(kept).parent / ".made"
    for path in ("/etc/passwd", str(outside), f"{kept}/../{Path(kept).name}", "hub:org/name"):
        _, _, problems, launch, _ = lab.preview(inputs, *values(inputs, evaluate_data=path))
        assert [item["at"] for item in problems["items"]] == ["evaluate-data"], path
        assert not launch["interactive"]
        *_, last = lab.launch(inputs, *values(inputs, evaluate_data=path), "ann")
        assert "not in the lab" in last[1]["items"][0]["text"]
    assert store.list() == []
    gone = values(inputs, evaluate_data="/etc/passwd")
    assert lab.to_score(inputs, tuple(gone)).evaluate is None  # which has no use for it
    assert lab.preview(inputs, *values(inputs, evaluate_data=None))[2] is None


def test_it_is_checked_before_anything_is_queued_and_comes_back_with_the_recipe(
    store, kept, uploaded, inputs, model_folder
):
    local_models.offer([model_folder])
    given = {"model": str(model_folder), "template": TEMPLATE, "evaluate_data": kept}
    fits = uploaded(
        b'{"city": "a", "prompt": "b", "response": "c"}\n{"city": "d", "prompt": "e", "response": "f"}\n'
    )
    other = "{city} {prompt} {response}"
    towns = data.found(fits, None, other, "")[8]["value"]
    refused = values(inputs, **{**given, "template": other, "data": towns})
    *_, last = lab.launch(inputs, *refused, "ann")
    assert {item["at"] for item in last[1]["items"]} == {"evaluate-data"}
    assert store.list() == []
    *_, (_, problems, run, _) = lab.launch(inputs, *values(inputs, **given), "ann")
    assert problems is None
    found = store.get(run)
    assert (found.stage("evaluate").options["data"], found.asked) == (kept, "prompts.jsonl")
    at = inputs.keys.index(prompt_file.KEY)
    again = lab.again(inputs, run)[at]
    assert again["value"] == kept
    assert kept in [value for _, value in again["choices"]]
    assert lab.fresh(inputs)[at] == ""
    plain = planted.finished(store)
    assert lab.again(inputs, plain)[at]["value"] == ""


def test_a_path_is_typed_by_nobody():
    """No other form has the field, and nothing is swept over it."""
    option = next(option for option in prompt_file.describe(Options) if option.name == prompt_file.KEY[1])
    assert not option.page
    with pytest.raises(InputError, match=r"^evaluate\.data: this file is not in the lab"):
        prompt_file.known("prompts.csv")
