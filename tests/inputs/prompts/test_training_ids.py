"""A row's ids: what is counted before a run is what training cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.prompts import templates, training_ids
from tests.helpers import tiny, zoo

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
    template = templates.parse(text, templates.chat_template(folder))
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
