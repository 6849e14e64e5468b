"""The Hugging Face Hub: a version is one commit with all files, and a tag that is added last.

1. The export is verified, as for every target. 2. Large files go to the hub's storage; those already there
are not sent again. 3. One commit contains all files. 4. The commit is compared with what was sent and, on
request, downloaded and asked prompts. 5. The commit is tagged as version `vN`.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.inputs.options import option
from pipeline.publish import card, check_process, checks, zip_file
from pipeline.publish.hub import model_card
from pipeline.publish.hub.faults import AGAIN, explained
from pipeline.publish.items import Item, packed
from pipeline.publish.report import files as report_files
from pipeline.publish.report.files import ROWS_HELP
from pipeline.publish.source import Rule, source_of
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, Run
from pipeline.system import checksums
from pipeline.system.files import to_json
from pipeline.system.transfer_progress import Meter, Report

TO = "huggingface"
NAME = Rule(
    re.compile(
        r"(?!.*(?:--|\.\.))(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?/)?[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
        r"(?<!\.git)"
    ),
    "a name or organisation/name of letters, digits, -, _ and ., up to 96, no - or . at an end, no --",
)
ADAPTER = "adapter"  # the folder with the adapter in PEFT's format
WEIGHTS, CONFIG = ".safetensors", "adapter_config.json"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")
MOST_RACES = 5  # lost to others who publish to the same repository


@dataclass(frozen=True)
class Options:
    name: str = option("", "Name of the model: organisation/name, or a name for your own account")
    version: str = option("", "A whole number; empty: the next one")
    description: str = option("", "A sentence for the model card", advanced=True)
    rows: bool = option(False, ROWS_HELP, label="Include rows of the data")
    public: bool = option(False, "Let everybody see it; off, it is private to the account or organisation")
    adapter: bool = option(
        True, "Also the adapter as PEFT reads it (safetensors), in the folder adapter/", advanced=True
    )
    check: bool = option(
        False,
        "Also download it again and have it answer; its checksums are compared in any case",
        advanced=True,
    )
    patience: float = option(
        300.0, "Give up when nothing has got through for so many seconds", min=1, max=86400, advanced=True
    )


def plan(home: Path, run: Run, options: Options) -> dict[str, Any]:
    """What `publish` would do, as far as this machine knows: name, version, target, files and bytes.

    Does not ask the hub. Raises InputError if the name or version is not valid or there is nothing to
    publish, and LabError if there is a file that could carry code.
    """
    source = source_of(run, options.name, options.version, NAME)
    beside, written = _beside(run, options), _written(home, run, options)
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in zip_file.files(source)}
    sizes |= {name: path.stat().st_size for name, path in beside.items()}
    sizes |= {name: len(text.encode()) for name, text in written.items()}
    for name in sizes:
        if name.endswith(PICKLES):
            raise LabError(
                f"{name} may carry code; only safetensors and ONNX are published. Export it again."
            )
    return {
        "name": options.name,
        "version": options.version or "(the next one)",
        "target": f"a {'public' if options.public else 'private'} repository on the Hugging Face Hub",
        "files": [{"path": name, "bytes": size} for name, size in sizes.items()],
        "bytes": sum(sizes.values()),
    }


def publish(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """Do it; returns name, version, path, revision, bytes, verified and more for the stage's metrics.

    Raises what `plan` raises, and LabError with the reason if it fails. A version exists with all its files
    or not at all.
    """
    plan(home, run, options)
    report("Verifying the exported model", 0.0)
    check_process.verified(source_of(run, options.name, options.version, NAME), "Nothing was published")
    return send(home, run, options, report)


def send(home: Path, run: Run, options: Options, report: Report) -> dict[str, Any]:
    """The part of `publish` after the export is verified."""
    plan(home, run, options)
    with explained(options.name):
        return _Publication(home, run, options, report).carry_out()


def versions(home: Path) -> list[dict[str, Any]]:
    """Versions that this lab published there, according to its runs, newest first. Does not ask the hub."""
    found = [
        {"run": run.id, "created": stage.finished or run.created, **stage.metrics}
        for run in Store(home).list(to=TO)
        for stage in run.stages
        if stage.kind == PUBLISH and stage.status == DONE and stage.options.get("to") == TO
    ]
    return sorted(found, key=lambda version: version["created"], reverse=True)


class _Publication:
    """One publication in progress."""

    def __init__(self, home: Path, run: Run, options: Options, report: Report) -> None:
        from pipeline.publish.hub.client import Hub, account, foreign
        from pipeline.publish.hub.repository import Repository

        self.home, self.run, self.options, self.report = home, run, options, report
        report("Logging in to the hub", 0.02)
        self.hub = Hub(options.patience)
        who = account(self.hub.who())
        name = options.name if "/" in options.name else f"{who['name']}/{options.name}"
        if refusal := foreign(who, name):
            raise LabError(refusal)
        self.repository = Repository(self.hub, name)

    def carry_out(self) -> dict[str, Any]:
        options, repository = self.options, self.repository
        source = source_of(self.run, options.name, options.version, NAME)
        items = packed(source, _written(self.home, self.run, options), _beside(self.run, options))
        self._open()
        started = time.monotonic()
        meter = Meter(self.report, sum(item.size for item in items), 0.05, 0.6 if options.check else 0.95)
        commit = self._there(items) or self._send(items, meter)
        seconds = time.monotonic() - started
        self.report("Comparing what the hub has", 0.96 if not options.check else 0.6)
        _compare(items, repository.files(commit))
        if options.check:
            self._check(items, commit)
        version = self._tag(commit)
        return {
            "name": repository.name,
            "version": version,
            "path": repository.page(version),
            "revision": commit,
            "private": not options.public,
            "bytes": meter.total,
            "bytes_sent": meter.moved,
            "upload_seconds": seconds,
            "retries": self.hub.retries,
            "verified": True,
        }

    def _open(self) -> None:
        """Make sure that the repository exists and is as private as requested."""
        repository, private = self.repository, not self.options.public
        there = repository.private()
        if there is None:
            repository.create(private)
            there = repository.private()
        if there is None:
            raise LabError(
                f"{repository.name} is on the hub, but this login cannot read it; take a token that may, or"
                " choose another name."
            )
        if there is not private:
            raise LabError(seen_by(repository.name, private=there))

    def _there(self, items: list[Item]) -> str | None:
        """The commit of the requested version, if it exists with this content.

        Raises LabError if it exists with other content.
        """
        _, tags = self.repository.refs()
        commit = tags.get(self.options.version)
        if commit is not None and different(items, self.repository.files(commit)):
            raise LabError(taken(self.repository.name, self.options.version))
        return commit

    def _send(self, items: list[Item], meter: Meter) -> str:
        """Make a commit with all files on top of the newest one, or use that if it already has them."""
        for lost in range(MOST_RACES):  # not `retry`: nothing failed, but another commit came first
            time.sleep(lost)  # wait one more second each time
            head, _ = self.repository.refs()
            there = self.repository.files(head)
            if there.keys() >= {item.name for item in items} and not different(items, there):
                return head
            former = self.repository.former(head, there)
            message = f"Run {self.run.id} of Olive Lab"
            if made := self.repository.commit(items, former, head, message, meter):
                return made
        raise LabError(f"Others are publishing to {self.repository.name} all the time; publish again later.")

    def _tag(self, commit: str) -> str:
        """Make the commit a version; returns its number."""
        tried = self.options.version
        for _ in range(MOST_RACES):
            _, tags = self.repository.refs()
            if tried and tags.get(tried) == commit:
                return tried
            tried = self.options.version or str(max(map(int, tags), default=0) + 1)
            if tried in tags:
                break
            if self.repository.tag(tried, commit):
                return tried
        raise LabError(taken(self.repository.name, tried))

    def _check(self, items: list[Item], commit: str) -> None:
        """Download the commit as any user would, compare it, and have it answer. Raises LabError."""
        folder = self.home / checks.CHECKED / "hub"  # only one publishes at a time
        shutil.rmtree(folder, ignore_errors=True)
        try:
            total = sum(item.size for item in items)
            checks.room(self.home, total)
            meter = Meter(self.report, total, 0.6, 0.93)
            for item in items:
                self.repository.fetch(commit, item.name, folder, self._fetched(meter, item.name))
            if checksums.of(folder, [item.name for item in items]) != {i.name: i.sha256 for i in items}:
                raise LabError(f"{self.repository.name} came back with other content; publish it again.")
            self.report("Asking what came back", 0.94)
            check_process.verified(folder, f"{self.repository.name} was uploaded, but is no version yet")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fetched(self, meter: Meter, name: str) -> Callable[[int], None]:
        def passed(count: int) -> None:
            self.hub.alive()
            meter.add(count, f"Downloading {name}")

        return passed


def taken(name: str, version: str) -> str:
    """The error for a version that exists with other content."""
    return f"{name} already has a version {version} with other content; leave it empty for the next one."


def seen_by(name: str, private: bool) -> str:
    """The error for a repository that is public or private against the request."""
    if private:
        return (
            f"{name} is private on the hub; make it public in its settings there, or publish without public."
        )
    return (
        f"{name} is public on the hub, and this was to be private; choose another name, or publish with"
        " public."
    )


def different(items: list[Item], there: dict[str, Any]) -> list[str]:
    """Names of items that a commit lacks or has with other content; its other files don't count."""
    return [item.name for item in items if item.name not in there or not there[item.name].holds(item)]


def _compare(items: list[Item], there: dict[str, Any]) -> None:
    if wrong := different(items, there):
        raise LabError(
            f"What the hub has is not what was sent ({display.names(wrong)}); it became no version. Publish"
            f" again: {AGAIN}."
        )


def _beside(run: Run, options: Options) -> dict[str, Path]:
    """The adapter's weights in PEFT's format, by their names in the version."""
    folder = run.artifact("adapter")
    if not options.adapter or folder is None or not (Path(folder) / CONFIG).is_file():
        return {}
    return {f"{ADAPTER}/{path.name}": path for path in sorted(Path(folder).glob(f"*{WEIGHTS}"))}


def _written(home: Path, run: Run, options: Options) -> dict[str, str]:
    """The files that the version has besides the export's own."""
    beside = _beside(run, options)
    written = {
        card.CARD: model_card.card_text(home, run, options.name, options.description, bool(beside)),
        zip_file.RECIPE: card.recipe(run),
        **card.texts(home, run),
        **report_files.with_rows(home, run, options.rows),
    }
    if beside:
        config = json.loads((Path(str(run.artifact("adapter"))) / CONFIG).read_text("utf-8"))
        # The base's path on this machine is private; its name is not.
        config["base_model_name_or_path"] = model_card.base(run) or str(card.shown(run)["model"])
        written[f"{ADAPTER}/{CONFIG}"] = to_json(config, indent=2, sort_keys=True) + "\n"
    return written
