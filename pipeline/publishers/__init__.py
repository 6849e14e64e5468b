"""Where a finished run can be published. A new place is one file here and one line in PUBLISHERS.

A publisher is a module with
    Options                                a frozen dataclass of `option(...)` fields
    plan(home, run, options)               the dry run: what would be published; raises InputError
    publish(home, run, options, report)    do it, in a child process; returns facts for the stage's metrics
    versions(home)                         what is published, newest first
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline import worker
from pipeline.errors import InputError
from pipeline.options import parse
from pipeline.publishers import local
from pipeline.run import Run
from pipeline.store import Store

PUBLISHERS: dict[str, Any] = {"local": local}


def options_of(to: str, given: dict[str, Any]) -> Any:
    """The options of publisher `to` from plain data. Raises InputError."""
    if to not in PUBLISHERS:
        raise InputError(f"to: {to!r} is not allowed; allowed: {', '.join(PUBLISHERS)}")
    return parse(PUBLISHERS[to].Options, given, "publish")


def queue(store: Store, run: Run, to: str, options: Any) -> str:
    """Check and queue the publishing of a run; return the name of the stage that does it."""
    PUBLISHERS[to].plan(store.home, run, options)
    stage = store.add_publish(run.id, {"to": to, **dataclasses.asdict(options)})
    worker.ensure(store.home)
    return stage
