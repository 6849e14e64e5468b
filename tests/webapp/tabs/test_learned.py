"""What it learns: rows of the chosen dataset as tokens, as the panel shows them."""

from __future__ import annotations

import json

import gradio as gr
import pytest

from pipeline.exports import row_tokens, row_view
from tests.helpers import talks
from tests.helpers.page import SAMPLE
from webapp import local_models
from webapp.tabs import data, learned

GOOD = b'{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
TEMPLATE = "{prompt} {response}"
SKIP = gr.skip()


def looked(where, line, picked, model):
    """What the panel shows in the end, and the line that it writes."""
    *_, last = learned.look(where, picked, TEMPLATE, model, line)
    return last


def test_rows_are_shown_as_tokens_one_after_the_other(home, uploaded, model_folder, bytes_as_tokens):
    try:
        local_models._named[:] = [model_folder]
        long = json.dumps({"prompt": "x" * 9000, "response": "y"}).encode() + b"\n"
        *_, picked, _ = data.found(uploaded(GOOD + long), None, TEMPLATE, "starter")
        given = picked["value"], str(model_folder)
        first, line = looked("line", 1, *given)
        assert line == 1
        ((*prompt, space, answer, end),) = first["samples"]
        assert {token["kind"] for token in prompt} <= {"given", "special"}
        assert [space["kind"], answer["kind"], end["kind"]] == ["learned", "learned", "end"]
        assert answer["text"] == "b"
        assert first["text"].endswith("3 of them trained on.")
        assert first["equal"] or "not known" in first["verdict"]
        assert [looked(where, 2, *given)[1] for where in ("next", "previous", "longest")] == [3, 1, 3]
        most, _ = looked("longest", 1, *given)
        assert "are cut, because the default of finetune.max_length" in most["text"]
        assert "are not shown." in most["text"]
        assert sum(map(len, most["samples"])) == row_tokens.MOST_TOKENS
        problems, line = looked("next", 3, *given)
        assert line == SKIP
        assert "no row is behind line 3" in problems["problems"][0]
    finally:
        local_models._named.clear()
        row_view.close()


@pytest.mark.parametrize(
    ("line", "picked", "model", "words"),
    [
        (1.5, SAMPLE, "starter", "line: write a whole number"),
        (1, "/etc/passwd", "starter", "this dataset is not in the lab"),
        (1, None, "starter", "choose a dataset"),
        (1, SAMPLE, "/etc", "/etc"),
    ],
)
def test_what_keeps_a_row_from_being_shown_is_a_sentence(home, line, picked, model, words):
    shown, _ = looked("line", line, picked, model)
    assert words in shown["problems"][0]


def test_every_answer_of_a_conversation_is_marked_in_the_example(home, uploaded):
    talk = json.dumps(talks.TALK).encode() + b"\n"
    _, _, _, example, *_ = data.found(uploaded(talk * 2), None, "chat", "starter")
    assert example["turns"][1::2] == ["Rome.<|im_end|>", "No.<|im_end|>"]
    assert "".join(example["turns"]) == example["prompt"]
    assert example["response"] == "Then go there.<|im_end|>"
