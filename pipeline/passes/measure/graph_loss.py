"""Whether an exported graph has kept what its adapter learned."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from olive.data.config import DataConfig

from pipeline.exports.contract import ADAPTER
from pipeline.inputs.data.sampling import spread
from pipeline.passes.finetune.held_out import MOST_ROWS
from pipeline.passes.measure.graph_logits import load, logits_of
from pipeline.passes.measure.perplexity import loss_of_logits
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit


class Judging:
    """Measures an exported folder's graph with its adapter, which may still be written: the graph, which
    takes seconds, is loaded from a thread from now on. A context manager, whose end waits for that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1)
        self._session = self._pool.submit(load, folder)

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def held_out(self, config: DataConfig | dict[str, Any]) -> float:
        """The loss in nats a learned token, on the rows that the trained adapter was judged by. Raises what
        onnxruntime raises for a graph that it cannot load."""
        rows = dataset_of(config)
        measured = [rows[i] for i in spread(range(len(rows)), MOST_ROWS)]
        logits = logits_of(self._folder, self._folder / ADAPTER, session=self._session.result())

        def tell(done: int) -> None:
            emit(
                message=f"Held-out loss of the graph: row {done + 1} of {len(measured)}",
                progress=0.8 + 0.15 * done / len(measured),
            )

        return loss_of_logits(logits, [(row["input_ids"], labels) for row, labels in measured], tell)
