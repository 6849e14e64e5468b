"""The handlers of the Compare tab that choose models and prompts, called as Gradio calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from pipeline import settings
from pipeline.errors import InputError
from pipeline.exports.chat import chat_client
from tests.helpers import examples, planted
from tests.helpers.asked import TALK, answering, ask, fielded
from webapp.tabs import compare, publish

SKIP = gr.skip()


def test_held_out_prompts_are_offered_with_what_is_expected(store):
    run = planted.finished(store)
    update, _, notice, _, *filled = compare.arrive(None, "", TALK, "")
    filled_for, picker, prompt, wanted, recorded, taken, _ = filled[:7]
    assert filled[7:] == [*compare.BLANK]
    assert (update["value"], notice, filled_for, picker["visible"]) == (run, None, run, True)
    assert (prompt, wanted["value"]) == ("What should I see in Lindenhafen?", "The amber lighthouse.")
    assert compare.enter(run, prompt, taken) == (SKIP,) * 4, "the list was only left"
    assert compare.enter(run, "Where else?", taken)[:3:2] == ("Where else?", "Where else?")
    assert len(recorded["rows"]) == 2
    assert compare.expected(run, "something else")["visible"] is False
    assert compare.typed(run, "something else")[1]["value"] is None
    assert compare.typed(run, prompt)[1]["value"] == prompt
    assert set(map(str, compare.arrive(run, run, TALK, "")[4:])) == {str(SKIP)}, "what was typed stays"


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

    monkeypatch.setattr(chat_client, "stream", answering_with)
    ask(run, system="Be brief.")
    assert asked[0]["system"] == "Be brief."
    assert asked[0]["gather_seconds"] > 0, "or each token would wake the page"


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
    offered = dict(compare.arrive(run, run, TALK, "")[0]["choices"])
    assert offered["travel:1 · registered here"] == "registry/travel/1"
    assert compare.choose("registry/travel/1")[2] == "What should I see in Lindenhafen?"
    monkeypatch.setattr(chat_client, "stream", answering)
    shown = ask("registry/travel/1")
    assert (shown.texts[0], shown.notice["text"]) == (
        "base0 base1 base2 ", "There is no adapter in model travel:1; its base answers alone.",
    )  # fmt: skip
    for elsewhere in ("registry/../artifacts", f"registry/{home}", "pulled/../..", "registry/travel/2"):
        assert ask(elsewhere).notice["text"] == "This model no longer exists; choose another one."
        assert compare.choose(elsewhere)[2] == ""


def test_a_home_without_finished_runs_says_so(store):
    planted.running(store)
    assert "No finished run" in compare.arrive(None, "", TALK, "")[2]["text"]
    assert "No finished run" in publish.arrive(None, None)[1]["text"]


def test_an_example_is_taken_with_its_prompt_and_run(store):
    answers = [examples.answer("What is 2?", "It is 2.", "No.", "It is 2.")]
    run = examples.measured(store, examples.rows(3), answers)
    for number, prompt, listed in (("2", "What is 2?", "What is 2?"), ("3", "What is 3?", None)):
        *_, shown = compare.take(run, SimpleNamespace(_data={"id": number}))
        chosen, notice, filled_for, picker, asked, wanted, *_ = shown
        assert (chosen["value"], notice, filled_for, asked) == (run, None, run, prompt)
        assert picker["value"] == listed
        assert wanted["value"] == f"It is {number}."
    for number in ("99", "x", "1" * 20, "../1"):
        with pytest.raises(InputError):
            list(compare.take(run, SimpleNamespace(_data={"id": number})))


def test_a_template_of_several_fields_has_a_box_for_each(store):
    several, one = fielded(store, "instruction", "input"), fielded(store, "instruction")
    shown = compare.boxes(several, [])
    assert [(box["name"], box["info"]) for box in shown["fields"]] == [("instruction", ""), ("input", "")]
    assert (shown["note"], shown["first"]) == ("", "instruction")
    assert compare.boxes(one, []) is None, "one field keeps the prompt box"
    assert compare.boxes("gone", []) is None
    both = compare.boxes(one, [f"base@{several}"])
    assert both["note"].startswith("The templates differ")
    (first, second) = both["fields"]
    assert (first["info"], several in second["info"]) == ("", True)
    for faulty in (["x"] * 0, ["x"] * 99, [1], ["x" * 101], ["\ud800"], "instruction", None):
        fielding = fielded(store)
        lab = Path(store.get(fielding).artifact("onnx"), "lab.json")
        lab.write_text(json.dumps({"template": "{x}", "fields": faulty}))
        assert compare.boxes(fielding, []) is None


def test_prompts_of_several_fields_are_listed_as_people_read_them(store):
    prompt = '{"instruction": "Add.", "input": "2"}'
    answer = {"prompt": prompt, "expected": "4", "base": {"text": "3"}, "adapter": None}
    run = fielded(store, "instruction", "input", answers=[answer])
    chosen, picker, typed, _, recorded, *_ = compare.choose(run)
    assert (chosen, typed, picker["choices"]) == (run, prompt, [("instruction: Add.\ninput: 2", prompt)])
    assert "{" not in str(recorded["rows"])


def test_what_was_typed_in_fields_of_equal_name_stays_with_another_model(store):
    held = [{**planted.ANSWERS[0], "prompt": '{"instruction": "Held", "topic": 3}'}]
    one, two = fielded(store, "instruction", "input"), fielded(store, "instruction", "topic", answers=held)
    typed = '{"instruction":"Mine","input":"x"}'
    assert json.loads(compare.chosen(two, one, typed, "")[2]) == {"instruction": "Mine", "topic": "3"}
    assert json.loads(compare.chosen(two, one, typed, '{"instruction": "Mine", "input": "x"}')[2]) == {
        "instruction": "Held", "topic": 3,
    }, "it was from the list"  # fmt: skip
    single = fielded(store, "instruction")
    assert compare.chosen(single, one, typed, "")[2] == "Mine"
    assert compare.expected(two, '{"instruction":"Held","topic":"3"}')["value"] == "The amber lighthouse."


def test_prompts_of_a_file_are_named_by_it(store):
    run = planted.finished(store, changes=["evaluate.data=prompts.jsonl"])
    _, picker, _, _, recorded, *_ = compare.choose(run)
    assert picker["info"] == "Rows of prompts.jsonl, which the run was evaluated on"
    assert recorded["caption"] == "Prompts of prompts.jsonl, as the run recorded them"
