"""Foundry Local, Microsoft's runtime for devices: a version is a folder in its cache, and in its catalogue.

1. A detachable adapter is bound to the graph. The export is verified, as for every target, and prompts are
compared. 2. The folder is made beside its final place. 3. The real runtime loads it and answers as the lab
does. 4. It gets its name and is registered.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, serving_ids
from pipeline.exports.bound import binding
from pipeline.exports.verifying import adapter_files, json_files
from pipeline.inputs.options import option
from pipeline.inputs.prompts import templates
from pipeline.publish import check_process, inference_model
from pipeline.publish.foundry import (
    chat_templates,
    environment,
    lab_side,
    runtime,
    version_folder,
)
from pipeline.publish.foundry.lab_side import Answer, Told
from pipeline.publish.foundry.runtime import Answered
from pipeline.publish.source import source_of
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, Run
from pipeline.system.transfer_progress import Report

TO = "foundry-local"
MODELS = "models"  # in the home, beside the environment: the cache of models, unless another is named
BOUND = "bound.part"  # there too, while a detachable adapter is published
OTHERWISE = "Nothing was published"


@dataclass(frozen=True)
class Options:
    name: str = option("", "Name of the model: letters, digits, - and _")
    version: str = option("", "A whole number; empty: the next one")
    description: str = option("", "A sentence for the model card", advanced=True)
    cache: str = option(
        "",
        "A folder of Foundry Local's models, such as `foundry cache location` names; empty: one in the home",
        page=False,
    )
    patience: float = option(
        300.0, "Give up when it has not answered after so many seconds", min=1, max=86400, advanced=True
    )


def cache_of(home: Path, options: Options) -> Path:
    """The folder of models to publish into."""
    if options.cache:
        return Path(options.cache).expanduser().absolute()
    return home / environment.FOLDER / MODELS


def settled(home: Path, options: Options) -> Options:
    """The options with the cache as a whole path: the worker has another current folder."""
    return replace(options, cache=str(cache_of(home, options))) if options.cache else options


def plan(home: Path, run: Run, options: Options) -> dict[str, Any]:
    """What `publish` would do: name, version, target, files with bytes, and bytes in all.

    Raises InputError if the name or version is not valid, or if Foundry Local cannot run what the run made.
    """
    source = source_of(run, options.name, options.version)
    cache = cache_of(home, options)
    if options.cache and not cache.is_dir():
        raise InputError(f"cache: {display.line(str(cache))}: no such folder; name the one of your models")
    if problems := _problems(run, source):
        raise InputError(problems)
    version = options.version or str(max(version_folder.numbers(cache, options.name), default=0) + 1)
    target = version_folder.place(cache, options.name, version)
    if target.exists():
        raise InputError(
            f"version: {options.name} already has a version {version} there; leave it empty for the next one"
        )
    sizes = _sizes(source)
    return {
        "name": options.name,
        "version": version,
        "target": str(target),
        "files": sizes,
        "bytes": sum(size["bytes"] for size in sizes),
    }


def publish(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """Do it; returns name, version, path, id, bytes and what was compared, for the stage's metrics.

    Raises what `plan` raises, and LabError with the reason if it fails; nothing is left there then.
    """
    planned = plan(home, run, options)
    report("Verifying the exported model", 0.0)
    with _adapted(home, source_of(run, options.name, options.version)) as source:
        check_process.verified(source, OTHERWISE)
        report("Comparing prompts with what training read, and answering some", 0.2)
        told = lab_side.ask(source, recorded(run), answers=True)
        python = environment.ready(home, lambda text: report(text, 0.4))
        facts = _Version(home, run, options, planned, python, report).make(source, told)
    return {
        "name": options.name,
        "version": planned["version"],
        "path": planned["target"],
        "bytes": planned["bytes"],
        **facts,
        "prompts": told.found.compared,
        "unusual_prompts": len(told.found.unusual),
        "template": "its own" if told.found.template is None else "written",
        "verified": True,
    }


def versions(home: Path) -> list[dict[str, Any]]:
    """Versions that this lab published and that are still there, according to its runs, newest first."""
    found = [
        {"run": run.id, "created": stage.finished or run.created, **stage.metrics}
        for run in Store(home).list(to=TO)
        for stage in run.stages
        if stage.kind == PUBLISH and stage.status == DONE and stage.options.get("to") == TO
    ]
    there = [version for version in found if Path(version["path"]).is_dir()]
    return sorted(there, key=lambda version: version["created"], reverse=True)


def recorded(run: Run) -> Path | None:
    """The file of answers that the run's evaluation recorded, whose prompts are asked."""
    found = run.artifact("answers")
    return Path(found) if found is not None else None


def _problems(run: Run, source: Path) -> list[str]:
    """Why Foundry Local cannot run an export, as far as its small files say."""
    problems = []
    try:
        config = json_files.small_json(source, json_files.CONFIG)
        lab = json_files.small_json(source, serving_ids.LAB)
        providers = config["model"]["decoder"].get("session_options", {}).get("provider_options")
        template = templates.parse(str(lab["template"]))
    except (OSError, ValueError, LookupError, AttributeError):
        raise InputError(f"run: {run.id}: its export is not whole; run its recipe again") from None
    if providers:
        problems.append(
            f"run: {run.id} was exported for a GPU, and Foundry Local gets its providers from the internet;"
            " export with device cpu"
        )
    if why := chat_templates.possible(template):
        problems.append(why)
    return problems


def _sizes(source: Path) -> list[dict[str, Any]]:
    """The export's files that a version has, with bytes; of a detachable adapter its bound values."""
    paths = version_folder.needed(source)
    found = {path.relative_to(source).as_posix(): path.stat().st_size for path in paths}
    if (adapter := adapter_files.usual_adapter(source)) is not None:
        found[contract.ADAPTER_DATA] = adapter.stat().st_size
    return [{"path": name, "bytes": size} for name, size in found.items()]


@contextmanager
def _adapted(home: Path, source: Path) -> Iterator[Path]:
    """The export if it is the adapted model itself; else a folder with its adapter bound, inside the block.

    Raises InputError or LabError if that cannot be made.
    """
    if not adapter_files.adapters_of(source):
        yield source
        return
    bound = home / environment.FOLDER / BOUND
    bound.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(bound, ignore_errors=True)  # left by a killed process; only one publishes at a time
    try:
        yield binding.bind(source, None, bound).folder
    finally:
        shutil.rmtree(bound, ignore_errors=True)


@dataclass(frozen=True)
class _Version:
    """One version in progress."""

    home: Path
    run: Run
    options: Options
    planned: dict[str, Any]
    python: Path
    report: Report

    def make(self, source: Path, told: Told) -> dict[str, Any]:
        """Make its folder, have it answered, name it and register it; returns the facts of this."""
        target = Path(self.planned["target"])
        part = target.with_name(f".{target.name}.part")
        version_folder.clear(cache_of(self.home, self.options))
        try:
            part.mkdir(mode=0o700, parents=True)
            facts = self._answered(source, told, part)
            mark = _mark(self.home)
            mark.write_text(str(target), "utf-8")
            try:
                part.rename(target)
            except OSError:  # it was taken meanwhile: that one is another's
                mark.unlink()
                raise
            self._register(target, facts["id"])
            mark.unlink()
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return facts

    def _answered(self, source: Path, told: Told, part: Path) -> dict[str, Any]:
        name, version = self.options.name, self.planned["version"]
        model = inference_model.model_id(name, version)
        self.report("Linking and copying files", 0.6)
        texts = version_folder.texts(self.home, self.run, source, name, version, self.options.description)
        version_folder.fill(part, source, told.found.template, texts)
        self.report("Foundry Local loads it and answers", 0.7)
        asked = [{"messages": answer.messages, "most": answer.most} for answer in told.answers]
        theirs, packages = runtime.answers(self.python, part, model, asked, self.options.patience)
        same = compare(told.answers, theirs)
        return {"id": model, "answers": len(theirs), "same_answers": same, "runtime": packages}

    def _register(self, target: Path, model: str) -> None:
        """Enter it into the catalogue; without that the folder goes again."""
        self.report("Registering it", 0.95)
        cache = cache_of(self.home, self.options)
        told = version_folder.in_catalogue(self.home, self.run, self.options.name)
        try:
            runtime.register(self.python, cache, target, model, told)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise


def sweep(home: Path) -> None:
    """Remove what a killed publish left: a version that was not registered yet, and what went into it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(_mark(home).read_text("utf-8"), ignore_errors=True)
        _mark(home).unlink()
    shutil.rmtree(home / environment.FOLDER / BOUND, ignore_errors=True)
    version_folder.clear(home / environment.FOLDER / MODELS)


def _mark(home: Path) -> Path:
    """Names the version that is being registered: its folder is whole, and no list has it."""
    return home / environment.FOLDER / "registering"


def compare(ours: list[Answer], theirs: list[Answered]) -> int:
    """See that the runtime read as many tokens and answered as the lab does; how many answers are the same to
    the last letter. Raises LabError."""
    if not ours:
        raise LabError(f"{OTHERWISE}: this model has no room for a prompt and an answer; use another base.")
    same = 0
    for mine, other in zip(ours, theirs, strict=True):
        asked = display.quoted(str(mine.messages[-1]["content"]))
        if mine.prompt_tokens != other.prompt_tokens:
            raise LabError(
                f"{OTHERWISE}: of {asked} Foundry Local read {other.prompt_tokens} tokens, and training reads"
                f" {mine.prompt_tokens}; {chat_templates.WAY_OUT}."
            )
        if not mine.is_that(other.text):
            raise LabError(
                f"{OTHERWISE}: to {asked} Foundry Local says {display.quoted(mine.cut(other.text))} where the"
                f" lab says {display.quoted(mine.text.strip())}; export it again, or publish to this lab."
            )
        same += mine.cut(other.text) == mine.text.strip()
    return same
