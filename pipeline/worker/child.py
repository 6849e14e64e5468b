"""`python -m pipeline.worker.child RUN STAGE`: one stage of one run, in a process of its own.

`python -m pipeline.worker.child --spare STAGE DESCRIPTOR` is told its run later, see `spare`.

The worker starts it with its output in the stage's `log.txt`. It inherits `lock`, taken, and so holds it
for as long as it lives. It appends facts to `events.jsonl`, and leaves `result.json`, written whole or not at
all; only if there is no room even for that, its exit code is ENOSPC.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import sentence
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models
from pipeline.stages import artifacts, events, recipe
from pipeline.stages.stage import Context
from pipeline.stages.table import STAGES
from pipeline.store import Store
from pipeline.store.run import DONE, FAILED, OUTPUT, PROCESS, RESULT, Run
from pipeline.system import checksums, clock, locks
from pipeline.system.files import write_whole
from pipeline.worker import probe, resources, spare

MOST_GRAPHS = 3  # earlier exports looked at for one to reuse: each is read whole


def main(run_id: str, stage: str) -> int:
    """Carry out the stage; return 0 if it is done."""
    folder = settings.home() / "runs" / run_id / stage  # a full disk may keep the store from being opened
    started = time.monotonic()
    try:
        store = Store(settings.home())
        write_whole(folder / PROCESS, {"pid": os.getpid(), **clock.mark()})
        events.emit(attempt=True, message="Starting", progress=0.0)
        with resources.told():
            result = _perform(store, store.get(run_id), stage)
    except BaseException as error:
        result = {"status": FAILED, "error": sentence(error, stage)}
        with suppress(OSError):  # the disk of the log may be what is full
            traceback.print_exc()
            print(f"\n{result['error']}", file=sys.stderr)
    result.setdefault("seconds", time.monotonic() - started)
    try:
        write_whole(folder / RESULT, result)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return errno.ENOSPC
        raise
    return 0 if result["status"] == DONE else 1


def _perform(store: Store, run: Run, stage: str) -> dict[str, Any]:
    """Reuse the stage's result if there is one, else make it."""
    started = time.monotonic()
    if run.stage(stage).kind == "publish":
        return _publish(store, run, stage)
    chosen = recipe.from_dict(run.recipe)
    options = chosen.stages()[stage]
    model = base_models.resolve(chosen.model)
    inputs = _inputs(run, stage)
    identity = _identity(store, run, chosen, stage, model, inputs)
    name = artifacts.key(stage, options, identity)
    with locks.locked(artifacts.lock(store.home, stage, name)):
        stored = artifacts.find(store.home, stage, name)
        reused = stored is not None
        if stored is None:
            likeness = artifacts.key(stage, options, {k: v for k, v in identity.items() if k != "adapter"})
            stored = _make(store, run, chosen, stage, model, inputs, name, likeness, started)
    verb = f"Reused the result of {stage} from an earlier run" if reused else f"Finished {stage}"
    print(f"{verb}: {stored.folder.name}")
    events.emit(progress=1.0, eta_seconds=0.0, message="Reused" if reused else "Done")
    return {
        "status": DONE,
        "reused": reused,
        "seconds": time.monotonic() - started,
        "metrics": stored.metrics,
        "artifacts": stored.rows(),
    }


def _make(
    store: Store,
    run: Run,
    chosen: recipe.Recipe,
    stage: str,
    model: base_models.Model,
    inputs: dict[str, dict[str, Any]],
    name: str,
    likeness: str,
    started: float,
) -> artifacts.Stored:
    """Run the stage's Olive workflow and keep what it made.

    `likeness` names what would be the same with another adapter.
    """
    from pipeline.stages.execute import execute

    meanwhile: Callable[[], None] | None = None
    if spare.serves(dataclasses.asdict(chosen.stages()[stage])):
        spare.without_bitsandbytes()
        meanwhile = partial(spare.prepare, stage) if spare.affordable() else None
    folder = store.folder(run.id, stage)
    files = base_models.without_weights(model, store.home, _tell)
    probe.require(store.home, chosen, Path(run.data), files, folder / "work", meanwhile)
    base = base_models.materialize(model, store.home, _tell)
    output = artifacts.part(store.home, stage, name)
    (folder / OUTPUT).write_text(output.name, encoding="utf-8")
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    context = Context(
        model=base,
        inputs={kind: Path(artifact["path"]) for kind, artifact in inputs.items()},
        data=Path(run.data),
        template=chosen.template,
        eval_fraction=chosen.eval_fraction,
        seed=chosen.seed,
        device="cuda" if settings.on_gpu() else "cpu",
        output=output,
        work=work,
        checkpoints=folder / "checkpoints",
        config=model.config,
        name=chosen.model,
        graphs={
            stored.folder: stored.metrics.get("places", [])
            for stored in artifacts.alike(store.home, stage, likeness)[:MOST_GRAPHS]
            if checksums.intact(stored.folder)
        },
    )
    try:
        results = execute(STAGES[stage], chosen.stages()[stage], context)
        stored = artifacts.keep(
            store.home, stage, name, output, results, time.monotonic() - started, likeness
        )
        shutil.rmtree(context.checkpoints, ignore_errors=True)
        return stored
    finally:
        shutil.rmtree(output, ignore_errors=True)
        with suppress(OSError):  # what `olive run` was given, for whoever wants to know
            for kept in ("workflow.json", "package.json"):
                shutil.copyfile(work / kept, folder / kept)
        shutil.rmtree(work, ignore_errors=True)


def _tell(text: str) -> None:
    events.emit(message=text, progress=0.0)


def _publish(store: Store, run: Run, stage: str) -> dict[str, Any]:
    """Carry out a queued publish."""
    from pipeline.publish.targets import PUBLISHERS, options_of

    given = dict(run.stage(stage).options)
    to = given.pop("to")
    published = PUBLISHERS[to].publish(
        store.home,
        run,
        options_of(to, given),
        lambda text, fraction, **facts: events.emit(message=text, progress=fraction, **facts),
    )
    print(f"Published {published['name']} version {published['version']} to {published['path']}")
    return {"status": DONE, "metrics": published}


def _inputs(run: Run, stage: str) -> dict[str, dict[str, Any]]:
    """The artifacts of the stages before this one, newest of each kind."""
    found: dict[str, dict[str, Any]] = {}
    for earlier in run.stages:
        if earlier.name == stage:
            break
        found.update({artifact["kind"]: artifact for artifact in earlier.artifacts})
    return found


def _identity(
    store: Store,
    run: Run,
    chosen: recipe.Recipe,
    stage: str,
    model: base_models.Model,
    inputs: dict[str, dict[str, Any]],
) -> dict[str, str]:
    """What besides the options decides the result. Artifact folders are named by content already."""
    facts = {kind: str(artifacts.name(artifact["path"])) for kind, artifact in inputs.items()}
    facts["model"] = base_models.fingerprint(model, store.home)
    facts["device"] = "cuda" if settings.on_gpu() else "cpu"
    options, maker = chosen.stages()[stage], STAGES[stage]
    if getattr(maker, "uses_template", maker.uses_rows)(options):
        facts["template"] = chosen.template
    if maker.uses_rows(options):
        facts["data"] = datasets.sha256(Path(run.data))
        facts["split"] = f"{chosen.eval_fraction} {chosen.seed}"
    return facts


if __name__ == "__main__":
    settings.quiet_this_process()
    if sys.argv[1] == "--spare":
        sys.exit(spare.wait(sys.argv[2], int(sys.argv[3]), main))
    sys.exit(main(sys.argv[1], sys.argv[2]))
