"""The loss of a graph that is loaded while its adapter is still being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.passes.measure.graph_logits import load, logits_of
from pipeline.passes.measure.graph_loss import Judging
from pipeline.passes.measure.perplexity import loss_of_logits
from pipeline.passes.rows import dataset_of
from pipeline.stages import optimize, workflow_parts
from tests.helpers import exports, tiny
from tests.helpers.carry import context_of

pytestmark = pytest.mark.chain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return exports.write(tmp_path / "export")


@pytest.fixture
def held_out(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The held-out rows of a small dataset, as the export's tokenizer reads them."""
    data = tiny.dataset(tmp_path / "rows.jsonl")
    context = context_of(tmp_path, folder, data=data, config={})
    return workflow_parts.rows("held_out", context, part="eval", **optimize.HELD_OUT)


def test_the_adapter_counts_that_was_written_meanwhile(folder: Path, held_out: dict[str, Any]) -> None:
    adapter = folder / exports.ADAPTER
    kept = adapter.read_bytes()
    adapter.unlink()
    with Judging(folder) as judging:
        adapter.write_bytes(kept)
        found = judging.held_out(held_out)
    texts = [(row["input_ids"], labels) for row, labels in dataset_of(held_out)]
    assert found == loss_of_logits(logits_of(folder, adapter), texts)
    assert found != loss_of_logits(logits_of(folder), texts)


def test_a_graph_that_cannot_be_loaded_fails_as_it_would_alone(
    folder: Path, held_out: dict[str, Any]
) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(Exception, match=r"model\.onnx") as alone:
        load(folder)
    with Judging(folder) as judging, pytest.raises(type(alone.value)) as meanwhile:
        judging.held_out(held_out)
    assert str(meanwhile.value) == str(alone.value)


def test_what_fails_meanwhile_is_what_is_said(folder: Path) -> None:
    """Also where the graph cannot be loaded either: that comes after it."""
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match="the adapter"), Judging(folder):
        raise ValueError("the adapter does not fit")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_the_runtime_can_be_started_ahead_and_where_it_cannot_nothing_is_said() -> None:
    from pipeline.passes.measure import graph_logits

    assert graph_logits.multiply(cuda=False)
    thread = graph_logits.start_cuda()  # without a GPU, CUDA's provider is left out, or cannot be loaded
    thread.join(60)
    assert not thread.is_alive()
