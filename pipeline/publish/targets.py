"""Where a finished run can be published. A new target is one file here and one line in PUBLISHERS.

A publisher is a module with
    Options                                a frozen dataclass of `option(...)` fields
    plan(home, run, options)               the dry run: what would be published; raises InputError
    publish(home, run, options, report)    do it, in a child process; returns facts for the stage's metrics,
                                           of them name, version and path; report takes a message, the
                                           fraction that is done, and facts for the events by name
    versions(home)                         what is published, newest first
and, if options depend on remembered settings or the current folder,
    settled(home, options)                 the options with these values filled in
If a dry run can check more than `plan` knows, a module `preflight` beside it, named in PREFLIGHTS, has
    preflight(home, run, options)          all checks, as findings
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.options import parse
from pipeline.publish import local
from pipeline.publish.azure import preflight as azure_preflight
from pipeline.publish.azure import publisher as azureml
from pipeline.publish.foundry import preflight as foundry_preflight
from pipeline.publish.foundry import publisher as foundry_local
from pipeline.publish.hub import preflight as hub_preflight
from pipeline.publish.hub import publisher as huggingface
from pipeline.store import Store

PUBLISHERS: dict[str, Any] = {
    "local": local, "azureml": azureml, "huggingface": huggingface, "foundry-local": foundry_local,
}  # fmt: skip
PREFLIGHTS: dict[str, Any] = {
    "azureml": azure_preflight, "huggingface": hub_preflight, "foundry-local": foundry_preflight,
}  # fmt: skip


def settled(to: str, home: Path, options: Any) -> Any:
    """The options to queue, independent of what this lab remembers later."""
    settle = getattr(PUBLISHERS[to], "settled", None)
    return settle(home, options) if settle else options


def planned(home: str, run: str, to: str, options: dict[str, Any]) -> Generator[str, None, dict[str, Any]]:
    """The dry run of publisher `to`, as a process is asked for it: a plan reads the export and the data."""
    yield "Looking at what would be published…"
    found: dict[str, Any] = PUBLISHERS[to].plan(
        Path(home), Store(Path(home)).get(run), options_of(to, options)
    )
    return found


def options_of(to: str, given: dict[str, Any]) -> Any:
    """The options of publisher `to` from plain data. Raises InputError."""
    if to not in PUBLISHERS:
        raise InputError(f"to: {display.value(to)} is not allowed; allowed: {', '.join(PUBLISHERS)}")
    return parse(PUBLISHERS[to].Options, given, "publish")
