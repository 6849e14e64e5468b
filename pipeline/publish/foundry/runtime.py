"""Asks the real Foundry Local, in a process of its own environment: offline, and its telemetry off."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.system import own_process
from pipeline.system.files import to_json

SCRIPT = Path(__file__).with_name("foundry_process.py")
REGISTER_SECONDS = 60.0
LONGEST = 300  # letters of the runtime's own words in a sentence
# On what it takes for a build server (BUILDKITE, in `settings.QUIET`) it uploads nothing. This one alone
# would leave it a first message.
QUIET = {"ORT_TELEMETRY_DISABLED": "1"}


@dataclass(frozen=True)
class Answered:
    """An answer, and how many tokens the runtime made of its prompt."""

    text: str
    prompt_tokens: int


def answers(
    python: Path, folder: Path, model: str, asked: Sequence[Mapping[str, Any]], seconds: float
) -> tuple[list[Answered], dict[str, str]]:
    """The runtime's likeliest answers to `asked`, {messages, most} each, and the versions of its packages.

    `model` is an id. Raises LabError if the runtime cannot load the folder, ends, or takes too long.
    """
    found = _ask(python, {"do": "answer", "model": str(folder), "id": model, "asked": list(asked)}, seconds)
    return [Answered(**answer) for answer in found["answers"]], found["versions"]


def register(python: Path, cache: Path, folder: Path, model: str, texts: Mapping[str, str]) -> None:
    """Enter a folder into the local catalogue of `cache`. Raises LabError."""
    request = {"do": "register", "cache": str(cache), "model": str(folder), "id": model, "texts": dict(texts)}
    found = _ask(python, request, REGISTER_SECONDS)
    if model not in found["models"]:
        raise LabError(f"Foundry Local's catalogue in {cache} did not take {model}; publish again.")


def _ask(python: Path, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "request.json").write_text(to_json(request), "utf-8")
        environment = {**settings.bare_environment(), **QUIET, "HOME": work, "TMPDIR": work}
        try:
            done = own_process.run(["-I", str(SCRIPT), work], seconds, environment, python)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"Foundry Local did not answer within {seconds:.0f} seconds; publish again with a larger"
                " patience, or a smaller model."
            ) from None
        try:
            found: dict[str, Any] = json.loads((Path(work) / "result.json").read_text("utf-8"))
        except (OSError, ValueError):
            print(done.stdout, done.stderr)
            raise LabError(
                f"Foundry Local ended with code {done.returncode} before it answered; free some memory, or"
                " see the log."
            ) from None
    if "error" in found:
        print(done.stdout, done.stderr)
        raise LabError(f"Foundry Local cannot load or ask it: {_plain(found['error'])}")
    return found


def _plain(text: str) -> str:
    """The runtime's words on one line, without where in its source they were written."""
    return display.line(" ".join(text.split()), LONGEST)
