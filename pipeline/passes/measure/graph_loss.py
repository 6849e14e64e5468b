"""Whether an exported graph has kept what its adapter learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.data.config import DataConfig

from pipeline.exports.contract import ADAPTER
from pipeline.inputs.data.sampling import spread
from pipeline.passes.finetune.held_out import MOST_ROWS
from pipeline.passes.measure.graph_logits import logits_of
from pipeline.passes.measure.perplexity import loss_of_logits
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit


def held_out(folder: Path, config: DataConfig | dict[str, Any]) -> float:
    """Loss of an exported folder's graph with its adapter, in nats a learned token, on the rows that the
    trained adapter was judged by. Raises what onnxruntime raises for a graph that it cannot load."""
    rows = dataset_of(config)
    logits = logits_of(folder, folder / ADAPTER)
    measured = [rows[i] for i in spread(range(len(rows)), MOST_ROWS)]

    def tell(done: int) -> None:
        emit(
            message=f"Held-out loss of the graph: row {done + 1} of {len(measured)}",
            progress=0.8 + 0.15 * done / len(measured),
        )

    return loss_of_logits(logits, [(row["input_ids"], labels) for row, labels in measured], tell)
