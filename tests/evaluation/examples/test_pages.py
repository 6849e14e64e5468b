"""The table of examples: its order, its filters, its pages, and how much of a text it shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.evaluation.examples import pages
from pipeline.evaluation.examples.rows import Sources
from pipeline.inputs.data import telling
from tests.helpers import examples

ALL: dict[str, Any] = {"sort": "worst", "worse": False, "search": "", "start": 0}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """45 measured rows, of which every third is worse with the adapter."""
    told = examples.rows(45)
    data = examples.write_data(tmp_path / "data.jsonl", told)
    losses = examples.write_losses(tmp_path / "rows.jsonl", told, [2.5] * 45)
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"rows": [examples.answer("What is 2?", "It is 2.", "No.", "It is 2.")]}))
    return dataclasses.asdict(Sources(str(data), "chat", str(answers), str(losses)))


def page(sources: dict[str, Any], **given: Any) -> dict[str, Any]:
    found: Generator[str, None, dict[str, Any]] = pages.page(sources, **{**ALL, **given})
    return telling.ended(found)


def lines(found: dict[str, Any]) -> list[int]:
    return [row["line"] for row in found["rows"]]


def test_each_order_has_its_first_rows(sources: dict[str, Any]) -> None:
    assert lines(page(sources))[:3] == [45, 42, 39]
    assert lines(page(sources, sort="best"))[:3] == [1, 2, 4]
    assert lines(page(sources, sort="line"))[:3] == [1, 2, 3]
    assert lines(page(sources, sort="base"))[:3] == [1, 2, 3]
    assert lines(page(sources, sort="adapter"))[:3] == [45, 42, 39]


def test_a_page_names_the_files_that_answered(sources: dict[str, Any], tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_text("graph")
    named = {"base": {"adapter": "none", "graph": {graph.name: hashlib.sha256(b"graph").hexdigest()}}}
    given = {**sources, "files": named, "export": str(tmp_path)}
    found = page(given)
    files = [["adapter", "none"], ["model.onnx", named["base"]["graph"]["model.onnx"]]]
    assert json.loads(json.dumps(found["files"])) == [{"side": "Base", "files": files}]
    assert found["changed"] == []
    graph.write_text("another")
    assert "model.onnx is no longer the file that answered" in page(given)["changed"][0]


def test_pages_go_on_where_the_last_one_ended(sources: dict[str, Any]) -> None:
    found = [page(sources, start=start) for start in (0, 20, 40, 60)]
    assert [len(one["rows"]) for one in found] == [20, 20, 5, 0]
    assert sorted(line for one in found for line in lines(one)) == list(range(1, 46))
    assert {one["total"] for one in found} == {45}


def test_only_rows_that_are_worse_or_hold_a_text(sources: dict[str, Any]) -> None:
    assert page(sources, worse=True)["total"] == 15
    assert {row["float_loss"] for row in page(sources, worse=True)["rows"]} == {2.5}
    assert lines(page(sources, worse=True, search="IS 45")) == [45]
    assert lines(page(sources, search="no.")) == [2]  # in an answer
    assert page(sources, search="nowhere")["rows"] == []


def test_a_long_text_is_shortened_and_can_be_had_whole(sources: dict[str, Any]) -> None:
    long = "word " * 8000
    answered = [examples.answer("What is 2?", "It is 2.", long, "It is 2.")]
    Path(sources["answers"]).write_text(json.dumps({"rows": answered}))
    found = page(sources, search="what is 2?")["rows"][0]
    assert found["short"] is True
    assert len(found["base"]["text"]) == pages.SHORT
    assert len(json.dumps(found)) < 5000
    whole = telling.ended(pages.whole(sources, found["number"]))
    assert whole["base"]["text"] == long
    assert whole["words"]["base"] is None  # too long to be compared
    assert whole["words"]["adapter"] == [(0, "It is 2.")]


def test_the_float_models_and_other_adapters_answers_are_beside_the_others(sources: dict[str, Any]) -> None:
    """Found by their words, shortened, and marked; other names in the file are none."""
    long = "word " * 8000
    more = {"float": {"text": "It is two."}, "adapter fr": {"text": long, "cut": True}}
    answered = [examples.answer("What is 2?", "It is 2.", "No.", "Yes.", **more, other={"text": "x"})]
    Path(sources["answers"]).write_text(json.dumps({"rows": answered}))
    found = page(sources, search="it is TWO.")
    assert found["more"] == {"float": "Float model", "adapter fr": "With fr"}
    (row,) = found["rows"]
    assert row["more"]["float"] == {"text": "It is two.", "cut": False}
    assert (len(row["more"]["adapter fr"]["text"]), row["short"]) == (pages.SHORT, True)
    assert row["words"]["float"] == [(0, "It is"), (1, " 2"), (2, " two"), (0, ".")]
    whole = telling.ended(pages.whole(sources, row["number"]))
    assert whole["more"]["adapter fr"] == {"text": long, "cut": True}
    assert page(sources, search="what is 3?")["more"] == {}


def test_of_many_adapters_a_few_are_shown(sources: dict[str, Any]) -> None:
    more = {f"adapter {n}": {"text": "It is 2."} for n in range(pages.MOST_SIDES + 2)}
    answered = [examples.answer("What is 2?", "It is 2.", "No.", "Yes.", **more)]
    Path(sources["answers"]).write_text(json.dumps({"rows": answered}))
    found = page(sources, search="what is 2?")
    (row,) = found["rows"]
    assert (len(found["more"]), len(row["more"]), found["hidden"]) == (pages.MOST_SIDES, pages.MOST_SIDES, 2)
    assert telling.ended(pages.whole(sources, row["number"]))["more"].keys() == found["more"].keys()


def test_an_example_that_is_not_there_is_said(sources: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no longer there"):
        telling.ended(pages.whole(sources, 99))
