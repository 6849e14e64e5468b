"""A row's ids: what is counted before a run is what training cuts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.prompts import model_template, templates, training_ids
from tests.helpers import talks, tiny, zoo

pytestmark = pytest.mark.chain
TEXT = "Q: {prompt}\\nA: {response}"
KINDS = [("llama2-legacy", TEXT), ("llama2-own-bos", "chat"), ("phi3.5", TEXT), ("llama3", "chat")]
TEXTS = [
    {"prompt": "Tell me about the town" + " of Rome" * i, "response": "See the sea, " * (i % 5) + "12345"}
    for i in range(40)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer by its name, written once, with a config as a model has it."""
    root = tmp_path_factory.mktemp("zoo")

    def write(name: str) -> Path:
        if not (root / name).is_dir():
            zoo.write(zoo.KINDS[name], root / name)
            kind = "gemma2" if name == "gemma2" else "llama"
            (root / name / "config.json").write_text(json.dumps({"model_type": kind}))
        return root / name

    return write


@pytest.mark.parametrize(("name", "text"), KINDS)
def test_rows_that_are_counted_are_those_that_are_cut(
    written: Callable[[str], Path], name: str, text: str
) -> None:
    from pipeline.passes.rows import Rows

    folder = written(name)
    template = templates.parse(text, model_template.chat_template(folder))
    shown = Rows(TEXTS, template, folder, 1 << 20, "response")
    lengths = sorted(len(shown[i][0]["input_ids"]) for i in range(len(shown)))
    wanted, found = [], []
    limits = range(lengths[len(lengths) // 2] - 2, lengths[len(lengths) // 2] + 3)
    with Lengths(lambda: folder, name, Limits(row=1), lambda: template.stop) as counting:
        for position, row in enumerate(shown.texts):
            counting.add(position, position + 1, row)
        counts = counting._ask([(row.prompt, row.full) for row in shown.texts])
    for limit in limits:
        cut = Rows(TEXTS, template, folder, limit, "response")
        for i in range(len(cut)):
            cut[i]
        wanted.append(sorted(cut.cut))
        found.append([i for i, (prompt, answer) in enumerate(counts) if prompt + answer > limit])
    assert found == wanted
    assert len({len(rows) for rows in wanted}) > 1


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = tiny.tokenizer()
    made.eos_token = None
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(LabError, match=r"has no token that ends a text; set eos_token in its"):
        training_ids.end_tokens(loaded, tmp_path)
    assert training_ids.end_tokens(loaded, tmp_path, "<|im_start|>") == [1]


STYLES = {
    "llama2": "llama2", "llama2-legacy": "llama2", "llama3": "llama3", "phi3.5": "phi3.5",
    "qwen2.5": "qwen2.5", "gemma2": "gemma", "mistral": "mistral", "metaspace-first": "qwen2.5",
    "smollm": "qwen2.5",
}  # fmt: skip
ENDS = {"llama2": "</s>", "llama3": "<|eot_id|>", "phi3.5": "<|end|>", "gemma": "<end_of_turn>"}


def learned(shown: Any, index: int) -> list[tuple[list[int], list[int]]]:
    """(what stands before it, itself) of each run of labelled tokens of a sample."""
    sample, labels = shown[index]
    ids, found = sample["input_ids"].tolist(), []
    for at, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        assert label == ids[at]
        if at == 0 or labels[at - 1] == -100:
            found.append((ids[:at], []))
        found[-1][1].append(label)
    return found


def conversations_of(written: Callable[[str], Path], tmp_path: Path, name: str, style: str) -> Any:
    """`Rows` maker for a tokenizer with a chat template of a style."""
    from pipeline.passes.rows import Rows

    folder = shutil.copytree(written(name), tmp_path / "model")
    (folder / "chat_template.jinja").write_text(talks.STYLES[style], "utf-8")
    if style == "phi3.5":  # its own says that <|end|> ends an answer too
        tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
        ends = [token["id"] for token in tokens if token["content"] in ("<|endoftext|>", "<|end|>")]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    template = templates.parse("chat", model_template.chat_template(folder))

    def made(rows: list[dict[str, Any]], most: int = 4096) -> Any:
        return Rows(rows, template, folder, most, "response")

    return made


@pytest.mark.parametrize(("name", "style"), STYLES.items())
def test_every_answer_is_learned_with_its_end_and_nothing_else(
    written: Callable[[str], Path], tmp_path: Path, name: str, style: str
) -> None:
    """And before each stands what is read when it is asked at that point."""
    shown = conversations_of(written, tmp_path, name, style)([talks.TALK])
    end = ENDS.get(style, {"mistral": "</s>", "qwen2.5": "<|im_end|>"}.get(style, ""))
    assert len(shown) == 1
    found = learned(shown, 0)
    words = [shown.tokenizer.decode(ids) for _, ids in found]
    last = words.pop()
    assert [text.strip() for text in words] == [f"Rome.{end}", f"No.{end}"]
    assert last.strip().startswith(f"Then go there.{end}")
    for turn, (before, _) in enumerate(found):
        asked = {"messages": talks.TALK["messages"][: 2 * turn + 1]}
        assert before == training_ids.prompt_ids(shown.tokenizer, shown.template.prompt(asked))


def test_answers_that_later_turns_rewrite_are_samples_of_their_own(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    make = conversations_of(written, tmp_path, "qwen2.5", "forgets")
    shown = make([talks.talk("Where?", "<think>hm</think>Rome.", "Sure?", "Yes."), talks.TALK])
    assert len(shown) == 3
    ends = "<|im_end|>"
    words = [[shown.tokenizer.decode(ids) for _, ids in learned(shown, index)] for index in range(3)]
    assert words[:2] == [[f"<think>hm</think>Rome.{ends}"], [f"Yes.{ends}"]]
    assert words[2] == [f"Rome.{ends}", f"No.{ends}", f"Then go there.{ends}"]


def test_without_an_end_token_of_the_template_each_answer_is_a_sample(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    """Between turns nothing says that an answer has ended, so it could not be learned there."""
    make = conversations_of(written, tmp_path, "qwen2.5", "qwen2.5")
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(plain)
    shown = make([])
    shown.template = templates.parse("chat", templates.Chat(plain))
    shown.rows = [talks.TALK]
    assert len(shown) == 3
    for index, answer in enumerate(("Rome.", "No.", "Then go there.")):
        ((before, ids),) = learned(shown, index)
        assert shown.tokenizer.decode(ids) == f" {answer}<|im_end|>"
        assert shown.tokenizer.decode(before).endswith("assistant:")


def test_a_long_conversation_keeps_the_turns_that_fit(written: Callable[[str], Path], tmp_path: Path) -> None:
    make = conversations_of(written, tmp_path, "llama3", "llama3")
    whole = make([talks.TALK])
    before, answer = learned(whole, 0)[1]
    fits = len(before) + len(answer)
    for most, count in ((fits, 2), (fits - 1, 1)):
        shown = make([talks.TALK], most)
        assert learned(shown, 0) == learned(whole, 0)[:count]
        assert len(shown[0][0]["input_ids"]) == len(before) + len(answer) if count == 2 else True
        assert shown.cut == {0}
    long = make([talks.talk("the town", "yes", "And?", "the sea " * 80)], 64)
    (_, first), (_, second) = learned(long, 0)[:2]
    assert len(long[0][0]["input_ids"]) == 64
    assert long.tokenizer.decode(first) == "yes<|eot_id|>"
    assert long.tokenizer.decode(second).startswith("the sea the sea")
    assert long.tokenizer.decode(second).endswith("<|eot_id|>")
    short = make([talks.talk("the town " * 80, "yes", "And?", "no")], 32)
    ((_, ids),) = learned(short, 0)
    assert len(short[0][0]["input_ids"]) == 32
    assert short.tokenizer.decode(ids) == "yes<|eot_id|>"


def test_conversations_that_are_counted_are_those_that_are_cut(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = [talks.talk(*["the town of Rome"] * 2 * turns) for turns in range(1, 9)]
    for style in ("qwen2.5", "forgets"):
        make = conversations_of(written, tmp_path / style, "qwen2.5", style)
        if style == "forgets":
            for row in rows:
                row["messages"][1]["content"] = "<think>" + "so " * 30 + "</think>Rome"
        shown = make(rows, 80)
        for index in range(len(shown)):
            shown[index]
        with Lengths(lambda: tmp_path / style / "model", "m", Limits(row=80, context=100)) as counting:  # noqa: B023
            for position, row in enumerate(shown.texts):
                counting.add(position, position + 1, row)
            counting.count()
        assert counting.long_rows.count == len(shown.cut) > 0
        assert counting.long_rows.first == sorted(position + 1 for position in shown.cut)[:5]
        assert 0 < len(counting.unasked) < len(shown.cut)
