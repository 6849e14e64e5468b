"""What a run or a folder offers to be asked: its sides, its adapters, the fields of its prompts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.exports import contract
from pipeline.exports.chat import sources
from pipeline.exports.chat.sources import Source
from tests.helpers import exports


def test_a_folder_of_very_many_adapters_is_not_offered(export: Path) -> None:
    for number in range(2000):
        os.link(export / exports.ADAPTER, export / f"{number}.onnx_adapter")
    with pytest.raises(InputError, match="has more than 64 adapters; move some elsewhere"):
        sources.of_folder(export, "model x")


@pytest.mark.parametrize(
    ("kinds", "sides", "said"),
    [
        (("onnx", "onnx_adapter"), ("base", "adapter"), None),
        (("onnx",), ("base",), "There is no adapter in run r; its base answers alone."),
        (("onnx", "merged"), ("adapter",), "merged into its weights; there is no base to compare with"),
    ],
)
def test_the_sides_of_a_run(
    tmp_path: Path, kinds: tuple[str, ...], sides: tuple[str, ...], said: str | None
) -> None:
    run: Any = SimpleNamespace(
        id="r", status="done", artifact=lambda kind: str(tmp_path) if kind in kinds else None
    )
    source = sources.of_run(run)
    assert source.sides == sides
    assert source.missing_side is None if said is None else said in str(source.missing_side)


def test_the_sides_of_a_folder_are_read_from_its_files(tmp_path: Path) -> None:
    def sides() -> tuple[str, ...]:
        return sources.of_folder(tmp_path, "x").sides

    assert sides() == ("base",)
    (tmp_path / "a.onnx_adapter").touch()
    assert sources.of_folder(tmp_path, "x").adapter == tmp_path / "a.onnx_adapter"
    (tmp_path / contract.ADAPTER).touch()
    assert sources.of_folder(tmp_path, "x").adapter == tmp_path / contract.ADAPTER
    assert sides() == sources.SIDES
    (tmp_path / contract.MERGED).touch()
    assert sides() == ("adapter",)
    with pytest.raises(InputError, match="no such folder"):
        sources.of_folder(tmp_path / "missing", "x")


def test_another_adapter_of_a_folder_can_be_asked(tmp_path: Path) -> None:
    for name in (contract.ADAPTER, "formal.onnx_adapter"):
        (tmp_path / name).touch()
    source = sources.of_folder(tmp_path, "folder x")
    elsewhere = tmp_path / "deep" / "mine.onnx_adapter"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    for given, expected in {
        "formal": tmp_path / "formal.onnx_adapter",
        "formal.onnx_adapter": tmp_path / "formal.onnx_adapter",
        str(elsewhere): elsewhere,
    }.items():
        assert sources.with_adapter(source, given) == replace(source, adapter=expected)
    with pytest.raises(InputError, match=r"there are adapter_weights\.onnx_adapter, formal\.onnx_adapter"):
        sources.with_adapter(source, "casual")
    with pytest.raises(InputError, match="is merged into its weights"):
        sources.with_adapter(replace(source, merged=True), "formal")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are parsed as JSON from now on."""
    texts: list[str] = []
    loads = json.loads

    def counted(text: Any, **how: Any) -> Any:
        texts.append(text)
        return loads(text, **how)

    monkeypatch.setattr(json, "loads", counted)
    return texts


def test_what_a_folder_says_of_its_prompts_is_parsed_once_until_it_changes(
    tmp_path: Path, parsed: list[str]
) -> None:
    source = Source("model", tmp_path, None, False)
    (tmp_path / "lab.json").write_text('{"template": "chat", "fields": ["a", "b"]}')
    for _ in range(20):
        assert sources.prompt_fields(source) == ("a", "b")
        assert sources.takes_system(source)
    assert len(parsed) == 1
    (tmp_path / "lab.json").write_text('{"template": "{other}", "fields": ["other"]}')
    assert (sources.prompt_fields(source), sources.takes_system(source)) == (("other",), False)
    assert len(parsed) == 2


def test_a_lab_json_beyond_real_ones_is_not_parsed(tmp_path: Path, parsed: list[str]) -> None:
    source = Source("model", tmp_path, None, False)
    start = '{"template": "chat", "fields": ["a"], "more": '
    for more in (
        f"[{'[],' * sources.MOST_PARTS}[]]}}",
        f'"{"x" * sources.LARGEST_LAB}"}}',
        "[" * (sources.MOST_PARTS + 1),
    ):
        (tmp_path / "lab.json").write_text(start + more)
        assert sources.prompt_fields(source) == ("prompt",)
    assert parsed == []
    (tmp_path / "lab.json").write_text(start + "[" * 9000 + "]" * 9000 + "}")  # deeper than Python reads
    assert sources.prompt_fields(source) == ("prompt",)
    (tmp_path / "lab.json").unlink()
    os.mkfifo(tmp_path / "lab.json")
    assert sources.prompt_fields(source) == ("prompt",)


def test_a_lab_json_with_as_many_added_tokens_as_gemma_3_is_read(tmp_path: Path) -> None:
    special = [[f"<unused{at}>", at, ""] for at in range(6_415)]
    lab = {"template": "chat", "fields": ["a", "b"], "reading": {"special": special}}
    (tmp_path / "lab.json").write_text(json.dumps(lab, indent=1))
    assert sources.prompt_fields(Source("model", tmp_path, None, False)) == ("a", "b")
