"""Many and large recorded answers: what is parsed at each letter, and what is sent to the browser."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.runs import pulls
from tests.helpers import planted
from webapp.tabs import compare
from webapp.tabs.comparing import recorded
from webapp.ui import choices

COUNT = 300


def run_of(store, prompts):
    """A finished run that has answered these prompts."""
    rows = [
        {"prompt": prompt, "system": f"s{at}", "expected": f"e{at}", "base": {"text": "x"}, "adapter": None}
        for at, prompt in enumerate(prompts)
    ]
    return planted.finished(store, answers=rows)


@pytest.fixture
def parsed(monkeypatch):
    """The prompts that are parsed as JSON from now on."""
    texts, loads = [], json.loads

    def counted(text, **how):
        if text[:4] in ('{"a"', b'{"a"'):
            texts.append(text)
        return loads(text, **how)

    monkeypatch.setattr(json, "loads", counted)
    return texts


def test_a_letter_typed_parses_what_is_typed_and_no_recorded_answer_again(store, parsed):
    run = run_of(store, [json.dumps({"a": "1", "z": at}) for at in range(COUNT)])
    for _ in range(3):
        wanted, listed = compare.typed(run, '{"a": 1,   "z": "7"}')
        assert (wanted["value"], listed["value"]) == ("e7", '{"a": "1", "z": 7}')
        assert compare.typed(run, '{"a": 1, "z": "none"}')[0]["visible"] is False
    assert len(parsed) == COUNT + 6


def test_the_first_of_two_that_ask_the_same_is_found(store):
    run = run_of(store, ["plain", '{"a": 1, "b": 2}', '{"b": "2", "a": "1"}', "plain", "[1]", "{}", "{"])
    for prompt, expected in (
        ("plain", "e0"), ('{"b":2,"a":1}', "e1"), ("[1]", "e4"), ("{ }", "e5"), ("{", "e6"),
    ):  # fmt: skip
        assert compare.expected(run, prompt)["value"] == expected
    for prompt in ("plain ", "[ 1]", '{"a": 1}', ""):
        assert compare.expected(run, prompt)["visible"] is False


def test_what_is_sent_of_many_long_prompts_is_bounded(store):
    prompts = [f"{at} " + "x" * 8_000 for at in range(COUNT)]
    run = run_of(store, prompts)
    _, picker, first, _, table, *_ = compare.choose(run)
    assert len(json.dumps(picker)) < 64 << 10
    assert len(json.dumps(table)) < 300_000
    assert len(picker["choices"]) == len(table["rows"]) == recorded.MOST
    assert picker["info"].endswith(f"; listed: 200 of {COUNT}")
    assert table["caption"].endswith(f"; the first 200 of {COUNT}")
    assert (first, picker["value"]) == (prompts[0], "row 1")
    labels = [label for label, _ in picker["choices"]]
    assert len(set(labels)) == len(labels)


def test_a_long_prompt_of_the_list_is_taken_whole(store):
    prompts = [f"{at} " + "x" * 8_000 for at in range(COUNT)]
    run = run_of(store, prompts)
    whole = (prompts[6], "e6", prompts[6], "s6")
    picked = compare.pick(run, SimpleNamespace(_data={"value": "row 7"}))
    assert (picked[0], picked[1]["value"], *picked[2:]) == whole
    entered = compare.enter(run, "row 7", prompts[0])
    assert (entered[0], entered[1]["value"], *entered[2:]) == whole
    assert set(map(str, compare.enter(run, "row 7", prompts[6]))) == {str(compare.gr.skip())}
    assert compare.typed(run, prompts[6])[1]["value"] == "row 7"
    wanted, listed = compare.typed(run, prompts[recorded.MOST])
    assert (wanted["value"], listed["value"]) == (f"e{recorded.MOST}", None), "found, and not in the list"
    for text in ("row 0", "row 201", "row 999999", "row x"):
        assert compare.enter(run, text, "")[0] == text, "any other text is a prompt"
    short = run_of(store, ["row 2", "b"])
    assert compare.enter(short, "row 2", "")[0] == "row 2"


def test_a_prompt_longer_than_can_be_asked_is_not_sent(store):
    run = run_of(store, ["x" * (recorded.LONGEST + 1), "short"])
    _, picker, first, *_ = compare.choose(run)
    assert (first, picker["choices"]) == ("short", [("short", "short")])


def test_whoever_types_reads_no_other_pulled_models_facts(store, home, monkeypatch):
    run = run_of(store, ["plain"])
    for key in ("one-1-00000001", "two-1-00000002"):
        (home / "pulled" / key).mkdir(parents=True)
        facts = {
            "key": key,
            "tags": {"run": run},
            "status": "done",
            "begun": 1.0,
            "name": key,
            "version": "1",
        }
        (home / "pulled" / f".{key}.json").write_text(json.dumps(facts))
    read, reads = pulls._read, []
    monkeypatch.setattr(pulls, "_read", lambda home, key: reads.append(key) or read(home, key))
    assert compare.expected("pulled/one-1-00000001", "plain")["value"] == "e0"
    assert set(reads) == {"one-1-00000001"}
    for elsewhere in ("pulled/../one-1-00000001", "pulled/", "pulled/none", f"pulled/{home}"):
        assert choices.run_behind(store, elsewhere) is None
