"""The home's own copies of datasets, which no later change to the user's file reaches."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.formats.convert import Made
from pipeline.runs import disk
from pipeline.runs.data import data_card, prepare_data
from pipeline.store import scratch
from pipeline.system import files

MOST_DATASETS = 1_000  # files that a home keeps: every form lists them
MOST_NAMES = 8  # of files of the same content
CROWDED = (
    "The lab keeps {:,} datasets, as many as it may, all of runs or used just now; try again in some minutes,"
    " or delete runs that nobody needs, which makes room a day later."
)


def keep_made(home: Path, made: Made, used: Path | None = None, source: str = "", left_out: str = "") -> Path:
    """`keep` of what was made, or what is `used` of it, with what it was made of beside it.

    `source` is where that is from, if it is known, `left_out` the choice by which some rows are not `used`.
    """
    made_of = prepare_data.digest(made) if made.is_made else ""
    kept = keep(home, used or made.path, made_of + left_out + source)
    if made.is_made:
        prepare_data.keep_originals(kept, made)
    if left_out:
        data_card.mark(kept, left_out)
    prepare_data.keep_source(kept, source)
    return kept


def keep(home: Path, source: Path, made_of: str = "") -> Path:
    """The home's own copy of a dataset, named by content: later changes to the file don't reach the run.

    One that was made here is named by what it was `made_of` too, and how, which lies beside it: nobody's
    original takes the place of another's, and nobody's choice of rows or source becomes another's.
    Where there are as many as may be, some that no run has make room (`crowds.making_room`).
    Raises LabError if there are none, or the disk is nearly full.
    """
    kept, name = home / "datasets", _visible(display.file_name(source.name))
    inside = source.resolve().parent.parent == kept.resolve()  # a copy already, which nobody changes
    target = source if inside else kept / _folder_name(source, made_of) / name
    datasets.use(target)  # again, if it is there: freeing space goes by this time
    if target.exists():
        return target
    # Whoever sends one file under ever new names gets it under one that it has.
    if len(same := files.visible(target.parent)) >= MOST_NAMES:
        datasets.use(same[0])
        return same[0]
    if source.parent != settings.SAMPLES and not disk.datasets_make_room(home, MOST_DATASETS):
        raise LabError(CROWDED.format(MOST_DATASETS))
    arriving = scratch.room(kept) / f"{secrets.token_hex(4)}.part"
    arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = arriving / f".{name}"
    try:
        files.make_room(arriving, source.stat().st_size)
        shutil.copyfile(source, part)
        part.chmod(0o600)
        target = kept / _folder_name(part, made_of) / name  # the source may have changed since
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return target


def _folder_name(file: Path, made_of: str) -> str:
    content = datasets.sha256(file)
    return hashlib.sha256(f"{content}{made_of}".encode()).hexdigest() if made_of else content


def _visible(name: str) -> str:
    """A name that is not one of ours beside a dataset, which are hidden, but for the folder of originals."""
    name = name.lstrip(".") or "dataset"
    return f"{name}.jsonl" if name == prepare_data.ORIGINAL else name
