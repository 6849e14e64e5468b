from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.stages import artifacts, quantize
from pipeline.stages.context import Artifact, Results
from pipeline.system import locks

OPTIONS = quantize.Options()


def made(home: Path, key: str = "k") -> artifacts.Stored:
    written = artifacts.part(home, "quantize", key)
    (written / "model").mkdir()
    (written / "model" / "weights").write_bytes(b"x" * 100)
    (written / "note.txt").write_text("note")
    results = Results(
        [Artifact("m", "checkpoint", written / "model"), Artifact("n", "note", written / "note.txt")],
        {"bits": 4, "loss": float("nan")},
    )
    return artifacts.keep(home, "quantize", key, written, results, 2.5)


def test_a_key_is_the_same_for_the_same_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    key = artifacts.key("quantize", OPTIONS, {"model": "a"})
    assert artifacts.key("quantize", quantize.Options(), {"model": "a"}) == key
    assert len(key) == 16


def test_a_key_changes_with_whatever_can_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        artifacts.key("quantize", OPTIONS, {"model": "a"}),
        artifacts.key("quantize", quantize.Options(bits=8), {"model": "a"}),
        artifacts.key("quantize", OPTIONS, {"model": "b"}),
        artifacts.key("quantize", OPTIONS, {"model": "a", "data": "c"}),
        artifacts.key("finetune", OPTIONS, {"model": "a"}),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "versions", lambda: {"torch": "0"})
        keys.append(artifacts.key("quantize", OPTIONS, {"model": "a"}))
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "code", lambda: "changed")
        keys.append(artifacts.key("quantize", OPTIONS, {"model": "a"}))
    assert len(set(keys)) == len(keys)


def test_our_own_code_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "pipeline" / "passes" / "pass.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr("pipeline.settings.ROOT", tmp_path)
    digests = []
    for text in ("a = 1", "a = 2"):
        source.write_text(text)
        artifacts.code.cache_clear()
        digests.append(artifacts.code())
    assert digests[0] != digests[1]
    predicts = tmp_path / "pipeline" / "stages" / "costs" / "cost.py"
    predicts.parent.mkdir(parents=True)
    predicts.write_text("a = 1")
    artifacts.code.cache_clear()
    assert artifacts.code() == digests[1], "what only predicts changes no result"
    artifacts.code.cache_clear()


# What stages import that decides nothing of what they make.
# The store comes with what asks a run's export, and an evaluation's probe asks as that does.
NEUTRAL = {"display.py", "errors.py", "home_check.py", "settings.py", "store", "writers.py"}


def imported(file: Path, root: Path) -> set[Path]:
    """The files of `pipeline` that a file of it imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {(root / name.replace(".", "/")).with_suffix(".py") for name in names}
    return {path for path in found if path.is_relative_to(root / "pipeline") and path.is_file()}


def test_all_that_stages_import_is_in_the_key_of_their_results() -> None:
    root = settings.ROOT / "pipeline"
    todo = [*(root / "passes").rglob("*.py"), *(root / "stages").glob("*.py")]
    seen = set(todo)
    while todo:
        new = imported(todo.pop(), root.parent) - seen
        seen |= new
        todo += new
    packages = {path.relative_to(root).parts[0] for path in seen}
    assert packages - NEUTRAL == set(artifacts.SOURCES)


def test_what_is_kept_is_found_again(home: Path) -> None:
    assert artifacts.find(home, "quantize", "k") is None
    kept = made(home)
    found = artifacts.find(home, "quantize", "k")
    assert found == kept
    assert found is not None
    assert (found.seconds, found.metrics) == (2.5, {"bits": 4, "loss": None})
    assert [(row["name"], row["kind"], row["bytes"]) for row in found.rows()] == [
        ("m", "checkpoint", 100),
        ("n", "note", 4),
    ]
    assert (Path(found.rows()[0]["path"]) / "weights").read_bytes() == b"x" * 100
    assert not list((home / "artifacts").glob("*.part"))


def test_a_result_may_be_the_whole_folder(home: Path) -> None:
    written = artifacts.part(home, "optimize", "k")
    (written / "model.onnx").write_bytes(b"graph")
    kept = artifacts.keep(home, "optimize", "k", written, Results([Artifact("m", "onnx", written)]), 1.0)
    assert kept.artifacts[0].path == home / "artifacts" / "optimize-k"


def test_results_alike_are_found_newest_first(home: Path) -> None:
    for age, (key, likeness) in enumerate((("old", "one"), ("other", "two"), ("new", "one"))):
        written = artifacts.part(home, "optimize", key)
        (written / "model.onnx").write_bytes(b"graph")
        results = Results([Artifact("m", "onnx", written)])
        kept = artifacts.keep(home, "optimize", key, written, results, 1.0, likeness)
        os.utime(kept.folder / artifacts.MANIFEST, (age, age))
    assert [stored.key for stored in artifacts.alike(home, "optimize", "one")] == ["new", "old"]
    (home / "artifacts" / "optimize-new" / artifacts.MANIFEST).write_text("")
    assert [stored.key for stored in artifacts.alike(home, "optimize", "one")] == ["old"]
    assert artifacts.alike(home, "quantize", "one") == []
    (home / "artifacts" / "optimize-old").rename(home / "artifacts" / "optimize-old.part")
    assert artifacts.alike(home, "optimize", "one") == []


def test_a_result_can_be_moved_with_its_home(home: Path, tmp_path: Path) -> None:
    made(home)
    (home / "artifacts").rename(tmp_path / "artifacts")
    found = artifacts.find(tmp_path, "quantize", "k")
    assert found is not None
    assert (found.artifacts[0].path / "weights").is_file()


@pytest.mark.parametrize("damage", ["empty manifest", "missing artifact"])
def test_a_damaged_result_is_not_found_and_made_anew(home: Path, damage: str) -> None:
    folder = made(home).folder
    if damage == "empty manifest":
        (folder / artifacts.MANIFEST).write_text("")
    else:
        (folder / "note.txt").unlink()
    assert artifacts.find(home, "quantize", "k") is None
    assert made(home).folder == folder


def test_a_part_begins_empty(home: Path) -> None:
    (artifacts.part(home, "quantize", "k") / "left").write_text("from a killed attempt")
    assert list(artifacts.part(home, "quantize", "k").iterdir()) == []


def test_sweep_deletes_what_nobody_writes_any_more(home: Path) -> None:
    artifacts.sweep(home)
    dead, living = artifacts.part(home, "quantize", "dead"), artifacts.part(home, "quantize", "living")
    kept = made(home)
    taken = locks.take(artifacts.lock(home, "quantize", "living"))
    assert taken is not None
    artifacts.sweep(home)
    os.close(taken)
    assert (dead.exists(), living.exists(), kept.folder.exists()) == (False, True, True)
