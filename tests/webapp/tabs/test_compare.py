"""The handlers of the Compare tab, called as Gradio calls them."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import detaching
from pipeline.exports.detaching import Probed
from pipeline.system import checksums
from tests.helpers import examples, exports, planted
from tests.helpers.page import FULL, full_disk
from webapp import talks
from webapp.tabs import compare, publish
from webapp.ui import columns, views

SKIP = gr.skip()
TALK = "conversation-of-a-test"  # a name as browsers choose it: 22 letters


def collect(stream):
    async def all_of_it():
        return [shown async for shown in stream]

    return asyncio.run(asyncio.wait_for(all_of_it(), 20))


async def answering(home, source, prompt, sides, **options):
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


def ask(run, prompt="Where?", also=(), **more):
    """What `compare` shows in the end, by name."""
    given = {"tokens": 64, "temperature": 0, "seed": 0, **more}
    return seen(collect(compare.compare(run, [*also], TALK, prompt, **given))[-1])


def seen(shown):
    """The outputs of `compare` by name."""
    most = columns.MOST
    texts, facts, earlier = (shown[at * most : (at + 1) * most] for at in range(3))
    return SimpleNamespace(texts=texts, facts=facts, earlier=earlier, notice=shown[3 * most])


def test_both_answers_stream_with_their_measures(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    shown = ask(planted.finished(store))
    assert shown.texts == ("base0 base1 base2 ", "adapter0 adapter1 adapter2 ", "", "")
    assert shown.notice is None
    assert shown.facts[0] == [["Tokens", "3"], ["Tokens per second", "41.2"], ["First token after", "0.2 s"]]


def test_the_button_takes_no_other_click_while_answers_stream(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    steps = collect(compare.run_both(planted.finished(store), [], TALK, "Where?", 64, 0, 0))
    assert len(steps) > 1
    assert steps[0][-1]["interactive"] is False
    assert {step[-1] for step in steps[1:]} == {compare.RUN}, "nothing but its words: it stays disabled"


def test_an_answer_that_was_cut_is_marked(store, monkeypatch):
    async def cut(home, source, prompt, sides, **options):
        measured = {"tokens": 64, "cut": True, "tokens_per_second": 1.0, "first_token_seconds": 1.0}
        yield {"side": "base", "text": "and then", "done": True, **measured}

    monkeypatch.setattr(compare.chat_client, "stream", cut)
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

    monkeypatch.setattr(compare.chat_client, "stream", told)
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
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    shown = ask(planted.finished(store, adapter=False))
    assert (*shown.texts[:2], shown.facts[1]) == ("base0 base1 base2 ", "", None)
    assert "There is no adapter in run" in shown.notice["text"]


def test_a_merged_adapter_is_said_to_have_no_base_side(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    run = planted.finished(store, adapter=False, merged=True)
    shown = ask(run)
    assert shown.texts[:2] == ("", "adapter0 adapter1 adapter2 ")
    assert "merged into its weights; there is no base" in shown.notice["text"]


def test_an_error_of_the_model_is_a_sentence_beside_what_was_there(store, monkeypatch):
    async def ending(*given, **options):
        yield {"side": "base", "text": "The"}
        raise LabError("The model ran out of memory.")

    monkeypatch.setattr(compare.chat_client, "stream", ending)
    shown = ask(planted.finished(store))
    assert (shown.texts[0], shown.notice["text"]) == ("The", "The model ran out of memory.")


def test_a_run_that_is_gone_and_a_process_that_cannot_start_are_sentences(store, monkeypatch):
    assert "no such run" in ask("gone").notice["text"]
    monkeypatch.setattr(compare.chat_client, "stream", full_disk)
    assert ask(planted.finished(store)).notice == {"text": FULL, "kind": "bad"}


def test_without_a_run_or_a_prompt_nothing_is_asked(store):
    for run, prompt in ((None, "x"), (planted.finished(store), "  ")):
        assert ask(run, prompt).notice["kind"] == "bad"


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

    monkeypatch.setattr(compare.chat_client, "stream", answering_with)
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
    monkeypatch.setattr(compare.chat_client, "stream", answering)
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


def test_other_models_are_asked_too_and_one_that_cannot_answer_ends_no_other(store, monkeypatch):
    async def named(home, source, prompt, sides, **options):
        if "broken" in source.name:
            raise LabError("It is broken.")
        for side in sides:
            yield {"side": side, "text": f"{source.name} {side}"}

    monkeypatch.setattr(compare.chat_client, "stream", named)
    one, two = planted.finished(store), planted.finished(store)
    shown = ask(one, also=[f"adapter@{two}", f"base@{one}"])
    assert shown.texts == (
        f"run {one} base", f"run {one} adapter", f"run {two} adapter", f"run {one} base",
    )  # fmt: skip
    known = compare.choices.source

    def broken(store, chosen):
        found = known(store, chosen)
        return replace(found, name="broken") if chosen == two else found

    monkeypatch.setattr(compare.choices, "source", broken)
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

    monkeypatch.setattr(compare.chat_client, "stream", said)
    run = planted.finished(store)
    ask(run, "One")
    shown = ask(run, "Two", continues=True)
    assert asked[-1] == ("Two", {side: [("One", f"{side} of One")] for side in ("base", "adapter")})
    assert shown.earlier[0] == [["One", "base of One"]]
    ask(run, "ignored", continues=True, again=True)
    assert asked[-1][0] == "Two"
    assert compare.edit(TALK)[:3] == ("Two", "", "last")
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
        async for shown in compare.compare(runs[at], [], name, prompt, 100, 0, 0):
            last = seen(shown)
        return last

    async def people():
        try:
            together = await asyncio.gather(person(0, "aaa"), person(1, "bbb"), person(0, "x" * 300))
            assert len(compare.chat_client._servers) == 2
            return together, [await person(0, "aaa"), await person(1, "bbb")]
        finally:
            await compare.chat_client.shutdown()

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
        steps = compare.compare(planted.finished(store), [], TALK, "Where?", 64, 0, 0)
        async for shown in steps:
            if seen(shown).texts[0]:
                await steps.aclose()
                assert ended, "the model is told at once"
                return

    monkeypatch.setattr(compare.chat_client, "stream", halting)
    asyncio.run(asyncio.wait_for(stopped(), 20))
    (turn,) = talks.load(store.home, TALK).turns
    assert (turn.prompt, turn.answers[0].text) == ("Where?", "So far")
    assert turn.answers[0].facts == [compare.STOPPED]


def test_a_conversation_that_cannot_be_kept_is_shown_and_said(store, monkeypatch):
    monkeypatch.setattr(compare.chat_client, "stream", answering)
    monkeypatch.setattr(talks, "write_whole", full_disk)
    shown = ask(planted.finished(store))
    assert shown.texts[0] == "base0 base1 base2 "
    assert shown.notice == {"text": FULL, "kind": "bad"}


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

    monkeypatch.setattr(compare.check_pool, "ask", asked)
    monkeypatch.setattr(compare.check_turns, "TELL_SECONDS", 0.01)
    given = {"take": (run, SimpleNamespace(_data={"id": "1"})), "marks": ("a", "b", "", "")}[handler]
    steps = getattr(compare, handler)(*given)
    next(steps)
    assert not left.is_set()
    steps.close()
    assert left.wait(60)


def test_each_answer_names_its_files_by_checksum():
    facts = {"tokens": 3, "tokens_per_second": 1.0, "first_token_seconds": 1.0}
    told = {**facts, "adapter": "a1" * 32, "graph": {"model.onnx": "b2" * 32}}
    assert compare.measures(told)[3:] == [
        ["Adapter file", "a1a1a1a1a1a1", f"SHA-256 {'a1' * 32}"],
        ["model.onnx", "b2b2b2b2b2b2", f"SHA-256 {'b2' * 32}"],
    ]
    assert compare.measures({**told, "adapter": None})[3][:2] == ["Adapter file", "none"]


def test_a_probe_says_what_it_found(store, monkeypatch):
    run = planted.finished(store)

    async def probed(home, source):
        return Probed(False, "The adapter's file has changed.")

    monkeypatch.setattr(detaching, "probe", probed)
    (waiting, off), (told, on) = collect(compare.probe(run))
    assert (off["interactive"], on["interactive"], "Probing" in waiting["text"]) == (False, True, True)
    assert told == {"text": "✕ The adapter's file has changed.", "kind": "bad"}
    assert collect(compare.probe(None))[-1][0]["kind"] == "bad"
    assert collect(compare.probe("nope"))[-1][0]["kind"] == "bad"


def test_words_that_differ_from_the_first_answer_are_marked():
    *_, (found, notice) = compare.marks("", "See the lighthouse.", "See the old lighthouse.", "")
    assert notice is None
    ((name, words),) = found["others"]
    assert (found["first"], name) == ("With adapter", "Third column")
    assert [tuple(word) for word in words] == [(0, "See the"), (2, " old"), (0, " lighthouse.")]
    *_, (long, _) = compare.marks("a " * 6000, "b", "", "")
    assert long["others"] == [["With adapter", None]]
    assert [*compare.marks("only one", "", "", "")] == [(None, {"text": "Two columns have to answer first."})]


def fielded(store, *names, template="{%s}", answers=None):
    """A finished run whose template has these prompt fields."""
    run = planted.finished(store, answers=answers)
    lab = Path(store.get(run).artifact("onnx"), "lab.json")
    lab.write_text(json.dumps({"template": template, "fields": names, "reading": {}}))
    return run


@pytest.fixture
def heard(monkeypatch):
    """What each model was asked, by its name."""
    asked = {}

    async def said(home, source, prompt, sides, turns, **options):
        asked[source.name] = (prompt, turns)
        for side in sides:
            yield {"side": side, "text": "So."}

    monkeypatch.setattr(compare.chat_client, "stream", said)
    return asked


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
    assert compare.edit(TALK)[0] == '{"instruction": "And?", "input": ""}'
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


def test_one_question_reads_each_model_and_each_earlier_turn_once(store, heard, monkeypatch):
    several, other = fielded(store, "instruction", "input"), fielded(store, "input", "topic")
    also = [f"base@{other}", f"adapter@{other}"]
    marked = [json.dumps({"instruction": f"Turn {at}", "input": "x"}) for at in range(4)]
    turns = [ask(several, prompt, also=also, continues=True) for prompt in marked]
    assert len(turns[-1].earlier[0]) == 3

    parsed, read = [], []
    loads, fields = json.loads, compare.chat_client.prompt_fields
    monkeypatch.setattr(json, "loads", lambda text, **how: parsed.append(text) or loads(text, **how))
    monkeypatch.setattr(
        compare.chat_client, "prompt_fields", lambda source: read.append(source.name) or fields(source)
    )
    shown = ask(several, '{"instruction": "And?", "input": ""}', also=also, continues=True)
    assert len(shown.earlier[0]) == len(heard[f"run {other}"][1]["base"]) == 4
    for prompt in marked:
        assert parsed.count(prompt) == 3, "to be shown, and for each of two models"
    assert sorted(read) == sorted([f"run {several}", f"run {other}", f"run {other}"]), "once a choice"
