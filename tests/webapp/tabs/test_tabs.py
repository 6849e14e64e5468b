"""The handlers of the Data tab, called as Gradio calls them, and the choices of all tabs."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import gradio as gr
import orjson
import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import telling
from pipeline.runs.data import prepare_data
from tests.helpers import reading
from tests.helpers.lab import until
from tests.helpers.page import FULL, SAMPLE, full_disk
from webapp import local_models, uploads
from webapp.tabs import data
from webapp.ui import choices

GOOD = b'{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
TEMPLATE = "{prompt} {response}"
SKIP = gr.skip()


def test_a_good_upload_is_kept_by_content_and_chosen(home, uploaded):
    summary, problems, rows, example, *_, upload, picked, use = data.found(
        uploaded(GOOD), None, TEMPLATE, "starter"
    )
    assert summary["text"] == "mine.jsonl: 2 rows · fields: prompt, response"
    assert (problems, upload, use["interactive"]) == (None, None, True)
    assert rows["rows"] == [["a", "b"], ["c", "d"]]
    assert example == {"prompt": "a", "response": " b"}
    kept = Path(picked["value"])
    assert kept.read_bytes() == GOOD
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Line 1: the file is empty"),
        (GOOD * 3 + b'{"prompt": \n' + GOOD, "Line 7: not JSON"),
        (b"[7]", "Row 1: a row must be an object"),
        (b"PK\x03\x04\x00\x00\x00", "Line 1: the file is compressed (ZIP)"),
        (b"\xff\xfe\x00", "Line 1: the file is in UTF-16"),
    ],
)
def test_a_broken_upload_is_refused_with_its_lines_and_nothing_is_kept(home, uploaded, content, words):
    _, problems, *_, upload, picked, use = data.found(uploaded(content), None, TEMPLATE, "starter")
    assert words in problems["items"][0]
    assert problems["title"] == data.BROKEN
    assert (upload, picked["value"], use["interactive"]) == (None, None, False)  # the sample was not checked
    assert not (home / "datasets").exists()
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_an_upload_that_needs_another_template_or_columns_waits_for_them(home, uploaded):
    path = uploaded(
        b'{"one": "a b", "two": "c", "three": "d e"}\n{"one": "f g", "two": "h", "three": "i j"}\n'
    )
    _, problems, _, _, *lists, upload, picked, use = data.found(path, None, TEMPLATE, "starter")
    assert problems["title"] == data.UNFIT
    assert problems["items"][0].startswith("Line 1: which columns hold prompt and response is not clear")
    assert (upload, picked["value"], use["interactive"]) == (SKIP, None, False)
    assert [(one["choices"], one["interactive"]) for one in lists] == [(["one", "two", "three"], True)] * 3
    assert not (home / "datasets").exists()
    *_, use = data.found(path, None, "{one} {two}", "starter")
    assert use["interactive"]
    chosen = [["one", "three"], ["two"], []]
    summary, problems, rows, _, *lists, upload, picked, use = data.found(
        path, None, "chat", "starter", *chosen
    )
    assert (problems, upload, use["interactive"]) == (None, None, True)
    assert "Checked as jsonl, question/answer: prompt = one + three, response = two" in summary["note"]
    assert rows["rows"] == [["a b\n\nd e", "c"], ["f g\n\ni j", "h"]]
    assert [one["value"] for one in lists] == chosen
    kept = Path(picked["value"])
    assert (kept.name, [path.name for path in (kept.parent / "original").iterdir()]) == (
        "mine.jsonl",
        ["mine.jsonl"],
    )
    # Other columns of what was kept are taken from its original, and kept as well.
    *_, picked, use = data.found(None, str(kept), "chat", "starter", ["two"], ["one"], [])
    assert (use["interactive"], picked["value"] != str(kept)) == (True, True)
    assert json.loads(Path(picked["value"]).read_text().split("\n")[0]) == {"prompt": "c", "response": "a b"}


def test_a_table_is_taken_as_it_is_recognised(home, uploaded):
    content = "Frage;Antwort\na b;c\nd e;f\n".encode("utf-16")
    summary, problems, _, _, *lists, _, picked, use = data.found(
        uploaded(content, "towns.csv"), None, "chat", "starter"
    )
    assert (problems, use["interactive"]) == (None, True)
    assert summary["text"] == "towns.csv: 2 rows · fields: prompt, response"
    assert [one["value"] for one in lists] == [["Frage"], ["Antwort"], []]
    assert Path(picked["value"]).name == "towns.jsonl"
    _, problems, *_ = data.found(uploaded(content, "towns.csv"), None, "chat", "starter", ["Frage"], [], [])
    assert problems["items"] == [
        "columns.response: is missing; name a column, such as columns: {response: [a]}"
    ]


def test_a_text_is_taken_as_plain_text_and_kept(home, uploaded):
    content = b"Once there was a town.\n\nIt lies in a valley.\n"
    summary, problems, _, example, *lists, _, picked, use = data.found(
        uploaded(content, "story.txt"), None, "chat", "starter"
    )
    assert (problems, use["interactive"]) == (None, True)
    assert [one["value"] for one in lists] == [[], ["text"], []]
    assert "Checked as txt, plain text: response = text; each is learned as a whole" in summary["note"]
    assert example == {"prompt": "Once there", "response": " was a town."}
    kept = Path(picked["value"])
    assert prepare_data.template_of(kept, "chat") == "{prompt}{response}"
    assert prepare_data.template_of(kept, "{prompt} {response}") == "{prompt} {response}"
    summary, problems, *_ = data.found(None, str(kept), "chat", "starter")
    assert problems is None


def test_a_lone_column_waits_to_be_chosen_as_text(home, uploaded):
    path = uploaded(b'[{"prompt": "a b"}, {"prompt": "c d"}]')
    _, problems, *_, upload, _, use = data.found(path, None, "chat", "starter")
    assert problems["items"][0].startswith("Row 1: the rows have one column only (prompt): add a column")
    assert (upload, use["interactive"]) == (SKIP, False)
    _, problems, *_, use = data.found(path, None, "chat", "starter", [], ["prompt"], [])
    assert (problems, use["interactive"]) == (None, True)


def test_several_uploads_are_one_dataset(home, uploaded):
    paths = [uploaded(b"question,answer\na,b\n", "1.csv"), uploaded(b"question,answer\nc,d\n,e\n", "2.csv")]
    _, problems, *_ = data.found(paths, None, "chat", "starter")
    assert problems["items"] == ["Line 3: 2.csv: 'question' is empty, so there is nothing asked in this row"]
    paths[1] = uploaded(b"question,answer\nc,d\n", "2.csv")
    summary, problems, *_, picked, use = data.found(paths, None, "chat", "starter")
    assert (summary["text"], use["interactive"]) == ("1.csv + 2.csv: 2 rows · fields: prompt, response", True)
    assert Path(picked["value"]).name == "1 and 1 more.jsonl"


def test_notes_are_shown_below_the_summary(home, uploaded, model_folder, bytes_as_tokens):
    local_models.offer([model_folder])
    row = json.dumps({"prompt": "a" * 600, "response": "b"}).encode() + b"\n"
    summary, problems, *_ = data.found(uploaded(GOOD + row * 2), None, "chat", str(model_folder))
    assert problems is None
    assert summary["note"].split("\n") == [
        "2 of 4 rows are longer than 512 tokens (finetune.max_length) and will be cut: lines 3, 4.",
        "1 of 4 rows is a copy of an earlier one.",
    ]


def test_a_long_check_says_how_far_it_is(home, uploaded, model_folder, bytes_as_tokens, monkeypatch):
    local_models.offer([model_folder])
    monkeypatch.setattr(telling, "TELL_SECONDS", 0)
    long = json.dumps({"prompt": "a" * 600, "response": "b"}).encode() + b"\n"
    steps = list(data.look(uploaded(GOOD + long), None, "chat", str(model_folder)))
    texts = [step[0]["text"] for step in steps[:-1]]
    assert list(dict.fromkeys(texts)) == [  # the last one again where that takes longer
        "Reading the dataset…",
        "Reading the dataset… Row 1…",
        "Reading the dataset… Row 2…",
        "Reading the dataset… Row 3…",
        f"Reading the dataset… Getting the tokenizer of {model_folder}…",
        "Reading the dataset… Comparing rows…",
    ]
    assert all(step[-1]["interactive"] is False for step in steps[:-1])
    assert steps[-1][-1]["interactive"]


def test_others_are_answered_while_a_large_file_is_read(home, client, monkeypatch):
    monkeypatch.setattr("webapp.ui.check_turns.TELL_SECONDS", 0.01)  # long before so much is read
    path = home / ".gradio-uploads" / ("1" * 64) / "mine.jsonl"
    path.parent.mkdir(parents=True)
    reading.write(path, 50_000_000)
    happened, answered = [], threading.Event()

    def read() -> None:
        for step in data.look([str(path)], None, TEMPLATE, ""):
            happened.append(step[0]["text"])
            if len(happened) > 1:
                answered.wait()  # the process reads on meanwhile
        happened.append(step[0]["text"] if step[0] else str(step[1]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: len(happened) > 1, "the first step")
        for route in ("/", "/config", "/gradio_api/info"):
            assert client.get(route).status_code == 200
        happened.append("answered")
    finally:
        answered.set()
        reader.join()
    before, after = happened[: happened.index("answered")], happened[happened.index("answered") + 1 :]
    assert all(text.startswith("Reading the dataset…") for text in before)
    assert after[-1] == "mine.jsonl: 100 rows · fields: prompt, response"


def test_what_the_page_gets_is_valid_text(home, uploaded):
    rows = [
        b'{"prompt": "a", "response": "b", "x\\ud83d": 1}\n',
        b'{"prompt": "a", "response": "b", "y": [{"z": "\\udc00"}]}\n',
    ]
    for template in (TEMPLATE, "{prompt}\ud83d{response}", "{\ud83d} {response}", "\ud83d", "chat"):
        for given in (rows[0], rows[1], GOOD, *([GOOD + row for row in rows])):
            shutil.rmtree(home / ".gradio-uploads", ignore_errors=True)
            shown = data.found(uploaded(given), None, template, "no\ud83d")[:4]
            assert orjson.dumps(shown)
            assert shown[0] is None or shown[0]["kind"] == ("good" if shown[1] is None else "bad")


def test_long_names_and_texts_are_cut(home, uploaded):
    row = {"prompt": "a" * 100_000, "response": "b" * 100_000, "x" * 100_000: [9] * 10_000}
    shown = data.found(uploaded(json.dumps(row).encode()), None, TEMPLATE, "no-such-model")[:4]
    assert len(orjson.dumps(shown)) < 50_000


def test_only_datasets_of_the_lab_can_be_looked_at(home):
    _, problems, *_ = data.found(None, "/etc/passwd", TEMPLATE, "starter")
    assert "not in the lab" in problems["items"][0]


def test_a_missing_model_leaves_the_rows_checked(home):
    summary, problems, rows, example, *_ = data.found(None, SAMPLE, "chat", "no-such-model")
    assert problems is None
    assert "cannot be rendered" in summary["note"]
    assert (len(rows["rows"]), example) == (5, None)


def test_long_values_are_cut(home, uploaded):
    row = json.dumps({"prompt": "x" * 9999, "response": "y"}).encode() + b"\n"
    rows = data.found(uploaded(row * 2), None, TEMPLATE, "starter")[2]
    assert len(rows["rows"][0][0]) == 300


def test_uploads_and_samples_are_offered_once(home, uploaded):
    data.found(uploaded(GOOD), None, TEMPLATE, "starter")
    data.found(uploaded(Path(SAMPLE).read_bytes(), "travel.jsonl"), None, TEMPLATE, "starter")
    labels = [label.partition(" ")[0] for label, _ in choices.data(home)]
    assert sorted(labels) == ["mine.jsonl", "travel.jsonl"]


def test_an_upload_is_offered_under_a_name_that_is_what_it_looks_like(home, uploaded):
    """Also one that an earlier release kept under its own name."""
    summary = data.found(uploaded(GOOD, "\u202enosj.exe\x1b\u200f.jsonl"), None, TEMPLATE, "starter")[0]
    assert summary["text"].startswith("\\u202enosj.exe\\u001b\\u200f.jsonl: ")
    (home / "datasets" / "0").mkdir()
    (home / "datasets" / "0" / "\u202ea.jsonl").write_bytes(GOOD + GOOD)
    labels = [label.partition(" ")[0] for label, _ in choices.data(home) if "sample" not in label]
    assert sorted(labels) == ["\\u202ea.jsonl", "_nosj.exe__.jsonl"]


def test_an_upload_that_cannot_be_kept_is_a_sentence(home, uploaded, monkeypatch):
    monkeypatch.setattr(data.kept_datasets, "keep", full_disk)
    _, problems, *_, use = data.found(uploaded(GOOD), None, TEMPLATE, "starter")
    assert problems["items"] == [FULL]
    assert not use["interactive"]


def test_choices_refuse_what_was_not_offered(home):
    with pytest.raises(InputError, match="choose a dataset"):
        choices.known_data(home, None)
    with pytest.raises(InputError, match="fetch a dataset of the hub on the Data tab"):
        choices.known_data(home, "hub:org/name")
    assert choices.known_data(home, SAMPLE) == Path(SAMPLE)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
