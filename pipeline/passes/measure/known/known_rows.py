"""Losses and answers that were measured before, of one side of an export, in a folder of the home.

    measured/<result of the export>-<hash>/losses.jsonl, answers.jsonl

The hash is of all that decides the numbers of a side: the contents of the export's files and of its adapter
or the float model, packages, our own code, and the machine's cores. A loss is kept under a hash of the token
ids it is of, which the tokenizer, the template and the row have made; an answer under one of its rendered
prompt and its limits. So whatever changes, nothing that would be another number is found.

Folders go with the results they are named after: `runs.disk` frees those that no run refers to. Together they
have up to MOST_BYTES: those unused longest go first. One process at a time has a folder; others measure.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.exports.contract import SUFFIX
from pipeline.exports.token_losses import Loss
from pipeline.passes.measure.kept_lines import KeptLines
from pipeline.stages import artifacts
from pipeline.system import checksums, files, hardware, locks
from pipeline.system.files import to_json

LOSSES, ANSWERS = "losses.jsonl", "answers.jsonl"
WORDS = {LOSSES: "losses", ANSWERS: "answers"}
LOCKS = ".locks"
MOST_BYTES = 256 << 20  # of all folders together
MOST_LOSSES = 200_000  # of a folder: some 14 MB, and 40 MB of memory
MOST_LETTERS = 16 << 20  # of a folder's answers
Answer = dict[str, Any]


class Known:
    """One side's losses and answers; without a folder it knows nothing and keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._losses: dict[str, Loss] = {}
        self._answers: dict[str, Answer] = {}
        self._letters = 0
        self.reused = {LOSSES: 0, ANSWERS: 0}
        self._files: dict[str, KeptLines] = {}
        if folder is not None:
            self._files = {
                LOSSES: KeptLines(folder / LOSSES, {}, self._take_loss),
                ANSWERS: KeptLines(folder / ANSWERS, {}, self._take_answer),
            }

    def loss(self, ids: Sequence[int], counted: Sequence[bool], measure: Callable[[], Loss]) -> Loss:
        """The loss of the `counted` ones of these token ids, measured where it is not known."""
        key = _hash(array("q", ids).tobytes(), bytes(counted))
        if (found := self._losses.get(key)) is not None:
            self.reused[LOSSES] += 1
            return found
        found = measure()
        if self._files and len(self._losses) < MOST_LOSSES:
            self._losses[key] = found
            self._keep(LOSSES, {"key": key, "total": found.total, "tokens": found.tokens})
        return found

    def answer(self, prompt: str, limits: Sequence[int], generate: Callable[[], Answer]) -> Answer:
        """The answer to a rendered prompt within `limits` of its length, generated where it is not known.

        It has the speed of when it was generated.
        """
        key = _hash(prompt.encode("utf-8", "surrogatepass"), to_json(list(limits)).encode())
        if (found := self._answers.get(key)) is not None:
            self.reused[ANSWERS] += 1
            return dict(found)
        found = generate()
        if self._files and self._letters + len(found["text"]) <= MOST_LETTERS:
            self._take_answer({"key": key, "answer": dict(found)})
            self._keep(ANSWERS, {"key": key, "answer": found})
        return found

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        with suppress(OSError):  # the disk may be full, or somebody has freed the folder
            self._files[name].add(entry)

    def _take_loss(self, entry: Mapping[str, Any]) -> None:
        total, tokens = entry.get("total"), entry.get("tokens")
        if isinstance(tokens, int) and isinstance(total, int | float | None):
            self._losses[str(entry.get("key"))] = Loss(
                float("nan") if total is None else float(total), tokens
            )

    def _take_answer(self, entry: Mapping[str, Any]) -> None:
        answer = entry.get("answer")
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            self._answers[str(entry.get("key"))] = answer
            self._letters += len(answer["text"])


@dataclass(frozen=True)
class KnownSides:
    """What is known of an export's sides: of its base under None, and of its adapters by their names; and of
    the float model."""

    sides: Mapping[str | None, Known]
    exact: Known

    def reused(self) -> str:
        """How much of it was used, as a sentence without its full stop; "" if nothing was."""
        every = [*self.sides.values(), self.exact]
        counts = [(sum(one.reused[name] for one in every), what) for name, what in WORDS.items()]
        parts = [f"{count:,} {what}" for count, what in counts if count]
        return f"Reused from earlier evaluations of the same files: {' and '.join(parts)}" if parts else ""


@contextmanager
def opened(
    root: Path | None, export: Path, adapters: Mapping[str, Path], exact: Path | None = None
) -> Iterator[KnownSides]:
    """What is known of an exported folder, its adapters by their names, and the float model in a folder, for
    as long as nobody else may add to it. Nothing without a `root`.

    Raises OSError for files that cannot be read.
    """
    names: tuple[str | None, ...] = (None, *adapters)
    if root is None:
        yield KnownSides({side: Known() for side in names}, Known())
        return
    with ExitStack() as stack:
        graph = _sums(path for path in export.iterdir() if path.suffix != SUFFIX)
        sums = {name: _sums([path]) for name, path in adapters.items()}
        facts = {side: {"graph": graph, "adapter": sums[side] if side else None} for side in names}
        sides = {side: _opened(root, export, each, stack) for side, each in facts.items()}
        floats = _opened(root, export, {"float": _sums(exact.iterdir())}, stack) if exact else Known()
        yield KnownSides(sides, floats)


def _opened(root: Path, export: Path, facts: Mapping[str, Any], stack: ExitStack) -> Known:
    decide = {**facts, "packages": artifacts.versions(), "code": artifacts.code(), "cores": hardware.cores()}
    digest = _hash(to_json(decide, sort_keys=True).encode())
    folder = root / f"{artifacts.name(export) or export.name}-{digest}"
    try:
        held = locks.take(root / LOCKS / folder.name)
        if held is None:
            return Known()
        stack.callback(os.close, held)
        folder.mkdir(mode=0o700, exist_ok=True)
        os.utime(folder)
        _tidy(root)
        return Known(folder)
    except OSError:  # the disk is full: it measures
        return Known()


def _tidy(root: Path) -> None:
    """Delete the folders that were unused longest, of more than MOST_BYTES."""
    folders = sorted(
        (path for path in root.iterdir() if path.name[0] != "."), key=lambda at: at.stat().st_mtime
    )
    left = files.size(*folders)
    for folder in folders:
        if left <= MOST_BYTES:
            return
        held = locks.take(root / LOCKS / folder.name)
        if held is not None:
            left -= files.size(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _sums(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by name; folders are passed over."""
    found = [path for path in paths if path.is_file()]
    return {name: digest for path in found[:1] for name, digest in
            checksums.of(path.parent, (one.name for one in found)).items()}  # fmt: skip


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()[:32]
