"""literal_prompts and lab_prompt: an exported folder writes the prompts that training wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.exports import serving_ids
from pipeline.inputs.prompts import lab_prompt, literal_prompts, templates
from tests.helpers.features import FEATURES

TOKENS: dict[str, Any] = {"bos_token": "<s>", "pad_token": None}
READING = {"before": [], "space": "", "normalize": [], "special": [["<|im_end|>", 1, ""]]}
# Those that do more to a row's words than strip them.
WORDS = {
    "strip-newlines", "replace-method", "replace-filter", "split", "lower", "content-upper", "slice",
    "length", "in", "startswith", "tojson", "default", "generation", "no-bos",
}  # fmt: skip


def shipped(folder: Path, source: str) -> tuple[templates.Template, lab_prompt.Reader, dict[str, Any]]:
    """A chat template, what the files of an exported folder make of it, and its lab.json."""
    template = templates.parse("chat", templates.Chat(source, {"bos_token": "<s>"}))
    pieces = literal_prompts.pieces_of(template, serving_ids.HARD, [])
    lab = {"template": "chat", "fields": ["prompt"], **pieces, "reading": READING}
    (folder / "lab.json").write_text(json.dumps(lab), "utf-8")
    (folder / "chat_template.jinja").write_text(source, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS), "utf-8")
    return template, lab_prompt.open_reader(folder, None), lab


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_is_written_as_in_training(tmp_path: Path, name: str) -> None:
    template, reader, lab = shipped(tmp_path, FEATURES[name])
    assert (lab["prompt"] is None) == (name in WORDS)
    texts = [*serving_ids.HARD, "</think> so", "a /no_think b", "<tool>", "x<|im_end|>y"]
    rows: list[dict[str, str]] = [{"prompt": text, "response": "r"} for text in texts]
    if "system" in reader.optional:
        rows += [{**row, "system": text} for row, text in zip(rows, reversed(texts), strict=True)]
    for row, written in zip(rows, templates.each(template, rows), strict=True):
        assert isinstance(written, templates.Rendered)
        assert reader.text(row) == written.prompt


def test_a_system_text_that_a_template_refuses(tmp_path: Path) -> None:
    _, reader, lab = shipped(tmp_path, FEATURES["raise"])
    assert reader.optional == []
    assert "prompt_with_system" not in lab
    with pytest.raises(ValueError, match="takes no system text"):
        reader.text({"prompt": "Hello", "system": "Be brief."})


def test_a_prompt_with_a_system_text_is_literal_too() -> None:
    template = templates.parse("chat", templates.Chat(FEATURES["plain"]))
    made = literal_prompts.pieces_of(template, serving_ids.HARD, [])
    assert made["prompt_with_system"][1::2] == [{"system": ""}, {"prompt": ""}]


def test_a_template_that_looks_for_words_is_not_taken_for_literal() -> None:
    """None of the hard texts has the word; it stands in the template."""
    source = "{% for m in messages %}{{ 'found' if 'open sesame' in m.content else m.content }}{% endfor %}"
    template = templates.parse("chat", templates.Chat(source))
    assert not any("sesame" in text for text in serving_ids.HARD)
    assert literal_prompts.pieces_of(template, serving_ids.HARD, [])["prompt"] is None


def test_without_jinja2_the_reader_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, reader, _ = shipped(tmp_path, FEATURES["lower"])
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(SystemExit, match="pip install jinja2"):
        reader.text({"prompt": "Hello"})


def test_text_templates_are_pieces(tmp_path: Path) -> None:
    template = templates.parse("{{q}} {question} of {year}: {answer}<end>")
    lab = {
        "template": "{{q}} {question} of {year}: {answer}<end>",
        "fields": ["question", "year"],
        **literal_prompts.pieces_of(template, serving_ids.HARD, []),
        "reading": READING,
    }
    reader = lab_prompt.Reader(lab, None, template.prompt)
    row = {"question": "{Who} %s", "year": 1998, "answer": "x", "system": "of another kind"}
    assert reader.text(row) == template.prompt(row) == "{q} {Who} %s of 1998:"


@pytest.mark.parametrize("steps", [[["replace", "a", "aa"]] * 60, [["replace", "", "x" * 1_000_000]]])
def test_replacements_of_a_folder_do_not_grow_without_end(steps: list[list[str]]) -> None:
    """Sixty that double a text would take more memory than there is."""
    lab = {"template": "{prompt}", "fields": ["prompt"], "prompt": [{"prompt": ""}]}
    reader = lab_prompt.Reader(
        {**lab, "reading": {**READING, "normalize": steps}}, SimpleNamespace(encode=list), str
    )
    with pytest.raises(
        ValueError, match=r"lab\.json would make [\d,]+ letters of a text; export the model again"
    ):
        reader.ids({"prompt": "a" * 20})


def test_hard_rows_have_the_fields_of_the_template_whatever_their_names() -> None:
    """A column of answers need not be called `response`."""
    template = templates.parse("{instruction}\\n{input}\\n{output}", None)
    reader = SimpleNamespace(special=[], optional=[])
    rows = serving_ids.hard_rows(reader, template)  # type: ignore[arg-type]
    assert len(rows) == 2 * len(serving_ids.HARD)
    assert all(row.keys() == {"instruction", "input", "output"} for row in rows)
    assert all(isinstance(one, templates.Rendered) for one in templates.each(template, rows))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a' + \"b'c\" }}{% if x == 'd\\'e' %}''", ["a", "b'c", "d\\'e", ""]),
        ('it is {{ "a" }} and \'b', ["a"]),
        ("\\'" * (1 << 17), []),  # a pattern tried the rest of the text at each of them, for hours
    ],
    ids=["quoted", "without an end", "very many without an end"],
)
def test_texts_between_quotes_are_found_in_one_reading(source: str, expected: list[str]) -> None:
    assert [*literal_prompts._quoted(source)] == expected
