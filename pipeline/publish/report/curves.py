"""The losses of a run's fine-tuning, from the events of the stage: the curves of reports and comparisons."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stages import artifacts, events
from pipeline.store import Store
from pipeline.store.run import Run

MOST_POINTS = 2000


@dataclass
class Line:
    """Points of a curve, at most MOST_POINTS, thinned by halves."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add(self, step: int, loss: float) -> None:
        """Add a point, unless it is closer to the last one than the current spacing."""
        self.seen += 1
        if (self.seen - 1) % self.stride:
            return
        self.steps.append(step)
        self.losses.append(loss)
        if len(self.steps) >= MOST_POINTS:
            self.steps, self.losses, self.stride = self.steps[::2], self.losses[::2], self.stride * 2

    def cut(self, step: int) -> None:
        """Drop the points after a step."""
        kept = [at for at, of in enumerate(self.steps) if of <= step]
        self.steps, self.losses = [self.steps[at] for at in kept], [self.losses[at] for at in kept]
        self.seen = len(kept) * self.stride


@dataclass
class Losses:
    """The loss of each training step, and of held-out rows."""

    training: Line = field(default_factory=Line)
    held_out: Line = field(default_factory=Line)

    def cut(self, step: int) -> None:
        """Drop the points after a step."""
        self.training.cut(step)
        self.held_out.cut(step)

    def add(self, event: dict[str, Any], step: int) -> None:
        """Add the losses that an event reports for a step."""
        for name, points in (("loss", self.training), ("eval_loss", self.held_out)):
            if isinstance(event.get(name), (int, float)):
                points.add(step, event[name])


def asked(home: str, runs: list[str]) -> Generator[str, None, list[dict[str, Any]]]:
    """`losses` of runs, as a process is asked for them: a long training writes hundreds of megabytes."""
    store = Store(Path(home))
    found = []
    for run in runs:
        yield "Reading the losses…"
        found.append(asdict(losses(store, store.get(run))))
    return found


def losses(store: Store, run: Run) -> Losses:
    """The losses of fine-tuning; if it was reused, those in the run that made it."""
    stage = next((stage for stage in run.stages if stage.name == "finetune"), None)
    if stage is None:
        return Losses()
    found, is_new = _read(store.folder(run.id, stage.name) / "events.jsonl")
    if stage.reused and not is_new:  # these events are of an older attempt, which made another adapter
        return _of_maker(store, {artifacts.name(a["path"]) for a in stage.artifacts})
    return found


def _of_maker(store: Store, names: set[str | None]) -> Losses:
    """The losses from the run that made an adapter, if it still exists."""
    users = store.inventory().artifacts
    for run in sorted({run for path, runs in users.items() if artifacts.name(path) in names for run in runs}):
        found, is_new = _read(store.folder(run, "finetune") / "events.jsonl")
        if is_new:
            return found
    return Losses()


def _read(path: Path) -> tuple[Losses, bool]:
    """The losses in a stage's events, and whether its newest attempt trained.

    An attempt that resumes keeps the losses up to its checkpoint; any other replaces them.
    """
    older, newest, step = Losses(), Losses(), 0
    for event, _ in events.each(path):
        if event.get(events.ATTEMPT):
            older, newest, step = newest if newest.training.steps else older, Losses(), 0
        if isinstance(event.get("resumed"), int):
            newest, older, step = _joined(older, newest, event["resumed"]), Losses(), event["resumed"]
        step = event.get("step", step)
        newest.add(event, step)
    return (newest, True) if newest.training.steps else (older if older.training.steps else newest, False)


def _joined(older: Losses, newest: Losses, step: int) -> Losses:
    """The older losses up to a checkpoint, then the newest; a resumed attempt measures once more."""
    older.cut(step)
    if not older.held_out.steps:
        older.held_out = newest.held_out
    return older
