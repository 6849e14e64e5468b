"""lengths: what is too long is counted, with its lines; a tokenizer that misbehaves ends alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import Busy, LabError
from pipeline.inputs.data import datasets, lengths, telling
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.prompts.templates import Rendered
from tests.helpers.lab import write_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A token a byte, with a begin-of-text token of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return write_tokenizer(folder / "tokenizer.json").parent


def counted(folder: Path, rows: list[tuple[str, str]], limits: Limits) -> Lengths:
    with Lengths(lambda: folder, "the-model", limits) as found:
        for i, (prompt, answer) in enumerate(rows):
            found.add(i, i + 1, Rendered(prompt, prompt + answer))
        found.count()
    return found


def test_tokens_are_counted_as_in_training(tokenizer: Path) -> None:
    """With <s> before and an end after; <s> is there once though the template writes one too."""
    rows = [("ab", "cde"), ("<s>ab", "cde</s>"), ("é", "")]
    with Lengths(lambda: tokenizer, "the-model", Limits(row=1)) as found:
        assert found._ask([(a, a + b) for a, b in rows]) == [(3, 4), (3, 4), (3, 1)]


def test_rows_and_prompts_that_are_too_long_are_named(tokenizer: Path) -> None:
    rows = [("a" * 9, "b" * 9), ("a" * 9, "b" * 10), ("a" * 30, "b"), ("a" * 29, "b"), ("a", "b")]
    found = counted(tokenizer, rows, Limits(row=20, context=31))
    assert (found.long_rows.first, found.long_prompts.first, list(found.unasked.numbers())) == (
        [2, 3, 4],
        [3],
        [2],
    )
    assert found.notes(5) == [
        "3 of 5 rows are longer than 20 tokens (finetune.max_length) and will be cut: lines 2, 3, 4.",
        "1 of 5 prompts is longer than the 31 tokens that the model reads, so nothing can answer: line 3.",
    ]


def test_the_first_lines_are_named_and_the_others_counted(tokenizer: Path) -> None:
    found = counted(tokenizer, [("a" * 50, "b")] * 1500, Limits(row=20))
    assert found.notes(1500) == [
        "All 1,500 rows are longer than 20 tokens (finetune.max_length) and will be cut:"
        " lines 1, 2, 3, 4, 5 and 1,495 more."
    ]


def test_rows_with_few_bytes_need_no_tokenizer() -> None:
    def never() -> Path:
        raise AssertionError("asked for")

    found = Lengths(never, "the-model", Limits(row=64, context=64))
    found.add(0, 1, Rendered("a" * 50, "a" * 56))
    assert not found.waits_for
    found.count()
    assert found.notes(1) == []
    for text in ("a" * 57, "é" * 20):  # a normalizer may write a letter out as several
        found.add(0, 1, Rendered(text, text))
        assert found.waits_for == "Getting the tokenizer of the-model…"
        found._batch.clear()


def test_why_there_is_no_tokenizer_is_passed_on() -> None:
    def none() -> Path:
        raise LabError("the-model is not here yet.")

    found = Lengths(none, "the-model", Limits(row=1))
    found.add(0, 1, Rendered("a", "ab"))
    found.count()
    found.add(1, 2, Rendered("a", "ab"))
    assert found.notes(2) == ["The lengths of long rows are not counted: the-model is not here yet."]


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_a_broken_tokenizer_is_a_note(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    found = counted(tmp_path, [("a" * 20, "b")], Limits(row=8))
    said = "The lengths of long rows are not counted: the tokenizer of the-model cannot be used."
    assert found.notes(1) == [said]


def test_a_tokenizer_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "SECONDS", 0.5)
    os.mkfifo(tmp_path / "tokenizer.json")  # opening it waits until somebody writes
    found = counted(tmp_path, [("a" * 200_000, "b")], Limits(row=8))
    assert "takes longer than" in found.notes(1)[0]
    assert found._process is None


def test_checking_counts_in_batches_and_says_what_it_waits_for(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "BATCH", 100)
    path = tmp_path / "data.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": "a" * (20 * (i % 3)), "response": "b"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    with Lengths(lambda: tokenizer, "the-model", Limits(row=30, context=40)) as counting:
        steps = datasets.checking(path, "{prompt}{response}", lengths=counting)
        assert next(steps) == "Getting the tokenizer of the-model…"
        report = telling.ended(steps)
    assert report.notes[:2] == [
        "10 of 30 rows are longer than 30 tokens (finetune.max_length) and will be cut:"
        " lines 5, 11, 17, 23, 29 and 5 more.",
        "10 of 30 prompts are longer than the 40 tokens that the model reads, so nothing can answer:"
        " lines 5, 11, 17, 23, 29 and 5 more.",
    ]
    assert report.unasked == ""


def test_where_no_held_out_prompt_can_be_asked_it_is_said(tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "{"a" * 60}{i}", "response": "b"}}\n' for i in range(10)))
    with Lengths(lambda: tokenizer, "the-model", Limits(context=50)) as counting:
        report = datasets.check(path, "{prompt}{response}", lengths=counting)
    assert report.unasked.startswith("No held-out prompt can be answered")


def test_the_end_of_the_app_is_the_end_of_its_processes(tokenizer: Path) -> None:
    counting = Lengths(lambda: tokenizer, "the-model", Limits(row=20))
    counting.add(0, 1, Rendered("a" * 50, "a" * 50 + "b"))
    counting.count()
    process = counting._process
    assert process is not None
    lengths.close()
    assert process.wait(60) != 0
    counting.add(1, 2, Rendered("a" * 50, "a" * 50 + "b"))
    counting.count()
    assert counting.unknown == "the tokenizer of the-model cannot be used."


def test_a_count_ends_with_an_app_that_is_killed(tmp_path: Path) -> None:
    """It may be in the middle of one, and what counts reads no pipe then."""
    os.mkfifo(tmp_path / "tokenizer.json")  # opening it waits until somebody writes
    command = [sys.executable, "-m", "pipeline.inputs.data.lengths", str(tmp_path)]
    app = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=settings.ROOT)
    assert app.stdin is not None
    assert app.stdout is not None
    app.stdin.write(b'""\n')  # the stop text, after which it opens the file
    app.stdin.flush()
    children = Path(f"/proc/{app.pid}/task/{app.pid}/children")
    while not children.read_text():
        assert app.poll() is None
    app.stdin.close()  # as the kernel does it for a process that is killed
    assert app.stdout.read() == b"", "the pipe is closed by the last of them"
    assert app.wait(60) == 0


def test_there_are_few_processes_at_once(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile tokenizer takes its minute of a core; a page may be asked to look at many."""
    monkeypatch.setattr(lengths, "WAIT_SECONDS", 0.01)
    long = Rendered("a" * 50, "a" * 50 + "b")
    busy = [Lengths(lambda: tokenizer, "the-model", Limits(row=20)) for _ in range(lengths.AT_ONCE + 1)]
    *others, last = busy
    for counting in others:
        counting.add(0, 1, long)
        counting.count()
    last.add(0, 1, long)
    with pytest.raises(Busy, match="others' rows are being counted just now; check again in a minute"):
        last.count()
    assert [counting.long_rows.count for counting in busy] == [1] * lengths.AT_ONCE + [0]
    for counting in others:
        counting.close()
    assert counted(tokenizer, [("a" * 50, "b")], Limits(row=20)).long_rows.count == 1


def test_of_rows_of_megabytes_only_what_is_too_long_already_is_counted(tokenizer: Path) -> None:
    counting = Lengths(lambda: tokenizer, "the-model", Limits(row=20, context=30))
    with counting:
        for position, (prompt, answer) in enumerate([("a" * 4_000_000, "b"), ("a", "b" * 4_000_000)]):
            counting.add(position, position + 1, Rendered(prompt, prompt + answer))
        assert counting._letters < 50_000
        counting.count()
    assert (counting.long_rows.count, counting.long_prompts.count) == (2, 1)
