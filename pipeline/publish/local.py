"""The local registry: versioned copies with a model card and checksums, under `registry/` in the home."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.inputs.options import option
from pipeline.publish import card, zip_file
from pipeline.publish.card import CARD
from pipeline.publish.report import files as report_files
from pipeline.publish.report.files import ROWS_HELP
from pipeline.publish.source import source_of
from pipeline.store.run import Run
from pipeline.system import checksums
from pipeline.system.files import make_room, to_json

FACTS = "published.json"
MOST_VERSIONS = 1_000  # that are kept: every look at the registry reads all of them
CROWDED = (
    "The lab's own registry has {:,} versions, as many as it may; publish elsewhere, or have whoever runs the"
    " lab take some out of its folder registry."
)


@dataclass(frozen=True)
class Options:
    name: str = option("", "Name of the model: letters, digits, - and _")
    version: str = option("", "A whole number; empty: the next one")
    description: str = option("", "A sentence for the model card", advanced=True)
    rows: bool = option(False, ROWS_HELP, label="Include rows of the data")


def plan(home: Path, run: Run, options: Options) -> dict[str, Any]:
    """What `publish` would do: name, version, target, files with bytes, and bytes in all.

    Raises InputError if the name or version is not valid or the run has nothing to publish, and LabError if
    the disk has no room for it beside runs.
    """
    source = source_of(run, options.name, options.version)
    if sum(1 for _ in (home / "registry").glob(f"*/*/{FACTS}")) >= MOST_VERSIONS:
        raise LabError(CROWDED.format(MOST_VERSIONS))
    folder = home / "registry" / options.name
    version = options.version or str(max((int(v) for v in _numbers(folder)), default=0) + 1)
    if (folder / version).exists():
        raise InputError(
            f"version: {options.name} already has a version {version}; leave it empty for the next one"
        )
    files: list[dict[str, Any]] = [
        {"path": str(path.relative_to(source)), "bytes": path.stat().st_size}
        for path in sorted(source.rglob("*"))
        if path.is_file()
        and path.name != checksums.NAME  # the copy gets its own
        and str(path.relative_to(source)) not in (*report_files.NAMES, report_files.ANSWERS)
        and path.parent.name != zip_file.BYTECODE
    ]
    size = sum(file["bytes"] for file in files)
    make_room(home, size)
    return {
        "name": options.name,
        "version": version,
        "target": str(folder / version),
        "files": files,
        "bytes": size,
    }


def publish(home: Path, run: Run, options: Options, report: Callable[[str, float], None]) -> dict[str, Any]:
    """Verify the exported model and copy it into the registry; `report` gets a message and the fraction done.

    Returns name, version, path and bytes. A version is complete or does not exist. Raises InputError where
    and LabError where `plan` does, and LabError with every check of the model that failed; nothing is written
    then.
    """
    planned = plan(home, run, options)
    report("Verifying the exported model", 0.0)
    verify.require(verify.whole(Path(str(run.shipped))), "Nothing was published")
    target = Path(planned["target"])
    part = target.with_name(f".{target.name}.part")
    sweep(home)
    part.mkdir(mode=0o700, parents=True)
    try:
        sums = _copy(Path(str(run.shipped)), part, planned, report)
        written = card.text(home, run, f"{options.name}, version {planned['version']}", options.description)
        beside = card.texts(home, run)
        for name, text in {
            CARD: written,
            **beside,
            **report_files.with_rows(home, run, options.rows),
        }.items():
            (part / name).write_text(text, encoding="utf-8")
            sums[name] = hashlib.sha256(text.encode()).hexdigest()
        (part / checksums.NAME).write_text(checksums.text(sums), encoding="utf-8")
        facts = {
            "run": run.id,
            "created": time.time(),
            "description": options.description,
            "bytes": planned["bytes"],
        }
        (part / FACTS).write_text(to_json(facts, indent=2), encoding="utf-8")
        _settle(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "name": options.name,
        "version": planned["version"],
        "path": str(target),
        "bytes": planned["bytes"],
    }


def sweep(home: Path) -> None:
    """Remove what killed ones left, of whatever name; only one publishes at a time."""
    for left in (home / "registry").glob("*/.*.part"):
        shutil.rmtree(left, ignore_errors=True)


def _settle(part: Path, target: Path) -> None:
    """Rename a finished version to its final name, unless that is taken."""
    try:
        part.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise LabError(f"{target.parent.name} already has a version {target.name}; publish again.") from None


def versions(home: Path) -> list[dict[str, Any]]:
    """Every published version, newest first: name, version, created, run, description, bytes, path."""
    found = []
    for facts_file in (home / "registry").glob(f"*/*/{FACTS}"):
        folder = facts_file.parent
        if folder.name.isdigit():
            facts = json.loads(facts_file.read_text(encoding="utf-8"))
            found.append({"name": folder.parent.name, "version": folder.name, "path": str(folder), **facts})
    return sorted(found, key=lambda version: version["created"], reverse=True)


def _numbers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def _copy(
    source: Path, target: Path, planned: dict[str, Any], report: Callable[[str, float], None]
) -> dict[str, str]:
    """Copy file by file and return each one's SHA-256, taken of what was read.

    Raises LabError for a file that differs from the export's checksums: it changed after verification.
    """
    told, sums = checksums.read(source), {}
    done = 0
    for file in planned["files"]:
        report(f"Copying {file['path']}", done / max(planned["bytes"], 1))
        (target / file["path"]).parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (source / file["path"]).open("rb") as read, (target / file["path"]).open("xb") as write:
            while block := read.read(4 * 1024 * 1024):
                digest.update(block)
                write.write(block)
                done += len(block)
        sums[file["path"]] = digest.hexdigest()
        if told.get(file["path"]) not in (None, sums[file["path"]]):
            raise LabError(f"{file['path']} changed while it was copied; publish again.")
    return sums
