"""What Foundry Local's sessions read is what training read, for tokenizers of all styles, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.exports import serving_ids
from pipeline.inputs.prompts import model_template, templates
from pipeline.publish.foundry import chat_templates
from tests.helpers import zoo

pytestmark = pytest.mark.chain
CHAT, LINES, PLAIN = "chat", "### Q: {question}\\n### A: {answer}\\n\\n", "{prompt} {response}"
BRACES = "{{{{ {prompt} }}}} {{% \\ '\" %}}\\t:{response}"
OWN = None


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The tokenizer's part of an export, by the tokenizer's kind and the run's template."""

    def make(name: str, text: str) -> Path:
        root = tmp_path_factory.mktemp("export")
        folder = zoo.exported(zoo.write(zoo.KINDS[name], root / "model"), root / "export")
        template = templates.parse(text, model_template.chat_template(folder))
        told = serving_ids.describe(folder, template, serving_ids.before_of(folder))
        serving_ids.prepare(folder, told["reading"])
        lab = {"template": text, "stop": template.stop, **told}
        (folder / "lab.json").write_text(json.dumps(lab))
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "text", "begins", "unusual"),
    [
        ("smollm", CHAT, OWN, 0),
        ("llama3", CHAT, OWN, 2),  # spaces of other widths, letters in two parts
        ("qwen2.5", CHAT, OWN, 2),
        ("gemma2", CHAT, OWN, 1),
        ("phi3.5", CHAT, OWN, 2),
        ("llama2-own-bos", CHAT, "{{ '<s> ' }}{% for", 0),
        ("metaspace-never", CHAT, "{{ '<s>' }}{% for", 0),
        ("llama3", LINES, "{{ '<|begin_of_text|>' }}{% for", 0),
        ("smollm", PLAIN, "{{ '' }}{% for", 0),
        ("smollm", BRACES, "{{ '' }}{% for", 0),
        ("mistral", LINES, "{{ '<s>' }}{{ ' ' }}{% for", 0),
        ("mistral", PLAIN, "{{ '<s>' }}{{ '' if messages[0]['content'].startswith(' ')", 1),
    ],
)
def test_a_template_is_found_that_reads_the_same_tokens(
    export: Callable[[str, str], Path], name: str, text: str, begins: str | None, unusual: int
) -> None:
    found = chat_templates.find(export(name, text))
    assert found.compared > 30
    assert (found.template is None) is (begins is OWN)
    assert str(found.template).startswith(begins or "None")
    assert len(found.unusual) == unusual


@pytest.mark.parametrize(("name", "text"), [("llama2-legacy", CHAT), ("lowercase", LINES)])
def test_what_no_template_puts_right_is_refused(
    export: Callable[[str, str], Path], name: str, text: str
) -> None:
    with pytest.raises(
        LabError, match=r"in Foundry Local's chat sessions \d+ of \d+ prompts differ, such as"
    ):
        chat_templates.find(export(name, text))


def test_a_prompt_of_several_fields_is_no_message(export: Callable[[str, str], Path]) -> None:
    with pytest.raises(
        InputError, match=r"several fields \(a, b\), and a message in Foundry Local is one text"
    ):
        chat_templates.find(export("smollm", "{a}\\n{b}\\n{c}"))


def test_a_row_that_is_read_otherwise_counts(export: Callable[[str, str], Path]) -> None:
    """Unusual text is only noted; where the run's own prompts have it, the version would be wrong."""
    with pytest.raises(LabError, match=r"1 of \d+ prompts differ"):
        chat_templates.find(export("qwen2.5", PLAIN), [{"prompt": "e\u0301", "response": "ok"}])


def test_the_written_template_is_the_only_one_in_the_folder(
    export: Callable[[str, str], Path], tmp_path: Path
) -> None:
    source = export("smollm", PLAIN)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "another"}))
    chat_templates.write(source, tmp_path, "{{ 'mine' }}")
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ 'mine' }}"
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
