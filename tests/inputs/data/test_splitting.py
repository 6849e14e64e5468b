"""splitting: content decides which side a row is on."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import splitting
from pipeline.inputs.data.many import grouped
from tests.helpers import talks

FIELDS = ("prompt", "response")
Row = dict[str, Any]


def parts(rows: list[Row], fraction: float = 0.2, seed: int = 0) -> splitting.Parts:
    contents = splitting.Contents(FIELDS, ("system",), seed)
    for row in rows:
        contents.add(row)
    return contents.parts(fraction)


def different(count: int) -> list[Row]:
    return [{"prompt": f"a{i}", "response": f"b{i}"} for i in range(count)]


def test_the_split_is_the_same_everywhere() -> None:
    found = parts(different(20))
    assert list(found.held_out) == [7, 8, 11, 17]
    assert sorted([*found.train, *found.held_out]) == list(range(20))
    assert parts(different(20), seed=1) != found


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [*different(30), *({"prompt": f"a{i}", "response": "c"} for i in range(10))]
    held_out = {str(rows[i]) for i in parts(rows).held_out}
    mixed = random.Random(0).sample(rows, len(rows))
    assert {str(mixed[i]) for i in parts(mixed).held_out} == held_out


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"), [(2, 0.1, 1), (2, 0.99, 1), (10, 0.0, 1), (144, 0.1, 14)]
)
def test_both_sides_have_a_row(rows: int, fraction: float, held_out: int) -> None:
    found = parts(different(rows), fraction)
    assert (len(found.train), len(found.held_out), found.by) == (rows - held_out, held_out, "prompts")


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_to_split(rows: int) -> None:
    with pytest.raises(InputError, match="at least 2"):
        parts(different(rows))


@pytest.mark.parametrize("seed", range(20))
def test_identical_prompts_are_on_one_side(seed: int) -> None:
    dice = random.Random(seed)
    rows = [{"prompt": f"a{dice.randrange(1, 12)}", "response": f"b{i}"} for i in range(40)]
    found = parts(rows, 0.3, seed)
    sides = [{rows[i]["prompt"] for i in side} for side in (found.train, found.held_out)]
    assert not sides[0] & sides[1]
    assert all(sides)
    assert len(found.held_out) <= 12


def test_each_held_out_prompt_is_asked_once() -> None:
    rows = [{"prompt": f"a{i % 5}", "response": f"b{i}", "system": "s" if i % 2 else None} for i in range(60)]
    found = parts(rows, 0.4)
    asked = [(rows[i]["prompt"], rows[i]["system"]) for i in found.asked]
    held_out = [(rows[i]["prompt"], rows[i]["system"]) for i in found.held_out]
    assert len(held_out) == 24
    assert asked == list(dict.fromkeys(held_out))
    assert len(parts([{"prompt": "a", "response": f"b{i}"} for i in range(10)], 0.5).asked) == 1


def test_groups_larger_than_the_share_leave_the_smallest_one() -> None:
    rows = [{"prompt": "a" if i < 7 else "b", "response": str(i)} for i in range(10)]
    assert list(parts(rows, 0.1).held_out) == [7, 8, 9]


def test_the_system_text_is_part_of_the_prompt() -> None:
    rows = [{"prompt": "a", "response": "b", "system": f"s{i % 2}"} for i in range(10)]
    assert parts(rows, 0.5).by == "prompts"
    rows = [{"prompt": "a", "response": "b", **({"system": s} if s != "-" else {})} for s in ("", None, "-")]
    assert parts(rows).by == "positions"


def test_where_there_is_one_prompt_rows_are_split_and_then_positions() -> None:
    found = parts([{"prompt": "a", "response": f"b{i % 5}"} for i in range(10)])
    assert (found.by, len(found.held_out)) == ("rows", 2)
    found = parts([{"prompt": "a", "response": "b"}] * 10)
    assert (found.by, len(found.held_out), len(found.train)) == ("positions", 2, 8)


def test_copies_are_counted() -> None:
    contents = splitting.Contents(FIELDS, (), 0)
    for prompt, response in ("ab", "ab", "ac", "bc", "ab", "b1"):
        contents.add({"prompt": prompt, "response": response})
    contents.add({"prompt": "b", "response": 1})  # the model reads the same text
    assert contents.copies() == (3, 2)


def test_no_two_lists_of_fields_are_taken_for_the_same() -> None:
    contents = splitting.Contents(("a", "b", "response"), (), 0)
    for a, b in (("x", "yz"), ("xy", "z")):
        contents.add({"a": a, "b": b, "response": "r"})
    assert contents.copies() == (0, 0)


def test_little_memory_a_row(home: Path) -> None:
    contents = splitting.Contents(FIELDS, (), 0)
    tracemalloc.start()
    try:
        for i in range(40_000):
            contents.add({"prompt": i, "response": "b"})
        contents.parts(0.1)
        assert tracemalloc.get_traced_memory()[1] < 40_000 * 60
    finally:
        tracemalloc.stop()


def test_rows_for_validation_come_from_the_training_rows_in_whole_groups() -> None:
    rows = [{"prompt": f"p{i // 2}", "response": f"r{i}"} for i in range(40)]
    found = parts(rows, 0.1)
    assert len(found.validation) == len(found.held_out) == 4
    assert set(found.validation) < set(found.train)
    groups = {rows[i]["prompt"] for i in found.validation}
    assert {i for i in found.train if rows[i]["prompt"] in groups} == set(found.validation)
    assert list(parts(rows[:2] + rows[2:4], 0.5).validation) == []  # else there were nothing to learn
    assert list(parts(rows[:6], 0.3).validation) != []


def test_the_prompt_of_a_conversation_is_all_but_its_last_answer() -> None:
    talk = talks.TALK["messages"]
    other = [*talk[:-1], {"role": "assistant", "content": "Stay."}]
    shorter = talks.talk("What is the best town?", "Rome.")
    contents = splitting.Contents(FIELDS, ("system",), 0)
    for row in (talks.TALK, {"messages": other}, shorter, {**talks.TALK, "tools": [{"name": "look"}]}):
        contents.add(row)
    assert contents.copies() == (0, 1), "only the second asks what an earlier one asks"
    contents.add({"prompt": "What is the best town?", "response": "Rome."})
    contents.add({"prompt": "What is the best town?", "response": "Rome.", "system": "Be brief."})
    assert contents.copies() == (1, 1), "one question is the same prompt in either form"


def test_conversations_with_one_prompt_are_on_one_side() -> None:
    rows = [talks.talk(f"a{i % 7}", "b", "c", f"d{i}") for i in range(40)]
    found = parts(rows)
    held = {rows[i]["messages"][0]["content"] for i in found.held_out}
    assert held.isdisjoint(rows[i]["messages"][0]["content"] for i in found.train)
    assert len(found.asked) == len(held) > 0


@pytest.mark.parametrize("seed", range(20))
def test_a_conversation_is_on_the_side_of_those_that_continue_it(seed: int) -> None:
    """Each of 8 talks as its first 1, 2 and 3 turns, and its first prompt as a plain row."""
    turns = [[f"{said}{number}" for said in "abcdef"] for number in range(8)]
    rows: list[Row] = [talks.talk(*texts[: 2 * length]) for texts in turns for length in (1, 2, 3)]
    rows += [{"prompt": texts[0], "response": "x"} for texts in turns]
    first = [row["messages"][0]["content"] if "messages" in row else row["prompt"] for row in rows]
    found = parts(rows, 0.3, seed)
    assert found.by == "prompts"
    sides = [{first[at] for at in side} for side in (found.train, found.held_out)]
    assert not sides[0] & sides[1]
    assert all(sides)
    groups = {first[at] for at in found.validation}
    assert {at for at in found.train if first[at] in groups} == set(found.validation)
    asked = [str(rows[at]) for at in found.asked]
    assert len(asked) == 3 * len(sides[1]), "each of a group's prompts is asked, the plain one once"


def test_system_texts_and_tools_at_the_beginning_of_conversations() -> None:
    system = {"role": "system", "content": "Be brief."}
    short, long = talks.talk("a", "b"), talks.talk("a", "b", "c", "d")
    rows = [
        {"prompt": "a", "response": "b", "system": "Be brief."},
        {"messages": [system, *long["messages"]]},
        {"messages": [system, *short["messages"]], "tools": [{"name": "look"}]},
        long,
    ]
    contents = splitting.Contents(FIELDS, ("system",), 0)
    for row in rows:
        contents.add(row)
    one, two, three, other = (key for key, _ in splitting._all(contents._first_prompts))
    assert one == two == three != other


def test_where_all_conversations_begin_alike_their_later_turns_are_split() -> None:
    rows = [talks.talk("Hi", "Hello", f"a{i % 5}", f"b{i}") for i in range(20)]
    found = parts(rows)
    assert (found.by, len(found.held_out)) == ("turns", 4)
    assert len({rows[at]["messages"][2]["content"] for at in found.held_out}) == 1


def test_the_split_of_rows_without_conversations_stays_as_it_was() -> None:
    """Results in homes were measured with it."""
    rows = [{"prompt": f"a{i % 9}", "response": f"b{i}", "system": "s" * (i % 2)} for i in range(40)]
    found = parts(rows)
    assert list(found.held_out) == [7, 8, 9, 16, 25, 26, 27, 34]
    assert list(found.validation) == [6, 13, 15, 17, 24, 31, 33, 35]


@pytest.mark.parametrize("kind", ["prompts", "turns", "rows", "positions"])
def test_rows_on_disk_are_split_as_those_in_memory(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rows = {
        "prompts": [{"prompt": f"a{i % 60}", "response": f"b{i % 70}"} for i in range(300)],
        "turns": [talks.talk("Hi", "Hello", f"a{i % 50}", f"b{i}") for i in range(300)],
        "rows": [{"prompt": "a", "response": f"b{i % 70}"} for i in range(300)],
        "positions": [{"prompt": "a", "response": "b"}] * 300,
    }[kind]
    found, copies = [], []
    for most in (1 << 15, 16):
        monkeypatch.setattr(grouped, "IN_MEMORY", most)
        contents = splitting.Contents(FIELDS, ("system",), 0)
        for row in rows:
            contents.add(row)
        found.append((contents.parts(0.2), list(contents.firsts())))
        copies.append(contents.copies())
    assert found[0] == found[1]
    assert found[0][0].by == kind
    assert len(set(copies)) == 1
    if kind != "turns":
        texts = len({str(row) for row in rows}), len({str(row["prompt"]) for row in rows})
        assert copies[0] == (300 - texts[0], texts[0] - texts[1])
