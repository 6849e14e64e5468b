"""A scorecard: one base quantized in several ways, each measured by an ordinary run of the same group.

So every way has a log, can be canceled, retried and compared, and later runs can reuse its results.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.runs import submit
from pipeline.stages import optimize, quantize, score
from pipeline.stages.recipe import Recipe
from pipeline.store import Store
from pipeline.store.run import DONE, Run

ALONE = "awq-alone"  # without GPTQ after it
# Command-line word to changes of the recipe's quantize options.
WAYS: dict[str, dict[str, Any]] = {
    "rtn": {"algorithm": "rtn", "engine": "lab", "compensate": False},
    "gptq": {"algorithm": "gptq", "engine": "lab", "compensate": False},
    "awq": {"algorithm": "awq", "engine": "lab"},  # and GPTQ after it, as the recipe says
    ALONE: {"algorithm": "awq", "engine": "lab", "compensate": False},
    "autoawq": {"algorithm": "awq", "engine": "autoawq", "compensate": False},
}
FLOAT = "float"  # not quantized: the reference for the others
DEFAULT = (FLOAT, "rtn", "gptq", "awq")
PREFIX = "scorecard-"
MOST_LOSS = 700.0  # nats, beyond which there is no perplexity that a number could hold


@dataclass(frozen=True)
class Row:
    """The measurements of one way of quantizing. A cell is None if not measured; then `note` says why."""

    algorithm: str
    run: str
    status: str
    created: float = 0.0  # seconds since the epoch
    model: str = ""
    bytes: int | None = None  # of the exported folder
    data_perplexity: float | None = None  # of the checkpoint, as the next three
    data_divergence: float | None = None  # nats a token, from the model that is not quantized
    general_perplexity: float | None = None
    general_divergence: float | None = None
    exported_perplexity: float | None = None  # of the graph, on the start of the general text
    exported_divergence: float | None = None
    seconds: float | None = None  # of quantizing
    peak_memory_bytes: int | None = None  # of quantizing, on the host
    peak_gpu_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    rows: int | None = None  # whose responses the next three are of; None: earlier versions read none so
    exported_loss: float | None = None  # of the graph, in nats a token, the mean over rows
    float_loss: float | None = None  # of the float model, on the same
    exported_data_perplexity: float | None = None  # of the graph, over all tokens of them, as data_perplexity
    against_float: dict[str, Any] | None = None  # how these two compare row by row: see `evaluation.against`
    copies_left_out: int | None = None  # held-out rows that nearly repeat training rows: in no figure
    note: str = ""

    @property
    def of_checkpoint(self) -> bool:
        """Whether `against_float` is of the checkpoint: earlier versions did not read rows by the export."""
        return self.against_float is not None and self.rows is None

    @property
    def typical_perplexity(self) -> float | None:
        """Of the graph on a typical response: e to the mean loss over rows, which is what verdicts and their
        intervals are of. None where that was not measured, as by earlier versions."""
        return None if self.exported_loss is None else math.exp(min(self.exported_loss, MOST_LOSS))


def start(
    store: Store,
    base: Recipe,
    algorithms: list[str],
    owner: str | None = None,
    note: submit.Say | None = None,
) -> tuple[str, dict[str, str]]:
    """Queue a run for each algorithm; return the group's name and, by algorithm, why one was refused.

    `note` gets remarks about the data. Raises InputError if an algorithm is unknown, or if none can run.
    """
    unknown = [name for name in algorithms if name not in (FLOAT, *WAYS)]
    if unknown or not algorithms:
        raise InputError(
            f"algorithms: {display.names(unknown) or 'none is given'};"
            f" allowed: {', '.join((FLOAT, *WAYS))}, joined by commas"
        )
    group = f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    made = {name: recipe(base, name, group) for name in dict.fromkeys(algorithms)}
    found = dict(zip(made, submit.checked(list(made.values())), strict=True))
    wrong = {name: outcome for name, outcome in found.items() if isinstance(outcome, InputError)}
    if len(wrong) == len(made):
        problems = [problem for error in wrong.values() for problem in error.problems]
        raise InputError(list(dict.fromkeys(problems)))
    passed = [(made[name], outcome) for name, outcome in found.items() if isinstance(outcome, submit.Passed)]
    submit.queue_all(store, passed, owner, note)
    return group, {name: " ".join(error.problems) for name, error in wrong.items()}


def recipe(base: Recipe, algorithm: str, group: str) -> Recipe:
    """The recipe that measures one algorithm: quantize, export, score."""
    if base.quantize is None:
        raise InputError("quantize: null leaves nothing to compare; give it options or leave it out")
    changed: dict[str, Any] = {
        "name": f"{algorithm} of {base.name}"[:100],
        "group": group,
        "finetune": None,
        "evaluate": None,
        # There is no adapter to merge.
        "optimize": dataclasses.replace(base.optimize or optimize.Options(), adapter="detachable"),
        "score": base.score or score.Options(),
    }
    if algorithm == FLOAT:
        precision = "fp16" if changed["optimize"].device == "gpu" else "fp32"
        changed["optimize"] = dataclasses.replace(
            changed["optimize"], precision=precision, lm_head="auto", embedding="auto"
        )
        return dataclasses.replace(base, quantize=None, **changed)
    options = dataclasses.replace(base.quantize, **WAYS[algorithm])
    return dataclasses.replace(base, quantize=options, **changed)


def rows(store: Store, group: str) -> list[Row]:
    """What is measured so far, in the order the algorithms were asked for."""
    return _rows([run for run in store.list(group=group) if run.recipe.get("group") == group])


def every(store: Store) -> dict[str, list[Row]]:
    """The rows of all scorecards by group, the newest first."""
    runs: dict[str, list[Run]] = {}
    for run in store.list(group=PREFIX):
        runs.setdefault(run.recipe["group"], []).append(run)
    return {group: _rows(found) for group, found in runs.items()}


def _rows(runs: list[Run]) -> list[Row]:
    return [_row(run) for run in sorted(runs, key=lambda run: (run.created, run.id))]


OF_CHECKPOINTS = (
    "This is an earlier version's, of the checkpoints; measure again to compare the exported models."
)
NAMES = {
    "rtn": "RTN",
    "gptq": "GPTQ",
    "awq": "AWQ with GPTQ",
    ALONE: "AWQ alone",
    "autoawq": "AWQ by AutoAWQ",
}


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The newest row of each way whose export was measured against float."""
    known = [row for row in rows if _is_known(row) and not row.of_checkpoint]
    return list({row.algorithm: row for row in known}.values())


def best_of_checkpoints(rows: Sequence[Row]) -> str:
    """Which way suits best in a scorecard of an earlier version, as a sentence; "" while too little is
    measured.

    It measured checkpoints, and kept no rows to compare in pairs. So of those whose intervals against float
    overlap with that of the least loss, it is the smallest; of exports see `compare_ways`.
    """
    known = [row for row in rows if _is_known(row) and row.of_checkpoint]
    if len(known) < 2:
        return ""
    least = min(known, key=lambda row: _figure(row, "difference"))
    alike = [row for row in known if _figure(row, "low") <= _figure(least, "high")]
    chosen = min(alike, key=lambda row: (row.bytes or 0, _figure(row, "difference")))
    words = str((chosen.against_float or {})["words"])
    names = [row.algorithm for row in alike if row is not chosen]
    return f"{sentence(chosen.algorithm, words, share(rows, chosen.bytes), names)} {OF_CHECKPOINTS}"


def sentence(way: str, words: str, share: float | None, alike: Sequence[str]) -> str:
    """ "AWQ with GPTQ suits best: 2 % more loss than float on your rows (1–3), 15 % of the size. Your rows
    cannot tell it from GPTQ." """
    size = "" if share is None else f", {100 * share:.0f} % of the size"
    names = display.names(NAMES.get(name, name) for name in alike)
    more = f" Your rows cannot tell it from {names}." if alike else ""
    return f"{NAMES.get(way, way)} suits best: {words}{size}.{more}"


def copies(count: int | None) -> str:
    """What is said of rows that count nowhere; "" if there are none."""
    if not count:
        return ""
    one = count == 1
    return (
        f"{count:,} held-out row{'' if one else 's'} nearly repeat{'s' * one} training rows and"
        f" {'is' if one else 'are'} left out"
    )


def share(rows: Sequence[Row], size: int | None) -> float | None:
    """Bytes as a share of the float export's; None if that is not among the rows."""
    whole = next((row.bytes for row in rows if row.algorithm == FLOAT and row.bytes), None)
    return size / whole if whole and size else None


def _is_known(row: Row) -> bool:
    return bool(row.bytes) and _is_number(row, "low") and _is_number(row, "high")


def _is_number(row: Row, name: str) -> bool:
    return isinstance((row.against_float or {}).get(name), int | float)


def _figure(row: Row, name: str) -> float:
    return float((row.against_float or {})[name])


def groups(store: Store) -> list[str]:
    """Names of the scorecards there are, newest first."""
    return list(every(store))


def _way(run: Run) -> str:
    """The word for a run's way of quantizing."""
    options = run.recipe.get("quantize")
    if options is None:
        return FLOAT
    if options.get("engine") == "autoawq":
        return "autoawq"
    algorithm = str(options.get("algorithm"))
    return ALONE if algorithm == "awq" and not _compensates(options) else algorithm


def _compensates(given: Mapping[str, Any]) -> bool:
    """Whether GPTQ followed AWQ, of a run's options; before there was a choice, it did not."""
    chosen = given.get("compensate", False)
    return quantize.compensates(quantize.Options(bits=given.get("bits", 4), compensate=chosen))


def _row(run: Run) -> Row:
    metrics = {stage.name: stage.metrics for stage in run.stages if stage.status == DONE}
    quantized, scored = metrics.get("quantize", {}), metrics.get("score", {})
    return Row(
        algorithm=_way(run),
        run=run.id,
        status=run.status,
        created=run.created,
        model=str(run.recipe.get("model", "")),
        bytes=_exported_bytes(run) or metrics.get("optimize", {}).get("model_bytes"),
        data_perplexity=scored.get("data_perplexity"),
        data_divergence=scored.get("data_divergence"),
        general_perplexity=scored.get("general_perplexity"),
        general_divergence=scored.get("general_divergence"),
        exported_perplexity=scored.get("exported_perplexity"),
        exported_divergence=scored.get("exported_divergence"),
        seconds=quantized.get("olive_seconds"),
        peak_memory_bytes=quantized.get("peak_memory_bytes"),
        peak_gpu_memory_bytes=quantized.get("peak_gpu_memory_bytes"),
        tokens_per_second=scored.get("tokens_per_second"),
        rows=scored.get("rows"),
        **_losses(scored),
        against_float=scored.get("against_float"),
        copies_left_out=scored.get("copies_left_out"),
        note=_note(run, scored),
    )


def _losses(scored: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured of the rows. Earlier versions kept the mean over all tokens under the names that now
    are of the mean over rows, and no perplexity."""
    names = ("exported_loss", "float_loss", "exported_data_perplexity")
    found = {name: scored.get(name) for name in names}
    loss = found["exported_loss"]
    if loss is None or found["exported_data_perplexity"] is not None:
        return found
    return {"exported_data_perplexity": math.exp(min(loss, MOST_LOSS))}


def _exported_bytes(run: Run) -> int | None:
    """Bytes of the exported folder, with all that ships."""
    exported = next(
        (stage for stage in run.stages if stage.name == "optimize" and stage.status == DONE), None
    )
    found = [each["bytes"] for each in exported.artifacts if each["kind"] == "onnx"] if exported else []
    return found[0] if found else None


def _note(run: Run, scored: Mapping[str, Any]) -> str:
    """Why something of a run is not measured, or what it says of the rows."""
    failed = next((stage for stage in run.stages if stage.error), None)
    if failed is not None:
        return f"{failed.name}: {failed.error}"
    why = scored.get("not_compared")
    said = f"not compared: {why}" if why else str((scored.get("against_float") or {}).get("words", ""))
    return "; ".join(part for part in (said, copies(scored.get("copies_left_out"))) if part)
