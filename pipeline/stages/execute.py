"""Carry out one stage: hand its workflow to Olive, and see that Olive did it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from pipeline import memory, settings
from pipeline.events import emit
from pipeline.stages import Context, Results
from pipeline.stages.olive import PASSES


def execute(stage: ModuleType, options: Any, context: Context) -> Results:
    """Run `stage` in this process and return what it made.

    Leaves `workflow.json` and `package.json` in the scratch folder; `olive run` takes them as they are.
    Raises whatever the pass raised, or RuntimeError if Olive came back without a model.
    """
    for folder in (context.output, context.work, context.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    workflow = stage.workflow(options, context)
    config, package = context.work / "workflow.json", context.work / "package.json"
    config.write_text(json.dumps(workflow, indent=2) + "\n", "utf-8")
    shutil.copyfile(PASSES / "package.json", package)
    emit(message="Starting Olive", progress=0.0)
    settings.quiet_this_process()

    from olive.workflows import run

    memory.reset_peak()
    began = time.monotonic()
    with _failures() as failures:
        output = run(str(config), package_config=str(package), tempdir=str(context.work))
    seconds = time.monotonic() - began
    if output is None or not output.has_output_model():
        unknown = RuntimeError("Olive finished without a model; the log above says why")
        raise failures[0] if failures else unknown
    # It names folders of this machine that will be gone; nothing here reads it.
    (context.output / "model_config.json").unlink(missing_ok=True)
    results: Results = stage.results(context)
    missing = [str(a.path) for a in results.artifacts if not a.path.exists()]
    if missing:
        raise RuntimeError(f"Olive finished without writing {', '.join(missing)}")
    metrics = {**results.metrics, "olive_seconds": seconds, **memory.peaks()}
    emit(message="Done", progress=1.0, metrics=metrics)
    return replace(results, metrics=metrics)


@contextmanager
def _failures() -> Iterator[list[BaseException]]:
    """Collect the exceptions Olive logs: most kinds that a pass raises it then swallows."""
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
