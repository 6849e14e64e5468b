"""Answers of the Compare tab, asked as Gradio asks for them: they stream, are kept, and end."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import LabError
from pipeline.exports.chat import chat_client, chat_processes, detaching, sources
from pipeline.exports.chat.detaching import Probed
from pipeline.system import checksums
from tests.helpers import examples, exports, planted
from tests.helpers.asked import TALK, answering, ask, collect, fielded, seen
from tests.helpers.page import FULL, full_disk
from webapp import talks
from webapp.tabs import compare
from webapp.tabs.comparing import prompting
from webapp.ui import columns, views


def test_both_answers_stream_with_their_measures(store, monkeypatch):
    monkeypatch.setattr(chat_client, "stream", answering)
    shown = ask(planted.finished(store))
    assert shown.texts == ("base0 base1 base2 ", "adapter0 adapter1 adapter2 ", "", "")
    assert shown.notice is None
    assert shown.facts[0] == [["Tokens", "3"], ["Tokens per second", "41.2"], ["First token after", "0.2 s"]]


@pytest.mark.parametrize("waits", [True, False])
def test_whoever_waits_for_another_model_to_load_sees_so(store, monkeypatch, waits):
    monkeypatch.setattr(chat_client, "stream", answering)
    monkeypatch.setattr(chat_processes, "waits", lambda source: waits)
    first, second, *_, last = collect(
        prompting.compare(planted.finished(store), [], TALK, "Where?", 64, 0, 0)
    )
    assert (first[-1]["text"], last[-1]) == ("Loading the model…", None)
    assert (second[-1] == {"text": chat_processes.WAITS}) == waits


def test_the_button_takes_no_other_click_while_answers_stream(store, monkeypatch):
    monkeypatch.setattr(chat_client, "stream", answering)
    steps = collect(prompting.run_both(planted.finished(store), [], TALK, "Where?", 64, 0, 0))
    assert len(steps) > 1
    assert steps[0][-1]["interactive"] is False
    assert {step[-1] for step in steps[1:]} == {prompting.RUN}, "nothing but its words: it stays disabled"


def test_an_answer_that_was_cut_is_marked(store, monkeypatch):
    async def cut(home, source, prompt, sides, **options):
        measured = {"tokens": 64, "cut": True, "tokens_per_second": 1.0, "first_token_seconds": 1.0}
        yield {"side": "base", "text": "and then", "done": True, **measured}

    monkeypatch.setattr(chat_client, "stream", cut)
    assert ask(planted.finished(store)).facts[0][0] == ["Tokens", "64 [cut at the limit]"]
    side = {"text": "and then", "tokens": 64, "cut": True}
    shown = views.evaluation(
        [{"prompt": "a", "expected": "b", "base": side, "adapter": {**side, "cut": False}}]
    )
    assert shown["rows"] == [["a", "b", "and then … [cut at the limit]", "and then"]]


def test_another_adapter_in_the_folder_of_a_run_has_a_column(store, finished, monkeypatch):
    asked = []

    async def told(home, source, prompt, sides, **options):
        asked.append((source.adapter.name, sides))
        for side in sides:
            yield {"side": side, "text": f"{side} of {source.adapter.name}"}

    monkeypatch.setattr(chat_client, "stream", told)
    export = Path(finished.artifact("onnx"))
    shutil.copy(export / exports.ADAPTER, export / "french.onnx_adapter")
    value = f"adapter french@{finished.id}"
    labels = {key: label for label, key in columns.offered(store)}
    assert labels[value].startswith("With french: ")
    assert not any("french" in key for key in labels if key != value)
    shown = ask(finished.id, also=[value])
    assert shown.texts[:3] == (
        f"base of {exports.ADAPTER}", f"adapter of {exports.ADAPTER}", "adapter of french.onnx_adapter",
    )  # fmt: skip
    assert asked == [(exports.ADAPTER, ("base", "adapter")), ("french.onnx_adapter", ("adapter",))]
    (export / "french.onnx_adapter").unlink()
    for gone in (value, f"french@{finished.id}", f"adapter ../french@{finished.id}"):
        assert ask(finished.id, also=[gone]).notice == {"text": columns.UNLISTED, "kind": "bad"}
    assert value not in dict(map(reversed, columns.offered(store)))


def test_a_run_without_an_adapter_answers_on_its_one_side(store, monkeypatch):
    monkeypatch.setattr(chat_client, "stream", answering)
    shown = ask(planted.finished(store, adapter=False))
    assert (*shown.texts[:2], shown.facts[1]) == ("base0 base1 base2 ", "", None)
    assert "There is no adapter in run" in shown.notice["text"]


def test_a_merged_adapter_is_said_to_have_no_base_side(store, monkeypatch):
    monkeypatch.setattr(chat_client, "stream", answering)
    run = planted.finished(store, adapter=False, merged=True)
    shown = ask(run)
    assert shown.texts[:2] == ("", "adapter0 adapter1 adapter2 ")
    assert "merged into its weights; there is no base" in shown.notice["text"]


def test_an_error_of_the_model_is_a_sentence_beside_what_was_there(store, monkeypatch):
    async def ending(*given, **options):
        yield {"side": "base", "text": "The"}
        raise LabError("The model ran out of memory.")

    monkeypatch.setattr(chat_client, "stream", ending)
    shown = ask(planted.finished(store))
    assert (shown.texts[0], shown.notice["text"]) == ("The", "The model ran out of memory.")


def test_a_run_that_is_gone_and_a_process_that_cannot_start_are_sentences(store, monkeypatch):
    assert "no such run" in ask("gone").notice["text"]
    monkeypatch.setattr(chat_client, "stream", full_disk)
    assert ask(planted.finished(store)).notice == {"text": FULL, "kind": "bad"}


def test_without_a_run_or_a_prompt_nothing_is_asked(store):
    for run, prompt in ((None, "x"), (planted.finished(store), "  ")):
        assert ask(run, prompt).notice["kind"] == "bad"


def test_other_models_are_asked_too_and_one_that_cannot_answer_ends_no_other(store, monkeypatch):
    async def named(home, source, prompt, sides, **options):
        if "broken" in source.name:
            raise LabError("It is broken.")
        for side in sides:
            yield {"side": side, "text": f"{source.name} {side}"}

    monkeypatch.setattr(chat_client, "stream", named)
    one, two = planted.finished(store), planted.finished(store)
    shown = ask(one, also=[f"adapter@{two}", f"base@{one}"])
    assert shown.texts == (
        f"run {one} base", f"run {one} adapter", f"run {two} adapter", f"run {one} base",
    )  # fmt: skip
    known = prompting.choices.source

    def broken(store, chosen):
        found = known(store, chosen)
        return replace(found, name="broken") if chosen == two else found

    monkeypatch.setattr(prompting.choices, "source", broken)
    shown = ask(one, also=[f"adapter@{two}"])
    assert (shown.texts[1], shown.texts[2]) == (f"run {one} adapter", "")
    assert shown.notice == {"text": "It is broken.", "kind": "bad"}
    for also in (["adapter"], ["robot@" + one], ["adapter@gone"], [f"base@{one}"] * 3):
        assert ask(one, also=also).notice["kind"] == "bad"


def test_a_conversation_goes_on_is_edited_and_is_there_after_a_reload(store, monkeypatch):
    asked = []

    async def said(home, source, prompt, sides, turns, **options):
        asked.append((prompt, turns))
        for side in sides:
            yield {"side": side, "text": f"{side} of {prompt}"}

    monkeypatch.setattr(chat_client, "stream", said)
    run = planted.finished(store)
    ask(run, "One")
    shown = ask(run, "Two", continues=True)
    assert asked[-1] == ("Two", {side: [("One", f"{side} of One")] for side in ("base", "adapter")})
    assert shown.earlier[0] == [["One", "base of One"]]
    ask(run, "ignored", continues=True, again=True)
    assert asked[-1][0] == "Two"
    assert prompting.edit(TALK)[:3] == ("Two", "", "last")
    ask(run, "Three", continues=True, edits="last")
    assert asked[-1] == ("Three", {side: [("One", f"{side} of One")] for side in ("base", "adapter")})
    planted.finished(store)  # a newer one, which a page without a conversation would choose
    chosen, also, _, goes_on, filled_for, _, prompt, *rest = compare.arrive(None, "", TALK, "")
    assert (chosen["value"], also["value"], filled_for, prompt, goes_on) == (run, [], run, "Three", True)
    assert rest[4:6] == ["base of Three", "adapter of Three"]
    assert rest[4 + 2 * columns.MOST] == [["One", "base of One"]]
    assert compare.arrive(None, "", TALK, "typed since")[6] == "typed since"
    assert compare.arrive(None, "", "another-browsers-talk-", "")[6] != "Three"
    ask(run, "Four")
    assert [turn.prompt for turn in talks.load(store.home, TALK).turns] == ["Four"]


def test_two_people_compare_different_runs_while_one_trains(store, written_export):
    """Real answers of two models at once: each gets its own and keeps its own conversation. A prompt that a
    model cannot read is said to whoever asked it, and ends nobody else's answer."""
    runs = [planted.finished(store, name) for name in ("one", "two")]
    for run in runs:
        folder = Path(store.get(run).artifact("onnx"))
        shutil.copytree(written_export, folder, dirs_exist_ok=True)
    exports.write_adapter(
        folder / exports.ADAPTER,
        {"a": -exports.random(exports.WIDTH, 3), "b": exports.random(3, exports.WIDTH)},
    )
    checksums.write(folder)
    trains = planted.running(store)

    async def person(at, prompt):
        name = f"conversation-of-user-{at}"
        async for shown in prompting.compare(runs[at], [], name, prompt, 100, 0, 0):
            last = seen(shown)
        return last

    async def people():
        try:
            together = await asyncio.gather(person(0, "aaa"), person(1, "bbb"), person(0, "x" * 300))
            assert len(chat_processes._servers) == 2
            return together, [await person(0, "aaa"), await person(1, "bbb")]
        finally:
            await chat_processes.shutdown()

    (first, second, refused), alone = asyncio.run(asyncio.wait_for(people(), 60))
    assert [first.texts, second.texts] == [one.texts for one in alone]
    assert first.texts[0] == second.texts[0], "the same base"
    assert first.texts[1] != second.texts[1]
    assert "this model reads 256, answer included" in refused.notice["text"]
    for at, prompt in enumerate(("aaa", "bbb")):
        turns = talks.load(store.home, f"conversation-of-user-{at}").turns
        assert [(turn.prompt, turn.answers[1].text) for turn in turns] == [(prompt, alone[at].texts[1])]
    assert store.get(trains).status == "running"


def test_what_was_answered_before_it_was_stopped_is_kept(store, monkeypatch):
    async def halting(home, source, prompt, sides, **options):
        yield {"side": "base", "text": "So far"}
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(source)

    ended: list[object] = []

    async def stopped():
        steps = prompting.compare(planted.finished(store), [], TALK, "Where?", 64, 0, 0)
        async for shown in steps:
            if seen(shown).texts[0]:
                await steps.aclose()
                assert ended, "the model is told at once"
                return

    monkeypatch.setattr(chat_client, "stream", halting)
    asyncio.run(asyncio.wait_for(stopped(), 20))
    (turn,) = talks.load(store.home, TALK).turns
    assert (turn.prompt, turn.answers[0].text) == ("Where?", "So far")
    assert turn.answers[0].facts == [prompting.STOPPED]


def test_a_conversation_that_cannot_be_kept_is_shown_and_said(store, monkeypatch):
    monkeypatch.setattr(chat_client, "stream", answering)
    monkeypatch.setattr(talks, "write_whole", full_disk)
    shown = ask(planted.finished(store))
    assert shown.texts[0] == "base0 base1 base2 "
    assert shown.notice == {"text": FULL, "kind": "bad"}


@pytest.mark.parametrize("handler", ["take", "marks"])
def test_a_question_that_takes_long_is_left_with_its_event(store, monkeypatch, handler):
    """Nobody's rows or words keep a process, or a place, for somebody who has gone."""
    run = examples.measured(store, examples.rows(3), [])
    left = threading.Event()

    def asked(*given):
        try:
            while True:
                yield "Reading…"
        finally:
            left.set()

    monkeypatch.setattr(prompting.check_pool, "ask", asked)
    monkeypatch.setattr(prompting.check_turns, "TELL_SECONDS", 0.01)
    given = {"take": (run, SimpleNamespace(_data={"id": "1"})), "marks": ("a", "b", "", "")}[handler]
    steps = {"take": compare.take, "marks": prompting.marks}[handler](*given)
    next(steps)
    assert not left.is_set()
    steps.close()
    assert left.wait(60)


def test_each_answer_names_its_files_by_checksum():
    facts = {"tokens": 3, "tokens_per_second": 1.0, "first_token_seconds": 1.0}
    told = {**facts, "adapter": "a1" * 32, "graph": {"model.onnx": "b2" * 32}}
    assert prompting.measures(told)[3:] == [
        ["Adapter file", "a1a1a1a1a1a1", f"SHA-256 {'a1' * 32}"],
        ["model.onnx", "b2b2b2b2b2b2", f"SHA-256 {'b2' * 32}"],
    ]
    assert prompting.measures({**told, "adapter": None})[3][:2] == ["Adapter file", "none"]


def test_a_probe_says_what_it_found(store, monkeypatch):
    run = planted.finished(store)

    async def probed(home, source):
        return Probed(False, "The adapter's file has changed.")

    monkeypatch.setattr(detaching, "probe", probed)
    (waiting, off), (told, on) = collect(prompting.probe(run))
    assert (off["interactive"], on["interactive"], "Probing" in waiting["text"]) == (False, True, True)
    assert told == {"text": "✕ The adapter's file has changed.", "kind": "bad"}
    assert collect(prompting.probe(None))[-1][0]["kind"] == "bad"
    assert collect(prompting.probe("nope"))[-1][0]["kind"] == "bad"


def test_words_that_differ_from_the_first_answer_are_marked():
    *_, (found, notice) = prompting.marks("", "See the lighthouse.", "See the old lighthouse.", "")
    assert notice is None
    ((name, words),) = found["others"]
    assert (found["first"], name) == ("With adapter", "Third column")
    assert [tuple(word) for word in words] == [(0, "See the"), (2, " old"), (0, " lighthouse.")]
    *_, (long, _) = prompting.marks("a " * 6000, "b", "", "")
    assert long["others"] == [["With adapter", None]]
    assert [*prompting.marks("only one", "", "", "")] == [
        (None, {"text": "Two columns have to answer first."})
    ]


@pytest.fixture
def heard(monkeypatch):
    """What each model was asked, by its name."""
    asked = {}

    async def said(home, source, prompt, sides, turns, **options):
        asked[source.name] = (prompt, turns)
        for side in sides:
            yield {"side": side, "text": "So."}

    monkeypatch.setattr(chat_client, "stream", said)
    return asked


def test_each_model_is_asked_the_fields_of_its_own_template(store, heard):
    several, one = fielded(store, "instruction", "input"), fielded(store, "input")
    prompt = '{"instruction": "Add.", "input": "2 \u00fc"}'
    assert ask(several, prompt, also=[f"base@{one}"]).notice is None
    assert json.loads(heard[f"run {several}"][0]) == {"instruction": "Add.", "input": "2 ü"}
    assert heard[f"run {one}"][0] == "2 ü"
    ask(several, '{"instruction": "And?", "input": ""}', also=[f"base@{one}"], continues=True)
    assert heard[f"run {one}"][1]["base"] == [("2 ü", "So.")]
    shown = ask(several, "ignored", also=[f"base@{one}"], continues=True, again=True)
    assert json.loads(heard[f"run {several}"][0]) == {"instruction": "And?", "input": ""}
    assert shown.earlier[0] == [["instruction: Add.\ninput: 2 ü", "So."]]
    assert prompting.edit(TALK)[0] == '{"instruction": "And?", "input": ""}'
    assert compare.arrive(None, "", TALK, "")[6] == '{"instruction": "And?", "input": ""}'


def test_boxes_that_are_unknown_empty_or_too_long_are_refused(store, heard):
    run = fielded(store, "instruction", "input")
    for row, said in (
        ({"instruction": "x", "robot": "y"}, "no field 'robot'; its fields are instruction, input"),
        ({"instruction": " ", "input": ""}, "all its boxes are empty"),
        ({"instruction": "x" * 32_001}, "instruction: it is longer than the 32,000 characters"),
    ):
        assert said in ask(run, json.dumps(row)).notice["text"]
    many = [fielded(store, *(f"{run}{n}" for n in range(30))) for run in "ab"]
    asked = [f"base@{many[1]}"]
    assert "have 60 fields together; allowed: 50" in ask(many[0], '{"a0": "x"}', also=asked).notice["text"]
    assert "60 fields together" in compare.boxes(many[0], asked)["note"]
    assert heard == {}


def test_one_question_reads_each_model_and_each_earlier_turn_once(store, heard, monkeypatch):
    several, other = fielded(store, "instruction", "input"), fielded(store, "input", "topic")
    also = [f"base@{other}", f"adapter@{other}"]
    marked = [json.dumps({"instruction": f"Turn {at}", "input": "x"}) for at in range(4)]
    turns = [ask(several, prompt, also=also, continues=True) for prompt in marked]
    assert len(turns[-1].earlier[0]) == 3

    parsed, read = [], []
    loads, fields = json.loads, sources.prompt_fields
    monkeypatch.setattr(json, "loads", lambda text, **how: parsed.append(text) or loads(text, **how))
    monkeypatch.setattr(sources, "prompt_fields", lambda source: read.append(source.name) or fields(source))
    shown = ask(several, '{"instruction": "And?", "input": ""}', also=also, continues=True)
    assert len(shown.earlier[0]) == len(heard[f"run {other}"][1]["base"]) == 4
    for prompt in marked:
        assert parsed.count(prompt) == 3, "to be shown, and for each of two models"
    assert sorted(read) == sorted([f"run {several}", f"run {other}", f"run {other}"]), "once a choice"
