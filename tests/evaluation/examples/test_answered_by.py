"""Recorded answers name the files that gave them, and whatever is another file by now."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.examples import answered_by
from pipeline.evaluation.examples.answered_by import Answered
from pipeline.exports.chat.loaded_files import CHANGED

GRAPH = ("model.onnx", "model.onnx.data")
OWN, OTHER = "adapter_weights.onnx_adapter", "french.onnx_adapter"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An exported folder with two adapters, as far as it matters here."""
    folder = tmp_path / "export"
    folder.mkdir()
    for name in (*GRAPH, OWN, OTHER):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def told(export: Path) -> dict[str, Any]:
    """What an evaluation of it writes."""
    graph = {name: digest(export / name) for name in GRAPH}
    sides = {"base": "none", "adapter": digest(export / OWN), "adapter french": digest(export / OTHER)}
    return {side: {"adapter": adapter, "graph": graph} for side, adapter in sides.items()}


@pytest.fixture
def answered(export: Path, told: dict[str, Any]) -> Answered:
    answers = export.parent / "answers.json"
    answers.touch()
    return answered_by.read(told, str(export), str(export / OWN), str(answers))


def test_each_side_has_its_files(answered: Answered, told: dict[str, Any]) -> None:
    assert [name for name, _ in answered.lines] == ["Base", "With adapter", "With french"]
    assert answered.lines[0][1] == [("adapter", "none"), *told["base"]["graph"].items()]
    assert answered.lines[1][1][0] == ("adapter", told["adapter"]["adapter"])
    assert answered.sentence.startswith("Answered by: Base: adapter none, model.onnx ")
    assert told["adapter"]["adapter"][:12] in answered.sentence
    assert told["adapter"]["adapter"] not in answered.sentence
    assert answered.changes == []


def test_swapped_adapters_are_caught(answered: Answered, export: Path) -> None:
    (export / OWN).rename(export / "kept")
    (export / OTHER).rename(export / OWN)
    (export / "kept").rename(export / OTHER)
    own, other = answered.changes
    assert own.startswith(f"The adapter {OWN} is no longer the file that answered: ")
    assert digest(export / OTHER)[:12] in own
    assert own.endswith(f"{digest(export / OWN)[:12]} is there now.")
    assert OTHER in other


@pytest.mark.parametrize("name", GRAPH)
def test_a_graph_is_told_that_another_file_took_the_place_of(
    answered: Answered, export: Path, name: str
) -> None:
    """Also where that looks as old, and is as large."""
    before = (export / name).stat()
    new = export / "new"
    new.write_text(name.upper())
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(export / name)
    (said,) = answered.changes
    assert said.startswith(f"{name} is no longer the file that answered: ")
    (export / name).write_text(name)
    assert answered.changes == []
    (export / name).unlink()
    assert answered.changes[0].endswith("and it is gone now.")


def test_a_graph_that_nobody_touched_since_is_not_read(
    answered: Answered, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    summed = answered_by._sum

    def noted(file: Path) -> str | None:
        read.append(file.name)
        return summed(file)

    monkeypatch.setattr(answered_by, "_sum", noted)
    later = replace(answered, since=max((export / name).stat().st_ctime_ns for name in GRAPH) + 1)
    assert later.changes == []
    assert read == [OWN, OTHER]


def test_an_export_that_is_gone_is_named(answered: Answered, export: Path) -> None:
    shutil.rmtree(export)
    assert answered.changes == [answered_by.GONE]
    assert replace(answered, export=None).changes == [answered_by.GONE]


def test_a_graph_that_changed_while_it_was_loaded_is_not_known(export: Path, told: dict[str, Any]) -> None:
    told["base"]["graph"] = {"model.onnx": CHANGED}
    found = answered_by.read({"base": told["base"]}, str(export), None, None)
    assert found.changes == [f"model.onnx {CHANGED}, so which one answered is not known."]
    assert CHANGED in found.sentence


@pytest.mark.parametrize(
    "given",
    [None, [], {"base": 1}, {"base": {"adapter": "none"}}, {"base": {"adapter": None, "graph": {}}},
     {"base": {"adapter": "none", "graph": {"../model.onnx": "1"}}},
     {"base": {"adapter": "none", "graph": {"model.onnx": 1}}}],
)  # fmt: skip
def test_what_names_no_files_says_so(given: Any, export: Path) -> None:
    found = answered_by.read(given, str(export), None, None)
    assert (found.lines, found.sentence, found.changes) == ([], "", [answered_by.UNKNOWN])


def test_no_file_outside_the_export_is_looked_at(export: Path, told: dict[str, Any], tmp_path: Path) -> None:
    """Neither by a side's name nor by a link."""
    secret = tmp_path / "secret.onnx_adapter"
    secret.write_text("secret")
    (export / "link.onnx_adapter").symlink_to(secret)
    names = ("../secret", str(tmp_path / "secret"), "link", "../export/french", "a\0b")
    sides = {f"adapter {name}": told["adapter"] for name in names}
    changes = answered_by.read(told | sides, str(export), str(export / OWN), None).changes
    assert [said.partition(digest(secret)[:12])[1] for said in changes] == [""] * len(changes)
    assert sum(said.endswith("and it is gone now.") for said in changes) == len(names)
