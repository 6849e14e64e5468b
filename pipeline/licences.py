"""Under which licence a base model stands: as its own files name it, else as the catalogue does."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline import models

LONGEST = 100  # characters; somebody else wrote them
HEAD = 1 << 16  # bytes read of a file


def of(model: str, home: Path) -> str | None:
    """The licence of a recipe's `model`, or None where neither its files nor the catalogue name one.

    Nobody is asked: of a hub model the files count that were fetched for a run.
    """
    if Path(model).is_absolute():
        name, folder = model, Path(model)
    elif model.startswith("azureml:"):
        name, folder = model, models.Model(model, "azureml", "", {}, None).folder(home)
    else:
        name, _, revision = model.partition("@")
        folder = models.Model(name, "hub", revision, {}, None).folder(home)
    listed = next((entry.licence for entry in models.CATALOGUE if entry.id == name), None)
    return _front_matter(folder) or listed or _title(folder)


def _front_matter(folder: Path) -> str | None:
    """What the YAML at the head of a model's README.md says: `license_name` where `license` is `other`."""
    head = _head(folder / "README.md").removeprefix("\ufeff")
    if not head.startswith("---\n") or "\n---" not in head:
        return None
    try:
        facts = yaml.safe_load(head[4:].partition("\n---")[0])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(facts, dict):
        return None
    said = facts.get("license")
    named = facts.get("license_name") if said in ("other", None) else said
    words = named or said
    return words[:LONGEST] if isinstance(words, str) else None  # of a list, only its size is sure


def _title(folder: Path) -> str | None:
    """The first line of a model's licence file."""
    for file in sorted(folder.glob("LICENSE*")):
        for line in _head(file).splitlines():
            if line.strip():
                return line.strip()[:LONGEST]
    return None


def _head(file: Path) -> str:
    """The beginning of a text file, "" where there is none."""
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return ""
