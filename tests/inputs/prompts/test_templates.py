"""templates: placeholders, escapes, errors, and chat templates rendered as transformers does."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.inputs.prompts.templates import (
    LONGEST,
    Chat,
    ChatTemplate,
    Rendered,
    TextTemplate,
    _job,
    asked,
    each,
    parse,
    question,
)

LAB = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"
ROW = {"prompt": "Where?", "response": "There."}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_labs_template() -> None:
    template = parse(LAB)
    assert template.fields == ("prompt", "response")
    assert template.prompt(ROW) == "<|user|>\nWhere?<|end|>\n<|assistant|>\n"
    assert template.full(ROW) == template.prompt(ROW) + "There.<|end|>"
    assert template.stop == "<|end|>"


def test_newlines_may_be_typed_as_two_characters() -> None:
    assert parse(LAB.replace("\n", "\\n")) == parse(LAB)


def test_the_last_placeholder_is_the_response_and_others_may_repeat() -> None:
    template = parse("{{{a}}} {b} {a}: {c}")
    assert template.fields == ("a", "b", "c")
    assert template.prompt({"a": 1, "b": 2.5, "c": "x"}) == "{1} 2.5 1:", "the space is the answer's"
    assert template.full({"a": 1, "b": 2.5, "c": "x"}) == "{1} 2.5 1: x"
    assert template.stop == ""


def test_the_prompt_as_pieces_for_app_py() -> None:
    template = parse("{{q}} {prompt}\\n{response}!")
    assert isinstance(template, TextTemplate)
    assert template.prompt_pieces() == ["{q} ", {"prompt": ""}, "\n"]
    assert template.prompt(ROW) == "{q} Where?\n"


def test_a_template_that_writes_the_day_writes_the_same_day_always() -> None:
    """A prompt that named today's would be other tokens tomorrow than those that were trained."""
    template = parse("chat", Chat("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"))
    assert template.prompt(ROW) == "26 Jul 2024: Where?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no placeholder"),
        ("Chat", "no placeholder"),
        ("{response}", "only placeholder"),
        ("{prompt} " * 9 + "{response}", "{prompt} occurs 9 times; allowed: 8 times"),
        ("".join(f"{{f{n}}} " for n in range(51)), "it names 51 fields; allowed: 50"),
        ("{a" + "\u0315\u0300" * 1500 + "} {response}", "has 3,001 letters; allowed: 100"),
        ("{prompt} {response", "'{' at character 10 is never closed"),
        ("{prompt {response}", "'{' at character 1 is never closed"),
        ("{prompt} response}", "'}' at character 18 closes nothing"),
        ("{} {response}", "not a field name"),
        ("{0} {response}", "not a field name"),
        ("{a.b} {response}", "not a field name"),
        ("{response} {prompt} {response}", "only once"),
    ],
)
def test_faulty_templates(text: str, reason: str) -> None:
    with pytest.raises(InputError, match="template: ") as error:
        parse(text)
    assert reason in str(error.value)


def test_chat_is_the_models_own_template() -> None:
    template = parse("chat", Chat(CHATML))
    assert template.fields == ("prompt", "response")
    assert template.prompt(ROW) == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert template.full(ROW) == template.prompt(ROW) + "There.<|im_end|>"
    assert template.prompt({**ROW, "system": "Be kind."}).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert template.stop == "<|im_end|>"


def test_chat_without_a_template_names_the_way_out() -> None:
    template = parse("chat")
    assert template.fields == ("prompt", "response")
    with pytest.raises(InputError, match="has no chat template"):
        template.prompt(ROW)


def test_a_chat_template_that_writes_past_answers_differently() -> None:
    chat = Chat(
        "{% for m in messages %}[{{ m.role }}]"
        "{{ m.content | trim | upper if m.role == 'assistant' else m.content }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    template = parse("chat", chat)
    assert template.full({"prompt": "a", "response": "B"}) == "[user]a[end][assistant]<think>B[end]"


def test_each_renders_every_kind_of_template() -> None:
    rows = [ROW, {**ROW, "prompt": "Why?"}]
    for template in (parse(LAB), parse("chat", Chat(CHATML))):
        assert list(each(template, rows)) == [
            Rendered(template.prompt(row), template.full(row)) for row in rows
        ]
    for found in each(parse("chat"), rows):
        assert isinstance(found, str)
        assert "has no chat template" in found


def test_a_template_somebody_typed_may_be_long_but_not_endless() -> None:
    longest = "x" * (LONGEST - 20) + " {prompt} {response}"
    assert parse(longest[-LONGEST:]).prompt(ROW).endswith("Where?")
    for endless in (
        "x" * LONGEST + "{prompt} {response}",
        "{prompt}" * 100_000 + "{response}",
        "{{" * 40_000,
    ):
        with pytest.raises(InputError, match=r"has [\d,]+ characters; write one of 4,000 or fewer"):
            parse(endless)


def test_what_it_writes_is_bounded_before_it_is_written() -> None:
    bomb = parse("{prompt}" * 8 + "{response}")
    row = {**ROW, "prompt": "x" * 1_000_000}
    with pytest.raises(InputError, match="writes more than 4,194,304 characters for one row"):
        bomb.full(row)
    with pytest.raises(InputError, match="writes more than"):
        bomb.prompt(row)
    (found,) = each(bomb, [row])
    assert isinstance(found, str)
    assert "writes more than" in found


@pytest.mark.parametrize(
    "text",
    [
        "x" * 60_000,
        "{response}" + "x" * 50_000,
        "{" + "x" * 60_000 + "!} {response}",
        "{" + "x" * 60_000 + "}" * 3,
    ],
)
def test_messages_quote_only_the_beginning_of_a_template(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text)
    assert len(str(error.value)) < 250


STYLES = {
    "chatml": CHATML,
    "whitespace": (
        "{%- for m in messages %}\n    {% if m.role == 'user' %}\n  U: {{ m.content }}\n{% endif %}\n"
        "{%- endfor %}"
    ),
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ bos_token }}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "break": "{% for m in messages %}{{ m.content }}{% if loop.first %}{% break %}{% endif %}{% endfor %}",
    "namespace": (
        "{% set n = namespace(last='') %}{% for m in messages %}{% set n.last = m.role %}{% endfor %}"
        "{{ n.last }}"
    ),
    "undefined": "{% if tools %}T{% endif %}{% if documents is defined %}D{% endif %}{{ messages|length }}",
}


@pytest.mark.chain
@pytest.mark.parametrize("style", STYLES)
def test_rendered_as_transformers_renders(style: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    def rendered(messages: list[dict[str, str]], prompt: bool) -> str:
        texts, _ = render_jinja_template(
            [messages], chat_template=STYLES[style], add_generation_prompt=prompt, **tokens
        )
        return str(texts[0])

    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    row = {"prompt": 'Where <is> "x"?\n', "response": " Thére. "}
    template = parse("chat", Chat(STYLES[style], tokens))
    assert isinstance(template, ChatTemplate)
    asked = [{"role": "user", "content": row["prompt"]}]
    answered = [*asked, {"role": "assistant", "content": row["response"]}]
    assert template.prompt(row) == rendered(asked, True)
    assert template._render(_job(answered, False, None)) == rendered(answered, False)


def test_a_question_with_several_fields_is_written_as_json() -> None:
    one = parse("{prompt} {response}")
    assert question(one, {"prompt": "Why?", "response": "x"}) == "Why?"
    assert asked(one, "Why?") == {"prompt": "Why?"}
    two = parse("{instruction} {context} {response}")
    row = {"instruction": "Sum up", "context": 'a "b"', "response": "x"}
    assert two.prompt(asked(two, question(two, row))) == two.prompt(row)
    values = '{"instruction": [1], "context": "x"}'
    for wrong in ("Sum up", "[1]", '{"instruction": "Sum up"}', "[" * 100_000, values):
        with pytest.raises(InputError, match="write the prompt as JSON"):
            asked(two, wrong)
