"""What the tabs' handlers answer, called as Gradio calls them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path

import gradio as gr
import orjson
import pytest
import yaml

from pipeline import settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs.data import datasets
from pipeline.publish import targets
from pipeline.stages.recipe import OPTIONS
from tests.helpers import planted
from webapp import app, local_models, uploads
from webapp.tabs import compare, data, lab, publish
from webapp.ui import choices, form, views

GOOD = b'{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
SAMPLE = str(settings.SAMPLES / "travel.jsonl")
TEMPLATE = "{prompt} {response}"
SKIP = gr.skip()
FULL = sentence(OSError(errno.ENOSPC, "No space left on device"))


def failing(error):
    """What fails with an error however it is called."""

    def fail(*given, **options):
        raise error

    return fail


full_disk = failing(OSError(errno.ENOSPC, "No space left on device"))


def values(inputs, **changes):
    """The form's values, as the page would send them, with changes such as finetune_r=8."""
    found = {
        f"{group}_{name}".strip("_"): c.value
        for (group, name), c in zip(inputs.keys, inputs.inputs, strict=True)
    }
    found |= {"data": SAMPLE, **changes}
    return list(found.values())


# -- data ---------------------------------------------------------------------------------------------


def test_a_good_upload_is_kept_by_content_and_chosen(home, uploaded):
    summary, problems, rows, example, upload, picked, use = data.found(
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
        (b'[{"prompt": "a"}]', "JSON array"),
        (b"PK\x03\x04\x00\x00\x00", "Line 1: the file is compressed (ZIP)"),
        (b"\xff\xfe\x00", "Line 1: the file is in UTF-16"),
    ],
)
def test_a_broken_upload_is_refused_with_its_lines_and_nothing_is_kept(home, uploaded, content, words):
    _, problems, _, _, upload, picked, use = data.found(uploaded(content), None, TEMPLATE, "starter")
    assert words in problems["items"][0]
    assert problems["title"] == data.BROKEN
    assert (upload, picked["value"], use["interactive"]) == (None, None, False)  # the sample was not checked
    assert not (home / "datasets").exists()
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_an_upload_that_needs_another_template_waits_for_it(home, uploaded):
    path = uploaded(b'{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n')
    _, problems, rows, _, upload, picked, use = data.found(path, None, TEMPLATE, "starter")
    assert problems["items"][0].startswith("Line 1: the field 'prompt' of the template is missing")
    assert (upload, picked["value"], use["interactive"]) == (SKIP, None, False)
    assert rows["columns"] == ["question", "answer"]
    assert not (home / "datasets").exists()
    *_, use = data.found(path, None, "{question} {answer}", "starter")
    assert use["interactive"]


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
    monkeypatch.setattr(datasets, "TELL_SECONDS", 0)
    long = json.dumps({"prompt": "a" * 600, "response": "b"}).encode() + b"\n"
    steps = list(data.look(uploaded(GOOD + long), None, "chat", str(model_folder)))
    texts = [step[0]["text"] for step in steps[:-1]]
    assert list(dict.fromkeys(texts)) == [  # the last one again where that takes longer
        "Reading the dataset…",
        "Reading the dataset… Row 1…",
        "Reading the dataset… Row 2…",
        "Reading the dataset… Row 3…",
        f"Reading the dataset… Getting the tokenizer of {model_folder}…",
    ]
    assert all(step[-1]["interactive"] is False for step in steps[:-1])
    assert steps[-1][-1]["interactive"]


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
    monkeypatch.setattr(data.submit, "keep_dataset", full_disk)
    _, problems, *_, use = data.found(uploaded(GOOD), None, TEMPLATE, "starter")
    assert problems["items"] == [FULL]
    assert not use["interactive"]


# -- lab ----------------------------------------------------------------------------------------------


def test_the_preview_is_the_recipe_and_its_command(home, inputs):
    text, command, problems = lab.preview(
        inputs, *values(inputs, name="my run!", quantize=False, finetune_r=8)
    )
    recipe = yaml.safe_load(text)
    assert (recipe["quantize"], recipe["finetune"]["r"], recipe["data"]) == (None, 8, SAMPLE)
    assert command == "python -m pipeline run my-run.yaml"
    assert problems is None


def test_the_preview_names_what_is_wrong(home, inputs):
    _, _, problems = lab.preview(inputs, *values(inputs, name="", finetune_r=None, seed=-1))
    wrong = {item.partition(":")[0] for item in problems["items"]}
    assert wrong == {"name", "seed", "finetune.r"}


def test_a_recipe_with_faults_starts_nothing(store, inputs):
    first, *_, last = lab.launch(inputs, *values(inputs, model="nowhere", template="{prompt"), "ann")
    assert "Checking" in first[0]["text"]
    assert any("model" in item for item in last[1]["items"])
    assert any("template" in item for item in last[1]["items"])
    assert store.list() == []


@pytest.mark.parametrize(
    ("error", "words"), [(OSError(errno.ENOSPC, "x"), FULL), (LabError("Locked; try again."), "Locked; try")]
)
def test_what_keeps_a_run_from_starting_is_a_sentence(store, inputs, monkeypatch, error, words):
    monkeypatch.setattr(lab.submit, "submit", failing(error))
    *_, (notice, problems, run, _) = lab.launch(inputs, *values(inputs), "ann")
    assert (notice, run) == (None, SKIP)
    assert problems["items"][0].startswith(words)
    problems, run, _ = lab.launch_sample("ann")
    assert run == SKIP
    assert problems["items"][0].startswith(words)


def test_a_good_recipe_is_queued(store, inputs, model_folder):
    local_models.offer([model_folder])
    *_, (notice, problems, run, form_update) = lab.launch(
        inputs, *values(inputs, model=str(model_folder), name="mine"), "  Ann\n\x00 B. "
    )
    assert (notice, problems, form_update["open"]) == (None, None, False)
    assert (store.get(run).recipe["name"], store.get(run).owner) == ("mine", "Ann B.")


def test_what_should_be_known_of_the_data_is_shown_on_launch(store, inputs, uploaded, model_folder):
    local_models.offer([model_folder])
    kept = data.found(uploaded(GOOD * 2), None, TEMPLATE, "starter")[5]["value"]
    given = values(inputs, data=kept, model=str(model_folder), template=TEMPLATE)
    *_, (notice, problems, run, form_update) = lab.launch(inputs, *given, "ann")
    assert notice["text"] == f"Run {run} is queued. About its data:"
    assert notice["note"] == "2 of 4 rows are copies of an earlier one."
    assert (problems, form_update["open"]) == (None, True)


def test_every_stage_has_a_description():
    assert all(len(lab._about(stage)) > 10 for stage in OPTIONS)


def test_the_app_sees_to_the_worker_and_to_idle_models_again_and_again(home, monkeypatch):
    done = []

    async def release_idle():
        done.append("models")
        if len(done) > 4:
            raise asyncio.CancelledError
        if len(done) < 3:
            raise OSError("for once")

    monkeypatch.setattr(app, "TEND_SECONDS", 0)
    monkeypatch.setattr(app, "_see_to_worker", lambda home: done.append("worker"))
    monkeypatch.setattr(app.chat_client, "release_idle", release_idle)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(app._tend(home), 20))
    assert done == ["worker", "models"] * 3


class Arriving:
    """The part of a request that says with which address the page was opened."""

    def __init__(self, **query):
        self.query_params = query


def test_an_empty_home_welcomes(home):
    welcome, new, dataset, tab, run = app.arrive(Arriving())
    assert (welcome["visible"], new["open"], dataset["value"], tab, run) == (True, True, SAMPLE, "data", "")


def test_a_page_without_an_address_shows_the_run_that_is_on(store):
    run = planted.running(store)
    planted.queued(store, "later")
    welcome, new, _, tab, shown = app.arrive(Arriving())
    assert (welcome["visible"], new["open"], tab, shown) == (False, False, "lab", run)


def test_an_address_is_followed(store):
    run = planted.finished(store)
    planted.running(store)
    assert app.arrive(Arriving(run=run, tab="runs"))[3:] == ("runs", run)
    assert app.arrive(Arriving(run=run, tab="<b>"))[3:] == ("lab", run)


# -- compare ------------------------------------------------------------------------------------------


def collect(stream):
    async def all_of_it():
        return [shown async for shown in stream]

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


async def answering(home, source, prompt, **options):
    for n in range(3):
        for side in source.sides:
            yield {"side": side, "text": f"{side}{n} "}
    for side in source.sides:
        yield {
            "side": side,
            "done": True,
            "tokens": 3,
            "tokens_per_second": 41.234,
            "first_token_seconds": 0.25,
        }


def test_both_answers_stream_with_their_measures(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    shown = collect(compare.compare(planted.finished(store), "Where?", 64, 0, 0))
    base, adapter, facts, _, notice = shown[-1]
    assert (base, adapter, notice) == ("base0 base1 base2 ", "adapter0 adapter1 adapter2 ", None)
    assert facts == [["Tokens", "3"], ["Tokens per second", "41.2"], ["First token after", "0.2 s"]]


def test_the_button_takes_no_other_click_while_answers_stream(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    steps = collect(compare.run_both(planted.finished(store), "Where?", 64, 0, 0))
    assert len(steps) > 1
    assert all(step[-1]["interactive"] is False for step in steps)


def test_an_answer_that_was_cut_is_marked(store, monkeypatch):
    async def cut(home, source, prompt, **options):
        measured = {"tokens": 64, "cut": True, "tokens_per_second": 1.0, "first_token_seconds": 1.0}
        yield {"side": "base", "text": "and then", "done": True, **measured}

    monkeypatch.setattr(compare.chat_client, "stream", cut)
    _, _, facts, *_ = collect(compare.compare(planted.finished(store), "Where?", 64, 0, 0))[-1]
    assert facts[0] == ["Tokens", "64 [cut at the limit]"]
    side = {"text": "and then", "tokens": 64, "cut": True}
    shown = views.evaluation(
        [{"prompt": "a", "expected": "b", "base": side, "adapter": {**side, "cut": False}}]
    )
    assert shown["rows"] == [["a", "b", "and then … [cut at the limit]", "and then"]]


def test_a_run_without_an_adapter_answers_on_its_one_side(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    base, adapter, _, facts, notice = collect(
        compare.compare(planted.finished(store, adapter=False), "Where?", 64, 0, 0)
    )[-1]
    assert (base, adapter, facts) == ("base0 base1 base2 ", "", None)
    assert "There is no adapter in run" in notice["text"]


def test_a_merged_adapter_is_said_to_have_no_base_side(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    run = planted.finished(store, adapter=False, merged=True)
    base, adapter, _, _, notice = collect(compare.compare(run, "Where?", 64, 0, 0))[-1]
    assert (base, adapter) == ("", "adapter0 adapter1 adapter2 ")
    assert "merged into its weights; there is no base" in notice["text"]


def test_an_error_of_the_model_is_a_sentence_beside_what_was_there(store, monkeypatch):
    async def ending(*given, **options):
        yield {"side": "base", "text": "The"}
        raise LabError("The model ran out of memory.")

    monkeypatch.setattr(compare.chat_client, "stream", ending)
    base, *_, notice = collect(compare.compare(planted.finished(store), "Where?", 64, 0, 0))[-1]
    assert (base, notice["text"]) == ("The", "The model ran out of memory.")


def test_a_run_that_is_gone_and_a_process_that_cannot_start_are_sentences(store, monkeypatch):
    assert "no such run" in collect(compare.compare("gone", "Where?", 64, 0, 0))[-1][-1]["text"]
    monkeypatch.setattr(compare.chat_client, "stream", full_disk)
    notice = collect(compare.compare(planted.finished(store), "Where?", 64, 0, 0))[-1][-1]
    assert notice == {"text": FULL, "kind": "bad"}


def test_without_a_run_or_a_prompt_nothing_is_asked(store):
    for run, prompt in ((None, "x"), (planted.finished(store), "  ")):
        assert collect(compare.compare(run, prompt, 64, 0, 0))[-1][-1]["kind"] == "bad"


def test_held_out_prompts_are_offered_with_what_is_expected(store):
    run = planted.finished(store)
    update, notice, filled_for, picker, prompt, wanted, recorded, taken, _ = compare.arrive(None, "")
    assert (update["value"], notice, filled_for, picker["visible"]) == (run, None, run, True)
    assert (prompt, wanted["value"]) == ("What should I see in Lindenhafen?", "The amber lighthouse.")
    assert compare.enter(run, prompt, taken) == (SKIP,) * 4, "the list was only left"
    assert compare.enter(run, "Where else?", taken)[:3:2] == ("Where else?", "Where else?")
    assert len(recorded["rows"]) == 2
    assert compare.expected(run, "something else")["visible"] is False
    assert compare.typed(run, "something else")[1]["value"] is None
    assert compare.typed(run, prompt)[1]["value"] == prompt
    assert compare.arrive(run, run)[2:] == (SKIP,) * 7, "what was typed stays"


def test_the_system_text_of_a_held_out_prompt_is_filled_in(store, monkeypatch):
    asked = []
    run = planted.finished(store, answers=[{**planted.ANSWERS[0], "system": "Be brief."}, planted.ANSWERS[1]])
    lab = Path(store.get(run).artifact("onnx"), "lab.json")
    for optional in ([], ["system"]):
        lab.write_text(json.dumps({"template": "chat", "optional": optional, "reading": {}}))
        box = compare.choose(run)[-1]
        assert (box["value"], box["visible"]) == ("Be brief.", bool(optional))
    assert compare.enter(run, "Where do ferries leave?", "")[-1] == ""

    async def answering_with(*given, **options):
        asked.append(options)
        yield {"side": "base", "text": "So."}

    monkeypatch.setattr(compare.chat_client, "stream", answering_with)
    collect(compare.compare(run, "Where?", 64, 0, 0, "Be brief."))
    assert asked[0]["system"] == "Be brief."


def test_held_out_prompts_that_are_in_training_too_are_not_called_new(store, home, monkeypatch):
    monkeypatch.setattr(settings, "SAMPLES", Path(shutil.copytree(settings.SAMPLES, home / "samples")))
    run = planted.finished(store)
    assert compare.choose(run)[1]["info"] == "Rows held out of training"
    answers = Path(store.get(run).artifact("answers"))
    rows = json.loads(answers.read_text())["rows"]
    answers.write_text(json.dumps({"rows": [{**row, "prompt": "a"} for row in rows]}))
    kept = Path(store.get(run).data)
    assert kept.is_relative_to(home)
    kept.write_text('{"prompt": "a", "response": "b"}\n' * 9)
    assert compare.choose(run)[1]["info"].endswith("all rows have this prompt, so the adapter has seen it")


def test_a_version_registered_here_answers_and_has_the_prompts_of_its_run(store, home, monkeypatch):
    run = planted.finished(store)
    folder = home / "registry" / "travel" / "1"
    shutil.copytree(store.get(run).artifact("onnx"), folder)
    facts = {"run": run, "created": 1.0, "description": "", "bytes": 2048}
    (folder / "published.json").write_text(json.dumps(facts))
    offered = dict(compare.arrive(run, run)[0]["choices"])
    assert offered["travel:1 · registered here"] == "registry/travel/1"
    assert compare.choose("registry/travel/1")[2] == "What should I see in Lindenhafen?"
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    base, *_, notice = collect(compare.compare("registry/travel/1", "Where?", 64, 0, 0))[-1]
    assert (base, notice["text"]) == (
        "base0 base1 base2 ", "There is no adapter in model travel:1; its base answers alone.",
    )  # fmt: skip
    for elsewhere in ("registry/../artifacts", f"registry/{home}", "pulled/../..", "registry/travel/2"):
        notice = collect(compare.compare(elsewhere, "Where?", 64, 0, 0))[-1][-1]
        assert notice["text"] == "This model is not here any more; choose another one."
        assert compare.choose(elsewhere)[2] == ""


def test_a_home_without_finished_runs_says_so(store):
    planted.running(store)
    assert "No finished run" in compare.arrive(None, "")[1]["text"]
    assert "No finished run" in publish.arrive(None, None)[1]["text"]


# -- publish ------------------------------------------------------------------------------------------


@pytest.fixture
def registry():
    with gr.Blocks():
        made = form.Form()
        made.fields("publish", targets.PUBLISHERS["local"].Options)
    return made


def test_a_dry_run_writes_nothing(store, registry, home):
    run = planted.finished(store)
    problems, planned, files = publish.check(registry, run, "travel", "", "")
    assert problems is None
    assert planned["text"].startswith("Version 1 of travel: 1 files")
    assert files["rows"] == [["model.onnx", "2.0 kB"]]
    assert not (home / "registry").exists()


def test_publishing_queues_a_stage_of_the_run(store, registry):
    run = planted.finished(store)
    problems, *_, progress = publish.publish(registry, run, "travel", "", "")
    assert (problems, progress) == (None, {"run": run, "stage": "publish"})
    assert store.get(run).stage("publish").status == "queued"


@pytest.mark.parametrize(
    ("error", "words"), [(OSError(errno.ENOSPC, "x"), FULL), (LabError("Locked; try again."), "Locked; try")]
)
def test_what_keeps_a_version_from_being_published_is_a_sentence(store, registry, monkeypatch, error, words):
    run = planted.finished(store)
    monkeypatch.setattr(publish.submit, "publish", failing(error))
    monkeypatch.setattr(publish.targets.PUBLISHERS["local"], "plan", failing(error))
    for handler in (publish.check, publish.publish):
        problems, *rest = handler(registry, run, "travel", "", "")
        assert problems["items"][0].startswith(words)
        assert set(rest) == {None}


@pytest.mark.parametrize(
    ("name", "version", "word"), [("no good!", "", "name"), ("good", "zero", "version"), ("", "", "name")]
)
def test_bad_names_and_versions_are_refused_before_anything_is_queued(store, registry, name, version, word):
    run = planted.finished(store)
    problems, *_ = publish.publish(registry, run, name, version, "")
    assert problems["items"][0].startswith(word)
    assert len(store.get(run).stages) == 4
    assert publish.publish(registry, None, "x", "", "")[0]["items"] == ["run: choose a finished run"]


def test_choices_refuse_what_was_not_offered(home):
    with pytest.raises(InputError, match="choose a dataset"):
        choices.known_data(home, None)
    assert choices.known_data(home, SAMPLE) == Path(SAMPLE)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
