"""What earlier evaluations measured is reused, and only where it is the same number."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import exports
from tests.passes.measure.test_rows_compared import VARIED, evaluated

pytestmark = pytest.mark.chain

IDS, COUNTED = [1, 2, 3], [False, True, True]


@pytest.fixture
def export(written_export: Path, tmp_path: Path) -> Path:
    """A copy, whose files a test may change."""
    return Path(shutil.copytree(written_export, tmp_path / "optimize-0123"))


class Calls:
    """How often the model was asked: for losses by adapter, and for answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pipeline.exports import generation, token_losses

        self.losses: list[str | None] = []
        self.answers: list[str | None] = []
        measure, stream = token_losses.measure, generation.stream

        def measured(model: Any, ids: Any, counted: Any, adapter: str | None = None) -> Any:
            self.losses.append(adapter)
            return measure(model, ids, counted, adapter)

        def streamed(model: Any, prompt: str, adapter: str | None = None, **more: Any) -> Any:
            self.answers.append(adapter)
            return stream(model, prompt, adapter, **more)

        monkeypatch.setattr(token_losses, "measure", measured)
        monkeypatch.setattr(generation, "stream", streamed)

    def taken(self) -> tuple[int, int, int]:
        """Losses of the base and of the adapter, and answers, since the last call."""
        found = self.losses.count(None), self.losses.count("adapter"), len(self.answers)
        self.losses, self.answers = [], []
        return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two evaluations found the same losses and verdict."""
    names = ("rows", "base_loss", "adapter_loss", "base_perplexity", "adapter_loss_on_training_rows")
    numbers = ("outcome", "difference", "low", "high", "rows", "better")
    return all(one[name] == other[name] for name in names) and all(
        one["verdict"][name] == other["verdict"][name] for name in numbers
    )


def texts(folder: Path) -> list[tuple[str, str]]:
    rows = json.loads((folder / "out" / "answers.json").read_text())["rows"]
    return [(row["base"]["text"], row["adapter"]["text"]) for row in rows]


def test_a_second_evaluation_measures_only_what_is_new(
    export: Path, tmp_path: Path, calls: Calls, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    """More rows, more prompts, and checks; it finds what one without a memory does."""
    known = str(tmp_path / "measured")
    evaluated(export, tmp_path / "a", VARIED, rows=8, prompts=2, known=known)
    assert calls.taken() == (8 + 12, 8 + 8 + 12, 4)
    checks = json.dumps({"checks": "json"})
    again = evaluated(export, tmp_path / "b", VARIED, rows=20, prompts=4, known=known, checks=checks)
    base, adapter, answers = calls.taken()
    fresh = evaluated(export, tmp_path / "c", VARIED, rows=20, prompts=4, checks=checks)
    assert calls.taken() == (20 + 12, 20 + 20 + 12, 8)
    assert same(again, fresh)
    assert texts(tmp_path / "b") == texts(tmp_path / "c")
    assert base <= 20 - 4  # spread anew over the rows, some of which were measured
    assert adapter < 40 - 8
    assert answers <= 8 - 2
    assert any(
        "Reused from earlier evaluations of the same files: " in each.get("message", "")
        for each in reported()
    )
    evaluated(export, tmp_path / "d", VARIED, rows=20, prompts=4, known=known)
    assert calls.taken() == (0, 0, 0)


def test_another_adapter_is_measured_and_the_base_is_not(export: Path, tmp_path: Path, calls: Calls) -> None:
    import numpy as np

    known = str(tmp_path / "measured")
    before = evaluated(export, tmp_path / "a", VARIED, rows=4, known=known)
    calls.taken()
    width, rank = exports.WIDTH, exports.RANK
    draw = np.random.default_rng(9)
    tensors = {"a": draw.normal(size=(width, rank)), "b": draw.normal(size=(rank, width))}
    (export / exports.ADAPTER).unlink()
    exports.write_adapter(
        export / exports.ADAPTER, {name: value.astype(np.float32) for name, value in tensors.items()}
    )
    after = evaluated(export, tmp_path / "b", VARIED, rows=4, known=known)
    assert calls.taken() == (0, 4 + 4 + 12, 2)
    assert after["adapter_loss"] != before["adapter_loss"]
    assert same(after, evaluated(export, tmp_path / "c", VARIED, rows=4))


def test_with_another_graph_nothing_is_known(export: Path, tmp_path: Path, calls: Calls) -> None:
    """Nor with other weights, settings or files of the tokenizer."""
    known = str(tmp_path / "measured")
    evaluated(export, tmp_path / "a", VARIED, rows=4, known=known)
    first = calls.taken()
    weights = export / "model.onnx.data"
    content = bytearray(weights.read_bytes())
    content[3] ^= 0x01  # a bit of the first number
    weights.write_bytes(content)
    evaluated(export, tmp_path / "b", VARIED, rows=4, known=known)
    assert calls.taken() == first
    config = export / "genai_config.json"
    config.write_text(config.read_text() + "\n")
    evaluated(export, tmp_path / "c", VARIED, rows=4, known=known)
    assert calls.taken() == first


def test_rows_that_another_template_writes_are_others(export: Path, tmp_path: Path, calls: Calls) -> None:
    """Though the export's files were the same, the token ids tell."""
    from pipeline.exports import generation
    from pipeline.exports.contract import ADAPTER
    from pipeline.passes.measure.known import known_rows

    loaded = generation.load(export, {"adapter": export / ADAPTER})
    with known_rows.opened(tmp_path / "measured", export, {"adapter": export / ADAPTER}) as found:
        side = found.sides[None]
        one = side.loss(IDS, COUNTED, lambda: loss(2.0))
        assert side.loss(IDS, COUNTED, lambda: loss(9.0)) == one
        assert side.loss(IDS, [True, True, True], lambda: loss(3.0)).total == 3.0
        assert side.loss([1, 2, 4], COUNTED, lambda: loss(4.0)).total == 4.0
        assert found.sides["adapter"].loss(IDS, COUNTED, lambda: loss(5.0)).total == 5.0
        told = side.answer("a", [3, 9], lambda: {"text": "x"})
        assert side.answer("a", [3, 9], lambda: {"text": "y"}) == told
        assert side.answer("b", [3, 9], lambda: {"text": "y"})["text"] == "y"
        assert side.answer("a", [4, 9], lambda: {"text": "z"})["text"] == "z"
    assert loaded.names == {"adapter"}


def loss(total: float) -> Any:
    from pipeline.exports.token_losses import Loss

    return Loss(total, 2)


@pytest.fixture
def opened(export: Path, tmp_path: Path) -> Callable[[], Any]:
    from pipeline.passes.measure.known import known_rows

    return lambda: known_rows.opened(tmp_path / "measured", export, {})


def test_what_is_no_number_stays_so_and_torn_lines_are_dropped(
    opened: Callable[[], Any], tmp_path: Path
) -> None:
    with opened() as found:
        found.sides[None].loss(IDS, COUNTED, lambda: loss(math.nan))
        found.sides[None].loss([1, 2, 9], COUNTED, lambda: loss(7.0))
    (file,) = (tmp_path / "measured").glob("optimize-0123-*/losses.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    with opened() as found:
        assert math.isnan(found.sides[None].loss(IDS, COUNTED, lambda: loss(1.0)).total)
        assert found.sides[None].loss([1, 2, 9], COUNTED, lambda: loss(8.0)).total == 8.0
        assert found.reused() == "Reused from earlier evaluations of the same files: 1 losses"


def test_one_process_at_a_time_has_it_and_others_measure(opened: Callable[[], Any]) -> None:
    with opened() as found:
        found.sides[None].loss(IDS, COUNTED, lambda: loss(2.0))
        with opened() as other:
            assert other.sides[None].loss(IDS, COUNTED, lambda: loss(3.0)).total == 3.0
            assert other.sides[None].loss(IDS, COUNTED, lambda: loss(4.0)).total == 4.0
    with opened() as found:
        assert found.sides[None].loss(IDS, COUNTED, lambda: loss(5.0)).total == 2.0


def test_it_is_bounded_and_a_full_disk_or_a_freed_folder_is_no_failure(
    opened: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.passes.measure.known import known_rows

    monkeypatch.setattr(known_rows, "MOST_LOSSES", 2)
    monkeypatch.setattr(known_rows, "MOST_LETTERS", 3)
    with opened() as found:
        side = found.sides[None]
        for number in range(4):
            side.loss([1, 2, number], COUNTED, lambda number=number: loss(float(number)))
            side.answer(str(number), [1], lambda: {"text": "xx"})
    (folder,) = (tmp_path / "measured").glob("optimize-0123-*")
    assert len((folder / "losses.jsonl").read_text().splitlines()) == 1 + 2
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 1 + 1
    old = tmp_path / "measured" / "optimize-old-1"
    old.mkdir()
    (old / "losses.jsonl").write_bytes(b"x" * 1000)
    os.utime(old, (1, 1))
    monkeypatch.setattr(known_rows, "MOST_BYTES", 1000)
    with opened() as found:
        assert not old.exists()
        shutil.rmtree(folder)
        assert found.sides[None].loss([1, 2, 77], COUNTED, lambda: loss(1.0)).total == 1.0


def test_the_float_model_is_not_even_loaded_where_all_is_known(
    tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    from pipeline.passes.measure import float_losses
    from pipeline.passes.measure.known import known_rows

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    loads: list[Path] = []

    @contextmanager
    def loaded(folder: Path) -> Iterator[Any]:
        loads.append(folder)
        yield lambda ids, counted, adapter: loss(float(len(ids)))

    monkeypatch.setattr(float_losses, "loaded", loaded)
    for content, times in (("{}", 1), ("{}", 1), ("{ }", 2)):
        (model / "config.json").write_text(content)
        with (
            known_rows.opened(tmp_path / "measured", export, {}, model) as known,
            float_losses.known_or_loaded(model, known.exact) as measure,
        ):
            assert [measure(IDS, COUNTED, None).total for _ in range(2)] == [3.0, 3.0]
        assert len(loads) == times
