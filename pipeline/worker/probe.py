"""Try the whole recipe on a small copy of the model before spending hours, and remember what passed.

One layer of the model's own architecture, with random weights and its real tokenizer, goes through the
stages of the recipe: quantize, finetune, optimize, and the exported files answer a prompt. What fails there
would fail after hours on the real model.

The stage's process calls `require` before it makes anything. The trial runs in a process of its own, see
`trial`, which may crash or run out of memory harmlessly. What passed is remembered in `probes/` of the home:
the walk through the stages by all that decides it, and the exported tokenizer with the datasets it was
compared for. What failed is tried again, because the fault may have been fixed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models
from pipeline.stages import artifacts, evaluate, events, optimize, recipe
from pipeline.system import hardware, locks, own_process
from pipeline.system.files import write_whole
from pipeline.worker import miniature
from pipeline.worker.ahead import forking

TITLE = "Trying the whole lab on one small layer"
TASK, VERDICT, STEP, EXPORT = "task.json", "verdict.json", "step", "export"
PASSED = "passed.json"
SOURCES = ("worker/probe.py", "worker/trial.py", "worker/miniature.py")
UNSAID = ("_name_or_path", "transformers_version")  # of a config.json: they have no effect
PROBES = "probes"  # in the home
LOOK_SECONDS = 0.2  # between two looks for a verdict
STILL_SECONDS = 300.0  # without a moment of the processor, after which a trial is given up
MOST_EXPORTS, MOST_WALKS = 8, 200  # newest that are kept: tokenizers of some megabytes, and a line each
OTHER_MODEL = "choose another base model"
LOG = "the log has the details"
Process = subprocess.Popen[bytes] | forking.Forked


@dataclass(frozen=True)
class Task:
    """What to try. With `exported`, a kept tokenizer, only its ids are compared."""

    files: str
    data: str
    recipe: dict[str, Any]
    exported: str | None = None


def require(
    home: Path,
    chosen: recipe.Recipe,
    data: Path,
    files: Path,
    scratch: Path,
    meanwhile: Callable[[], None] | None = None,
    started: Callable[[Path], Process] | None = None,
) -> None:
    """Try the recipe on a small copy of the model in `files`, unless that passed before.

    `scratch` is a folder for what is made, removed afterwards. `meanwhile` is called while the trial runs,
    which `started(scratch)` starts if that is not `start`.
    Raises LabError with what fails.
    """
    kept = home / PROBES
    try:
        base_models.read_config(files)
    except LabError as error:
        raise LabError(f"This model cannot be loaded: {error}.") from None
    versions = base_models.versions(files)
    walk, tokenizer = keys(chosen, files)
    passed, export = kept / f"{walk}.json", kept / tokenizer
    compared = export / f"{datasets.sha256(data)}.json"
    wanted = [passed, *([compared] if chosen.optimize is not None else [])]
    if all(path.is_file() for path in wanted):
        return
    with locks.locked(kept / ".locks" / walk):
        if all(path.is_file() for path in wanted):
            return
        known = str(export) if passed.is_file() and export.is_dir() else None
        try:
            if known is not None:
                os.utime(export)  # just used, so not among the oldest
            task = Task(str(files), str(data), chosen.to_dict(), known)
            known = _try_whole(task, scratch, meanwhile, started or start)
            if base_models.versions(files) != versions:  # or other models would be taken for tried
                raise LabError(base_models.CHANGED)
            if known is None and (scratch / EXPORT).is_dir():
                shutil.rmtree(export, ignore_errors=True)
                (scratch / EXPORT).replace(export)
            if export.is_dir():
                write_whole(compared, {"data": str(data)})
            write_whole(passed, {"model": chosen.model})
            drop_old(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _try_whole(
    task: Task, scratch: Path, meanwhile: Callable[[], None] | None, started: Callable[[Path], Process]
) -> str | None:
    """`_try`, and once more without a kept tokenizer if that fails with one, which may be what is wrong.

    Returns the kept tokenizer, if it is one that fits.
    """
    try:
        _try(task, scratch, meanwhile, started)
    except LabError:
        if task.exported is None:
            raise
        _try(dataclasses.replace(task, exported=None), scratch, meanwhile, started)
        return None
    return task.exported


def keys(chosen: recipe.Recipe, files: Path) -> tuple[str, str]:
    """Keys of the two things remembered: the walk, and the exported tokenizer, which depends on less."""
    config = read_config(files)
    facts = {
        "config": {key: value for key, value in config.items() if key not in UNSAID},
        "files": {path.name: datasets.sha256(path) for path in small_files(files)},
        "folder": chosen.model if Path(chosen.model).is_absolute() else "",  # no two share a trial
        "template": chosen.template,
        "packages": artifacts.versions(),
        "code": artifacts.code(),
        "probe": [datasets.sha256(settings.ROOT / "pipeline" / source) for source in SOURCES],
    }
    options = {
        stage: {**dataclasses.asdict(made), "max_length": None}  # rows are shorter
        for stage, made in short_stages(chosen, config).items()
    }
    walk = {**facts, "stages": options, "device": hardware.on_gpu()}
    return _digest(walk), f"tokenizer-{_digest(facts)}"


def small_files(files: Path) -> list[Path]:
    """The files of a model's folder besides its weights and config.json: tokenizer and templates."""
    return [
        path
        for path in sorted(files.iterdir())
        if path.is_file()
        and path.name != "config.json"
        and "safetensors" not in path.name
        and any(fnmatch(path.name, pattern) for pattern in base_models.SMALL_FILES)
    ]


def read_config(files: Path) -> dict[str, Any]:
    """The config.json of a model's folder."""
    config: dict[str, Any] = json.loads((files / "config.json").read_text("utf-8"))
    return config


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def short_stages(chosen: recipe.Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """The stages that are tried, by name, in order."""
    made = miniature.short(chosen.stages(), config)
    if chosen.optimize is not None and not optimize.not_run_here(chosen.optimize):
        made["evaluate"] = evaluate.Options(rows=1, prompts=1, max_new_tokens=2)
    return made


def start(scratch: Path) -> Process:
    """A process that carries out the task in a folder, see `trial`."""
    return own_process.start(["-m", "pipeline.worker.trial", str(scratch)], settings.local_environment())


def _try(
    task: Task,
    scratch: Path,
    meanwhile: Callable[[], None] | None,
    started: Callable[[Path], Process] = start,
) -> None:
    """Run the probe's process, in the stage's process group and with its mark, so that it ends with it."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_whole(scratch / TASK, dataclasses.asdict(task))
    print(f"{TITLE}. What follows is of that trial:", flush=True)
    events.emit(message=TITLE, progress=0.0)
    with started(scratch) as process:
        try:
            if meanwhile is not None:
                meanwhile()
            code = _wait(process, scratch / VERDICT)
        except BaseException:
            process.kill()
            raise
    try:
        error = json.loads((scratch / VERDICT).read_text("utf-8"))["error"]
    except (OSError, ValueError):
        error = death(code, _step(scratch))
    if error is not None:
        raise LabError(error)
    print(f"{TITLE}: all of it works. What follows is the real model.", flush=True)


def _wait(process: Process, verdict: Path) -> int:
    """The exit code of the probe; one that has written its verdict and doesn't exit is killed.

    Raises LabError where neither it nor what it has started does anything for STILL_SECONDS.
    """
    spent, ends = -1.0, 0.0
    while True:
        written = verdict.exists()
        if (used := _processor_seconds(process.pid)) != spent:
            spent, ends = used, time.monotonic() + STILL_SECONDS
        try:
            return process.wait(settings.exit_seconds() if written else LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if written:
                process.kill()
                return process.wait()
            if time.monotonic() > ends:
                step = _step(verdict.parent)
                raise LabError(
                    f"A small copy of this model was tried, and at the step {step!r} nothing was done for"
                    f" {display.duration(STILL_SECONDS)}; retry, and {LOG}."
                ) from None


def _processor_seconds(pid: int) -> float:
    """What a process and those below it have used of the processor; 0 of one that is gone."""
    import psutil

    found = 0.0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                found += sum(each.cpu_times()[:4])
    return found


def death(code: int, step: str) -> str:
    """The error for a probe that ended without a verdict, at a step."""
    at = f"A small copy of this model was tried, and at the step {step!r} that"
    if code == -signal.SIGKILL:
        return f"{at} was killed, most likely because memory ran out; retry when the machine is less busy."
    if code < 0:
        why = signal.strsignal(-code) or f"signal {-code}"
        return f"{at} crashed ({why}), as the real model would; {OTHER_MODEL} ({LOG})."
    return f"{at} ended without a reason (exit code {code}); retry, and {LOG}."


def _step(scratch: Path) -> str:
    with suppress(OSError):
        return (scratch / STEP).read_text("utf-8")
    return "start"


def drop_old(home: Path) -> None:
    """Keep only the newest of what is remembered; the rest is tried again when needed."""
    for pattern, most in (("tokenizer-*", MOST_EXPORTS), ("*.json", MOST_WALKS)):
        found = []
        for path in (home / PROBES).glob(pattern):
            with suppress(FileNotFoundError):  # another process drops it as well
                found.append((path.stat().st_mtime, path))
        for _, old in sorted(found, reverse=True)[most:]:
            if old.suffix == ".json":
                old.unlink(missing_ok=True)
            else:
                shutil.rmtree(old, ignore_errors=True)
