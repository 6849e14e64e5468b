"""What an endpoint offers: the base of an exported model and its adapters, each as a model by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import display
from pipeline.errors import InputError
from pipeline.exports.chat import sources
from pipeline.exports.chat.sources import Source
from pipeline.exports.verifying import adapter_files, json_files
from pipeline.store import Store
from pipeline.system.files import to_json

BASE, MERGED = "base", "merged"
LONGEST_NAME = 100
MOST_ADAPTERS = 64  # of one model: all of them are in memory
LARGEST_CONFIG = 1 << 20  # bytes of a genai_config.json


@dataclass(frozen=True)
class Offer:
    """A model that is served, with its adapters as `source.others`."""

    source: Source
    created: int  # in seconds since the epoch

    @property
    def plain(self) -> str:
        """The name of the model without an adapter."""
        return MERGED if self.source.merged else BASE

    @property
    def names(self) -> tuple[str, ...]:
        """All that a request may name as its model."""
        return (self.plain, *(file.stem for file in self.source.others))

    @property
    def on_gpu(self) -> bool:
        """Whether it is exported for an NVIDIA GPU."""
        file = self.source.folder / json_files.CONFIG
        try:
            if file.stat().st_size > LARGEST_CONFIG:
                return False
            options = json.loads(file.read_text("utf-8"))["model"]["decoder"]["session_options"]
            return "cuda" in to_json(options.get("provider_options", [])).lower()
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return False  # which loading it reports


def of(home: Path, target: str, more: Sequence[str] = ()) -> Offer:
    """What the run or the exported folder `target` offers, with adapter files from elsewhere.

    Raises LabError if it cannot answer, InputError for an adapter that is none or whose name is taken.
    """
    folder = Path(target)
    if folder.is_dir():
        source = sources.of_folder(folder.resolve(), f"folder {folder}")
    elif "/" in target:
        raise InputError(f"{display.line(target)}: no such folder")
    else:
        source = sources.of_run(Store(home).get(target))
    given = [sources.with_adapter(source, name).adapter for name in more]
    found = [*([source.adapter] if source.adapter else []), *adapter_files.adapters_of(source.folder)]
    files = [] if source.merged else list(dict.fromkeys(_real(file) for file in [*found, *given] if file))
    _require_names(files)
    created = int(source.folder.stat().st_mtime)
    return Offer(replace(source, adapter=None, others=tuple(files)), created)


def _real(file: Path) -> Path:
    return file.parent.resolve() / file.name


def _require_names(files: Sequence[Path]) -> None:
    """Raise InputError for adapters that cannot be told apart by their names."""
    if len(files) > MOST_ADAPTERS:
        raise InputError(f"There are {len(files):,} adapters; allowed: {MOST_ADAPTERS}; move some elsewhere.")
    seen = {BASE}
    for file in files:
        if file.stem in seen:
            raise InputError(
                f"{display.line(str(file))}: a model named {display.quoted(file.stem)} is already served;"
                " rename the file"
            )
        if not file.stem.isprintable() or not 0 < len(file.stem) <= LONGEST_NAME or "/" in file.stem:
            raise InputError(f"{display.line(str(file))}: an adapter of this name cannot be asked; rename it")
        seen.add(file.stem)
