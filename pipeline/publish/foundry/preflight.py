"""The dry run of a publish to Foundry Local: whether the files fit, and whether it reads the right tokens."""

from __future__ import annotations

from pathlib import Path

from pipeline import display
from pipeline.errors import LabError
from pipeline.exports.findings import Finding, Status, failed
from pipeline.publish import checks
from pipeline.publish.checks import FIRST
from pipeline.publish.foundry import environment, lab_side
from pipeline.publish.foundry import publisher as foundry_local
from pipeline.publish.source import source_of
from pipeline.store.run import Run

MOST_SHOWN = 3


def preflight(home: Path, run: Run, options: foundry_local.Options) -> list[Finding]:
    """Every check but the answers themselves. Raises what the publisher's `plan` raises."""
    planned = foundry_local.plan(home, run, options)
    source = source_of(run, options.name, options.version)
    found = [checks.files(planned), *checks.fit(source)]
    if failed(found):
        found.append(Finding("prompts", Status.SKIPPED, FIRST))
    else:
        found.append(_prompts(run, source))
    where = environment.folder(home)
    if environment.complete(where):
        found.append(Finding("runtime", Status.OK, "Foundry Local's package is installed"))
    else:
        size = display.size(environment.SIZE)
        told = f"Foundry Local's package is not installed; publishing does it first, about {size}"
        found.append(Finding("runtime", Status.UNKNOWN, told))
    return [
        *found,
        Finding("not known", Status.UNKNOWN, "whether it answers as the lab does: publishing asks"),
    ]


def _prompts(run: Run, source: Path) -> Finding:
    try:
        told = lab_side.ask(source, foundry_local.recorded(run), answers=False).found
    except LabError as error:
        return Finding("prompts", Status.FAILED, str(error))
    what = f"{told.compared} prompts were compared with training by their tokens"
    if told.template is not None:
        what += "; a chat template is written into the folder for it"
    if told.unusual:
        some = ", ".join(repr(text) for text in told.unusual[:MOST_SHOWN])
        what += f"; {len(told.unusual)} unusual ones are read otherwise, ending in {some}"
    return Finding("prompts", Status.OK, what)
