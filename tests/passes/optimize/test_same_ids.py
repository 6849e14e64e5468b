"""What is served reads the tokens that were trained, for tokenizers of all well-known styles."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.exports import serving_ids
from pipeline.inputs.prompts import lab_prompt, model_template, templates
from tests.helpers import talks, zoo
from tests.helpers.features import FEATURES

pytestmark = pytest.mark.chain
TEMPLATES = (
    "chat",
    "Q: {prompt}\\nA: {response}",
    "{prompt} {response}",
    "{a}, then {b}:{response}",
    "{a}\\n{b}\\n{c}",
)
PIECES = [
    "town",
    "the",
    "Hello",
    "2024",
    "12",
    "naïve",
    "数据",
    "🙂",
    "\n",
    "  ",
    "\t",
    ",",
    "'s",
    "<sep>",
    " ",
]
# What GenAI's own template engine does not know, or writes otherwise.
UNKNOWN = (
    "format", "percent", "str-format", "upper-method", "upper-filter", "capitalize", "replace-method",
    "replace-filter", "lower", "content-upper", "filter-block", "loop-first-last", "reverse", "strftime",
    "strftime-defined", "recursive-sum", "generation-space",
)  # fmt: skip
NEEDED = [(name, repair) for name, kind in zoo.KINDS.items() for repair in kind.needs]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer by its name, written once."""
    root = tmp_path_factory.mktemp("zoo")
    return lambda name: root / name if (root / name).is_dir() else zoo.write(zoo.KINDS[name], root / name)


def export(source: Path, folder: Path, template: str = "chat") -> Path:
    from pipeline.passes.optimize.genai_builder import add_app

    made = zoo.exported(source, folder)
    add_app(made, source, template, templates.parse(template, model_template.chat_template(source)))
    return made


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", zoo.KINDS)
def test_served_ids_are_the_trained_ones(
    written: Callable[[str], Path], tmp_path: Path, name: str, template: str
) -> None:
    """`add_app` compares hard texts in each field and refuses; here come texts of any words."""
    from pipeline.passes.optimize import same_ids

    source = written(name)
    folder = export(source, tmp_path / "export", template)
    chance = random.Random(name)
    texts = ["".join(chance.choices(PIECES, k=12)) for _ in range(40)]
    rows: list[dict[str, Any]] = [
        {"prompt": text, "a": text, "b": text[::-1], "response": "r", "c": "r"} for text in texts
    ]
    if template == "chat":
        rows += [talks.talk(*texts[at : at + 6]) for at in range(0, 36, 6)]
    same_ids.require(source, folder, template, rows)


def broken(folder: Path, repair: str) -> None:
    """Take one repair away from an export."""
    lab = json.loads((folder / "lab.json").read_text("utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    changes: dict[str, tuple[Any, str, Any]] = {
        "before": (lab["reading"], "before", []),
        "space": (lab["reading"], "space", ""),
        "normalize": (lab["reading"], "normalize", []),
        "special": (lab["reading"], "special", [[t, n, ""] for t, n, _ in lab["reading"]["special"]]),
        "class": (config, "tokenizer_class", "LlamaTokenizer"),
        "decoder": (
            tokenizer,
            "decoder",
            {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        ),
    }
    part, key, value = changes[repair]
    assert part[key] != value
    part[key] = value
    for file, content in (("lab", lab), ("tokenizer", tokenizer), ("tokenizer_config", config)):
        (folder / f"{file}.json").write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(("name", "repair"), NEEDED)
def test_each_repair_is_needed(
    written: Callable[[str], Path], tmp_path: Path, name: str, repair: str
) -> None:
    from pipeline.passes.optimize import same_ids

    source = written(name)
    folder = export(source, tmp_path / "export", "Q: {prompt}\\nA: {response}")
    broken(folder, repair)
    with pytest.raises(LabError, match="Training and answering read different tokens"):
        same_ids.require(source, folder, "Q: {prompt}\\nA: {response}")


def test_a_tokenizer_without_a_reader_is_refused(tmp_path: Path) -> None:
    config = zoo._config("<s>", "<|im_end|>", "PreTrainedTokenizerFast", unk_token="<unk>")
    source = zoo.write(zoo.Kind(zoo.unigram, config, zoo.CHATML), tmp_path / "unigram")
    with pytest.raises(LabError, match=r"of the kind Unigram.* reads BPE only; choose another base model"):
        export(source, tmp_path / "export")


def test_a_token_that_is_a_word_only_is_refused(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    word = [*zoo._QWEN, AddedToken("town", single_word=True, normalized=False)]
    kind = zoo.Kind(lambda: zoo.byte_level(word), zoo.KINDS["lstrip"].config, zoo.CHATML)
    with pytest.raises(LabError, match=r"a word of its own only \('town'\)"):
        export(zoo.write(kind, tmp_path / "word"), tmp_path / "export")


def test_a_tokenizer_that_changes_texts_in_its_own_way_is_refused(tmp_path: Path) -> None:
    """None of the hard texts has what it changes."""
    from tokenizers import Regex, normalizers

    rare = normalizers.Replace(Regex("[\u2020\u2021]"), "+")
    kind = zoo.Kind(
        lambda: zoo.byte_level(zoo._QWEN, normalizer=rare), zoo.KINDS["lstrip"].config, zoo.CHATML
    )
    source = zoo.write(kind, tmp_path / "rare")
    assert not any(set("\u2020\u2021") & set(text) for text in serving_ids.HARD)
    with pytest.raises(LabError, match="changes texts by Replace, which ONNX Runtime GenAI does otherwise"):
        export(source, tmp_path / "export")


def test_cuts_that_genai_makes_in_another_order_are_refused(tmp_path: Path) -> None:
    """Digits before ByteLevel's own pattern, where no class says so: spaces before numbers fall apart."""
    made = zoo.KINDS["smollm"]
    kind = zoo.Kind(made.make, {**made.config, "tokenizer_class": "PreTrainedTokenizerFast"}, made.template)
    with pytest.raises(LabError, match="Training and answering read different tokens"):
        export(zoo.write(kind, tmp_path / "digits"), tmp_path / "export")


def test_the_lab_itself_asks_by_the_template(written: Callable[[str], Path], tmp_path: Path) -> None:
    """A template may look at a row's words in ways that no test of it finds: pieces are for app.py alone."""
    source = tmp_path / "model"
    shutil.copytree(written("smollm"), source)
    words = "('short' if message['content'] | length == 11 else message['content'])"
    hidden = zoo.CHATML.replace("message['content']", words)
    (source / "chat_template.jinja").write_text(hidden, "utf-8")
    prompts = serving_ids.load(export(source, tmp_path / "export"))
    row = {"prompt": "eleven long", "response": ""}
    assert "short" in prompts.template.prompt(row)
    assert prompts.reader.text(row) == prompts.template.prompt(row)


def test_a_nul_character_is_refused(written: Callable[[str], Path], tmp_path: Path) -> None:
    """GenAI's tokenizer takes it for the end of the text."""
    reader = serving_ids.load(export(written("smollm"), tmp_path / "export")).reader
    with pytest.raises(ValueError, match="has a NUL character"):
        reader.ids({"prompt": "Hello\0there"})


def test_an_export_of_an_earlier_release_is_read_right(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its lab.json says nothing of reading, and its tokenizer's files are as the model has them."""
    from pipeline.inputs.prompts.training_ids import prompt_ids

    source = written("mistral")
    folder = zoo.exported(source, tmp_path / "export")
    lab = {"template": "chat", "fields": ["prompt"], "prompt": None, "stop": "</s>"}
    (folder / "lab.json").write_text(json.dumps(lab), "utf-8")
    prompts = serving_ids.load(folder)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    for row in serving_ids.hard_rows(prompts.reader, prompts.template):
        assert prompts.reader.ids(row) == prompt_ids(tokenizer, prompts.template.prompt(row))
    with pytest.raises(LabError, match=r"in app\.py .*; export the model again"):
        serving_ids.require_same(
            prompts.template, [{"prompt": "Hello", "response": ""}], lambda text: prompt_ids(tokenizer, text),
            serving_ids.former_app(folder), "app.py", serving_ids.EXPORT_AGAIN,
        )  # fmt: skip


@pytest.mark.parametrize(
    "prompt", ["{prompt:>2999999999}", "{prompt!r}", "{prompt.__class__}", "{prompt[0]}"]
)
def test_a_prompt_of_a_former_app_has_fields_alone(
    written: Callable[[str], Path], tmp_path: Path, prompt: str
) -> None:
    """The folder may be anybody's: a width takes gigabytes."""
    folder = zoo.exported(written("mistral"), tmp_path / "export")
    lab = {"template": "{prompt} {response}", "fields": ["prompt"], "prompt": prompt, "stop": "</s>"}
    (folder / "lab.json").write_text(json.dumps(lab), "utf-8")
    with pytest.raises(ValueError, match=r"lab\.json: prompt has more than fields"):
        serving_ids.former_app(folder)({"prompt": "Hello"})


def test_the_answer_is_tokens_of_the_whole_text(written: Callable[[str], Path]) -> None:
    """A template that ends its prompt in a space: the space is the answer's, as in the whole text."""
    from transformers import AutoTokenizer

    from pipeline.inputs.prompts.training_ids import encode, prompt_ids

    for name in ("smollm", "llama3", "mistral", "gemma2"):
        tokenizer = AutoTokenizer.from_pretrained(written(name))
        template = templates.parse("{prompt} {response}")
        row = {"prompt": "Tell me about the town", "response": "The town is in a valley."}
        (text,) = templates.each(template, [row])
        asked, answer = encode(tokenizer, text, [tokenizer.eos_token_id])
        assert asked == prompt_ids(tokenizer, "Tell me about the town")
        assert [*asked, *answer][:-1] == prompt_ids(tokenizer, template.full(row))
        assert answer[-1] == tokenizer.eos_token_id


def test_a_cut_keeps_begin_of_text_and_the_marks_of_turns(written: Callable[[str], Path]) -> None:
    from pipeline.passes.rows import Rows

    source = written("llama3")
    template = templates.parse("chat", model_template.chat_template(source))
    rows = [
        {"prompt": "the town " * 80, "response": "yes"},
        {"prompt": "Hello", "response": "the sea " * 80},
        {"prompt": "the town " * 80, "response": "the sea " * 80, "system": "one two"},
        {"prompt": "Hello", "response": "yes"},
    ]
    shown = Rows(rows, template, source, 64, "response")
    opening = "<|begin_of_text|><|start_header_id|>"
    closing = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    for index in range(3):
        sample, labels = shown[index]
        text = shown.tokenizer.decode(sample["input_ids"])
        assert len(sample["input_ids"]) == 64
        assert text.startswith(opening + ("system" if index == 2 else "user"))
        assert closing in text
        assert labels[-1] == shown.tokenizer.eos_token_id
    assert shown[3][0]["input_ids"][0] == shown.tokenizer.bos_token_id
    assert shown.cut == {0, 1, 2}


def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    from pipeline.inputs.prompts.training_ids import prompt_ids

    made = Tokenizer.from_file(str(written("smollm") / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[(name, made.token_to_id(name)) for name in ("<|endoftext|>", "<|im_end|>")],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    plain = made.encode("Hello there", add_special_tokens=False).ids
    assert prompt_ids(tokenizer, "Hello there") == [made.token_to_id("<|endoftext|>"), *plain]


def test_the_shipped_reader_needs_nothing_of_the_lab(written: Callable[[str], Path], tmp_path: Path) -> None:
    """It is one file, imported in the exported folder by a process that cannot see the project."""
    import subprocess
    import sys

    folder = export(written("metaspace-first"), tmp_path / "export")
    code = (
        "import json, onnxruntime_genai as og, pathlib, lab_prompt\n"
        "tokenizer = og.Tokenizer(og.Config('.'))\n"
        "reader = lab_prompt.open_reader(pathlib.Path('.'), tokenizer)\n"
        "said = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': ' b '}] * 2\n"
        "rows = [{'prompt': 'Hello  there', 'system': 'x'}, {'messages': said[:3]}]\n"
        "print([reader.ids(row) for row in rows])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    reader = serving_ids.load(folder).reader
    rows: list[dict[str, Any]] = [{"prompt": "Hello  there", "system": "x"}, talks.talk("a", " b ", "a")]
    assert json.loads(done.stdout) == [reader.ids(row) for row in rows]
    assert reader.ids(rows[1]) != reader.ids({"prompt": "a"})
    assert (folder / "lab_prompt.py").read_bytes() == Path(lab_prompt.__file__).read_bytes()


@pytest.mark.parametrize("name", UNKNOWN)
def test_templates_reach_the_folder_s_app(written: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """`add_app` compares app.py's ids with training's; GenAI's own engine would not make them."""
    from transformers import AutoTokenizer

    from pipeline.inputs.prompts.training_ids import prompt_ids

    source = tmp_path / "model"
    shutil.copytree(written("smollm"), source)
    (source / "chat_template.jinja").write_text(FEATURES[name], "utf-8")
    folder = export(source, tmp_path / "export")
    former = {"template": "chat", "fields": ["prompt"], "prompt": None, "stop": ""}
    (folder / "lab.json").write_text(json.dumps(former), "utf-8")
    template = templates.parse("chat", model_template.chat_template(source))
    tokenizer = AutoTokenizer.from_pretrained(source)
    asked = [
        {"prompt": text, "response": ""} for text in ("Hello there", "A </think> b<|im_end|>", "<tool> x")
    ]
    with pytest.raises(LabError, match="Training and answering read different tokens"):
        serving_ids.require_same(
            template,
            asked,
            lambda text: prompt_ids(tokenizer, text),
            serving_ids.former_app(folder),
            "app.py",
            "",
        )


def test_stages_render_no_template_in_their_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even to compare what the shipped app.py writes: a template may do there what it did not before."""
    from pipeline.passes.optimize import same_ids
    from pipeline.passes.optimize.genai_builder import add_app

    monkeypatch.setattr(lab_prompt, "environment", lambda: pytest.fail("a template ran without limits"))
    source = zoo.write(next(iter(zoo.KINDS.values())), tmp_path / "model")
    # More than words around the row's own, so that it cannot be written ahead.
    template = "{% for m in messages %}<{{ m.content | upper }}>{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    made = zoo.exported(source, tmp_path / "export")
    add_app(made, source, "chat", templates.parse("chat", model_template.chat_template(source)))
    assert json.loads((made / "lab.json").read_text())["prompt"] is None
    same_ids.require(source, made, "chat", [{"prompt": "What now?", "response": ""}])
