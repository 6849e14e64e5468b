"""The folder of a run that is published, and the rules for names and versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pipeline import display
from pipeline.errors import InputError
from pipeline.store.run import DONE, Run


class Rule(NamedTuple):
    """A rule for names, and its description."""

    pattern: re.Pattern[str]
    words: str


NAME = Rule(  # as Azure AI allows, so that a name fits everywhere
    re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}"),
    "letters, digits, - and _, up to 255, the first a letter or digit",
)
VERSION = re.compile(r"[1-9][0-9]{0,8}")


def source_of(run: Run, name: str, version: str, rule: Rule = NAME) -> Path:
    """The exported folder of a run.

    Raises InputError if the name or version is not valid or the run has nothing to publish.
    """
    problems = []
    if not rule.pattern.fullmatch(name):
        problems.append(f"name: {display.value(name)} is not allowed; allowed: {rule.words}")
    source = run.shipped
    if source is None and run.artifact("workflow"):
        raise InputError(f"run: {run.id} needs a graph to publish, and its export is not run here")
    if run.status != DONE or source is None:
        problems.append(
            f"run: {run.id} is {run.status} and has no exported model yet; only a finished one is published"
        )
    if version and not VERSION.fullmatch(version):
        wrong = display.value(version)
        problems.append(f"version: {wrong} is not allowed; allowed: a whole number from 1, or empty")
    if source is not None and not Path(source).is_dir():
        problems.append(f"run: {run.id}: its exported model is no longer there; run its recipe again")
    if problems or source is None:
        raise InputError(problems)
    return Path(source)
