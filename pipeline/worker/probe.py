"""Try the whole lab on a small copy of a model before it costs anything.

One layer of the model's own architecture, with random weights and its real tokenizer, goes through the
stages of the recipe: quantize, finetune, optimize, and the exported files answer a prompt. What fails there
would fail after hours on the real model.

The child asks for it (`require`) before it makes anything; it runs in a process of its own (`python -m
pipeline.worker.probe FOLDER`), which may crash or take too much memory without harm. A probe that passed is
remembered in `probes/` of the home: the walk by all that decides it, and the exported tokenizer with the
datasets it was compared for. One that failed is tried again: the fault may be mended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import ANY_SMALLER, INTERNAL, LabError, expected
from pipeline.exports.contract import SUFFIX
from pipeline.inputs.data import datasets
from pipeline.inputs.models import architectures, base_models, config_faults
from pipeline.inputs.prompts import templates, training_ids
from pipeline.stages import artifacts, evaluate, events, optimize, quantize, recipe
from pipeline.stages.stage import Context
from pipeline.stages.table import STAGES, about
from pipeline.store.run import EVENTS
from pipeline.system import locks, own_process
from pipeline.system.files import write_whole
from pipeline.worker import miniature, spare

TITLE = "Trying the whole lab on one small layer"
TASK, VERDICT, STEP, EXPORT = "task.json", "verdict.json", "step", "export"
PASSED = "passed.json"
SOURCES = ("worker/probe.py", "worker/miniature.py")
UNSAID = ("_name_or_path", "transformers_version")  # of a config.json: they change nothing
PROBES = "probes"  # in the home
LOOK_SECONDS = 0.2  # between two looks for a verdict
MOST_EXPORTS, MOST_WALKS = 8, 200  # that are kept, the newest: tokenizers of some megabytes, and a line each
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
# As much of a genai_config.json as the runtime wants where it reads a tokenizer only.
NO_MODEL = {"type": "llama", "context_length": 64, "vocab_size": 1, "decoder": {"filename": "model.onnx"}}
OTHER_MODEL = "choose another base model"
LOG = "the log has the details"


@dataclass(frozen=True)
class Task:
    """What is to be tried. `exported` is a kept tokenizer: then only its ids are compared."""

    files: str
    data: str
    recipe: dict[str, Any]
    exported: str | None = None


def require(
    home: Path,
    chosen: recipe.Recipe,
    data: Path,
    files: Path,
    scratch: Path,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Have the recipe tried on a small copy of the model in `files`, unless that passed before.

    `scratch` is a folder for what is made, removed afterwards. `meanwhile` is called while the trial runs.
    Raises LabError with what fails.
    """
    kept = home / PROBES
    try:
        base_models.read_config(files)
    except LabError as error:
        raise LabError(f"This model cannot be loaded: {error}.") from None
    walk, tokenizer = keys(chosen, files)
    passed, export = kept / f"{walk}.json", kept / tokenizer
    compared = export / f"{datasets.sha256(data)}.json"
    wanted = [passed, *([compared] if chosen.optimize is not None else [])]
    if all(path.is_file() for path in wanted):
        return
    with locks.locked(kept / ".locks" / walk):
        if all(path.is_file() for path in wanted):
            return
        known = str(export) if passed.is_file() and export.is_dir() else None
        try:
            if known is not None:
                os.utime(export)  # in use, so not among the oldest
            _try(Task(str(files), str(data), chosen.to_dict(), known), scratch, meanwhile)
            if known is None and (scratch / EXPORT).is_dir():
                shutil.rmtree(export, ignore_errors=True)
                (scratch / EXPORT).replace(export)
            if export.is_dir():
                write_whole(compared, {"data": str(data)})
            write_whole(passed, {"model": chosen.model})
            drop_old(home)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def keys(chosen: recipe.Recipe, files: Path) -> tuple[str, str]:
    """Names of what is remembered: of the walk, and of the exported tokenizer, which depends on less."""
    config = _read_config(files)
    facts = {
        "config": {key: value for key, value in config.items() if key not in UNSAID},
        "files": {path.name: datasets.sha256(path) for path in small_files(files)},
        "template": chosen.template,
        "packages": artifacts.versions(),
        "code": artifacts._code(),
        "probe": [datasets.sha256(settings.ROOT / "pipeline" / source) for source in SOURCES],
    }
    options = {
        stage: {**dataclasses.asdict(made), "max_length": None}  # rows are shorter
        for stage, made in _short(chosen, config).items()
    }
    walk = {**facts, "stages": options, "device": settings.on_gpu()}
    return _digest(walk), f"tokenizer-{_digest(facts)}"


def small_files(files: Path) -> list[Path]:
    """The files of a model's folder besides its weights and config.json: tokenizer and templates."""
    return [
        path
        for path in sorted(files.iterdir())
        if path.is_file()
        and path.name != "config.json"
        and "safetensors" not in path.name
        and any(fnmatch(path.name, pattern) for pattern in base_models.SMALL_FILES)
    ]


def _read_config(files: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((files / "config.json").read_text("utf-8"))
    return config


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _short(chosen: recipe.Recipe, config: Mapping[str, Any]) -> dict[str, Any]:
    """The stages that are tried, by name, in order."""
    made = miniature.short(chosen.stages(), config)
    if chosen.optimize is not None and not optimize.not_run_here(chosen.optimize):
        made["evaluate"] = evaluate.Options(prompts=1, max_new_tokens=2)
    return made


def _try(task: Task, scratch: Path, meanwhile: Callable[[], None] | None) -> None:
    """Run the probe's process. It is of this one's group and mark, so what ends the stage ends it too."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_whole(scratch / TASK, dataclasses.asdict(task))
    print(f"{TITLE}. What follows is of that trial:", flush=True)
    events.emit(message=TITLE, progress=0.0)
    words = ["-m", "pipeline.worker.probe", str(scratch)]
    with own_process.start(words, settings.local_environment()) as process:
        try:
            if meanwhile is not None:
                meanwhile()
            code = _wait(process, scratch / VERDICT)
        except BaseException:
            process.kill()
            raise
    try:
        error = json.loads((scratch / VERDICT).read_text("utf-8"))["error"]
    except (OSError, ValueError):
        error = death(code, _step(scratch))
    if error is not None:
        raise LabError(error)
    print(f"{TITLE}: all of it works. What follows is the real model.", flush=True)


def _wait(process: subprocess.Popen[bytes], verdict: Path) -> int:
    """The exit code of the probe; one that has written its verdict and doesn't exit is killed."""
    while True:
        written = verdict.exists()
        try:
            return process.wait(settings.exit_seconds() if written else LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if written:
                process.kill()
                return process.wait()


def death(code: int, step: str) -> str:
    """What to say of a probe that ended without a verdict, at a step."""
    at = f"A small copy of this model was tried, and at the step {step!r} that"
    if code == -signal.SIGKILL:
        return f"{at} was killed, most likely because memory ran out; retry when the machine is less busy."
    if code < 0:
        why = signal.strsignal(-code) or f"signal {-code}"
        return f"{at} crashed ({why}), as the real model would; {OTHER_MODEL} ({LOG})."
    return f"{at} ended without a reason (exit code {code}); retry, and {LOG}."


def _step(scratch: Path) -> str:
    with suppress(OSError):
        return (scratch / STEP).read_text("utf-8")
    return "start"


def drop_old(home: Path) -> None:
    """Keep only the newest of what is remembered: whatever goes is tried again when it is wanted."""
    for pattern, most in (("tokenizer-*", MOST_EXPORTS), ("*.json", MOST_WALKS)):
        found = []
        for path in (home / PROBES).glob(pattern):
            with suppress(FileNotFoundError):  # another process drops it as well
                found.append((path.stat().st_mtime, path))
        for _, old in sorted(found, reverse=True)[most:]:
            if old.suffix == ".json":
                old.unlink(missing_ok=True)
            else:
                shutil.rmtree(old, ignore_errors=True)


# -- the probe's own process ------------------------------------------------------------------------------


class Walk:
    """One trial: `go` raises what fails, and `step` then says at what."""

    def __init__(self, task: Task, scratch: Path, told: Path | None) -> None:
        self.files, self.data, self.scratch, self.told = Path(task.files), Path(task.data), scratch, told
        self.exported = Path(task.exported) if task.exported else None
        self.recipe = recipe.from_dict(task.recipe)
        self.config = _read_config(self.files)
        self.stages = _short(self.recipe, self.config)
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
        """Note the step, for whoever looks at this process or at what it leaves."""
        self.step = step
        write_whole(self.scratch / STEP, step)
        steps = list(dict.fromkeys(["config", TOKENIZER, "model", *packed(self.config), *self.stages, IDS]))
        message = f"{TITLE}: {step} ({steps.index(step) + 1} of {len(steps)})"
        print(f"-- {message}", flush=True)
        if self.told is not None:
            events.append(self.told, {"message": message, "progress": 0.0})

    def _check_config(self) -> None:
        """Let transformers read the config. Raises LabError where it has no such model."""
        self._at("config")
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        kind = self.config.get("model_type")
        try:
            found = AutoConfig.from_pretrained(self.files, trust_remote_code=False)
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
        """The small copy on the disk. Raises what keeps such a model from being made or made small."""
        self._at("model")
        return build(self.config, self.files, self.scratch / "model", self._step_size())

    def _step_size(self) -> int:
        return miniature.step_of(self.recipe.stages(), self.config)

    def _carry_out(self, model: Path) -> dict[str, Path]:
        """Carry the stages out; what they made, by kind."""
        from pipeline.stages.execute import execute

        inputs: dict[str, Path] = {}
        small = _read_config(model)
        data = self.scratch / "rows.jsonl"
        rows = tried(self._rows(), self._fields())
        data.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), "utf-8")
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
                device="cuda" if settings.on_gpu() else "cpu",
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

    def _fields(self) -> tuple[str, ...]:
        return templates.parse(self.recipe.template, templates.chat_template(self.files)).fields

    def _compare(self, exported: Path) -> None:
        """Compare ids. Raises LabError where serving would read other tokens than training."""
        from pipeline.passes.optimize import same_ids

        same_ids.require(self.files, exported, self.recipe.template, self._rows())


def build(config: Mapping[str, Any], files: Path, folder: Path, step: int) -> Path:
    """Write the small copy of a model with random weights, and its real tokenizer, to `folder`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = AutoConfig.for_model(**miniature.small(config, step))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made, dtype=made.dtype or torch.float32, trust_remote_code=False)
    body = getattr(model, "model", None)
    if not (hasattr(body, "layers") or hasattr(body, "language_model")):
        raise LabError(unfit(config_faults.unlike(config)))
    model.save_pretrained(folder)
    written = _read_config(folder) | {"architectures": config.get("architectures")}
    (folder / "config.json").write_text(json.dumps(written, indent=2), "utf-8")
    for file in small_files(files):
        shutil.copyfile(file, folder / file.name)
    return folder


def packed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stage that packs the small copy as the model is packed already; none where it is float."""
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
    """See that the tokenizer loads and makes tokens that the model has. Raises LabError.

    With `folder`, write it there as the export does and have the runtime read it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
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
                file.readline(LONGEST_LINE)  # the rest of a line that began before
            start, line = file.tell(), file.readline(LONGEST_LINE)
            row = events.parse(line.removeprefix(b"\xef\xbb\xbf"))
            if row is not None and start not in seen:
                seen.add(start)
                yield row


def tried(rows: list[dict[str, Any]], fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """A few short rows with different prompts, so that they can be split."""
    different = {json.dumps([row.get(name) for name in fields[:-1]]): row for row in rows}
    return sorted(different.values(), key=lambda row: len(json.dumps(row)))[:TRIED_ROWS]


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
    """Known reasons in words."""
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
    """The setting with that value, "" if there is none: libraries look up what a config.json names."""
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


def main(scratch: Path) -> int:
    """Carry the task of a folder out and leave the verdict in it."""
    told = settings.events_path()
    # What stages tell of themselves here is not the run's. The mark by which this process is found stays.
    settings.report_to(scratch / EVENTS)
    walk, error = None, None
    try:
        task = Task(**json.loads((scratch / TASK).read_text("utf-8")))
        walk = Walk(task, scratch, told)
        if spare.serves(dataclasses.asdict(walk.recipe.finetune) if walk.recipe.finetune else {}):
            spare.without_bitsandbytes()
        walk.go()
    except BaseException as failure:
        traceback.print_exc()
        error = said(failure, walk.step if walk else "config", walk.config if walk else {})
    write_whole(scratch / VERDICT, {"error": error})
    return 0 if error is None else 1


if __name__ == "__main__":
    settings.quiet_this_process()
    sys.exit(main(Path(sys.argv[1])))
