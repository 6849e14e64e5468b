"""What is seen of a home while its processes are killed: files that only grow, stages that stay done."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import LabError
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, QUEUED
from pipeline.worker.job import lives

LOOK_SECONDS = 0.05
GROWING = ("log.txt", "events.jsonl")


@dataclass
class Seen:
    """The first `size` bytes of a file."""

    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Watch(threading.Thread):
    """Looks at a home again and again; `faults` says what must not have been there."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.faults: list[str] = []
        self.looks = 0
        self._over = threading.Event()
        self._files: dict[Path, Seen] = {}
        self._done: dict[tuple[str, str], tuple[Any, ...]] = {}

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.look()

    def end(self) -> None:
        """Stop looking, after a last look."""
        self._over.set()
        self.join()
        self.look()
        for path, seen in self._files.items():
            if hashlib.sha256(path.read_bytes()[: seen.size]).digest() != seen.digest.digest():
                self.faults.append(f"{path}: what had been written was changed")

    def look(self) -> None:
        """One look at everything."""
        self.looks += 1
        try:
            runs = self.store.list()
        except LabError as error:
            self.faults.append(f"the store: {error}")
            return
        stages = [(run.id, stage) for run in runs for stage in run.stages if stage.status != QUEUED]
        self._only_one([(run, stage.name) for run, stage in stages])
        for run, stage in stages:
            folder = self.store.folder(run, stage.name)
            if stage.status == DONE and (run, stage.name) in self._done:
                if self._state(folder, stage) != self._done[run, stage.name]:
                    self.faults.append(f"{run} {stage.name} was done and was started again")
                continue
            for name in GROWING:
                self._grown(folder / name)
            if stage.status == DONE:
                self._done[run, stage.name] = self._state(folder, stage)
                missing = [a["path"] for a in stage.artifacts if not Path(a["path"]).exists()]
                if missing or not stage.artifacts:
                    self.faults.append(f"{run} {stage.name} is done without {missing or 'anything'}")

    def _state(self, folder: Path, stage: Any) -> tuple[Any, ...]:
        """What of a finished stage stays as it is."""
        sizes = [(folder / name).stat().st_size for name in GROWING]
        return (stage.started, stage.finished, stage.attempts, stage.artifacts, stage.metrics, *sizes)

    def _only_one(self, stages: list[tuple[str, str]]) -> None:
        """There is one device here, so one run. Those seen are looked at again: then they did overlap."""
        held = [
            (run, name)
            for run, name in stages
            if not name.startswith(PUBLISH) and lives(self.store.folder(run, name))
        ]
        if len({run for run, _ in held}) > 1:
            still = {run for run, name in held if lives(self.store.folder(run, name))}
            if len(still) > 1:
                self.faults.append(f"at work on one device: {', '.join(sorted(still))}")

    def _grown(self, path: Path) -> None:
        """Read what a file has more than at the last look."""
        if not path.exists():
            return
        seen = self._files.setdefault(path, Seen())
        with path.open("rb") as file:
            if file.seek(0, 2) < seen.size:
                self.faults.append(f"{path} lost its end")
            file.seek(seen.size)
            new = file.read()
        seen.digest.update(new)
        seen.size += len(new)
