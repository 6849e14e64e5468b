"""`python -m pipeline.worker.trial FOLDER`: try a recipe on a small copy of a model, in a process of its own.

`probe` starts it, with the task in the folder, and reads the verdict that it leaves there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import ANY_SMALLER, INTERNAL, LabError, expected
from pipeline.exports.contract import SUFFIX
from pipeline.inputs import confined
from pipeline.inputs.data.card import leaks
from pipeline.inputs.models import architectures, base_models, config_faults, contents
from pipeline.inputs.prompts import conversations, model_template, templates, training_ids
from pipeline.stages import events, quantize, recipe
from pipeline.stages.all_stages import STAGES, about
from pipeline.stages.context import Context
from pipeline.store.run import EVENTS
from pipeline.system import hardware
from pipeline.system.files import to_json, write_whole
from pipeline.worker import miniature
from pipeline.worker.ahead import warm
from pipeline.worker.probe import (
    EXPORT,
    LOG,
    OTHER_MODEL,
    STEP,
    TASK,
    TITLE,
    VERDICT,
    Task,
    read_config,
    short_stages,
    small_files,
)  # fmt: skip

MOST_WEIGHTS = 1 << 30  # of a small copy: with all experts and words of real models it has some 600 M
MOST_ROWS = 64
TRIED_ROWS = 8
LONGEST_LINE = 1 << 16
TOKENIZER, IDS = "tokenizer", "ids"
# What a step shows of a model, as in "This model cannot be ...".
DOES = {
    "config": "loaded",
    TOKENIZER: "exported",
    "model": "loaded",
    **{stage: about(stage, "DOES", "used") for stage in STAGES},
    IDS: "exported",
}
# The part of a genai_config.json that the runtime needs to read a tokenizer.
NO_MODEL = {"type": "llama", "context_length": 64, "vocab_size": 1, "decoder": {"filename": "model.onnx"}}


class Walk:
    """One trial: `go` raises what fails, and `step` then names the step."""

    def __init__(self, task: Task, scratch: Path, told: Path | None) -> None:
        self.files, self.data, self.scratch, self.told = Path(task.files), Path(task.data), scratch, told
        self.exported = Path(task.exported) if task.exported else None
        self.recipe = recipe.from_dict(task.recipe)
        self.config = read_config(self.files)
        self.stages = short_stages(self.recipe, self.config)
        self.step = "config"

    def go(self) -> None:
        """Try all of it, or with a kept tokenizer its ids only."""
        if self.exported is not None:
            self._at(IDS)
            self._compare(self.exported)
            return
        self._check_config()
        self._at(TOKENIZER)
        check_tokenizer(
            self.files,
            self.scratch / "tokenizer" if self.recipe.optimize is not None else None,
            architectures.vocabulary(self.config),
        )
        inputs = self._carry_out(self._small_model())
        if "onnx" in inputs:
            self._at(IDS)
            self._compare(inputs["onnx"])
            _without_graph(inputs["onnx"], self.scratch / EXPORT)

    def _at(self, step: str) -> None:
        """Record the step, for the process that waits for this one."""
        self.step = step
        write_whole(self.scratch / STEP, step)
        steps = list(dict.fromkeys(["config", TOKENIZER, "model", *packed(self.config), *self.stages, IDS]))
        message = f"{TITLE}: {step} ({steps.index(step) + 1} of {len(steps)})"
        print(f"-- {message}", flush=True)
        if self.told is not None:
            events.append(self.told, {"message": message, "progress": 0.0})

    def _check_config(self) -> None:
        """Let transformers read the config. Raises LabError if it does not know the model."""
        self._at("config")
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        kind = self.config.get("model_type")
        try:
            found = contents.config_of(self.files)
        except Exception as error:
            if expected(error):
                raise
            traceback.print_exc()
            raise LabError(unloadable(self.config, error)) from None
        if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise LabError(
                f"This model cannot be loaded: {kind!r} is no text-generation model; {OTHER_MODEL}."
            )
        filled = found.to_dict()
        if wrong := config_faults.of_filled(self.config, filled):
            raise LabError(unfit(wrong))
        self.config = filled

    def _small_model(self) -> Path:
        """The small copy on the disk. Raises what prevents making it."""
        self._at("model")
        return build(self.config, self.files, self.scratch / "model", self._step_size())

    def _step_size(self) -> int:
        return miniature.step_of(self.recipe.stages(), self.config)

    def _carry_out(self, model: Path) -> dict[str, Path]:
        """Run the stages; returns what they made, by kind."""
        from pipeline.stages.execute import execute

        inputs: dict[str, Path] = {}
        small = read_config(model)
        data = self.scratch / "rows.jsonl"
        rows = tried(self._rows(), self._template())
        write_rows(data, rows)
        for stage, options in {**packed(self.config), **self.stages}.items():
            self._at(stage)
            folder = self.scratch / stage
            context = Context(
                model=model,
                inputs=dict(inputs),
                data=data,
                template=self.recipe.template,
                eval_fraction=0.25,
                seed=0,
                device="cuda" if hardware.on_gpu() else "cpu",
                output=folder / "output",
                work=folder / "work",
                checkpoints=folder / "checkpoints",
                config=small,
                name=self.recipe.model,
            )
            inputs |= {made.kind: made.path for made in execute(STAGES[stage], options, context).artifacts}
        return inputs

    def _rows(self) -> list[dict[str, Any]]:
        return list(spread_rows(self.data))

    def _template(self) -> templates.Template:
        return templates.parse(self.recipe.template, model_template.chat_template(self.files))

    def _compare(self, exported: Path) -> None:
        """Compare ids. Raises LabError if serving would read other tokens than training."""
        from pipeline.passes.optimize import same_ids

        same_ids.require(self.files, exported, self.recipe.template, self._rows())


def build(config: Mapping[str, Any], files: Path, folder: Path, step: int) -> Path:
    """Write the small copy of a model with random weights, and its real tokenizer, to `folder`.

    Raises LabError if it would not be small: all that is counted on the meta device, without memory.
    """
    import torch
    from transformers import AutoConfig

    made = AutoConfig.for_model(**miniature.small(config, step))
    with torch.device("meta"):
        count = sum(weight.numel() for weight in _random(made).parameters())
    if count > MOST_WEIGHTS:
        raise LabError(
            unfit(
                f"by its config.json one small layer of it has {display.parameters(count)} parameters, as no"
                f" real model's has; {config_faults.WAY_OUT}"
            )
        )
    torch.manual_seed(0)
    model = _random(made)
    body = getattr(model, "model", None)
    if not (hasattr(body, "layers") or hasattr(body, "language_model")):
        raise LabError(unfit(config_faults.unlike(config)))
    model.save_pretrained(folder)
    written = read_config(folder) | {"architectures": config.get("architectures")}
    (folder / "config.json").write_text(json.dumps(written, indent=2), "utf-8")
    for file in small_files(files):
        shutil.copyfile(file, folder / file.name)
    return folder


def _random(made: Any) -> Any:
    """A model of a config, with random weights on the device of the context."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = made.dtype or torch.float32
    return AutoModelForCausalLM.from_config(made, dtype=kind, trust_remote_code=False)


def packed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stage that packs the small copy like the packed model; {} if the model is float."""
    known = config.get("quantization_config")
    if not known:
        return {}
    if known.get("quant_method") != "olive":
        print(f"{TITLE}: weights packed as {known.get('quant_method')} are left out; it has float ones.")
        return {}
    options = quantize.Options(
        algorithm="rtn",
        bits=known["bits"],
        group_size=known["group_size"],
        symmetric=bool(known.get("symmetric")),
    )
    return {"quantize": options}


def check_tokenizer(files: Path, folder: Path | None, vocabulary: int | None) -> None:
    """Check that the tokenizer loads and only makes tokens that the model has. Raises LabError.

    With `folder`, write it there as the export does and have the runtime read it.
    """
    try:
        tokenizer = contents.tokenizer_of(files)
    except Exception as error:
        if expected(error):
            raise
        traceback.print_exc()
        there = (files / base_models.TOKENIZER).is_file()
        why = f"its {base_models.TOKENIZER} is {'damaged' if there else 'missing'}"
        raise LabError(
            f"This model's tokenizer cannot be loaded: {why}; {config_faults.WAY_OUT} ({LOG})."
        ) from None
    training_ids.require_known(tokenizer, training_ids.always_read(tokenizer), vocabulary)
    if folder is not None:
        _check_export(tokenizer, folder)


def _check_export(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer as the export does and have the runtime read it. Raises LabError."""
    import onnxruntime_genai as og

    tokenizer.save_pretrained(folder)
    (folder / "genai_config.json").write_text(json.dumps({"model": NO_MODEL}), "utf-8")
    try:
        og.Tokenizer(str(folder)).encode("Hello")
    except Exception:
        traceback.print_exc()
        raise LabError(
            f"This model cannot be exported: ONNX Runtime GenAI cannot read its {_kind(folder)}tokenizer, so"
            f" nothing could talk to the exported files; {OTHER_MODEL}."
        ) from None


def _kind(folder: Path) -> str:
    """The kind of a tokenizer as a word and a space, such as "Unigram "; "" if its files do not say."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return f"{json.loads((folder / 'tokenizer.json').read_text('utf-8'))['model']['type']} "
    return ""


def spread_rows(data: Path) -> Iterator[dict[str, Any]]:
    """Up to MOST_ROWS rows: the first few, and others from all over the file, which is not read whole."""
    size, others, seen = data.stat().st_size, MOST_ROWS - TRIED_ROWS, set()
    with data.open("rb") as file:
        for index in range(-TRIED_ROWS, others):
            if index > 0:
                file.seek(size * index // others)
                file.readline(LONGEST_LINE)  # skip the rest of a line
            start, line = file.tell(), file.readline(LONGEST_LINE)
            row = events.parse(line.removeprefix(b"\xef\xbb\xbf"))
            if row is not None and start not in seen:
                seen.add(start)
                yield row


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines; in fields that nobody uses they may have what JSON has not, such as 1e999."""
    file.write_text("".join(to_json(row) + "\n" for row in rows), "utf-8")


def tried(rows: list[dict[str, Any]], template: templates.Template) -> list[dict[str, Any]]:
    """A few short rows with different prompts, so that they can be split; if there are enough, none of which
    is nearly another, since evaluate asks no copy of a row that is trained on."""
    different = {json.dumps(_asked(row, template.fields)): row for row in rows}
    found = sorted(different.values(), key=lambda row: len(json.dumps(row)))
    copies = leaks.copies(found, template)
    first = sorted(range(len(found)), key=lambda position: position in copies)
    return [found[position] for position in first[:TRIED_ROWS]]


def _asked(row: dict[str, Any], fields: tuple[str, ...]) -> list[Any]:
    """What tells a row's prompt from others."""
    if fields[-1] not in row and conversations.is_one(row):
        return conversations.prompt_texts(row)
    return [row.get(name) for name in fields[:-1]]


def said(error: BaseException, step: str, config: Mapping[str, Any]) -> str:
    """The sentence for what failed at a step."""
    known = expected(error, about(step, "SMALLER", ANY_SMALLER))
    if known is not None:
        return known
    failed = f"This model cannot be {DOES[step]}"
    if reason := _plain(error, config):
        return f"{failed}: {reason}; {OTHER_MODEL}."
    others = f" or other {step} options" if step in STAGES else ""
    text = "" if isinstance(error, INTERNAL) else display.line(" ".join(str(error).split()))
    why = f" ({text})" if text else ""
    return f"{failed}: on a small copy of it, {step} failed{why}; {OTHER_MODEL}{others} ({LOG})."


def unfit(why: str) -> str:
    """The sentence for a model that no stage can take."""
    way_out = "" if config_faults.WAY_OUT in why else f"; {OTHER_MODEL}"
    return f"This model cannot be loaded: {why}{way_out}."


def _plain(error: BaseException, config: Mapping[str, Any]) -> str | None:
    """A known reason in plain words, else None."""
    if isinstance(error, KeyError) and error.args == ("multi_cache",):
        return (
            "the settings for long texts in its config.json do not fit together (max_position_embeddings"
            " differs from original_max_position_embeddings, and there is no longrope scaling)"
        )
    if isinstance(error, KeyError) and error.args and (setting := _setting(config, error.args[0])):
        return f"config.json: {setting} is {display.value(error.args[0])}, which no library here knows"
    if "head_size must be a multiple of 8" in str(error):
        return "its attention heads do not have a multiple of 8 numbers, which ONNX Runtime needs"
    if isinstance(error, NotImplementedError) and "not currently supported" in str(error):
        return f"ONNX Runtime GenAI has no exporter for {', '.join(config.get('architectures') or ['it'])}"
    return None


def _setting(config: Mapping[str, Any], value: Any) -> str:
    """The setting with that value, "" if there is none, because libraries only report the value."""
    inner = [given for given in config.values() if isinstance(given, dict)]
    found = [name for given in (config, *inner) for name, known in given.items() if known == value]
    return str(found[0]) if found and isinstance(value, str) else ""


def unloadable(config: Mapping[str, Any], error: BaseException) -> str:
    """Why transformers does not take a config.json."""
    kind = config.get("model_type")
    if config.get("auto_map"):
        why = "it needs code of its own (auto_map in its config.json), which the lab does not run"
    elif not kind:
        why = "its config.json has no model_type"
    elif "does not recognize this architecture" in str(error):
        why = f"the installed transformers does not know {kind!r} models"
    else:
        field = re.search(r"field '(\w+)'", str(error))
        setting = f"{field[1]} in its config.json" if field else "its config.json"
        why = f"the installed transformers does not accept {setting}"
    return f"This model cannot be loaded: {why}; {OTHER_MODEL} ({LOG})."


def _without_graph(exported: Path, target: Path) -> None:
    """Copy an exported folder without what only answering needs."""
    target.mkdir()
    for file in exported.iterdir():
        if file.is_file() and not file.name.startswith("model.onnx") and file.suffix != SUFFIX:
            shutil.copyfile(file, target / file.name)


def confine(task: Task, scratch: Path, told: Path | None) -> None:
    """Let this process read the task's files and no others of the lab or of a person, whatever the model's
    say: anybody can publish a model.
    """
    tempfile.tempdir = str(scratch)  # which is removed afterwards; the usual folder has files of others
    given = (task.files, task.data, task.exported, told)
    confined.to_compute([scratch, *(Path(path) for path in given if path is not None)])


def main(scratch: Path) -> int:
    """Carry out the task in a folder and write the verdict there."""
    told = settings.events_path()
    # Events of stages here are not the run's. The mark by which this process is found stays.
    settings.report_to(scratch / EVENTS)
    walk, error = None, None
    try:
        task = Task(**json.loads((scratch / TASK).read_text("utf-8")))
        confine(task, scratch, told)
        walk = Walk(task, scratch, told)
        if warm.serves(dataclasses.asdict(walk.recipe.finetune) if walk.recipe.finetune else {}):
            warm.without_bitsandbytes()
        walk.go()
    except BaseException as failure:
        traceback.print_exc()
        error = said(failure, walk.step if walk else "config", walk.config if walk else {})
    write_whole(scratch / VERDICT, {"error": error})
    return 0 if error is None else 1


if __name__ == "__main__":
    settings.quiet_this_process()
    sys.exit(main(Path(sys.argv[1])))
