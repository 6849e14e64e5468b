"""One vocabulary for what checks say."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterator

import pytest

from pipeline import settings
from pipeline.exports import findings
from pipeline.exports.findings import Finding, Status, failed
from pipeline.system.files import to_json


def test_a_finding_survives_json() -> None:
    finding = Finding("disk", Status.FAILED, "is full")
    told = to_json(dataclasses.asdict(finding))
    assert json.loads(told)["status"] == "failed"
    assert Finding(**json.loads(told)) == finding
    assert failed([Finding(**json.loads(told)), Finding("name", Status.OK, "is free")]) == [finding]


def test_there_is_no_other_status() -> None:
    with pytest.raises(ValueError, match="good"):
        Finding("disk", "good", "has room")  # type: ignore[arg-type]  # as another release might say


def test_every_finding_of_ours_is_made_with_a_status() -> None:
    made = {
        ast.unparse(call.args[1])
        for path in (settings.ROOT / "pipeline").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Finding" and len(call.args) == 3
    }
    assert made <= {*(f"Status.{status.name}" for status in Status), "status"}


def test_of_missing_inputs_few_are_named_and_few_sentences_made() -> None:
    made = 0

    def sentences() -> Iterator[str]:
        nonlocal made
        for _ in range(100_000):
            made += 1
            yield "x is no input"

    assert (
        findings.some(sentences()) == "x is no input, x is no input, x is no input, and more than 1,000 more"
    )
    assert made == findings.NAMED_FAULTS + findings.COUNTED_FAULTS + 1
