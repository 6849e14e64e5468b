"""Limits of time and disk that a recipe sets (`max_minutes`, `max_gigabytes`)."""

from __future__ import annotations

import time

from pipeline.store import Store
from pipeline.store.run import DONE, OUTPUT
from pipeline.system import files

LOOK_SECONDS = 2.0  # walking over many files takes a moment
AGAIN = "Repeat it with a higher {}: finished stages are reused."


class Limits:
    """The limits of one run while one of its stages works."""

    def __init__(self, store: Store, run: str, stage: str) -> None:
        found = store.get(run)
        self.minutes = float(found.recipe.get("max_minutes") or 0)
        self.gigabytes = float(found.recipe.get("max_gigabytes") or 0)
        self._before = sum(other.seconds or 0.0 for other in found.stages if other.status == DONE)
        self._kept = sum(other.bytes for other in found.stages if other.status == DONE and not other.reused)
        self._folder = store.folder(run)
        self._output = store.folder(run, stage) / OUTPUT
        self._artifacts = store.home / "artifacts"
        self._next_look = 0.0

    def passed(self, elapsed: float) -> str | None:
        """Which limit the run has exceeded after `elapsed` seconds of its stage, as a sentence; or None."""
        if self.minutes and self._before + elapsed > 60 * self.minutes:
            return (
                f"This run has taken longer than {self.minutes:g} minutes, its limit (max_minutes). "
                + AGAIN.format("max_minutes")
            )
        if self.gigabytes and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            if self._written() > 1e9 * self.gigabytes:
                return (
                    f"This run has written more than {self.gigabytes:g} GB, its limit (max_gigabytes). "
                    + AGAIN.format("max_gigabytes")
                )
        return None

    def _written(self) -> int:
        """Bytes of the run's folder, of what it has finished, and of what its stage is writing now."""
        folders = [self._folder]
        if self._output.exists():  # some of its files are linked to those in the scratch folder
            folders.append(self._artifacts / self._output.read_text(encoding="utf-8"))
        return self._kept + files.size(*folders)
