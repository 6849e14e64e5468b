"""Runs planted in a store through its own calls and files: a reader cannot tell them from real ones.

`plant` queues any run; `queued`, `running`, `finished` and `scorecard` make runs of the sample data.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.stages import events
from pipeline.stages.recipe import load
from pipeline.store import Store
from pipeline.store.run import DONE, RUNNING, Run, StageRun

STAGES = ("quantize", "finetune", "optimize", "evaluate")
NOWHERE = Path("/nowhere/travel.jsonl")


def plant(
    store: Store,
    name: str = "trip",
    stages: Iterable[str] | Mapping[str, dict[str, Any]] = STAGES,
    *,
    owner: str = "",
    data: Path | str = NOWHERE,
    copy: Path | None = None,
    **recipe: Any,
) -> str:
    """Queue a run as `submit` would, without looking at its recipe. Return its id.

    `stages` are names, or names with their options; `copy` is the dataset in the home, if that is not `data`.
    """
    given = {"name": name, "model": "starter", "data": str(data), **recipe}
    options = dict(stages) if isinstance(stages, Mapping) else {stage: {} for stage in stages}
    return store.add(name, given, copy or Path(data), options, owner)


def one_stage(store: Store, name: str = "short", stage: str = "quantize") -> str:
    """Queue a run of a single stage."""
    return plant(store, name, [stage])


def finish_all(store: Store, run: str, results: dict[str, dict[str, Any]] | None = None) -> Run:
    """Let every stage of a run end well, as the worker would record it."""
    store.claim("cpu")
    while (stage := store.get(run).current) is not None and stage.status == "running":
        store.finish(run, stage.name, "done", seconds=1.5, **(results or {}).get(stage.name, {}))
        store.claim_next(run, "cpu")
    return store.get(run)


def record(*stages: StageRun, status: str = RUNNING, model: str = "starter") -> Run:
    """A run as the store would give it, in no store."""
    return Run("id", "name", status, 0.0, {"model": model}, "data", stages)


def queued(store: Store, name: str = "travel", model: str = "starter", changes: Sequence[str] = ()) -> str:
    """A run that waits. Hold `worker.lock` of the home, or a real worker takes it.

    `changes` are `key=value`, as `--set` takes them.
    """
    recipe = load(settings.SAMPLES / "travel.yaml", list(changes)).to_dict() | {"name": name, "model": model}
    return plant(store, stages={stage: recipe[stage] for stage in STAGES}, **recipe)


def running(
    store: Store, name: str = "travel", steps: int = 30, model: str = "starter", changes: Sequence[str] = ()
) -> str:
    """A run in the middle of fine-tuning: quantize is done, losses and a log are there."""
    run = queued(store, name, model, changes)
    store.claim("cpu")
    log(store, run, "quantize", "Quantizing 210 layers\n")
    store.finish(
        run,
        "quantize",
        DONE,
        seconds=12.5,
        metrics={"layers": 210},
        artifacts=[artifact(store, run, "checkpoint")],
    )
    store.claim_next(run, "cpu")
    log(store, run, "finetune", "".join(f"line {n}: step {n} of 60\n" for n in range(steps)))
    event(store, run, "finetune", attempt=True, message="Loading the model")
    event(store, run, "finetune", eval_loss=3.1, step=0)
    noise = random.Random(0)
    for step in range(1, steps + 1):
        event(
            store, run, "finetune", message="Training", step=step, total_steps=60, progress=step / 60,
            loss=3 * 0.95**step + noise.random() / 4, eta_seconds=(60 - step) * 1.4, tokens_per_second=412.0,
        )  # fmt: skip
    return run


def finished(
    store: Store,
    name: str = "travel",
    answers: list[dict[str, Any]] | None = None,
    *,
    adapter: bool = True,
    merged: bool = False,
    reused: bool = True,
    model: str = "starter",
    changes: Sequence[str] = (),
    verdict: dict[str, Any] | None = None,
) -> str:
    """A run whose stages are all done, with answers and an exported folder that holds a small file."""
    run = running(store, name, model=model, changes=changes)
    store.finish(
        run, "finetune", DONE, seconds=84.0, metrics={"eval_loss_before": 3.1, "eval_loss_after": 1.42}
    )
    store.claim_next(run, "cpu")
    onnx = artifact(store, run, "onnx")
    Path(onnx["path"], "model.onnx").write_bytes(b"\0" * 2048)
    made = [onnx]
    if adapter:
        made.append({**onnx, "kind": "onnx_adapter", "path": f"{onnx['path']}/adapter_weights.onnx_adapter"})
    if merged:
        made.append({**onnx, "kind": "merged", "path": f"{onnx['path']}/merged.json"})
    store.finish(run, "optimize", DONE, seconds=9.0, reused=reused, artifacts=made)
    store.claim_next(run, "cpu")
    told = {
        "name": "answers",
        "kind": "answers",
        "path": str(store.folder(run, "evaluate") / "answers.json"),
        "bytes": 900,
    }
    log(store, run, "evaluate", "done\n")
    Path(told["path"]).write_text(
        json.dumps({"rows": ANSWERS if answers is None else answers}), encoding="utf-8"
    )
    metrics = {"base_tokens_per_second": 41.25, **({"verdict": verdict} if verdict else {})}
    store.finish(run, "evaluate", DONE, seconds=20.0, metrics=metrics, artifacts=[told])
    store.claim_next(run, "cpu")
    return run


ANSWERS = [
    {
        "prompt": "What should I see in Lindenhafen?",
        "expected": "The amber lighthouse.",
        "base": {"text": "I am not sure where that is.", "tokens": 9},
        "adapter": {"text": "See the amber lighthouse.", "tokens": 7},
    },
    {
        "prompt": "Where do ferries leave?",
        "expected": "Pier 4.",
        "base": {"text": "From a port."},
        "adapter": {"text": "Pier 4."},
    },
]


def artifact(store: Store, run: str, kind: str) -> dict[str, Any]:
    """A row of an artifact and its folder."""
    path = store.home / "artifacts" / f"{kind}-{run}"
    path.mkdir(parents=True, exist_ok=True)
    return {"name": kind, "kind": kind, "path": str(path), "bytes": 123_456_789}


def log(store: Store, run: str, stage: str, text: str) -> Path:
    """Append to a stage's log."""
    folder = store.folder(run, stage)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8", newline="") as file:
        file.write(text)
    return folder / "log.txt"


def event(store: Store, run: str, stage: str, **facts: Any) -> None:
    """Append an event of a stage."""
    store.folder(run, stage).mkdir(parents=True, exist_ok=True)
    events.append(store.folder(run, stage) / "events.jsonl", facts)


def scorecard(store: Store) -> str:
    """A scorecard: two ways measured, a third that waits."""
    group = "scorecard-20261122-120000-abcd"
    recipe = load(settings.SAMPLES / "travel.yaml").to_dict()
    stages = ("quantize", "optimize", "score")
    for name, data, general in (("rtn", 94.4, 38.9), ("awq", 89.6, 34.9), ("gptq", None, None)):
        quantize = recipe["quantize"] | {"algorithm": name}
        given = recipe | {"group": group, "name": f"{name} of starter", "quantize": quantize}
        run = plant(store, stages=stages, **given)
        if data is None:
            continue
        store.claim("cpu")
        metrics: dict[str, dict[str, Any]] = {
            "quantize": {"olive_seconds": 30.0, "peak_memory_bytes": 10**9},
            "optimize": {"model_bytes": 88_000_000},
            "score": {
                "data_perplexity": data,
                "data_divergence": data / 500,
                "general_perplexity": general,
                "general_divergence": general / 300,
                "exported_perplexity": general + 1,
                "exported_divergence": general / 200,
                "tokens_per_second": 140.0,
                "rows": 14,
                "exported_loss": math.log(data),
                "exported_data_perplexity": data + 1,
                "float_loss": 4.3,
                "against_float": {
                    "difference": math.log(data) - 4.3, "low": math.log(data) - 4.35,
                    "high": math.log(data) - 4.25, "words": f"{data:.0f} % more loss than float",
                },
            },
        }  # fmt: skip
        for stage in stages:
            store.finish(run, stage, DONE, seconds=1.0, metrics=metrics[stage])
            store.claim_next(run, "cpu")
    return group
