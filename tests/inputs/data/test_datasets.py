"""datasets: what is accepted, what is refused and why, and the split."""

from __future__ import annotations

import json
import random
import re
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import datasets, row_lines, telling
from pipeline.inputs.prompts import rendering, templates
from pipeline.inputs.prompts.templates import Chat
from tests.helpers import talks

ROW = '{"prompt": "Where?", "response": "There."}'
LAB = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


def write(folder: Path, content: str | bytes, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        f"{ROW}\n{ROW}\n",
        f"{ROW}\n{ROW}",
        f"\ufeff{ROW}\n{ROW}\n",
        f"{ROW}\r\n{ROW}\r\n",
        f"\n\n{ROW}\n   \n{ROW}\n\n",
        '{"prompt": 3, "response": 2.5}\n{"prompt": "é", "response": "\\ud83d\\ude00", "tags": [1, null]}\n',
    ],
    ids=["plain", "no last newline", "BOM", "CRLF", "blank lines", "numbers and other fields"],
)
def test_good_files(tmp_path: Path, content: str) -> None:
    report = datasets.check(write(tmp_path, content), "chat")
    assert report.good
    assert report.rows == 2
    assert report.fields[:2] == ("prompt", "response")


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", 1, "the file is empty"),
        ("\n \n", 1, "the file has no rows"),
        ("[" + ROW + "]", 1, "JSON array"),
        ("[\n" + ROW + "\n]\n", 1, "JSON array"),
        ('{"prompt": "a"}\n', 1, "'response' of the template is missing; fields here: prompt"),
        ('{"prompt": true, "response": "b"}\n', 1, "'prompt' must be text or a number, not true or false"),
        ('{"prompt": "a\\u0000", "response": "b"}\n', 1, "'prompt' has a NUL character"),
        ('{"prompt": "a", "response": null}\n', 1, "not null"),
        ('{"prompt": ["a"], "response": "b"}\n', 1, "not a list"),
        ('{"prompt": {"a": 1}, "response": "b"}\n', 1, "not an object"),
        ('{"prompt": NaN, "response": "b"}\n', 1, "NaN is not a number JSON allows"),
        ('{"prompt": 1e999, "response": "b"}\n', 1, "too large a number"),
        ('{"prompt": "\\ud800", "response": "b"}\n', 1, "surrogate"),
        ('{"prompt": "a", "response": "  "}\n', 1, "'response' is empty"),
        ('{"prompt": "a", "prompt": "b", "response": "c"}\n', 1, "the key 'prompt' stands twice"),
        ('"text"\n', 1, "a row must be an object"),
        ("[" * 100_000 + "\n", 1, "nested too deeply"),
        (
            ROW + "\n" + '{"prompt": "' + "x" * row_lines.LONGEST_LINE + '"}\n',
            2,
            "longer than 1,048,576 bytes",
        ),
        (ROW.encode() + b"\n\0\n", 2, "the line is not text"),
        (ROW + '\n["a", "b"]\n' + '"c"', 2, 'must be an object like {"prompt": …}, not a list'),
        (ROW + "\n\ufeff" + ROW + "\n\ufeff" + ROW, 2, "begins with a byte-order mark"),
        ('{"prompt": ' + "9" * 5000 + ', "response": "b"}', 1, "has too many digits"),
        (
            '{"prompt": "a", "response": "b", "x\\ud83d": 1}',
            1,
            "the name 'x\\ud83d' has half of a surrogate pair",
        ),
        ('{"prompt": "a", "response": "b", "x": [{"y\\udc00": 1}]}', 1, "the name 'y\\udc00' has half"),
        (ROW + '\n{"prompt": "a\\udc00b", "response": "b"}', 2, "'prompt' has half of a surrogate pair"),
        ('{"prompt": "a", "response": "b", "\\uDfFf": 1}', 1, "the name '\\udfff' has half"),
        ('{"prompt": "\\ude00\\ud83d", "response": "b"}', 1, "'prompt' has half of a surrogate pair"),
        ('{"prompt": "a", "response": "b", "x": [["c\\ud83d"]]}', 1, "'x' has half of a surrogate pair"),
        ('{"prompt": "a", "response": "b", "system": "\\ud83d"}', 1, "'system' has half of a surrogate pair"),
        (
            '{"prompt": "a", "response": "b", "system": ["c"]}',
            1,
            "'system' must be text or a number, not a list",
        ),
        (
            '{"prompt": "a", "response": "b", "system": {"c": 1}}',
            1,
            "'system' must be text or a number, not an o",
        ),
        ('{"prompt": "a", "response": "b", "x": ' + "[" * 70 + "]" * 70 + "}", 1, "nested too deeply"),
        (ROW.encode() + b'\n{"prompt": "caf\xe9", "response": "b"}\n', 2, "byte 16 is not UTF-8"),
    ],
)
def test_refused_with_line_and_reason(tmp_path: Path, content: str | bytes, line: int, reason: str) -> None:
    path = write(tmp_path, content)
    problem = datasets.check(path, "chat").problems[0]
    assert problem.startswith(f"{path}:{line}: ")
    assert reason in problem


def calls(do: Callable[[], object]) -> int:
    """How many functions are called, which does not depend on how fast they are."""
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("blank", [b"\n", b"\r\n", b"  \n", b" \t\n\n"])
def test_blank_lines_cost_little_and_count(tmp_path: Path, blank: bytes) -> None:
    number = 2_000_000 // len(blank)
    row = ROW.encode() + b"\n"
    path = write(tmp_path, b"\n" + row + blank * number + row + blank * 3 + b"{")
    report = None

    def check() -> None:
        nonlocal report
        report = datasets.check(path, "{prompt}{response}")

    assert calls(check) < 20_000
    assert report is not None
    lines = 3 + number * blank.count(b"\n") + 3 * blank.count(b"\n") + 1
    assert report.rows == 2
    assert report.problems[0].startswith(f"{path}:{lines}: ")


def test_spaces_without_end_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, b" " * (3 * row_lines.LONGEST_LINE) + b"\n" + ROW.encode() + b"\n{")
    assert datasets.check(path, "{prompt}{response}").problems[0].startswith(f"{path}:3: ")


def test_reading_ends_after_very_many_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOST_COUNTED", 100)
    path = write(tmp_path, "{}\n" * 1000 + "not JSON")
    report = datasets.check(path, "{prompt}{response}")
    assert len(report.problems) == datasets.MOST_PROBLEMS
    assert report.stopped == 61
    assert report.messages()[-1] == "and 102 more up to line 61; the rest was not read"


def test_a_broken_line_among_good_ones_is_named(tmp_path: Path) -> None:
    lines = [ROW] * 40
    lines[6] = '{"prompt": "Where?", "response": '
    path = write(tmp_path, "\n".join(lines))
    report = datasets.check(path, "chat")
    said = "not JSON: the line ends too early, at character 34; the whole object must stand on one line"
    assert report.problems == [f"{path}:7: {said}"]
    assert report.rows == 39
    with pytest.raises(InputError, match=":7: not JSON"):
        list(datasets.rows(path))


def test_marks_at_the_start_of_lines_are_one_problem(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, f"\ufeff{ROW}\n" * 5), "chat")
    assert [problem.rpartition(": ")[0][-2:] for problem in report.messages()] == [":2"]


def test_only_the_first_problems_are_listed(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, '{"a": 1}\n' * 30), "chat")
    assert len(report.problems) == datasets.MOST_PROBLEMS
    assert report.messages()[-1] == "and 40 more"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        datasets.check(tmp_path / "none.jsonl", "chat")


def test_the_first_row_is_rendered(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, ROW), LAB)
    assert report.example == "<|user|>\nWhere?<|end|>\n<|assistant|>\nThere.<|end|>"
    assert report.example_prompt == "<|user|>\nWhere?<|end|>\n<|assistant|>\n"
    chat = Chat(
        "{{ messages[0].content }}>{% if not add_generation_prompt %}{{ messages[1].content }}!{% endif %}"
    )
    assert datasets.check(write(tmp_path, ROW), "chat", chat).example == "Where?>There.!"
    assert datasets.check(write(tmp_path, ROW), "chat").example == ""


def test_a_faulty_first_row_is_not_rendered(tmp_path: Path) -> None:
    report = datasets.check(write(tmp_path, '{"prompt": "a"}\n' + ROW), LAB)
    assert report.example == ""
    assert len(report.problems) == 1


def test_a_hundred_thousand_rows_take_seconds_and_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(100_000):
            file.write(json.dumps({"prompt": f"Where is town {i}?", "response": "In a valley. " * 8}) + "\n")
    began = time.process_time()
    assert datasets.check(path, "chat").rows == 100_000
    assert time.process_time() - began < 10
    tracemalloc.start()
    try:
        assert datasets.count(path) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_load_reads_only_what_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, "".join(f'\n{{"prompt": {i}, "response": "r"}}' for i in range(5)))
    assert [row["prompt"] for row in datasets.load(path, templates.parse("chat"), {1, 3}).values()] == [1, 3]
    with pytest.raises(InputError, match=":2: the field 'question'"):
        datasets.load(path, templates.parse("{question} {response}"))


@pytest.mark.parametrize(
    ("template", "row", "near"),
    [
        ("chat", {"prompt ": "a", "response": "b"}, "The field 'prompt ' has a space at its end"),
        ("chat", {" prompt ": "a", "response": "b"}, "has a space at its start and its end"),
        ("chat", {"Prompt": "a", "response": "b"}, "The field 'Prompt' differs in capital letters"),
        ("{q} {r\u00e9ponse}", {"q": "a", "re\u0301ponse": "b"}, "only looks the same"),
        ("{my_prompt} {a}", {"My prompt": "a", "a": "b"}, "The field 'My prompt' is to be 'my_prompt'"),
    ],
)
def test_a_field_that_is_nearly_right_is_named(
    tmp_path: Path, template: str, row: dict[str, str], near: str
) -> None:
    (problem,) = datasets.check(write(tmp_path, json.dumps(row)), template).problems
    assert near in problem


def test_names_in_messages_are_short_and_on_one_line(tmp_path: Path) -> None:
    row = {"x" * 10_000: 1, "a\nb\x1b": 2, "response": "b"}
    (problem,) = datasets.check(write(tmp_path, json.dumps(row)), "chat").problems
    assert problem.endswith("fields here: " + "x" * 59 + "…, a\\nb\\u001b, response")


def test_a_system_text_that_is_empty_or_null_is_none(tmp_path: Path) -> None:
    given = [{"prompt": "a", "response": "b", "system": value} for value in ("c", "", None, 3)]
    assert datasets.check(write(tmp_path, "\n".join(map(json.dumps, given))), "chat").good


def test_every_row_is_rendered_and_those_the_template_refuses_are_named(tmp_path: Path) -> None:
    chat = Chat(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    given = [{"prompt": f"a{i}", "response": "b"} for i in range(400)]
    given[1]["system"] = given[390]["system"] = "c"
    given[200]["prompt"] = None  # type: ignore[assignment]
    path = write(tmp_path, "\n\n".join(map(json.dumps, given)))
    report = datasets.check(path, "chat", chat)
    assert [p.removeprefix(f"{path}:").partition(":")[0] for p in report.problems] == ["3", "401", "781"]
    assert "No system here" in report.problems[0]
    assert "No system here" in report.problems[2]
    assert report.rows == 400


def test_rows_that_the_template_refuses_are_all_counted(tmp_path: Path) -> None:
    chat = Chat("{{ raise_exception('No') }}")
    path = write(tmp_path, (ROW + "\n") * 1000 + "{")
    report = datasets.check(path, "chat", chat)
    assert (len(report.problems), report.rows) == (20, 1000)
    assert report.messages()[-1] == "and 981 more"
    assert all("No" in problem for problem in report.problems[:-1])


def test_a_template_that_is_too_slow_is_not_run_on_every_row_but_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SPARE_SECONDS", -1e9)
    chat = Chat("{{ raise_exception('No') }}")
    report = datasets.check(write(tmp_path, (ROW + "\n") * 2000), "chat", chat)
    assert report.messages()[-1] == "and 1,980 more"


def test_fields_that_are_not_named_are_counted(tmp_path: Path) -> None:
    row = {f"field{i}": i for i in range(14)}
    (problem, _) = datasets.check(write(tmp_path, json.dumps(row)), "chat").problems
    assert "field8, field9, 4 more" in problem


def lines(*given: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in given)


def test_about_how_many_rows_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "PIECE", 7)
    monkeypatch.setattr(telling, "TELL_SECONDS", -1.0)
    path = write(tmp_path, "{}\n\n\n{}\n{\nx\n\n" + "\n" * 20 + '{"a": 1}')
    steps = datasets.about_how_many(path)
    assert next(steps) == "Counting rows: 7 B…"
    assert telling.ended(steps) == 4
    assert telling.ended(datasets.about_how_many(write(tmp_path, ""))) == 0


def test_copies_are_counted(tmp_path: Path) -> None:
    given = [{"prompt": f"a{i}", "response": "b"} for i in range(10)]
    other = {"prompt": "a0", "response": "c"}
    asked = {"prompt": "a0", "response": "b", "system": "s"}
    report = datasets.check(write(tmp_path, lines(*given, given[1], given[1], other, asked)), "chat")
    assert report.notes == [
        "2 of 14 rows are copies of an earlier one.",
        "1 more row has the prompt of an earlier one, but another response.",
    ]
    assert datasets.check(write(tmp_path, lines(*given, asked)), "chat").notes == []


def test_held_out_rows_that_are_in_training_too_are_noted(tmp_path: Path) -> None:
    same = {"prompt": "a", "response": "b"}
    report = datasets.check(write(tmp_path, lines(*[same] * 40)), "chat")
    assert report.notes[0] == "39 of 40 rows are copies of an earlier one."
    assert report.notes[1].startswith("All rows are the same, so the 4 held-out rows are also in training")
    given = [{"prompt": "a", "response": f"b{i}"} for i in range(10)]
    report = datasets.check(write(tmp_path, lines(*given)), "chat")
    assert report.notes[1].startswith("All rows have the same prompt, so the only held-out row has it too")
    alike = [talks.talk("Hi", "Hello", f"a{i}", "b") for i in range(10)]
    assert datasets.check(write(tmp_path, lines(*alike)), "chat").notes == [
        "All conversations begin with the same prompt, so the only held-out row does too: what is measured"
        " there says little about other conversations."
    ]


def test_the_split_keeps_identical_prompts_together(tmp_path: Path) -> None:
    given = [{"prompt": f"a{i % 20}", "response": f"b{i}"} for i in range(60)]
    parts = datasets.split(write(tmp_path, lines(*given)), templates.parse("chat"), 0.2, 0)
    asked = [{given[i]["prompt"] for i in part} for part in (parts.train, parts.held_out)]
    assert not asked[0] & asked[1]
    assert len(parts.held_out) == 12


def test_the_split_reads_only_what_fits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^\S+data.jsonl: the data has 1 row; at least 2 are needed"):
        datasets.split(write(tmp_path, ROW), templates.parse("chat"), 0.1, 0)
    with pytest.raises(InputError, match=":2: the field 'response'"):
        datasets.split(write(tmp_path, ROW + '\n{"prompt": "a"}'), templates.parse("chat"), 0.1, 0)


@pytest.mark.parametrize("chat", [None, "{{ messages[0]['content'] }}"])
def test_rows_that_do_not_fit_say_how_far_it_is_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: str | None
) -> None:
    monkeypatch.setattr(telling, "TELL_SECONDS", -1.0)
    path = write(tmp_path, f'{{"a": 1}}\n{{\n{ROW}\n' * 2)
    template, model = ("chat", templates.Chat(chat)) if chat else ("{prompt}{response}", None)
    steps = datasets.checking(path, template, model)
    told = [next(steps) for _ in range(6)]
    assert told == ["Line 1…", "Line 2…", "Line 4…", "Line 5…", "Row 1…", "Row 2…"] or told == [
        "Line 1…", "Line 2…", "Row 1…", "Line 4…", "Line 5…", "Row 2…"
    ]  # fmt: skip
    report = telling.ended(steps)
    assert (report.rows, report.broken, report.has_rows) == (4, 2, False)


def test_a_file_whose_rows_do_not_fit_has_rows(tmp_path: Path) -> None:
    assert datasets.check(write(tmp_path, '{"a": 1}\n' * 3), "{prompt}{response}").has_rows
    assert not datasets.check(write(tmp_path, ""), "{prompt}{response}").has_rows


def test_of_a_large_file_only_the_first_prompts_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "ENOUGH_ROWS", 3)
    path = write(tmp_path, (ROW + "\n") * 3 + '{"prompt": "another", "response": "x"}\n')
    assert datasets.one_prompt(path, templates.parse("chat"))


def test_whether_there_is_but_one_prompt_is_seen_without_reading_all(tmp_path: Path) -> None:
    chat = templates.parse("chat")
    same = {"prompt": "a", "response": "b"}
    assert datasets.one_prompt(write(tmp_path, lines(same, {**same, "response": "c"})), chat)
    assert not datasets.one_prompt(write(tmp_path, lines(same, {**same, "system": "s"}) + "{"), chat)
    assert not datasets.one_prompt(write(tmp_path, lines(same) + "{"), chat)
    assert not datasets.one_prompt(tmp_path / "gone", chat)


def test_rows_of_megabytes_are_not_all_read_to_see_whether_there_is_but_one_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "ENOUGH_BYTES", 1000)
    row = json.dumps({"prompt": "a", "response": "b" * 400}) + "\n"
    assert datasets.one_prompt(write(tmp_path, row * 5 + "{"), templates.parse("chat"))
    blank = write(tmp_path, "\n" * 100 + row * 2 + "{")  # lines without rows do not make it read on
    assert datasets.one_prompt(blank, templates.parse("chat"))


PIECES = [
    ROW, '{"prompt": "a", ', '"x": ', "[", "]", "{", "}", ",", ":", '"', "\\ud83d", "\\", "\n", "\r", "\t",
    "\0", "1", "1e999", "-", "9" * 5000, "null", "None", "'", "NaN", "\ufeff", "\u2028", "é",
    '"system": [1], ', "<", "prompt,a",
]  # fmt: skip
SHAPES = ["utf-8", "utf-16", "utf-16-le", "utf-32", "latin-1"]


def test_any_bytes_give_a_report_that_a_page_can_hold(tmp_path: Path) -> None:
    dice = random.Random(0)
    chat = Chat("{% for m in messages %}{{ m.content }}|{% endfor %}")
    path = tmp_path / "any.jsonl"
    for turn in range(800):
        text = "".join(dice.choices(PIECES, k=dice.randrange(12)))
        data = bytearray(text.encode(dice.choices(SHAPES, [9, 1, 1, 1, 1])[0], "replace"))
        if data and turn % 3 == 0:
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data)
        report = datasets.check(path, dice.choice(["chat", "{prompt} {x}"]), chat)
        assert report.rows or report.problems
        for said in [*report.messages(), *report.notes, *report.fields, report.example]:
            said.encode()
        for said in report.problems:
            assert re.match(rf"{re.escape(str(path))}:\d+: \S[^\n\r]*$", said), said
            assert not re.search("Expecting|delimiter|Error|codec|set_int_max|Extra data", said), said


def test_sha256(tmp_path: Path) -> None:
    path = write(tmp_path, "abc")
    assert datasets.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_rows_of_several_turns_are_checked_message_by_message(tmp_path: Path) -> None:
    bad = talks.talk("a", "b", "c", " ")
    path = write(tmp_path, lines(talks.TALK, bad, {"prompt": "a", "response": "b"}))
    report = datasets.check(path, "chat", talks.chat("qwen2.5"))
    (problem,) = report.problems
    assert problem == f"{path}:2: message 4 is an empty answer, so there is nothing to learn from it"
    good = datasets.check(
        write(tmp_path, lines(talks.TALK, talks.talk("a", "b"))), "chat", talks.chat("llama2")
    )
    assert good.good
    assert good.example == good.example_prompt + " Then go there.</s>"
    refused = datasets.check(
        write(tmp_path, lines(talks.TALK, {"messages": [talks.USER, talks.USER, talks.ANSWER]})),
        "chat",
        talks.chat("strict"),
    )
    assert [problem.partition(":2: ")[2][:9] for problem in refused.problems] == ["template:"]
    (problem, *_) = datasets.check(path, "{prompt} {response}").problems
    assert "Rows with 'messages' are read with the template chat" in problem


def test_tools_that_a_template_does_not_write_are_ignored_with_a_note(tmp_path: Path) -> None:
    path = write(tmp_path, lines({**talks.TALK, "tools": [{"name": "look"}]}, talks.talk("a", "b")))
    (note,) = datasets.check(path, "chat", talks.chat("qwen2.5")).notes
    assert note == "'tools' is ignored in 1 row: the chat template of this model does not write it."
    takes = Chat("{{ tools | tojson }}" + talks.STYLES["qwen2.5"])
    assert datasets.check(path, "chat", takes).notes == []


def test_a_conversation_nested_or_damaged_without_end_is_one_sentence(tmp_path: Path) -> None:
    deep = '{"messages": ' + "[" * 5000 + "]" * 5000 + "}"
    half = '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}'
    many = json.dumps({"messages": [{"role": str(n)} for n in range(900)]})
    report = datasets.check(write(tmp_path, f"{deep}\n{half}\n{many}\n"), "chat")
    kinds = [problem.partition(".jsonl:")[2] for problem in report.problems]
    assert kinds[0].startswith("1: not a row: objects are nested too deeply")
    assert kinds[1].startswith("2: 'messages' has half of a surrogate pair")
    assert [kind[:13] for kind in kinds[2:]] == [f"3: message {n} " for n in range(1, 6)]
