"""Held-out rows that training has seen, or nearly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.inputs.data import datasets
from pipeline.inputs.data.card import leaks
from pipeline.inputs.prompts import templates

TEMPLATE = "{question}\n{answer}"


def found(path: Path, rows: list[dict[str, Any]], fraction: float = 0.5) -> tuple[set[int], datasets.Parts]:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")  # a blank line behind none
    template = templates.parse(TEMPLATE)
    parts = datasets.split(path, template, fraction, 0)
    return leaks.positions(path, template, parts), parts


def test_only_those_near_a_training_row_are_leaks(tmp_path: Path) -> None:
    long = "the quick brown fox jumps over the lazy dog and runs far away into the deep green forest "
    rows = [{"question": f"{long} {chr(97 + n) * 2}", "answer": long * 2} for n in range(10)]
    rows += [{"question": f"{n * 7919} {n} other {n * n}", "answer": f"{n}: {n * 104729}"} for n in range(10)]
    copies, parts = found(tmp_path / "rows.jsonl", rows)
    assert copies == {position for position in parts.held_out if position < 10}
    assert copies
    assert any(position >= 10 for position in parts.held_out)


def test_rows_that_are_all_equal_are_all_leaks(tmp_path: Path) -> None:
    rows = [{"question": "What is it?", "answer": "Nobody knows."}] * 8
    copies, parts = found(tmp_path / "rows.jsonl", rows)
    assert copies == set(parts.held_out)


def test_the_sample_has_none() -> None:
    path = Path(__file__).parents[4] / "data" / "samples" / "travel.jsonl"
    template = templates.parse("{prompt}\n{response}")
    parts = datasets.split(path, template, 0.1, 0)
    assert len(parts.held_out) == 14
    assert leaks.positions(path, template, parts) == set()


def test_conversations_are_read_too(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hello there, who are you?"},
                {"role": "assistant", "content": "I."},
            ]
        }
    ] * 6
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = templates.parse("chat", None)
    parts = datasets.split(path, template, 0.5, 0)
    assert leaks.positions(path, template, parts) == set(parts.held_out)


def test_rows_of_another_file_that_are_near_a_training_row_are_leaks(tmp_path: Path) -> None:
    """Not those that are near a row which is not trained on, nor near each other."""
    trained, other = tmp_path / "rows.jsonl", tmp_path / "prompts.jsonl"
    texts = {
        name: f"{word} jumps over the lazy dog and runs far away into the deep {word} forest of {word}"
        for name, word in (("learned", "fox"), ("held out", "wolverine"), ("new", "caterpillar"))
    }
    write = {trained: ["held out", "learned", "held out"], other: ["new", "new", "learned", "held out"]}
    for path, names in write.items():
        rows = [{"question": texts[name], "answer": texts[name]} for name in names]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = templates.parse(TEMPLATE)
    assert leaks.between(trained, [1], other, 4, template) == {2}
    assert leaks.between(trained, [0, 2], other, 4, template) == {3}
    assert leaks.between(trained, [], other, 4, template) == set()
