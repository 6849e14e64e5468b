"""Run one stage: hand its workflow to Olive, or have Olive check it for another device."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import settings
from pipeline.stages.context import Context, Results
from pipeline.stages.events import emit
from pipeline.stages.workflow_parts import PASSES
from pipeline.system import files, peak_memory
from pipeline.system.files import to_json


def execute(stage: ModuleType, options: Any, context: Context) -> Results:
    """Run `stage` in this process and return what it made.

    Leaves `workflow.json` and `package.json` in the scratch folder; `olive run` can read both.
    A stage for a device that this machine does not have returns its workflow instead, checked by Olive.
    Raises whatever the pass raised, ValueError for a workflow that Olive refuses, or RuntimeError if Olive
    returned no model.
    """
    config, package = _written(stage, options, context)
    emit(message="Starting Olive", progress=0.0)
    settings.quiet_this_process()
    reason = stage.not_run_here(options) if hasattr(stage, "not_run_here") else None
    if reason:
        return _checked(stage, context, config, package, reason)

    peak_memory.reset_peak()
    began = time.monotonic()
    _run(config, package, context)
    seconds = time.monotonic() - began
    results: Results = stage.results(options, context)
    missing = [str(a.path) for a in results.artifacts if not a.path.exists()]
    if missing:
        raise RuntimeError(f"Olive finished without writing {', '.join(missing)}")
    metrics = {**results.metrics, "olive_seconds": seconds, **peak_memory.peaks()}
    emit(message="Done", progress=1.0, metrics=metrics)
    return replace(results, metrics=metrics)


def build(stage: ModuleType, options: Any, context: Context) -> None:
    """Have Olive make what `stage` makes of its inputs, for a process of that stage to finish.

    Raises as `execute` does.
    """
    config, package = _written(stage, options, context)
    settings.quiet_this_process()
    _run(config, package, context)


def _written(stage: ModuleType, options: Any, context: Context) -> tuple[Path, Path]:
    """The files of a stage's workflow and of our passes, in the scratch folder; all folders are made."""
    for folder in (context.output, context.work, context.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    config, package = context.work / "workflow.json", context.work / "package.json"
    config.write_text(to_json(stage.workflow(options, context), indent=2) + "\n", "utf-8")
    shutil.copyfile(PASSES / "package.json", package)
    return config, package


def _run(config: Path, package: Path, context: Context) -> None:
    """Have Olive run a workflow into the output folder."""
    import_torchmetrics()
    from olive.workflows import run

    with (
        _failures() as failures,
        named_by_size(),
        linked_from(context.work),
        without_code(),
        without_callers(),
    ):
        output = run(str(config), package_config=str(package), tempdir=str(context.work))
    if output is None or not output.has_output_model():
        unknown = RuntimeError("Olive finished without a model; the log above says why")
        raise failures[0] if failures else unknown
    # It names folders that will be deleted; nothing here reads it.
    (context.output / "model_config.json").unlink(missing_ok=True)


@contextmanager
def named_by_size() -> Iterator[None]:
    """Have Olive name its input model by path, size and time of the files, not by their content.

    It reads all of them, 7 s for one of 4 billion parameters, to find results of before in its cache; that
    is in the scratch folder of the attempt, and what is to be used again the store knows by itself.
    """
    from olive.model.config import ModelConfig

    def named(_: Any, folder: Path) -> list[str]:
        found = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
        return [f"{path}:{facts.st_size}:{facts.st_mtime_ns}" for path in found for facts in (path.stat(),)]

    was = ModelConfig._get_file_hash
    ModelConfig._get_file_hash = named
    try:
        yield
    finally:
        ModelConfig._get_file_hash = was


@contextmanager
def linked_from(work: Path) -> Iterator[None]:
    """Have Olive link the files that it saves from its cache, which is in `work` and deleted afterwards.

    It would copy them, seconds for a model of 4 billion parameters. What is not in its cache, such as the
    base of an adapter, is not saved: the run has it. A file that somebody else has a link to is copied, so
    that no two results share one.
    """
    from olive import resource_path

    place = work.resolve()
    saved, copied = resource_path.LocalResourcePath.save_to_dir, resource_path.copy_dir

    def save(resource: Any, *given: Any, **more: Any) -> str:
        path = Path(resource.get_path())
        return str(saved(resource, *given, **more)) if path.resolve().is_relative_to(place) else str(path)

    def link(source: Any, target: Any, ignore: Any = None, **more: Any) -> None:
        own = files.linked_only_in(place)

        def one(file: str, to: str) -> None:
            facts = Path(file).stat()
            if (facts.st_dev, facts.st_ino) in own:
                files.link_or_copy(Path(file), Path(to))
            else:
                shutil.copy2(file, to)

        copied(source, target, ignore, copy_function=one, **more)

    resource_path.LocalResourcePath.save_to_dir, resource_path.copy_dir = save, link
    try:
        yield
    finally:
        resource_path.LocalResourcePath.save_to_dir, resource_path.copy_dir = saved, copied


@contextmanager
def without_code() -> Iterator[None]:
    """Have Olive keep no Python modules that a model's config names (`auto_map`), which nothing here runs.

    It would fetch them from any repository of the hub that is named there, or copy them from any folder.
    """
    from olive.model.handler.mixin import hf

    def save_none(config: Any, *_given: Any, **_more: Any) -> tuple[Any, list[str]]:
        del config.auto_map
        return config, []

    was, hf.save_module_files = hf.save_module_files, save_none
    try:
        yield
    finally:
        hf.save_module_files = was


@contextmanager
def without_callers() -> Iterator[None]:
    """Have Olive not find out who calls it, for its telemetry, which is off: that reads the sources of all
    callers and looks at all modules, 0.2 s a stage.
    """
    from olive.telemetry import telemetry_extensions

    was = telemetry_extensions._resolve_invoked_from
    telemetry_extensions._resolve_invoked_from = lambda *_: "Script"
    try:
        yield
    finally:
        telemetry_extensions._resolve_invoked_from = was


def import_torchmetrics() -> None:
    """Import torchmetrics, which Olive imports, without scipy.signal: a second of the six that Olive takes.

    It imports that only to give it a function of an earlier release, for a package that is not used here.
    Whoever asks for scipy.signal afterwards gets the real one.
    """
    if "scipy.signal" in sys.modules:
        return
    unused = ModuleType("scipy.signal")
    setattr(unused, "hamming", None)  # noqa: B010 - torchmetrics asks whether it is there; unknown to mypy
    sys.modules["scipy.signal"] = unused
    try:
        importlib.import_module("torchmetrics")
    finally:
        del sys.modules["scipy.signal"]


def _checked(stage: ModuleType, context: Context, config: Path, package: Path, reason: str) -> Results:
    """The results of a stage whose workflow is only checked."""
    count = validate(config, package)
    # Paths of the checkpoint and the adapter stay: to run it elsewhere, copy those too.
    workflow = json.loads(config.read_text("utf-8")) | {"cache_dir": "cache", "output_dir": "output"}
    (context.output / config.name).write_text(to_json(workflow, indent=2) + "\n", "utf-8")
    shutil.copyfile(package, context.output / package.name)
    results: Results = stage.unrun(context, reason)
    message = f"Olive accepts the workflow ({count} {'pass' if count == 1 else 'passes'}); {reason}"
    print(message)
    emit(message=message, progress=1.0, metrics=results.metrics)
    return results


def validate(config: Path, package: Path) -> int:
    """Have Olive check a workflow without running it; return how many passes it has.

    Olive parses it, and each pass checks its options for the workflow's device and provider. Raises
    ValueError for what Olive refuses.
    """
    from olive.package_config import OlivePackageConfig
    from olive.systems.accelerator_creator import create_accelerator
    from olive.workflows.run.config import RunConfig

    packages = OlivePackageConfig.parse_file_or_obj(str(package))
    workflow = RunConfig.parse_file_or_obj(str(config))
    target = create_accelerator(workflow.engine.target, skip_supported_eps_check=True, is_ep_required=True)
    steps = [(name, step) for name, given in (workflow.passes or {}).items() for step in given]
    for name, step in steps:
        kind = packages.import_pass_module(step.type)
        made = kind.generate_config(target, step.config or {}, disable_search=True)
        if not kind.validate_config(made, target):
            raise ValueError(f"Olive refuses the pass {name} ({step.type}) for {target}; the log says why")
    return len(steps)


@contextmanager
def _failures() -> Iterator[list[BaseException]]:
    """Collect the exceptions that Olive logs: it swallows most that a pass raises."""
    found: list[BaseException] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                found.append(record.exc_info[1])

    handler = Collector()
    logging.getLogger("olive").addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger("olive").removeHandler(handler)
