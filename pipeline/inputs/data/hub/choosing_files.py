"""Which files of a dataset on the hub are the rows that are meant: by its card, or by their names.

Only tables, JSON and plain text are ever chosen. Scripts and pickles, which can carry code, are not.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.inputs.data.hub.dataset_id import DatasetId
from pipeline.inputs.models import hub_download

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXT_ENDINGS = (".txt", ".text")  # rows where card or id name them, or where nothing else is
ABOUT = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"}
ABOUT_TEXT = re.compile(
    r"(read.?me|licen[cs]e|copying|notice|citation|authors|changelog|requirements)\.(txt|text)"
)
SPLITS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
DEFAULT, TRAIN = "default", "train"
MOST_PATTERNS = 200  # of a config
MOST_COMPARED = 1_000_000  # files with patterns, of all configs: a few seconds
LONGEST_PATTERN = 300
KINDS = (
    "Parquet, JSON lines, JSON, CSV, TSV and text, each also as .gz; scripts and pickles are never fetched"
)

TOO_MANY = "{} has a card that names its files by too many patterns; choose some with file=."


def chosen(paths: Iterable[str], configs: Any, wanted: DatasetId) -> list[str]:
    """The files that an id means, of all in the repository; `configs` is what its card says, anybody's data.

    Raises LabError with what there is to choose from.
    """
    paths = list(paths)
    rows = sorted(path for path in paths if is_rows(path))
    texts = sorted(path for path in paths if is_text(path))
    if wanted.file:
        return _by_pattern(paths, rows, texts, wanted)
    declared = _declared(configs, rows, texts, wanted)
    rows = rows or texts
    if not rows:
        raise LabError(f"{wanted} has no file of rows; taken are {KINDS}.")
    if declared:
        splits = declared[_one("config", wanted.config, DEFAULT, declared, wanted)]
    else:
        if wanted.config:
            rows = [path for path in rows if wanted.config in path.split("/")[:-1]]
            if not rows:
                raise LabError(f"{wanted} has no config {display.short(wanted.config)}.")
        splits = _by_name(rows)
    if not wanted.split and set(splits) == {""}:
        return splits[""]
    return splits[_one("split", wanted.split, TRAIN, splits, wanted)]


def is_rows(path: str) -> bool:
    """Whether a file's name is one of rows, and one that can be written here."""
    name = _name(path)
    return name.endswith(ENDINGS) and name not in ABOUT and _is_plain(path)


def is_text(path: str) -> bool:
    """The same for plain text, of which a repository has some about itself."""
    name = _name(path)
    return name.endswith(TEXT_ENDINGS) and not ABOUT_TEXT.fullmatch(name) and _is_plain(path)


def _name(path: str) -> str:
    return path.rpartition("/")[2].lower().removesuffix(".gz")


def _is_plain(path: str) -> bool:
    return all(map(hub_download.plain, path.split("/")))


def _by_pattern(paths: list[str], rows: list[str], texts: list[str], wanted: DatasetId) -> list[str]:
    for kind in (rows, texts):
        if found := [path for path in kind if fnmatchcase(path, wanted.file)]:
            return found
    if any(fnmatchcase(path, wanted.file) for path in paths):
        raise LabError(f"{wanted} names no file of rows; taken are {KINDS}.")
    raise LabError(f"{wanted} fits no file; there are {display.names(rows or texts) or 'none with rows'}.")


def _one(what: str, asked: str, usual: str, there: dict[str, Any], wanted: DatasetId) -> str:
    """The config or split that is meant. Raises LabError."""
    known = sorted(name for name in there if name)
    if asked:
        if asked not in there:
            raise LabError(
                f"{wanted} has no {what} {display.short(asked)}; there are {display.names(known)}."
            )
        return asked
    if usual in there or len(there) == 1:
        return usual if usual in there else next(iter(there))
    raise LabError(f"{wanted} has several {what}s; add one as ,{what}=NAME: {display.names(known)}.")


def _by_name(rows: list[str]) -> dict[str, list[str]]:
    """Files by the split that their name or folder says, "" where they say none."""
    found: dict[str, list[str]] = {}
    for path in rows:
        words = [word for part in reversed(path.split("/")) for word in re.split("[^a-z]+", part.lower())]
        split = next((SPLITS[word] for word in words if word in SPLITS), "")
        found.setdefault(split, []).append(path)
    return found


def _declared(
    configs: Any, rows: Sequence[str], texts: Sequence[str], wanted: DatasetId
) -> dict[str, dict[str, list[str]]]:
    """The files of each split of each config that the card names, without those that have none; texts where
    a pattern fits no other rows. Raises LabError where there is too much to compare."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    compared = 0
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict) or not isinstance(name := config.get("config_name"), str):
            continue
        for split, pattern in _patterns(config.get("data_files"))[:MOST_PATTERNS]:
            fitting: list[str] = []
            for among in (_among(rows, pattern), _among(texts, pattern)):
                compared += 1 + len(among)
                if compared > MOST_COMPARED:
                    raise LabError(TOO_MANY.format(wanted))
                fitting = fitting or [path for path in among if _fits(path, pattern)]
            if fitting:
                found.setdefault(name, {}).setdefault(split, {}).update(dict.fromkeys(fitting))
    return {name: {split: list(paths) for split, paths in of.items()} for name, of in found.items()}


def _among(paths: Sequence[str], pattern: str) -> Sequence[str]:
    """Those of some sorted paths that may fit a pattern: its text before the first wildcard."""
    start = re.split(r"[*?[]", pattern.removeprefix("./"), maxsplit=1)[0]
    return paths[bisect_left(paths, start) : bisect_right(paths, start + chr(sys.maxunicode))]


def _patterns(given: Any) -> list[tuple[str, str]]:
    """(split, pattern) of a card's `data_files`, which may be written in several ways."""
    if isinstance(given, dict):
        given = [{"split": split, "path": path} for split, path in given.items()]
    found: list[tuple[str, str]] = []
    for one in given if isinstance(given, list) else [given]:
        split, paths = (one.get("split"), one.get("path")) if isinstance(one, dict) else (TRAIN, one)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(split, str) and isinstance(path, str) and len(path) <= LONGEST_PATTERN:
                found.append((split, path))
    return found


def _fits(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, pattern.removeprefix("**/").removeprefix("./"))
