"""`python -m pipeline.worker.stage_process RUN STAGE`: one stage of one run, in a process of its own.

`python -m pipeline.worker.stage_process --warm TASK ROOM` forks such processes, see `warm`.

The worker starts it with its output in the stage's `log.txt`. It inherits the taken `lock` and so
holds it for as long as it lives. It appends facts to `events.jsonl` and writes `result.json`, complete or not
at all; if there is no space even for that, its exit code is ENOSPC.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import errno
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from pipeline import settings
from pipeline.errors import ANY_SMALLER, LabError, sentence
from pipeline.inputs import confined
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models, hub_models
from pipeline.stages import artifacts, events, recipe
from pipeline.stages.all_stages import STAGES, about, ask
from pipeline.stages.context import Context
from pipeline.store import Store
from pipeline.store.run import COST, DONE, FAILED, OUTPUT, PREFLIGHT, PROCESS, RESULT, Run, outer_bytes
from pipeline.system import clock, hardware, locks, peak_memory
from pipeline.system.files import write_whole
from pipeline.worker import probe, trial, usage
from pipeline.worker.ahead import forking, graph, warm


def main(run_id: str, stage: str) -> int:
    """Carry out the stage; return 0 if it is done."""
    folder = settings.home() / "runs" / run_id / stage  # the store may not open on a full disk
    started = time.monotonic()
    try:
        store = Store(settings.home())
        write_whole(folder / PROCESS, {"pid": os.getpid(), **clock.mark()})
        events.emit(attempt=True, message="Starting", progress=0.0)
        with Watch(started) as watch:
            result = _perform(store, store.get(run_id), stage, watch)
            _keep_cost(folder, result, watch.peak.bytes(), time.monotonic() - started)
    except BaseException as error:
        result = {"status": FAILED, "error": sentence(error, stage, about(stage, "SMALLER", ANY_SMALLER))}
        with suppress(OSError):  # the log may be on the full disk
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


def end(code: int) -> NoReturn:
    """End this process at once with that exit code, after what libraries registered for its end.

    Python would tear down all modules first, for up to a second; until then the next stage waits.
    """
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the log may be on the full disk
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what libraries in C have printed
    os._exit(code)


def _keep_cost(folder: Path, result: dict[str, Any], memory: int, seconds: float) -> None:
    """Write what the stage took beside what it was predicted to take; not of one that took nothing."""
    if result.get("reused") or "artifacts" not in result:
        return
    predicted = None
    with suppress(OSError, ValueError, LookupError, TypeError):
        predicted = json.loads((folder.parent / PREFLIGHT).read_text("utf-8"))["stages"][folder.name]
    measured = {
        "memory": memory,
        "gpu_memory": result["metrics"].get("peak_gpu_memory_bytes"),
        "disk": outer_bytes(result["artifacts"]),
        "seconds": seconds,
    }
    with suppress(OSError):  # the disk may be full; the result says so
        write_whole(folder / COST, {"predicted": predicted, "measured": measured})


class Watch(ExitStack):
    """Measures memory while a stage works, from threads: `begin` when this process has nothing to fork."""

    def __init__(self, started: float) -> None:
        super().__init__()
        self.peak = peak_memory.GroupPeak()
        self._started: float | None = started

    def begin(self) -> None:
        """Begin, the first time it is called; from now on libraries may have threads too."""
        if self._started is not None:
            self.enter_context(usage.told(self._started))
            self.enter_context(self.peak)
            forking.use_all_cores()
            self._started = None


@dataclass(frozen=True)
class StageJob:
    """A stage of a run, with all that decides its result."""

    store: Store
    run: Run
    stage: str
    recipe: recipe.Recipe
    model: base_models.Model
    inputs: dict[str, dict[str, Any]]  # artifacts of earlier stages by kind, as the store has them
    versions: list[str]  # of the model's files, before any was read

    @classmethod
    def of(cls, store: Store, run: Run, stage: str) -> StageJob:
        """The stage of a run. Raises InputError if the recipe or the model can no longer be used."""
        chosen = recipe.from_dict(run.recipe)
        model = base_models.resolve(chosen.model)
        return cls(store, run, stage, chosen, model, _inputs(run, stage), _versions(model))

    @property
    def options(self) -> Any:
        """The stage's options, with what `auto` stands for: `true`, and an `auto` that means it, share a
        key."""
        given = self.recipe.stages()[self.stage]
        return ask(self.stage, "decided", given, default=given)

    @property
    def home(self) -> Path:
        return self.store.home

    @property
    def folder(self) -> Path:
        """Where the stage's log and events are."""
        return self.store.folder(self.run.id, self.stage)

    @cached_property
    def key(self) -> str:
        """The result's key: a hash of all that decides it."""
        return artifacts.key(self.stage, self.options, self.identity)

    @cached_property
    def likeness(self) -> str:
        """A hash of what similar results share; "" if the stage reuses nothing of them."""
        shared = ask(self.stage, "likeness", self.identity)
        return "" if shared is None else artifacts.key(self.stage, self.options, shared)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What decides the result besides the options. Artifact folders are already named by content."""
        facts = {kind: str(artifacts.name(artifact["path"])) for kind, artifact in self.inputs.items()}
        facts["model"] = base_models.fingerprint(self.model, self.home)
        if self.model.kind == "folder":
            # No two share results: files can change while they are read, by whoever may write to theirs.
            # Not as links lead by now: a recipe has the real path, and what became a link its own results.
            facts["model"] += f" of {self.model.id}"
        facts["device"] = _device()
        uses_rows = STAGES[self.stage].uses_rows(self.options)
        if ask(self.stage, "uses_template", self.options, default=uses_rows):
            facts["template"] = self.recipe.template
        if uses_rows:
            facts["data"] = datasets.sha256(Path(self.run.data))
            facts["split"] = f"{self.recipe.eval_fraction} {self.recipe.seed}"
        if file := ask(self.stage, "file", self.options):
            facts["file"] = datasets.sha256(Path(file))
        if beside := ask(
            self.stage, "beside", {kind: Path(one["path"]) for kind, one in self.inputs.items()}
        ):
            facts["beside"] = beside
        return facts


def _perform(store: Store, run: Run, stage: str, watch: Watch) -> dict[str, Any]:
    """Reuse the stage's result if there is one, else make it."""
    started = time.monotonic()
    if run.stage(stage).kind == "publish":
        watch.begin()
        return _publish(store, run, stage)
    job = StageJob.of(store, run, stage)
    with locks.locked(artifacts.lock(job.home, stage, job.key)):
        stored = artifacts.find(job.home, stage, job.key)
        reused = stored is not None
        if stored is None:
            stored = _make(job, started, watch)
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


def _make(job: StageJob, started: float, watch: Watch) -> artifacts.Stored:
    """Try the recipe, run the stage's Olive workflow and keep what it made."""
    _try(job, watch)
    with ExitStack() as beside:
        building = _graph_ahead(job, beside)
        watch.begin()
        stored = _made(job, started)
        if building is not None:
            building.finish()
    return stored


def _made(job: StageJob, started: float) -> artifacts.Stored:
    """Run the stage's Olive workflow, once the recipe was tried, and keep what it made."""
    from pipeline.stages.execute import execute

    base = base_models.materialize(job.model, job.home, _tell)
    output = artifacts.part(job.home, job.stage, job.key)
    # Written whole: limits would measure another folder by half a name.
    write_whole(job.folder / OUTPUT, output.name)
    work = job.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    context = _context(job, base, output, work)
    _forget_others(context.checkpoints, job.identity["model"])
    # From here on libraries open what the model's files say; nothing outside the home is theirs.
    confined.to_compute([job.home, base, Path(tempfile.gettempdir())])
    try:
        results = execute(STAGES[job.stage], job.options, context)
        if _versions(job.model) != job.versions:  # or the result would stand for other files
            shutil.rmtree(context.checkpoints, ignore_errors=True)
            raise LabError(base_models.CHANGED)
        seconds = time.monotonic() - started
        stored = artifacts.keep(job.home, job.stage, job.key, output, results, seconds, job.likeness)
        shutil.rmtree(context.checkpoints, ignore_errors=True)
        return stored
    finally:
        shutil.rmtree(output, ignore_errors=True)
        with suppress(OSError):  # kept for reference: the input of `olive run`
            for kept in ("workflow.json", "package.json"):
                shutil.copyfile(work / kept, job.folder / kept)
        shutil.rmtree(work, ignore_errors=True)


def _forget_others(checkpoints: Path, model: str) -> None:
    """Delete checkpoints of an earlier attempt with other files of the model, and note whose these are."""
    note = checkpoints.with_suffix(".of")
    if note.is_file() and note.read_text("utf-8") != model:
        shutil.rmtree(checkpoints, ignore_errors=True)
        print("Files of the model were changed since the last attempt, so its checkpoints are not used.")
    write_whole(note, model)


def _versions(model: base_models.Model) -> list[str]:
    """Of a folder's files; those of other models are the lab's own."""
    return base_models.versions(Path(model.id)) if model.kind == "folder" else []


def _graph_ahead(job: StageJob, beside: ExitStack) -> graph.Building | None:
    """The process that builds the graph of the run's export beside its training; None where that cannot be,
    or there is one already. `beside` ends it."""
    if job.stage != graph.TRAINING:
        return None
    inputs = {kind: Path(artifact["path"]) for kind, artifact in job.inputs.items()}
    if not graph.wanted(getattr(job.recipe, graph.EXPORT), inputs):
        return None
    export = dataclasses.replace(job, stage=graph.EXPORT)
    if artifacts.alike(job.home, export.stage, export.likeness):
        return None
    options = dataclasses.replace(export.options, adapter="detachable")

    def build(output: Path, work: Path) -> None:
        from pipeline.stages import execute

        base = base_models.materialize(job.model, job.home, print)
        confined.to_compute([job.home, base, Path(tempfile.gettempdir())])
        context = dataclasses.replace(_context(export, base, output, work), checkpoints=work / "checkpoints")
        execute.build(STAGES[export.stage], options, context)

    try:
        return beside.enter_context(graph.Building(job.folder, export.likeness, build))
    except OSError as error:  # the training needs none of it
        graph.forget(job.folder)
        print(graph.NOT_BUILT.format(said=sentence(error)), flush=True)
        return None


def _try(job: StageJob, watch: Watch) -> None:
    """Try the recipe on a small copy of the model."""
    ahead = warm.serves(dataclasses.asdict(job.options))
    if ahead:
        warm.without_bitsandbytes()

    def meanwhile() -> None:
        watch.begin()
        if ahead and warm.affordable():
            warm.prepare(job.stage)

    small = job.folder / "small"
    alike = all(warm.serves(dataclasses.asdict(options)) for options in job.recipe.stages().values())
    try:
        files = hub_models.without_weights(job.model, job.home, small, _tell)
        probe.require(
            job.home, job.recipe, Path(job.run.data), files, job.folder / "work", meanwhile,
            _start_trial if alike else probe.start,
        )  # fmt: skip
    finally:
        shutil.rmtree(small, ignore_errors=True)


def _start_trial(scratch: Path) -> probe.Process:
    """A trial's process: forked if this one may fork still. It may have started threads, as those that unpack
    the starter, and a fork would wait for them, which it has not, for good.
    """
    return warm.fork_trial(trial.main, scratch) if warm.can_fork() else probe.start(scratch)


def _context(job: StageJob, base: Path, output: Path, work: Path) -> Context:
    """What the stage is given to work with."""
    context = Context(
        model=base,
        inputs={kind: Path(artifact["path"]) for kind, artifact in job.inputs.items()},
        data=Path(job.run.data),
        template=job.recipe.template,
        eval_fraction=job.recipe.eval_fraction,
        seed=job.recipe.seed,
        device=_device(),
        output=output,
        work=work,
        checkpoints=job.folder / "checkpoints",
        measured=job.home / "measured",
        config=job.model.config,
        name=job.recipe.model,
    )
    if job.stage == graph.EXPORT and "adapter" in job.inputs:
        ahead = graph.taken(job.store.folder(job.run.id, graph.TRAINING), job.likeness, work)
        if ahead is not None:
            return dataclasses.replace(context, ahead=ahead)
    prepared: Context = ask(
        job.stage, "prepared", job.options, context, job.home, job.likeness, default=context
    )
    return prepared


def _device() -> str:
    return "cuda" if hardware.on_gpu() else "cpu"


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


if __name__ == "__main__":
    settings.quiet_this_process()
    end(warm.serve(sys.argv[2], main) if sys.argv[1] == warm.FLAG else main(sys.argv[1], sys.argv[2]))
