"""The probe of an evaluation: with the adapter on, logits differ; with it off, they are the base's again.

What the base computes is asked of a process that never loads an adapter. It ends before the evaluation loads
the model, so that two are never in memory.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, reason
from pipeline.exports.chat import chat_processes, detaching
from pipeline.exports.chat.loaded_files import ADAPTER, Loaded
from pipeline.exports.chat.sources import Source
from pipeline.passes.measure.proof.files import NAME
from pipeline.system import own_process
from pipeline.system.files import to_json

SECONDS = 900.0
LATE = f"a fresh process did not answer within {SECONDS:.0f} seconds; use a smaller model"
Fresh = dict[str, Any] | str  # what that process says, or why it says nothing


def fresh(export: Path) -> Fresh:
    """What a new process that never loads an adapter says of an export's logits and files, or why it cannot:
    in words, and the evaluation has no probe then."""
    words = ["-m", "pipeline.exports.chat.chat_server", *Source(NAME, export, None, merged=False).words()]
    asked = to_json({"id": 1, "probe": True}) + "\n"
    try:
        done = own_process.run(words, SECONDS, settings.local_environment(), given=asked)
        return _said(done.stdout)
    except subprocess.TimeoutExpired:
        return LATE
    except (LabError, OSError, ValueError) as error:
        return reason(error)


def probed(loaded: Loaded, base: Fresh) -> dict[str, Any]:
    """The probe of an export that is loaded with its adapter: {"good": whether it holds, "text": it in a
    sentence, and SHA-256 of logits: "on" with the adapter, "off" after it, "fresh" without one ever};
    where no process said what the base computes, "good" is None and there are no checksums."""
    if isinstance(base, str):
        return {"good": None, "text": f"There was no probe: {base.removesuffix('.')}."}
    held = {name: loaded.digest(detaching.TEXT, active) for name, active in (("on", ADAPTER), ("off", None))}
    files = {"adapter": loaded.adapter, "adapter_now": loaded.adapter_now(), "graph": loaded.graph_still()}
    found = detaching.judge(loaded.source, {**held, **files}, base)
    return {"good": found.good, "text": found.text, **held, "fresh": base["off"]}


def _said(printed: str) -> dict[str, Any]:
    """The answer among the lines of the process. Raises LabError, ValueError for what is no JSON."""
    for line in printed.splitlines():
        told = json.loads(line)
        if "error" in told:
            raise LabError(told["error"])
        if "probe" in told:
            return dict(told["probe"])
    raise LabError(chat_processes.ENDED)
