"""Whether an exported model answers: in a process of its own, which may crash on a bad file without harm.

`live` starts it: `python -m pipeline.exports.verifying.answering FOLDER`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import reason
from pipeline.exports import generation, serving_ids
from pipeline.exports.findings import Finding, Report, Status, one_line
from pipeline.exports.verifying.adapter_files import adapters_of
from pipeline.exports.verifying.json_files import CONFIG
from pipeline.inputs import confined
from pipeline.system import hardware, own_process
from pipeline.system.files import to_json

PROMPTS = ("Hello!", "What is the capital of France?", "Tell me about the sea.")
TOKENS = 24
LIVE_SECONDS = 900.0


def live(folder: Path) -> list[Finding]:
    """Have the model answer without and with each adapter, in a process that is started for it.

    Give it only a folder that `static` found good.
    """
    words = ["-m", "pipeline.exports.verifying.answering", str(folder.resolve()), str(os.getpid())]
    try:
        done = own_process.run(words, LIVE_SECONDS, settings.local_environment())
    except subprocess.TimeoutExpired:
        late = f"the model did not answer within {LIVE_SECONDS:.0f} seconds; use a smaller one"
        return [Finding("answers", Status.FAILED, late)]
    with suppress(ValueError, TypeError):
        return [Finding(**facts) for facts in json.loads(done.stdout)]
    said = done.stderr.strip().splitlines()
    last = f"; it said: {one_line(said[-1])}" if said else ""
    ended = f"the process that loaded the model ended with code {done.returncode}{last}"
    return [Finding("answers", Status.FAILED, f"{ended}; export the model again, or free some memory")]


# -- the process that answers ----------------------------------------------------------------------------


def _answers(folder: Path) -> list[Finding]:
    """Load the model with all its adapters and ask it; the process opens no files but its own from here."""
    confined.to_compute([folder, Path(tempfile.gettempdir())])
    report = Report([])
    options = json.loads((folder / CONFIG).read_text("utf-8"))["model"]["decoder"].get("session_options", {})
    if "cuda" in to_json(options.get("provider_options", [])).lower() and not hardware.gpus():
        report.skip(
            "answers", "the model was exported for an NVIDIA GPU; verify it on a machine that has one"
        )
        return report.findings
    adapters = {file.name: file for file in adapters_of(folder)}
    model = generation.load(folder, adapters)
    report.check("prompts", partial(_reads, folder, model))
    prompts = [model.template.prompt(dict.fromkeys(model.template.fields, text)) for text in PROMPTS]
    base = _Side(model, None, prompts)
    report.check("answers", partial(_speaks, base))
    for name in adapters:
        report.check(f"answers with {name}", partial(_differs, base, _Side(model, name, prompts)))
    return report.findings


def _reads(folder: Path, model: generation.Model) -> tuple[int, str]:
    """Whether prompts become the tokens that training made of them: here, and in the folder's app.py."""
    trained = serving_ids.trained_ids(folder)
    rows, again = serving_ids.hard_rows(model.reader, model.template), serving_ids.EXPORT_AGAIN
    serving_ids.require_same(model.template, rows, trained, model.reader.ids, "chat and Compare", again)
    said = f"{len(rows)} prompts are the tokens that training makes of them"
    files = ("lab_prompt.py", "lab_model.py", "app.py")
    if not all((folder / name).is_file() for name in files):
        if not (folder / "app.py").is_file():
            return len(rows), f"{said}; the folder has no app.py"
        plain = [row for row in rows if "system" not in row]  # that app had none
        serving_ids.require_same(
            model.template, plain, trained, serving_ids.former_app(folder), "app.py", again
        )
        return len(rows), f"{said}, in its app.py too, which an earlier release wrote"
    ours = all(
        (folder / name).read_bytes() == source.read_bytes() for name, source in serving_ids.APP.items()
    )
    return len(rows), f"{said}, in its app.py too" if ours else f"{said}; its app.py is another, and not run"


class _Side:
    """Answers to the prompts without or with one adapter, each given once and only when asked for."""

    def __init__(self, model: generation.Model, adapter: str | None, prompts: list[str]) -> None:
        self.model, self.adapter, self.prompts = model, adapter, prompts
        self._texts: dict[int, str] = {}

    def text(self, number: int) -> str:
        if number not in self._texts:
            prompt = self.prompts[number]
            answer = generation.stream(self.model, prompt, self.adapter, max_new_tokens=TOKENS)
            self._texts[number] = "".join(answer).strip()
        return self._texts[number]

    def logits(self) -> Any:
        """Logits [vocabulary] of the token after the first prompt. Raises ValueError for NaN and infinity."""
        import numpy as np

        found = generation.logits(self.model, self.prompts[0], self.adapter)
        if not np.isfinite(found).all():
            raise ValueError("it computes NaN or infinity instead of numbers; train or export it again")
        return found

    def spoken(self) -> str:
        """The first answer that is not empty. Raises ValueError if all are."""
        for number in range(len(self.prompts)):
            if text := self.text(number):
                return text
        raise ValueError(f"{len(self.prompts)} answers in a row are empty; train or export the model again")


def _speaks(side: _Side) -> tuple[str, str]:
    side.logits()
    text = side.spoken()
    return text, f"answers: {text[:60]!r}"


def _differs(base: _Side, side: _Side) -> tuple[str, str]:
    """An adapter whose answers are the base's own is ineffective, unless it at least moves the logits."""
    moved = abs(side.logits() - base.logits()).max()
    text = side.spoken()
    if any(side.text(number) != base.text(number) for number in range(len(side.prompts))):
        return text, f"answers differently from the base: {text[:60]!r}"
    if moved == 0:
        raise ValueError(
            "its answers do not differ from the base's in anything: the adapter is empty; train it again"
        )
    return text, f"changes logits by up to {moved:.2g} but none of the answers; it may need more training"


def _main(folder: str, parent: str) -> int:
    settings.quiet_this_process()
    own_process.end_with(int(parent))
    own_process.expendable()
    # What libraries print must not mix with the findings, so it goes to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = _answers(Path(folder))
    except Exception as error:  # whatever the runtime raises for this folder is a finding
        found = [Finding("answers", Status.FAILED, one_line(f"the model does not load: {reason(error)}"))]
    print(to_json([dataclasses.asdict(finding) for finding in found]), file=out, flush=True)
    return 0


if __name__ == "__main__":
    os._exit(_main(*sys.argv[1:]))  # a library's thread would delay the exit, and the caller waits for it
