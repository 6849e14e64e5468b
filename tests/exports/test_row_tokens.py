"""row_tokens and row_view: a row's tokens are what training reads, and what serving reads is compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Busy, InputError, LabError
from pipeline.exports import row_tokens, row_view
from pipeline.exports.row_tokens import Shower
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import model_template, templates
from pipeline.system import own_process
from tests.helpers import talks, zoo
from tests.helpers.lab import write_tokenizer

ROW = {"prompt": "Tell me about the 🙂 town of Rome", "response": "The town is in 數據."}


@pytest.fixture(scope="module")
def shower(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shower]:
    """What shows rows with a tokenizer by its name and a template."""
    from transformers import AutoTokenizer

    root = tmp_path_factory.mktemp("zoo")

    def made(name: str, text: str = "chat", style: str = "") -> Shower:
        folder = root / name
        if not folder.is_dir():
            zoo.write(zoo.KINDS[name], folder)
        chat = model_template.chat_template(folder)
        assert chat is not None
        chat = templates.Chat(talks.STYLES[style], chat.tokens) if style else chat
        return Shower(AutoTokenizer.from_pretrained(folder), folder, text, chat if text == "chat" else None)

    return made


@pytest.mark.chain
@pytest.mark.parametrize("text", ["chat", "Q: {prompt}\\nA: {response}"])
@pytest.mark.parametrize(
    "name", ["llama3", "qwen2.5", "llama2", "llama2-legacy", "mistral", "phi3.5", "gemma2"]
)
def test_tokens_are_what_training_reads_and_serving_is_equal(
    shower: Callable[..., Shower], name: str, text: str
) -> None:
    from pipeline.passes.rows import Rows

    shows = shower(name, text)
    rows = [ROW, *([talks.TALK] if text == "chat" else [])]
    trained = Rows(rows, shows.template, shows._folder, 4096, "response")
    for index, row in enumerate(rows):
        found = shows.shown(row, 4096)
        sample, labels = trained[index]
        assert [token["id"] for token in found["tokens"]] == sample["input_ids"].tolist()
        learned = [token["kind"] in ("learned", "end") for token in found["tokens"]]
        assert learned == [label != -100 for label in labels.tolist()]
        assert sum(token["kind"] == "end" for token in found["tokens"]) == (1 if row is ROW else 3)
        assert found["served"]["equal"], found["served"]
        words = "".join(token["text"] for token in found["tokens"])
        whole = "".join(shows.template.full(row).split())  # some tokens take the spaces beside them
        assert "".join(words.split())[-40:] in f"{whole}{shows.tokenizer.eos_token}"
        assert "\ufffd" not in words


@pytest.mark.chain
def test_what_does_not_fit_is_shown_as_cut(shower: Callable[..., Shower]) -> None:
    from pipeline.passes.rows import Rows

    shows = shower("llama3")
    for row in ({"prompt": "the town " * 80, "response": "the sea " * 80}, talks.TALK):
        found = shows.shown(row, 40)
        kept = [token["id"] for token in found["tokens"] if token["kind"] != "cut"]
        assert kept == Rows([row], shows.template, shows._folder, 40, "response")[0][0]["input_ids"].tolist()
        assert found["counts"]["cut"] == len(found["tokens"]) - len(kept) > 0


@pytest.mark.chain
def test_serving_that_reads_other_ids_is_seen(
    shower: Callable[..., Shower], monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = shower("llama2-legacy", "Q: {prompt}\\nA: {response}")
    usual = row_tokens.serving_ids.derive
    monkeypatch.setattr(row_tokens.serving_ids, "derive", lambda *given: usual(*given) | {"space": ""})
    served = shows.shown(ROW, 4096)["served"]
    assert not served["equal"]
    assert row_view.verdict(served).endswith(f"from id {served['at'] + 1} on they differ.")


@pytest.mark.chain
def test_answers_that_are_rewritten_are_samples_that_begin_where_it_says(
    shower: Callable[..., Shower],
) -> None:
    shows = shower("qwen2.5", style="forgets")
    found = shows.shown(talks.talk("Where?", "<think>hm</think>Rome.", "Sure?", "Yes."), 4096)
    assert len(found["starts"]) == 2
    second = "".join(token["text"] for token in found["tokens"][found["starts"][1] :])
    assert "hm" not in second
    assert second.endswith("Yes.<|im_end|>")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[base_models.Model]:
    """A token a byte; ended with its processes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    write_tokenizer(folder / "tokenizer.json")
    yield base_models.Model(str(folder), "folder", "", {}, templates.Chat(zoo.CHATML, {}))
    row_view.close()


def data(folder: Path, *rows: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_one_process_answers_row_after_row_and_faults_are_sentences(
    tmp_path: Path, model: base_models.Model
) -> None:
    big = {"prompt": "x" * 900_000, "response": "y"}
    path = data(tmp_path, talks.TALK, {"prompt": "a"}, big)
    first = row_view.view(path, "chat", model, "line", 1, 4096)
    assert first["line"] == 1
    assert {token["kind"] for token in first["tokens"]} >= {"learned", "given", "end"}
    (process,) = row_view._processes
    with pytest.raises(InputError, match=r"data\.jsonl:2: the field 'response'"):
        row_view.view(path, "chat", model, "next", 1, 4096)
    long = row_view.view(path, "chat", model, "longest", 1, 512)
    assert (len(long["tokens"]), long["line"]) == (row_tokens.MOST_TOKENS, 3)
    assert long["left_out"] > 890_000
    assert long["counts"]["cut"] > 890_000
    with pytest.raises(InputError, match="no row is before line 1"):
        row_view.view(path, "chat", model, "previous", 1, 4096)
    with pytest.raises(InputError, match="template: "):
        row_view.view(path, "{prompt", model, "line", 1, 4096)
    assert list(row_view._processes) == [process], "the same one for all"


def test_a_tokenizer_that_cannot_be_used_is_a_sentence(tmp_path: Path, model: base_models.Model) -> None:
    (Path(model.id) / "tokenizer.json").write_text("{}")
    with pytest.raises(LabError, match=r"The tokenizer of .* cannot be used"):
        row_view.view(data(tmp_path, ROW), "chat", model, "line", 1, 4096)
    assert not row_view._processes


def test_where_all_places_are_taken_the_oldest_makes_room(
    tmp_path: Path, model: base_models.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_view, "MOST", 2)
    monkeypatch.setattr(row_view, "OLD_SECONDS", 600.0)
    folders = (Path(model.id), tmp_path)
    first, second = (row_view._taken(folders) for _ in range(2))
    path = data(tmp_path, ROW)
    with pytest.raises(Busy, match="Many others look at rows just now"):
        row_view.view(path, "chat", model, "line", 1, 4096)
    monkeypatch.setattr(row_view, "OLD_SECONDS", 0.0)
    assert row_view.view(path, "chat", model, "line", 1, 4096)["line"] == 1
    assert (first.wait(60), second.poll()) == (-signal.SIGKILL, None)
    row_view._left(folders, first, good=True)
    row_view._left(folders, second, good=True)
    assert first not in row_view._processes
    assert not row_view._ending


def test_without_a_chat_template_the_way_out_is_named(tmp_path: Path, model: base_models.Model) -> None:
    plain = base_models.Model(model.id, "folder", "", {}, None)
    with pytest.raises(InputError, match="has no chat template"):
        row_view.view(data(tmp_path, ROW), "chat", plain, "line", 1, 4096)


def test_the_process_sees_no_secret(tmp_path: Path, model: base_models.Model) -> None:
    os.environ["HF_TOKEN"] = "not-for-templates"
    try:
        row_view.view(data(tmp_path, ROW), "chat", model, "line", 1, 4096)
        (process,) = row_view._processes
        assert b"not-for-templates" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    finally:
        del os.environ["HF_TOKEN"]


def test_who_no_longer_waits_for_a_row_is_not_kept_waiting() -> None:
    """A tokenizer may take as long as a row has; whoever asked ends its process then."""

    class Left(Exception):
        pass

    def look() -> None:
        raise Left

    words = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as silent:
        with own_process.while_wanted(look), pytest.raises(Left):
            row_view._line(silent)
        silent.kill()
