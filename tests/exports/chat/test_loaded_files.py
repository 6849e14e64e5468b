"""Checksums of what a model was loaded from, whatever becomes of the files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.exports import generation
from pipeline.exports.chat import loaded_files
from pipeline.exports.chat.sources import Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A folder with a graph, its weights and an adapter."""
    for name in ("model.onnx", "model.onnx.data", "a.onnx_adapter"):
        (tmp_path / name).write_bytes(name.encode())
    return Source("x", tmp_path, tmp_path / "a.onnx_adapter", merged=False)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def loading(monkeypatch: pytest.MonkeyPatch, meanwhile: Any) -> list[bytes]:
    """Do something while a model is loaded; the bytes of the adapter that the runtime then gets."""
    seen: list[bytes] = []

    def load(folder: Path, adapters: dict[str, Path]) -> Any:
        meanwhile()
        seen.extend(path.read_bytes() for path in adapters.values())
        return SimpleNamespace(names=frozenset(adapters))

    monkeypatch.setattr(generation, "load", load)
    return seen


def test_the_adapter_is_loaded_from_the_bytes_that_were_summed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.adapter is not None
    seen = loading(monkeypatch, lambda: source.adapter and source.adapter.write_bytes(b"another"))
    loaded = loaded_files.load(source)
    assert (seen, loaded.adapter) == ([b"a.onnx_adapter"], digest("a.onnx_adapter"))
    assert loaded.adapter_now() == digest("another")
    source.adapter.unlink()
    assert loaded.adapter_now() is None
    assert loaded.graph() == {name: digest(name) for name in ("model.onnx", "model.onnx.data")}


def test_weights_that_change_while_they_are_loaded_have_no_checksum(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped() -> None:
        (source.folder / "new").write_bytes(b"other weights")
        (source.folder / "new").replace(source.folder / "model.onnx.data")

    loading(monkeypatch, swapped)
    told = loaded_files.load(source).graph()
    assert told == {"model.onnx": digest("model.onnx"), "model.onnx.data": loaded_files.CHANGED}


def test_weights_that_change_after_they_were_loaded_are_told(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a file that looks as old; a second name for the same file is none."""
    loading(monkeypatch, lambda: None)
    loaded = loaded_files.load(source)
    was = {name: digest(name) for name in ("model.onnx", "model.onnx.data")}
    assert loaded.graph() == loaded.graph_still() == was
    weights, graph = source.folder / "model.onnx.data", source.folder / "model.onnx"
    (source.folder / "linked").hardlink_to(graph)
    before = weights.stat()
    (source.folder / "new").write_bytes(weights.read_bytes()[::-1])
    (source.folder / "new").replace(weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert loaded.graph() == was
    assert loaded.graph_still() == {**was, "model.onnx.data": loaded_files.CHANGED}
    weights.unlink()
    assert loaded.graph_still() == {**was, "model.onnx.data": loaded_files.CHANGED}


def test_a_source_without_an_adapter_has_none(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading(monkeypatch, lambda: None) == []
    loaded = loaded_files.load(Source("x", source.folder, None, merged=False))
    assert (loaded.adapter, loaded.adapter_now(), loaded.model.names) == (None, None, frozenset())


def test_a_folder_with_very_many_graph_files_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(loaded_files.MOST_GRAPH_FILES):
        (source.folder / f"m{number}.onnx").touch()
    seen = loading(monkeypatch, lambda: None)
    with pytest.raises(LabError, match="more than 64 graph files; export it again"):
        loaded_files.load(source)
    assert seen == []


def test_other_adapters_are_loaded_under_their_files_names(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.adapter is not None
    (source.folder / "b c.onnx_adapter").write_bytes(b"more")
    others = (source.adapter, source.folder / "b c.onnx_adapter")
    seen = loading(monkeypatch, lambda: None)
    loaded = loaded_files.load(Source("x", source.folder, None, merged=False, others=others))
    assert loaded.model.names == {"a", "b c"}
    assert seen == [b"a.onnx_adapter", b"more"]
