"""evaluate: the exported files answer held-out prompts, with and without the adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.evaluation import checks
from pipeline.inputs.models import architectures
from pipeline.inputs.options import option
from pipeline.stages import workflow_parts
from pipeline.stages.context import Artifact, Context, Results
from pipeline.stages.quantize import Model
from pipeline.system import checksums
from pipeline.system.files import to_json

ANSWERS, COMPARED, ROWS = "answers.json", "comparison.json", "rows.jsonl"
CHECKS = "evaluate.checks"
DOES = "run after its export"
SMALLER = "a smaller evaluate.max_new_tokens"
MODULES = ("pipeline.passes.measure.answers", "onnxruntime_genai")


@dataclass(frozen=True)
class Options:
    rows: Literal["all"] | int = option(
        500,
        "Held-out rows whose responses' loss is measured with and without the adapter, spread over them; all"
        " takes every one, 0 measures none",
        min=0,
        label="Rows compared",
    )
    data: str = option(
        "",
        "Rows to evaluate on in place of held-out ones: a file of any format that data may have",
        advanced=True,
        label="Prompt file",
        page=False,
    )
    prompts: int = option(
        20,
        "Held-out prompts to answer, or as many as there are; metrics of answers need 10 to tell anything",
        min=1,
        max=1000,
    )
    max_new_tokens: int = option(
        64, "Maximum number of tokens in an answer", min=1, max=8192, label="Max tokens"
    )
    answer_minutes: int = option(
        10,
        "Minutes after which no further prompt is asked; those left are counted, and a later run with more"
        " minutes resumes with them",
        min=1,
        max=1440,
        advanced=True,
        label="Minutes for answers",
    )
    float: bool = option(
        False,
        "Measure the float model on the same rows and prompts too, to tell what quantizing cost; it is loaded"
        " beside the graph, and may answer for as many minutes again",
        advanced=True,
        label="Compare with float",
    )
    checks: str = option(
        "",
        "What answers must fulfil, one check a line: contains: TEXT; regex: PATTERN; number: LOW to HIGH"
        " (of the last number in the answer); json; json_schema: SCHEMA. In a recipe also a list",
        advanced=True,
        label="Checks of answers",
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    found = checks.problems(options.checks, CHECKS)
    longest = architectures.positions(model.config)
    if longest is not None and options.max_new_tokens >= longest:
        found.append(
            f"evaluate.max_new_tokens: {options.max_new_tokens} leaves no room for a prompt;"
            f" the model reads {longest} tokens in all"
        )
    return found


def as_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options as a recipe has them, with plain values. Raises InputError naming the option."""
    return {**given, "checks": checks.as_text(given["checks"], CHECKS)} if "checks" in given else given


def check_recipe(_: Options, stages: Mapping[str, Any]) -> list[str]:
    """Problems with the other stages of the recipe."""
    return [] if "optimize" in stages else ["evaluate: needs optimize; set evaluate to null as well"]


def needs_prompts(_: Options) -> bool:
    """Whether it answers prompts of held-out rows."""
    return True


def tried(_: Options, __: Mapping[str, Any]) -> None:
    """Left out: every trial asks the export for an answer anyway."""


def file(options: Options) -> str:
    """A file that the result depends on besides the dataset, which is kept in the home; "" for none."""
    return options.data


def beside(inputs: Mapping[str, Path]) -> str:
    """Names and checksums of other adapters in the exported folder, which are evaluated too; "" for none.

    Raises InputError if there are too many.
    """
    # Here, so that verbs that evaluate nothing start faster.
    from pipeline.exports.verifying import adapter_files

    if "onnx_adapter" not in inputs:
        return ""
    others = adapter_files.other_adapters(inputs["onnx"], inputs["onnx_adapter"])
    return checksums.text(checksums.of(inputs["onnx"], [file.name for file in others]))


def uses_rows(_: Options) -> bool:
    """Whether the result depends on the dataset."""
    return True


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow; its pass writes answers.json, comparison.json and rows.jsonl."""
    adapter = context.inputs.get("onnx_adapter")
    step = {
        "type": "Answers",
        "data": str(context.data),
        "eval_fraction": context.eval_fraction,
        "seed": context.seed,
        "prompts": options.prompts,
        "max_new_tokens": options.max_new_tokens,
        "minutes": options.answer_minutes,
        "adapter": str(adapter) if adapter else None,
        "merged": "merged" in context.inputs,
        "rows": -1 if options.rows == "all" else options.rows,
        "tokenizer": str(context.model),
        "kept": str(context.checkpoints),
        "known": str(context.measured) if context.measured else None,
        # Olive takes a text that names something in its folder for a path, and "" for the folder itself.
        "checks": to_json({"checks": options.checks}) if options.checks else None,
        "asked": options.data or None,
        "exact": str(context.model) if options.float else None,
        "probe": adapter is not None,
    }
    model = {"type": "OnnxModel", "model_path": str(context.inputs["onnx"]), "onnx_file_name": "model.onnx"}
    return workflow_parts.workflow(context, model, {"evaluate": step})


LEFT_OUT = {
    "copies_left_out": ("row nearly repeats training rows", "rows nearly repeat training rows"),
    "long_rows_left_out": ("row too long to measure", "rows too long to measure"),
    "left_out": ("prompt too long to ask", "prompts too long to ask"),
    "not_asked": (
        "prompt not asked for lack of time (evaluate.answer_minutes)",
        "prompts not asked for lack of time (evaluate.answer_minutes)",
    ),
}


def left_out(metrics: Mapping[str, Any]) -> list[str]:
    """What an evaluation, or a score, leaves out of its figures, such as "2 rows nearly repeat training
    rows"."""
    found = [(metrics.get(name), words) for name, words in LEFT_OUT.items()]
    return [f"{count:,} {words[count != 1]}" for count, words in found if isinstance(count, int) and count]


def results(_: Options, context: Context) -> Results:
    """The answers, the mean speed and delay of each side, and how both did on held-out rows."""
    # Olive wants a model from every pass, so the graph, without weights, is beside the answers.
    (context.output / "model.onnx").unlink(missing_ok=True)
    file = context.output / ANSWERS
    written = json.loads(file.read_text("utf-8"))
    rows = written["rows"]
    metrics: dict[str, Any] = {"prompts": len(rows), "left_out": written["left_out"]}
    if not_asked := written.get("not_asked"):
        metrics["not_asked"] = not_asked
    if why := written.get("why_none"):
        metrics["why_no_answers"] = why
    for side in ("base", "adapter", "float"):
        answers = [row[side] for row in rows if row.get(side)]
        for name in ("tokens_per_second", "first_token_seconds"):
            if answers:
                metrics[f"{side}_{name}"] = sum(answer[name] for answer in answers) / len(answers)
    artifacts = [Artifact("answers", "answers", file)]
    compared = context.output / COMPARED
    metrics |= json.loads(compared.read_text("utf-8"))
    compared.unlink()  # all of it is in the metrics
    if (context.output / ROWS).is_file():
        artifacts.append(Artifact("rows", "row_losses", context.output / ROWS))
    return Results(artifacts, metrics)
