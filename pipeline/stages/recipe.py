"""A recipe: everything that a user chose for a run, as YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs import safe_yaml
from pipeline.inputs.data.card import findings
from pipeline.inputs.data.formats import columns
from pipeline.inputs.data.hub import dataset_id
from pipeline.inputs.models.catalogue import CATALOGUE
from pipeline.inputs.options import AUTO, coerce, describe, option, parse, unknown_keys
from pipeline.stages import evaluate, finetune, optimize, quantize, score
from pipeline.stages.all_stages import STAGES, about, ask

# Model and data may be given relative to the recipe; these ids are not paths.
NOT_PATHS = ("azureml:",)

OPTIONS = {name: stage.Options for name, stage in STAGES.items()}
COLUMNS = "columns"
UNSAID = {
    "columns": None,
    "leave_out": "",
    "group": "",
    "runs_on": "any",
    "max_minutes": 0.0,
    "max_gigabytes": 0.0,
}  # not written if they have these values


@dataclass(frozen=True)
class Basics:
    """Options that concern every stage."""

    name: str = option("run", "Name of the run")
    model: str = option(
        "starter",
        "A catalogue id, a hub id such as org/name, a local folder, or a model in Azure as"
        " azureml:NAME:VERSION or azureml://registries/...",
    )
    data: str = option(
        "",
        "The dataset: JSON lines, a JSON array, CSV, TSV or Parquet, also as .gz; several as rows/*.csv; or"
        " hub:org/name of the Hugging Face Hub, then @REVISION, and after commas config=, split= or file=",
        label="Dataset",
    )
    template: str = option(
        "chat", "chat (the model's own) or a text with {placeholders}; the last one is the response"
    )
    eval_fraction: float = option(
        0.1, "Share of the rows held out for evaluation", min=0.01, max=0.5, label="Held-out share"
    )
    leave_out: str = option(
        "",
        "Rows to leave out, by what the data card finds in them: names joined by commas, such as"
        " duplicates,near_duplicates,leaks,secrets",
        advanced=True,
        label="Rows to leave out",
    )
    seed: int = option(0, "Makes the split and the training repeatable", min=0, max=2**31 - 1)
    runs_on: Literal["any", "cpu"] = option(
        "any",
        "any: on a GPU if there is one; cpu: on the CPU, beside runs on GPUs",
        advanced=True,
    )
    max_minutes: float = option(
        0.0,
        "End the run when its stages have taken this long; 0: no limit",
        min=0,
        advanced=True,
        label="Time limit in minutes",
    )
    max_gigabytes: float = option(
        0.0,
        "End the run when it has written this much to the disk; 0: no limit",
        min=0,
        advanced=True,
        label="Disk limit in GB",
    )
    group: str = option("", "Runs that belong together, such as those of a scorecard, share this name")


@dataclass(frozen=True)
class Recipe(Basics):
    """What to do with which model and data. A stage that is None is left out.

    columns   which columns of the data are prompt, response and system; None: as recognised
    auto      keys of options for which it says `auto`, such as "finetune.max_steps"; until they are settled
              the stage has the default
    """

    columns: dict[str, list[str]] | None = None
    quantize: quantize.Options | None = field(default_factory=quantize.Options)
    finetune: finetune.Options | None = field(default_factory=finetune.Options)
    optimize: optimize.Options | None = field(default_factory=optimize.Options)
    evaluate: evaluate.Options | None = field(default_factory=evaluate.Options)
    score: score.Options | None = None
    auto: tuple[str, ...] = ()

    def settled(self, values: dict[str, Any]) -> Recipe:
        """The recipe with other values by key: those that each `auto` stands for, and what data needs."""
        changed: dict[str, Any] = {}
        for key, value in values.items():
            stage, _, name = key.partition(".")
            options = changed.get(stage, getattr(self, stage))
            changed[stage] = dataclasses.replace(options, **{name: value}) if name else value
        return dataclasses.replace(self, **changed, auto=tuple(key for key in self.auto if key not in values))

    def stages(self) -> dict[str, Any]:
        """The stages to run, in order, with their options."""
        found = {name: getattr(self, name) for name in OPTIONS}
        return {name: options for name, options in found.items() if options is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of a hand-written recipe, without rarely used keys at their default."""
        unsaid = {**UNSAID, **dict.fromkeys(LEFT_OUT)}
        given = dataclasses.asdict(self)
        for key in given.pop("auto"):
            stage, _, name = key.partition(".")
            given[stage][name] = AUTO
        return {key: value for key, value in given.items() if key not in unsaid or value != unsaid[key]}

    def to_yaml(self) -> str:
        """The recipe as the YAML file a user would write, stages one to a line."""
        text: str = yaml.safe_dump(
            self.to_dict(), default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True
        )
        return text


# Stages that run only if a recipe names them.
LEFT_OUT = {
    known.name for known in dataclasses.fields(Recipe) if known.name in OPTIONS and known.default is None
}


def load(path: Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe file; `changes` are `key=value` as given to `--set`.

    Raises InputError naming the file, key or value.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(safe_yaml.MOST_CHARACTERS + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    try:
        given = safe_yaml.load(text)
    except ValueError as error:
        raise InputError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys such as name, model and data")
    return build(given, path.resolve().parent, changes)


def build(given: dict[str, Any], folder: Path, changes: list[str] | None = None) -> Recipe:
    """`from_dict` after the `key=value` changes of `--set`, which go into `given`."""
    for change in changes or []:
        _set(given, change)
    return from_dict(given, folder)


def redo(given: dict[str, Any], folder: Path, changes: list[str] | None = None) -> Recipe:
    """`build` for a recipe with absolute paths: only changed paths are relative to `folder`."""
    for change in changes or []:
        _set(given, change)
    named = {change.partition("=")[0] for change in changes or []}
    for name in OPTIONS:
        if f"{name}.data" in named and (path := given[name].get("data")):
            given[name]["data"] = str(_absolute(str(path), folder))
    if "data" in named:
        given["data"] = data_path(str(given["data"]), folder)
    if "model" in named:
        given["model"] = model_path(str(given["model"]), folder)
    return from_dict(given)


def from_dict(given: dict[str, Any], folder: Path | None = None) -> Recipe:
    """Check a mapping and make a Recipe of it; paths are relative to `folder`.

    Without a folder, the mapping comes from `to_dict`, and its paths are absolute.
    """
    top = {o.name: o for o in describe(Basics)}
    allowed = [*top, COLUMNS, *OPTIONS]
    problems = unknown_keys(given, allowed)
    values: dict[str, Any] = {}
    autos: list[str] = []
    for key, value in given.items():
        try:
            if key in top:
                values[key] = coerce(top[key], value, key)
            elif key == COLUMNS:
                values[key] = None if value is None else columns.parse(value, key).to_dict()
            elif key in OPTIONS:
                chosen, left_open = _without_auto(key, _renamed(key, value))
                values[key] = None if chosen is None else parse(OPTIONS[key], chosen, key)
                autos += left_open
        except InputError as error:
            problems += error.problems
    problems += _missing(values, given)
    if problems:
        raise InputError(problems)
    if folder is not None:
        try:
            values["data"] = data_path(values["data"], folder)
            values["model"] = model_path(values.get("model", "starter"), folder)
            values |= {
                name: _with_path(options, folder) for name, options in values.items() if name in OPTIONS
            }
        except (OSError, RuntimeError) as error:  # a name too long, ~ of a user that doesn't exist
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"data or model: cannot be a path: {reason}") from None
    return Recipe(**values, auto=tuple(autos))


def _with_path(options: Any, folder: Path) -> Any:
    """A stage's options, whose file has an absolute path."""
    path = getattr(options, "data", "")
    return dataclasses.replace(options, data=str(_absolute(path, folder))) if path else options


def _without_auto(stage: str, given: Any) -> tuple[Any, list[str]]:
    """A stage's options without those that say `auto` and may, and the keys of these."""
    if not isinstance(given, dict):
        return given, []
    may = [known.name for known in describe(OPTIONS[stage]) if known.auto and given.get(known.name) == AUTO]
    return {key: value for key, value in given.items() if key not in may}, [f"{stage}.{key}" for key in may]


def _renamed(stage: str, given: Any) -> Any:
    """A stage's options by their current names, with plain values. Raises InputError naming the option."""
    if not isinstance(given, dict):
        return given
    names = about(stage, "RENAMED", {})
    found = {names.get(key, key): value for key, value in given.items()}
    return ask(stage, "as_options", found, default=found)


def _missing(values: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Problems that concern more than one key."""
    problems = []
    if not given.get("data"):
        problems.append("data: is missing; give a file with rows, such as JSON lines or CSV")
    elif dataset_id.is_id(values.get("data", "")):
        try:
            dataset_id.parse(values["data"])
        except InputError as error:
            problems += error.problems
    name = values.get("name", "run")
    if not name.strip() or len(name) > 100 or not name.isprintable():
        wrong = display.value(name)
        problems.append(f"name: {wrong} is not allowed; allowed: 1 to 100 characters on one line")
    group = values.get("group", "")
    if len(group) > 100 or not all(letter.isalnum() or letter in "-_." for letter in group):
        problems.append(
            f"group: {display.value(group)} is not allowed; allowed: letters, digits, - _ . (up to 100)"
        )
    try:
        findings.parse(values.get("leave_out", ""))
    except InputError as error:
        problems += error.problems
    if all(values.get(name, None if name in LEFT_OUT else True) is None for name in OPTIONS):
        problems.append("all stages are null: there is nothing to run")
    defaults = {name: None if name in LEFT_OUT else options() for name, options in OPTIONS.items()}
    chosen = {name: values.get(name, default) for name, default in defaults.items()}
    stages = {name: options for name, options in chosen.items() if options is not None}
    for name, options in stages.items():
        problems += ask(name, "check_recipe", options, stages, default=[])
    return problems


def data_path(data: str, folder: Path) -> str:
    """A path is made absolute; a dataset of the hub stays as it is."""
    return data if dataset_id.is_id(data) else str(_absolute(data, folder))


def model_path(model: str, folder: Path) -> str:
    """A folder is made absolute; a catalogue or hub id stays as it is."""
    if model.startswith(NOT_PATHS) or model in {entry.id for entry in CATALOGUE}:
        return model
    looks_like_path = model.startswith((".", "/", "~"))
    path = _absolute(model, folder)
    return str(path) if looks_like_path or path.is_dir() else model


def _absolute(path: str, folder: Path) -> Path:
    return (folder / Path(path).expanduser()).resolve()


def _set(given: dict[str, Any], change: str) -> None:
    """Apply one `--set stage.option=value`; the value is read as YAML."""
    key, equals, text = change.partition("=")
    if not equals:
        wrong = display.line(change)
        raise InputError(f"--set {wrong}: write it as key=value, such as finetune.max_steps=10")
    try:
        value = safe_yaml.load(text)
    except ValueError:
        value = text
    if any(o.name == key and o.types == (str,) for o in describe(Basics)) and not isinstance(value, str):
        value = text  # a name like 007 or a template like `Q: {prompt}` means something else in YAML
    *parents, last = key.split(".")
    target = given
    for parent in parents:
        inner = target.setdefault(parent, {})
        if inner is None:  # giving an option to a stage that is null switches it on
            inner = target[parent] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {display.line(change)}: {display.line(parent)} has no options")
        target = inner
    target[last] = value
