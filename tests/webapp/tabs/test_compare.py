"""The handlers of the Compare tab, called as Gradio calls them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import gradio as gr

from pipeline import settings
from pipeline.errors import LabError
from tests.helpers import planted
from tests.helpers.page import FULL, full_disk
from webapp.tabs import compare, publish
from webapp.ui import views

SKIP = gr.skip()


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
        assert notice["text"] == "This model no longer exists; choose another one."
        assert compare.choose(elsewhere)[2] == ""


def test_a_home_without_finished_runs_says_so(store):
    planted.running(store)
    assert "No finished run" in compare.arrive(None, "")[1]["text"]
    assert "No finished run" in publish.arrive(None, None)[1]["text"]
