"""Examples put together from the dataset, the losses and the answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.evaluation.examples import rows
from pipeline.evaluation.examples.rows import Side, Sources
from pipeline.store.run import StageRun
from tests.helpers import examples, planted


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Five rows measured, of which one is answered; and an answer to a row that was not measured."""
    told = examples.rows(5)
    data = examples.write_data(tmp_path / "data.jsonl", told)
    losses = examples.write_losses(tmp_path / "rows.jsonl", told)
    answers = tmp_path / "answers.json"
    answered = [
        examples.answer("What is 2?", "It is 2.", "No.", "It is 2."),
        examples.answer("What is 9?", "It is 9.", "Who knows?", "It is nine."),
    ]
    answers.write_text(json.dumps({"rows": answered, "left_out": 0}))
    return Sources(str(data), "chat", str(answers), str(losses))


def test_losses_and_answers_meet_by_the_row(sources: Sources) -> None:
    found = list(rows.each(sources))
    assert [one.number for one in found] == [1, 2, 3, 4, 5, -2]
    assert found[1].adapter == Side("It is 2.")
    assert (found[1].base_loss, found[1].adapter_loss, found[1].difference) == (3.0, 1.0, -2.0)
    assert found[2].difference == pytest.approx(0.03)
    assert found[2].base is None
    assert (found[-1].prompt, found[-1].difference, found[-1].line) == ("What is 9?", None, None)


def test_an_answer_that_names_its_line_needs_no_comparison_of_texts(sources: Sources, tmp_path: Path) -> None:
    answered = [examples.answer("as it was asked", "as it was cut", "No.", "Yes.", line=4)]
    (tmp_path / "answers.json").write_text(json.dumps({"rows": answered}))
    found = {one.number: one for one in rows.each(sources)}
    assert found[4].adapter == Side("Yes.")
    assert len(found) == 5


def test_what_is_no_number_is_no_loss(sources: Sources, tmp_path: Path) -> None:
    entries = [
        '{"kind": "held_out", "line": 1, "tokens": 2, "base": null, "adapter": 3.0}',
        '{"kind": "held_out", "line": 2, "tokens": 0, "base": 1, "adapter": 1}',
        '{"kind": "held_out", "line": 3, "tokens": 2, "base": 1e999, "adapter": "x"}',
        '{"kind": "held_out", "line": 4, "tok',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(entries))
    found = list(rows.each(dataclasses.replace(sources, answers=None)))
    assert [(one.number, one.difference) for one in found] == [(1, None), (2, None), (3, None)]
    assert found[0].adapter_loss == 1.5


def test_what_is_too_large_for_a_number_is_none(sources: Sources, tmp_path: Path) -> None:
    huge = "9" * 400
    entries = [
        f'{{"kind": "held_out", "line": 1, "tokens": 2, "base": {huge}, "adapter": 3.0}}',
        f'{{"kind": "held_out", "line": 2, "tokens": {huge}, "base": 1.0, "adapter": 3.0}}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(entries))
    found = list(rows.each(dataclasses.replace(sources, answers=None)))
    assert [(one.base_loss, one.adapter_loss) for one in found] == [(None, 1.5), (None, None)]


def test_what_is_no_number_with_the_adapter_is_worse(sources: Sources, tmp_path: Path) -> None:
    lines = [{"base": 1.0, "adapter": None}, {"base": None, "adapter": None}, {"base": 1.0}]
    entries = [{"kind": "held_out", "line": n, "tokens": 2, **one} for n, one in enumerate(lines, 1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = list(rows.each(dataclasses.replace(sources, answers=None)))
    assert [one.is_worse for one in found] == [True, False, False]


def test_the_float_models_loss_is_beside_the_others(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the last row of those that are kept, of which it stands far behind."""
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    examples.write_losses(tmp_path / "rows.jsonl", examples.rows(5), [2.5, 2.6, 2.7, 2.8, 2.9])
    found = list(rows.each(sources))
    assert [one.float_loss for one in found] == [2.5, 2.6, 2.7, None]


def test_rows_that_no_template_fits_have_no_text(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"other": 1}\n{"prompt": ["x"], "response": null}\nnot json\n')
    found = list(rows.each(dataclasses.replace(sources, answers=None)))
    assert [(one.number, one.prompt) for one in found] == [(1, ""), (2, "['x']")]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1]}', '{"rows": 3}', '{"rows": ["x"]}', "\x80"])
def test_damaged_answers_are_one_sentence(sources: Sources, tmp_path: Path, text: str) -> None:
    (tmp_path / "answers.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match="answers of this run cannot be read"):
        list(rows.each(sources))


def test_answers_that_are_far_too_large_are_not_read(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LARGEST_ANSWERS", 10)
    with pytest.raises(InputError, match="too large to show"):
        list(rows.each(sources))


def test_losses_of_the_first_rows_only_are_kept(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_ROWS", 2)
    assert [one.number for one in rows.each(sources)] == [1, 2, -2]


@pytest.mark.parametrize(
    ("given", "there"),
    [("", "datasets/a/data.jsonl"), ("datasets/b/new.jsonl", "datasets/b/new.jsonl"), ("b/new.jsonl", None)],
)
def test_rows_are_those_of_the_file_that_was_measured(tmp_path: Path, given: str, there: str | None) -> None:
    for name in ("datasets/a/data.jsonl", "datasets/b/new.jsonl", "b/new.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        examples.write_data(tmp_path / name, examples.rows(1))
    stage = StageRun("evaluate", options={"data": str(tmp_path / given) if given else ""})
    run = dataclasses.replace(planted.record(stage), data=str(tmp_path / "datasets/a/data.jsonl"))
    assert rows.of_run(run).data == (str(tmp_path / there) if there else None)
