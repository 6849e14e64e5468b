"""Runs command-line verbs in a process of their own, which may hang, crash or use memory harmlessly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError
from pipeline.exports import verify
from pipeline.exports.findings import Finding
from pipeline.system import own_process

SECONDS = 150.0


def ask(home: Path, whom: str, *words: str) -> Any:
    """The output of a verb with --json; `whom` is the service it asks.

    Raises LabError with its error message.
    """
    command = ["-m", "pipeline", *words, "--json"]
    try:
        done = own_process.run(command, SECONDS, settings.child_environment(OLIVE_LAB_HOME=str(home)))
    except subprocess.TimeoutExpired:
        raise LabError(f"{whom} did not answer within {SECONDS:.0f} seconds; try again.") from None
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise LabError(said[-1]) from None


def preflight(home: Path, whom: str, run: str, to: str, options: dict[str, Any]) -> dict[str, Any]:
    """The dry run of a publish: `plan`, and `findings` as JSON."""
    flags = [
        f"--{key.replace('_', '-')}={value}" for key, value in options.items() if not isinstance(value, bool)
    ]
    flags += [
        f"--{'' if value else 'no-'}{key.replace('_', '-')}"
        for key, value in options.items()
        if isinstance(value, bool)
    ]
    found: dict[str, Any] = ask(home, whom, "publish", run, "--to", to, "--dry-run", *flags)
    return found


def verified(folder: Path, otherwise: str) -> None:
    """`verify.whole` of a folder, in a process so that its memory is freed. Raises LabError."""
    words = ["-m", "pipeline", "verify", str(folder), "--json"]
    done = own_process.run(words, None, settings.local_environment())
    if done.returncode not in (0, 1):
        print(done.stderr, file=sys.stderr)
        raise LabError(
            f"{otherwise}: the process that verifies it ended with code {done.returncode}; see the log."
        )
    checks = json.loads(done.stdout)["checks"]
    verify.require([Finding(**facts) for facts in checks], otherwise)
