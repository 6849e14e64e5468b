"""conversations: rows of several turns are checked message by message, rendered, and asked as they are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import row_faults, row_lines
from pipeline.inputs.data.formats import shapes
from pipeline.inputs.prompts import conversations, templates
from pipeline.inputs.prompts.templates import Chat, Rendered
from tests.helpers import talks
from tests.helpers.talks import ANSWER, ASKED, TALK, USER, talk

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("hello", "'messages' must be a list of messages, not text"),
        ([], "'messages' must be a list of messages, not an empty one"),
        ([USER, "hello"], "message 2 must be an object with role and content, not text"),
        (
            [USER, {"role": "model", "content": "x"}],
            "message 2 has the role 'model'; known: system, user, assi",
        ),
        ([USER, {"content": "x"}], "message 2 has no role; known: system, user, assistant, tool"),
        ([{"role": ["user"], "content": "x"}, ANSWER], "message 1 has the role ['user']; known"),
        ([{"role": "user", "content": 5}, ANSWER], "message 1: content must be text, not a number"),
        (
            [{"role": "user", "content": [{"text": "x"}]}, ANSWER],
            "message 1: content must be text, not a list",
        ),
        ([{"role": "user"}, ANSWER], "message 1: content must be text, not nothing"),
        ([{"role": "user", "content": "a\0"}, ANSWER], "message 1 has a NUL character"),
        ([USER, {"role": "assistant", "content": " \n"}], "message 2 is an empty answer"),
        ([USER, {"role": "assistant", "content": None}], "message 2: content must be text, not null"),
        ([USER, {**ANSWER, "tool_calls": "look"}], "message 2: tool_calls must be a list of objects"),
        ([USER, USER], "it has no message of the assistant, so there is nothing to learn"),
        ([ANSWER, USER, ANSWER], "message 1 is the assistant's, and no message of a user is before it"),
        (
            [USER, ANSWER, USER],
            "message 3 is the user's, and no answer follows; remove what follows message 2",
        ),
        ([USER] * 1001, "it has 1,001 messages; allowed: 1,000; make several rows of it"),
        ([USER, ANSWER] * 201, "it has 201 answers of the assistant; allowed: 200"),
        (
            [{**USER, "content": "x" * 50_000}, *[USER, ANSWER] * 100],
            "it has 100 answers and more than 41,943",
        ),
    ],
)
def test_each_fault_is_named_by_its_message(messages: Any, fault: str) -> None:
    (found,) = conversations.faults({"messages": messages})
    assert found.startswith(fault)


def test_tools_must_be_objects_and_a_call_needs_no_content() -> None:
    assert list(conversations.faults({**TALK, "tools": ["look"]})) == ["'tools' must be a list of objects"]
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    told = {"role": "tool", "content": "42"}
    assert list(conversations.faults({"messages": [USER, calls, told, ANSWER], "tools": TOOLS})) == []


def test_a_row_with_a_response_is_read_as_before() -> None:
    row = {"prompt": "a", "response": "b", "messages": "notes"}
    assert not conversations.is_one(row)
    assert conversations.turns(row) == [
        conversations.Turn([{"role": "user", "content": "a"}], {"role": "assistant", "content": "b"})
    ]


@pytest.mark.parametrize("style", talks.STYLES)
def test_every_turn_is_the_prompt_that_is_asked_and_its_answer(style: str) -> None:
    """What stands before an answer in the whole is what would be asked there; the answer ends its turn."""
    template = templates.parse("chat", talks.chat(style))
    (found,) = templates.each(template, [TALK])
    assert isinstance(found, Rendered)
    assert not found.apart
    asked = [template.prompt({"messages": TALK["messages"][:at]}) for at in (1, 3, 5)]
    assert [found.full[: span.start] for span in found.earlier] == asked[:2]
    assert found.prompt == asked[2]
    behind = [found.full[span.start : span.stop].strip() for span in found.earlier]
    assert [text.startswith(answer) for text, answer in zip(behind, ("Rome.", "No."), strict=True)] == [
        True
    ] * 2


def test_a_template_that_rewrites_earlier_turns_makes_each_answer_a_sample() -> None:
    template = templates.parse("chat", talks.chat("forgets"))
    row = talk("Where?", "<think>hm</think>Rome.", "Sure?", "<think>so</think>Yes.")
    (found,) = templates.each(template, [row])
    assert isinstance(found, Rendered)
    assert found.earlier == ()
    first = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert found.apart == (Rendered(first, f"{first}<think>hm</think>Rome.<|im_end|>"),)
    assert found.prompt == (
        f"{first}Rome.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found.full == f"{found.prompt}<think>so</think>Yes.<|im_end|>"
    plain = next(templates.each(template, [talk("Where?", "Rome.", "Sure?", "Yes.")]))
    assert isinstance(plain, Rendered)
    assert len(plain.earlier) == 1, "without anything to rewrite, it is one sample"


@pytest.mark.parametrize(
    ("style", "messages", "reason"),
    [
        ("strict", [USER, USER, ANSWER], "roles must alternate"),
        ("strict", [USER, ANSWER, USER, USER, ANSWER], "up to message 5: "),
        ("gemma", [{"role": "system", "content": "Be brief."}, USER, ANSWER], "System role not supported"),
    ],
)
def test_what_a_template_refuses_is_refused_with_its_words(
    style: str, messages: list[dict[str, str]], reason: str
) -> None:
    template = templates.parse("chat", talks.chat(style))
    good, refused = templates.each(template, [TALK, {"messages": messages}])
    assert isinstance(good, Rendered)
    assert isinstance(refused, str)
    assert reason in refused


def test_conversations_and_plain_rows_may_stand_in_one_file() -> None:
    template = templates.parse("chat", talks.chat("qwen2.5"))
    plain = {"prompt": "Where?", "response": "Rome.", "system": "Be brief."}
    same = {"messages": [{"role": "system", "content": "Be brief."}, *talk("Where?", "Rome.")["messages"]]}
    found = list(templates.each(template, [plain, TALK, same]))
    assert found[0] == found[2]
    assert isinstance(found[1], Rendered)
    assert len(found[1].earlier) == 2


def test_tools_are_rendered_where_the_template_takes_them() -> None:
    source = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.content }}>{% endfor %}"
    )
    takes = templates.parse("chat", Chat(source))
    row = {**TALK, "tools": TOOLS}
    assert takes.prompt(row).startswith('[{"type": "function"')
    (found,) = templates.each(takes, [row])
    assert isinstance(found, Rendered)
    assert found.full.startswith('[{"type": "function"')
    assert not templates.ignores_tools(takes, row)
    assert templates.ignores_tools(templates.parse("chat", talks.chat("qwen2.5")), row)


def test_a_conversation_is_asked_in_the_form_in_which_it_is_written_down() -> None:
    template = templates.parse("chat", talks.chat("qwen2.5"))
    for row in (TALK, {**TALK, "tools": TOOLS}):
        assert template.prompt(
            templates.asked(template, templates.question(template, row))
        ) == template.prompt(row)
        assert templates.expected(template, row) == "Then go there."
    short = {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}
    assert templates.question(template, short) == USER["content"]
    assert templates.system(template, short) == "Be brief."
    assert templates.asked(template, '{"a": 1}') == {"prompt": '{"a": 1}'}
    with pytest.raises(InputError, match="message 1 has the role 'robot'"):
        templates.asked(template, json.dumps({"messages": [{"role": "robot", "content": "x"}]}))
    assert ASKED in templates.question(template, TALK)


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look"}}]}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "messages",
    [
        [USER] * 999 + [ANSWER],
        [USER, ANSWER] * 200,
        [{**USER, "content": "x" * 5_000_000}, ANSWER],
        [{**USER, "content": "x" * (2_097_152 - 4)}, *[{**ANSWER, "content": "ab"}] * 2],
        [USER, CALL, {"role": "tool", "content": ""}, ANSWER],
        [{**USER, "content": ""}, ANSWER],
    ],
    ids=["messages", "turns", "one turn", "read", "call", "empty question"],
)
def test_what_is_just_allowed(messages: list[Any]) -> None:
    assert list(conversations.faults({"messages": messages})) == []


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (
            [{**USER, "content": "x" * (2_097_152 - 3)}, *[{**ANSWER, "content": "ab"}] * 2],
            "it has 2 answers",
        ),
        ([USER, {**CALL, "tool_calls": [{}, "x"]}], "message 2: tool_calls must be a list of objects"),
        ([{"role": "user", "content": None, "tool_calls": [{}]}, ANSWER], "message 1: content must be text"),
        ([USER, {**ANSWER, "content": True}], "message 2: content must be text, not true or false"),
        ([ANSWER, USER], "message 1 is the assistant's, and no message of a user is before it"),
        (
            [USER, ANSWER, USER, USER],
            "message 3 is the user's, and no answer follows; remove what follows message 2",
        ),
        (
            [USER, *[{**CALL, "tool_calls": [{"x": "y" * 40_000}]}] * 12],
            "it has 12 answers and more than 349,525 characters",
        ),
    ],
)
def test_what_is_just_not(messages: list[Any], fault: str) -> None:
    (found,) = conversations.faults({"messages": messages})
    assert found.startswith(fault)


def test_tools_count_as_characters_that_are_read_and_each_must_be_an_object() -> None:
    row = {**TALK, "tools": [{"x": "y" * 1_400_000}]}
    assert next(conversations.faults(row)).startswith("it has 3 answers and more than 1,398,101 characters")
    assert list(conversations.faults({**TALK, "tools": [{}, "look"]})) == [
        "'tools' must be a list of objects"
    ]


def test_of_many_faulty_messages_the_first_few_are_named() -> None:
    found = list(conversations.faults({"messages": ["x"] * 9}))
    assert [problem.split()[1] for problem in found] == ["1", "2", "3", "4", "5"]


def test_a_template_takes_tools_if_it_names_them_as_a_word() -> None:
    assert conversations.takes_tools("{% if tools %}x{% endif %}")
    assert not conversations.takes_tools("{{ toolset }}{{ my_tools }}")


def test_how_many_characters_rendering_takes() -> None:
    assert conversations.size({"prompt": "abc", "response": "de", "n": 7}) == 5
    assert conversations.size(talk("ab", "c")) == 3
    assert conversations.size(talk("ab", "c", "d", "e")) == 2 * 5
    calls = json.dumps(CALL)
    assert conversations.size({"messages": [USER, CALL], "tools": TOOLS}) == (
        len(USER["content"]) + len(calls) + len(json.dumps(TOOLS))
    )


def test_an_answer_is_its_text_and_its_calls() -> None:
    calls = '[{"function": {"name": "look"}}]'
    assert conversations.answer({"messages": [USER, {**CALL, "content": "So é"}]}) == f"So é{calls}"
    assert conversations.answer({"messages": [USER, {**CALL, "content": None}]}) == calls
    assert conversations.answer({"messages": [USER, ANSWER]}) == "Rome."


def test_a_probed_answer_keeps_its_calls() -> None:
    (turn,) = conversations.turns({"messages": [USER, CALL], "tools": []})
    assert turn.tools is None, "no tools are none"
    assert turn.probed().answer == {**CALL, "content": conversations.PROBE}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{**SYSTEM, "content": ""}, USER, ANSWER]},
        {"messages": [USER, ANSWER], "tools": TOOLS},
        {"messages": [{**USER, "name": "Ada"}, ANSWER]},
        {"messages": [SYSTEM, SYSTEM, USER, ANSWER]},
    ],
    ids=["empty system text", "tools", "name", "two system texts"],
)
def test_what_is_more_than_a_question_is_asked_as_json(row: dict[str, Any]) -> None:
    question, system = conversations.question(row)
    asked = conversations.asked(f" {question}")
    assert system == ""
    assert asked == {**row, "messages": row["messages"][:-1]}
    (text,) = conversations.prompt_texts(row)
    assert text == question


def test_the_same_prompt_is_the_same_text_however_its_keys_stand() -> None:
    one = {"messages": [{**USER, "name": "é"}, ANSWER]}
    other = {"messages": [dict(reversed(list({**USER, "name": "é"}.items()))), ANSWER]}
    assert conversations.prompt_texts(one) == conversations.prompt_texts(other)
    assert "é" in conversations.prompt_texts(one)[0]


@pytest.mark.parametrize(
    "text",
    ['{"messages": [], "x": 1}', '{"tools": []}', "{", "[]", '{"messages": ' + "[" * 100_000, "Where?"],
)
def test_other_texts_are_prompts_themselves(text: str) -> None:
    assert conversations.asked(text) is None


@pytest.mark.parametrize("messages", ["5", "[]", '["x"]'])
def test_written_conversations_are_checked(messages: str) -> None:
    with pytest.raises(InputError, match="message"):
        conversations.asked(f'{{"messages": {messages}}}')


def test_how_a_conversation_begins() -> None:
    rows = [{"messages": [SYSTEM, *TALK["messages"]]}, {"messages": [SYSTEM, USER, ANSWER], "tools": TOOLS}]
    assert [conversations.opening_texts(row) for row in rows] == [["Be brief.", USER["content"]]] * 2
    assert conversations.opening_texts(TALK) == conversations.prompt_texts({"messages": [USER, ANSWER]})
    assert conversations.opening_texts(TALK) != conversations.prompt_texts(TALK)


def anything(dice: random.Random, depth: int = 3) -> Any:
    """A value of JSON, often one that nearly is what belongs there."""
    plain = [
        None,
        True,
        7,
        1.5,
        "",
        " \n",
        "text",
        "\0",
        "assistant",
        "user",
        conversations.PROBE,
        "🙂",
        "[]",
    ]
    if depth == 0 or dice.random() < 0.3:
        return dice.choice(plain)
    if dice.random() < 0.4:
        return [anything(dice, depth - 1) for _ in range(dice.randrange(4))]
    names = ["role", "content", "tool_calls", "name", "weight"]
    return {name: anything(dice, depth - 1) for name in dice.sample(names, dice.randrange(5))}


def nearly(dice: random.Random) -> Any:
    """Messages that may be right, with something here and there that is not."""
    found: list[Any] = []
    for at in range(dice.choice([1, 2, 2, 4, 4, 6])):
        message: Any = {
            "role": ("user", "assistant")[at % 2],
            "content": dice.choice(["a", "b", "c d", "<|im_end|>"]),
        }
        if dice.random() < 0.1:
            message |= {dice.choice(["role", "content", "tool_calls", "name"]): anything(dice, 2)}
        found.append(message if dice.random() < 0.95 else anything(dice))
    return found


@pytest.mark.parametrize("seed", range(500))
def test_whatever_a_row_holds_is_refused_in_sentences_or_has_turns(seed: int) -> None:
    dice = random.Random(seed)
    messages = nearly(dice) if seed % 4 else anything(dice)
    tools = anything(dice) if dice.random() < 0.3 else None
    row = {"messages": messages, "tools": tools}
    problems = list(conversations.faults(row))
    assert all(problem and "\n" not in problem for problem in problems)
    if problems:
        return
    turns = conversations.turns(row)
    assert turns[-1].before == messages[:-1]
    assert turns[-1].answer == messages[-1]
    assert conversations.prompt_texts(row)
    assert conversations.size(row) > 0
    template = templates.parse("chat", talks.chat("qwen2.5"))
    question, system = conversations.question(row)
    again = templates.asked(template, question)
    assert "messages" in again or again == {"prompt": question}
    assert isinstance(conversations.answer(row), str)
    assert isinstance(system, str)


def test_hostile_conversations_are_rendered_or_refused_in_a_sentence() -> None:
    """Whatever passes the checks goes to the template; what that makes of it is a text or a sentence."""
    calls = [{"id": 1, "function": {"name": ["x"], "arguments": {"a": [None]}}}]
    odd = [
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": calls}]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": ""},
                ANSWER,
            ]
        },
        {"messages": [{**USER, "content": ""}, {**ANSWER, "content": "<|im_end|>"}, USER, ANSWER]},
        {
            "messages": [{**USER, "content": conversations.PROBE}, {**ANSWER, "content": conversations.PROBE}]
            * 3
        },
        {"messages": [{**USER, "name": {"deep": [1]}}, ANSWER], "tools": [{}]},
    ]
    for style in talks.STYLES:
        for found in templates.each(templates.parse("chat", talks.chat(style)), odd):
            assert isinstance(found, (Rendered, str))
            if isinstance(found, str):
                assert "\n" not in found


CALLS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{{ m['content'] + '' }}"
    "{% for c in m['tool_calls'] or [] %}[{{ c['function']['name'] }}]{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KNOWS_NULL = CALLS.replace("{{ m['content'] + '' }}", "{{ '-' if m['content'] is none else m['content'] }}")
ONLY_CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}


@pytest.mark.parametrize("content", [{"content": None}, {}])
@pytest.mark.parametrize(("source", "said"), [(CALLS, "<assistant>[look]</s>"), (KNOWS_NULL, None)])
def test_an_answer_of_null_is_an_empty_text_where_the_template_does_not_know_null(
    source: str, said: str | None, content: dict[str, None]
) -> None:
    call = {"role": "assistant", "tool_calls": ONLY_CALL["tool_calls"], **content}
    row = {"messages": [USER, call, {"role": "tool", "content": "7"}, ANSWER]}
    template = templates.parse("chat", templates.Chat(source))
    assert list(row_faults.misfits(row, template)) == []
    (found,) = templates.each(template, [row])
    assert isinstance(found, templates.Rendered)
    assert (said or ("<assistant>-[look]</s>" if "content" in content else "<assistant>[look]")) in found.full
    assert "None" not in found.full
    assert template.prompt(row) == found.prompt


def test_a_template_without_tool_calls_has_nothing_of_an_answer_that_only_calls() -> None:
    template = templates.parse(
        "chat", templates.Chat("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    )
    row = {"messages": [USER, ONLY_CALL, {"role": "tool", "content": "7"}, ANSWER]}
    said = "message 2 only calls tools, and the chat template of this model does not write tool calls"
    (fault,) = row_faults.misfits(row, template)
    assert fault.startswith(said)
    assert fault.endswith("choose a model whose template does, or leave such rows out")
    row["messages"][1] = {**ONLY_CALL, "content": "I look."}
    assert list(row_faults.misfits(row, template)) == []
    assert list(row_faults.misfits({"messages": [USER, ONLY_CALL]}, templates.parse("chat"))) == []


def test_messages_in_newer_words_are_read_as_older_ones() -> None:
    parts = [{"type": "text", "text": "One"}, {"text": "two"}, "three"]
    given = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}, ANSWER]
    read = row_lines.parse_line(json.dumps({"messages": given}))
    assert isinstance(read, dict)
    system = {"role": "system", "content": "Be brief."}
    assert read["messages"] == [system, {"role": "user", "content": "One\ntwo\nthree"}, ANSWER]
    assert shapes.chat({"messages": given}, "messages") == read
    for part in ({"type": "image_url", "image_url": {}}, {"type": "text"}, 7):
        bad = {"role": "user", "content": [*parts, part]}
        read = row_lines.parse_line(json.dumps({"messages": [bad, ANSWER]}))
        assert isinstance(read, dict)
        assert list(conversations.faults(read)) == [
            "message 1: content must be text, not a list; of a list, each part must be a text"
        ]


def test_what_is_infinite_beside_a_prompt_is_no_part_of_it() -> None:
    """Also where messages have fields of their own, so that all of them are told."""
    row = json.loads(
        '{"messages": [{"role": "user", "content": "a", "weight": 1e999},'
        ' {"role": "assistant", "content": "b", "weight": 1}]}'
    )
    assert all("Infinity" not in text for text in conversations.prompt_texts(row))
    assert conversations.question(row)[0]
