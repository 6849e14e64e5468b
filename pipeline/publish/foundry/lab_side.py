"""Our own side of a publish to Foundry Local: which tokens it must read, and which answers it must give.

In a process of its own, `python -m pipeline.publish.foundry.lab_side FOLDER ANSWERS|-`, because a template
engine or a runtime may crash on what it gets, and because a loaded model's memory goes with the process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError, reason
from pipeline.exports import generation, serving_ids
from pipeline.exports.verifying import answering
from pipeline.inputs.prompts import templates
from pipeline.publish.foundry import chat_templates
from pipeline.publish.foundry.chat_templates import Found
from pipeline.system import own_process
from pipeline.system.files import to_json

SECONDS = 600.0
TOKENS = 24  # of an answer
ASKED = 3
# Between the two likeliest tokens: below it another release of ONNX Runtime may choose the other one.
CLOSE = 0.05
LONGEST_PROMPT = 2000  # characters


@dataclass(frozen=True)
class Answer:
    """Our likeliest answer to messages. `sure` is its beginning, up to where two tokens were nearly equal.

    `stop` is the text behind which an answer does not count.
    """

    messages: list[dict[str, Any]]
    most: int
    prompt_tokens: int
    text: str
    sure: str
    stop: str

    def is_that(self, text: str) -> bool:
        """Whether another runtime's answer is this one, as far as ours is sure."""
        said, sure = self.cut(text), self.sure.strip()
        return said == self.text.strip() or bool(sure and said.startswith(sure))

    def cut(self, text: str) -> str:
        """What counts of another runtime's answer."""
        return (text.partition(self.stop)[0] if self.stop else text).strip()


@dataclass(frozen=True)
class Told:
    """What the process says: the template, and with it our answers if they were asked for."""

    found: Found
    answers: list[Answer] = field(default_factory=list)


def ask(folder: Path, recorded: Path | None, *, answers: bool) -> Told:
    """Compare prompts, and answer some. `recorded` is an evaluation's file of answers, whose prompts count.

    Raises LabError: with InputError's sentence too, if the prompts are no chat's or read otherwise.
    """
    words = ["-m", __name__, str(folder.resolve()), str(recorded or "-"), *(["--answers"] if answers else [])]
    try:
        done = own_process.run(words, SECONDS, settings.local_environment())
    except subprocess.TimeoutExpired:
        raise LabError(
            f"The lab's own side did not answer within {SECONDS:.0f} seconds; use a smaller model."
        ) from None
    try:
        told = json.loads(done.stdout)
    except ValueError:
        print(done.stderr, file=sys.stderr)
        raise LabError(
            f"GenAI ended with code {done.returncode} at this model's chat template or graph, and Foundry"
            f" Local would too; {chat_templates.WAY_OUT}."
        ) from None
    if "error" in told:
        raise LabError(told["error"])
    return Told(Found(**told["found"]), [Answer(**one) for one in told["answers"]])


def _tell(folder: Path, recorded: Path | None, answers: bool) -> dict[str, Any]:
    lab = serving_ids.load(folder)
    rows = _recorded(recorded, lab.template)
    found = chat_templates.find(folder, rows)
    ours: list[Answer] = []
    if answers:
        model = generation.load(folder)
        plain = [templates.asked(lab.template, text) for text in answering.PROMPTS]
        asked = [_answer(model, row) for row in [*rows, *plain]]
        ours = [one for one in asked if one is not None][:ASKED]
    return {"found": dataclasses.asdict(found), "answers": [dataclasses.asdict(one) for one in ours]}


def _recorded(file: Path | None, template: templates.Template) -> list[dict[str, Any]]:
    """Rows of prompts that an evaluation asked."""
    found: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        rows = json.loads(file.read_text("utf-8"))["rows"] if file is not None else []
        for row in rows:
            if len(row["prompt"]) <= LONGEST_PROMPT and len(found) < ASKED:
                with suppress(InputError):
                    found.append(_with_answer(template, templates.asked(template, row["prompt"])))
    return found


def _with_answer(template: templates.Template, row: dict[str, Any]) -> dict[str, Any]:
    """A row as training has it; the answer is no part of its prompt."""
    if templates.is_conversation(template, row):
        return {**row, "messages": [*row["messages"], {"role": "assistant", "content": "ok"}]}
    return {**row, template.fields[-1]: "ok"}


def _answer(model: generation.Model, row: dict[str, Any]) -> Answer | None:
    """The likeliest answer to a row; None if the model has no room for one."""
    import numpy as np
    import onnxruntime_genai as og

    ids = model.reader.ids(row)
    most = min(TOKENS, model.context_length - len(ids))
    if most < 1:
        return None
    params = og.GeneratorParams(model.model)
    params.set_search_options(max_length=len(ids) + most, do_sample=False)
    generator = og.Generator(model.model, params)
    generator.append_tokens(ids)
    decoder, text, sure, is_sure = model.tokenizer.create_stream(), "", "", True
    while not generator.is_done():
        logits = generator.get_logits().reshape(-1, model.vocabulary)[-1].astype("float32")
        second, first = np.partition(logits, -2)[-2:]
        is_sure = is_sure and bool(first - second >= CLOSE)
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        if token in model.ends:
            break
        text += decoder.decode(token)
        sure = text if is_sure else sure
    stop = model.template.stop
    text, sure = (piece.partition(stop)[0] if stop else piece for piece in (text, sure))
    return Answer(chat_templates.messages(model.template, row), most, len(ids), text, sure, stop)


def _main(folder: str, recorded: str, *more: str) -> int:
    settings.quiet_this_process()
    own_process.expendable()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print must not mix with the answer
    os.dup2(2, 1)
    try:
        told = _tell(Path(folder), None if recorded == "-" else Path(recorded), "--answers" in more)
    except Exception as error:  # whatever the runtime raises for this folder
        told = {"error": reason(error)}
    print(to_json(told), file=out, flush=True)
    return 0


if __name__ == "__main__":
    os._exit(_main(*sys.argv[1:]))
