"""model_template: a model's chat template, read from its folder, in bounds and with every fault named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.prompts.model_template import LARGEST_CONFIG, LONGEST_CHAT, MOST_VALUES, chat_template
from pipeline.inputs.prompts.templates import Chat, parse

ROW = {"prompt": "Where?", "response": "There."}


def test_the_files_of_a_model_are_bounded(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "x" * (LONGEST_CHAT + 1)}))
    with pytest.raises(InputError, match="its chat template is longer than 262,144 characters"):
        chat_template(tmp_path)
    config.write_text(json.dumps({"chat_template": "x", "eos_token": "x" * 1001}))
    with pytest.raises(InputError, match="its eos_token is longer than any real one"):
        chat_template(tmp_path)
    with config.open("wb") as file:
        file.truncate(LARGEST_CONFIG + 1)
    for _ in range(2):
        with pytest.raises(InputError, match=r"its tokenizer_config\.json is larger than any real one"):
            chat_template(tmp_path)
        config.write_text("[" + "[]," * (MOST_VALUES // 2) + "1]")  # of a few bytes each, in megabytes


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer_config.json", b"{", "Expecting"),
        ("tokenizer_config.json", b"[1]", "it is not a mapping"),
        ("tokenizer_config.json", b'{"chat_template": 7}', "it is not a text"),
        ("tokenizer_config.json", b"[" * 100_000, "it is nested too deeply"),
        ("tokenizer_config.json", b"\xff", "it is not UTF-8"),
        ("chat_template.jinja", b"\xff", "it is not UTF-8"),
        ("special_tokens_map.json", b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / "chat_template.jinja").write_text("x")
    (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json" and b"chat" in content:
        (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError) as error:
        chat_template(tmp_path)
    assert name in str(error.value)
    assert reason in str(error.value)


def test_chat_template_of_a_folder(tmp_path: Path) -> None:
    assert chat_template(tmp_path) is None
    config = {
        "chat_template": [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}],
        "eos_token": {"content": "</s>", "lstrip": False},
        "bos_token": "<s>",
        "pad_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template(tmp_path) == Chat("D", {"eos_token": "</s>", "bos_token": "<s>"})
    (tmp_path / "chat_template.jinja").write_text("J{{ bos_token }}")
    found = chat_template(tmp_path)
    assert found == Chat("J{{ bos_token }}", {"eos_token": "</s>", "bos_token": "<s>"})
    assert parse("chat", found).prompt(ROW) == "J<s>"
