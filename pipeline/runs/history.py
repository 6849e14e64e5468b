"""The history: find runs, compare them, and keep notes and tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.stages import events
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, Run, StageRun

LONGEST_NOTES = 10_000
LONGEST_SEARCH = 200  # letters: each word is looked for in the notes of every run
MOST_TAGS = 20
LONGEST_TAG = 40
MOST_POINTS = 2000
ON, OFF = "on", "off"
UNTOLD = ("name", "group")  # keys of a recipe that have no effect on what a run does


@dataclass(frozen=True)
class Row:
    """A line of a comparison: its subject, and a value for each run, None if it has none."""

    key: str
    values: tuple[Any, ...]


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


def search(
    runs: Sequence[Run], text: str = "", status: str = "", tag: str = "", owner: str = "", group: str = ""
) -> list[Run]:
    """The runs that match all criteria, in the given order; empty criteria are ignored.

    Each word of the first LONGEST_SEARCH letters of `text` must occur in the name, id, model, dataset, owner,
    tags or notes, in any case.
    """
    words = list(dict.fromkeys(text[:LONGEST_SEARCH].casefold().split()))
    return [
        run
        for run in runs
        if (not status or run.status == status)
        and (not tag or tag in run.tags)
        and (not owner or run.owner == owner)
        and (not group or run.recipe.get("group") == group)
        and (not words or _has(run, words))
    ]


def _has(run: Run, words: list[str]) -> bool:
    data = run.data.rpartition("/")[2]
    model = str(run.recipe.get("model", ""))
    text = "\n".join((run.name, run.id, model, data, run.owner, *run.tags, run.notes)).casefold()
    return all(word in text for word in words)


def tags(runs: Sequence[Run]) -> list[str]:
    """All tags, sorted."""
    return sorted({tag for run in runs for tag in run.tags}, key=str.casefold)


def owners(runs: Sequence[Run]) -> list[str]:
    """All owners, sorted; runs without an owner are skipped."""
    return sorted({run.owner for run in runs if run.owner}, key=str.casefold)


def annotate(store: Store, run: str, notes: str | None = None, tags: Sequence[str] | None = None) -> None:
    """Save notes and tags of a run; None leaves them unchanged. Raises InputError with all problems."""
    problems = []
    if notes is not None and len(notes) > LONGEST_NOTES:
        problems.append(
            f"notes: {len(notes):,} characters are too many; allowed: {LONGEST_NOTES:,}, so cut them"
        )
    if notes is not None and any("\ud800" <= letter <= "\udfff" for letter in notes):
        problems.append("notes: half of a surrogate pair is in them, which is not valid text; take it out")
    kept = list(dict.fromkeys(tag.strip() for tag in tags or [] if tag.strip()))
    for tag in kept:
        if len(tag) > LONGEST_TAG or not tag.isprintable() or "," in tag:
            problems.append(
                f"tags: {tag[:60]!r} is not allowed; allowed: up to {LONGEST_TAG} characters on one line,"
                " without commas"
            )
    if len(kept) > MOST_TAGS:
        problems.append(f"tags: {len(kept)} are too many; allowed: {MOST_TAGS} on a run")
    if problems:
        raise InputError(problems)
    store.annotate(run, notes=notes, tags=kept if tags is not None else None)


def differences(runs: Sequence[Run]) -> list[Row]:
    """Keys in which the recipes differ: stages as on or off, and the options of those that are on."""
    told = [_flat(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for one in told for key in one):
        values = tuple(one.get(key) for one in told)
        stage = key.partition(".")[0]
        on = [value for value, one in zip(values, told, strict=True) if one.get(stage) != OFF]
        compared = values if key == stage else on
        if any(value != compared[0] for value in compared):
            rows.append(Row(key, values))
    return rows


def _flat(run: Run) -> dict[str, Any]:
    """A recipe by dotted keys; newer options than the recipe have their defaults."""
    from pipeline.inputs.options import describe
    from pipeline.stages.recipe import LEFT_OUT, OPTIONS, Basics

    flat = {option.name: run.recipe.get(option.name, option.default) for option in describe(Basics)}
    for key in UNTOLD:
        flat.pop(key)
    data = Path(run.data)
    flat["data"] = f"{data.name} ({data.parent.name[:8]})" if len(data.parent.name) == 64 else data.name
    for stage, options in OPTIONS.items():
        given = run.recipe.get(stage, None if stage in LEFT_OUT else {})
        flat[stage] = OFF if given is None else ON
        if given is not None:
            flat |= {f"{stage}.{o.name}": given.get(o.name, o.default) for o in describe(options)}
    return flat


def _is_loss(name: str) -> bool:
    return name.startswith("eval_loss")


# Metrics that are compared, in this order.
KINDS: tuple[Callable[[str], bool], ...] = (
    _is_loss,
    lambda name: "perplexity" in name,
    lambda name: "divergence" in name,
    lambda name: name.endswith("bytes") and "memory" not in name,
    lambda name: name == "seconds",
    lambda name: name.endswith("tokens_per_second"),
    lambda name: "memory" in name,
)


def metrics(runs: Sequence[Run]) -> list[Row]:
    """Measured values as `stage.name`: losses, perplexities, sizes, seconds, speed and memory."""
    told = [dict(_measured(run)) for run in runs]
    names = list(dict.fromkeys(key for one in told for key in one))
    ordered = [key for kind in KINDS for key in names if kind(key.partition(".")[2])]
    return [Row(key, tuple(one.get(key) for one in told)) for key in dict.fromkeys(ordered)]


def _measured(run: Run) -> Iterator[tuple[str, float]]:
    for stage in run.stages:
        if stage.status != DONE or stage.kind == PUBLISH:
            continue
        for name, value in stage.metrics.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{stage.name}.{name}", value
        if stage.bytes:
            yield f"{stage.name}.size_bytes", stage.bytes
        # For a reused stage, the time it took originally.
        seconds = stage.metrics.get("olive_seconds", None if stage.reused else stage.seconds)
        if seconds is not None:
            yield f"{stage.name}.seconds", seconds


NEARNESS = {"exact_match": "exact match", "token_f1": "token F1", "rouge_l": "ROUGE-L", "chrf": "chrF"}


def nearness(stage: StageRun) -> str:
    """How near an evaluation's answers are to the expected: "exact match 0.00 → 0.40, …"; "" if unknown."""
    told = stage.metrics.get("answers")
    if not isinstance(told, dict):
        return ""
    found = []
    for name, words in NEARNESS.items():
        sides = told.get(name)
        figures = [sides.get(side) for side in ("base", "adapter")] if isinstance(sides, dict) else []
        shown = [f"{figure:.2f}" for figure in figures if isinstance(figure, int | float)]
        if shown:
            found.append(f"{words} {' → '.join(shown)}")
    return ", ".join(found)


def losses(store: Store, run: Run) -> Losses:
    """The losses of fine-tuning; if it was reused, those in the run that made it."""
    from pipeline.stages import artifacts

    stage = next((stage for stage in run.stages if stage.name == "finetune"), None)
    if stage is None:
        return Losses()
    found, is_new = _read(store.folder(run.id, stage.name) / "events.jsonl")
    if stage.reused and not is_new:  # these events are of an older attempt, which made another adapter
        return _of_maker(store, {artifacts.name(a["path"]) for a in stage.artifacts})
    return found


def _of_maker(store: Store, names: set[str | None]) -> Losses:
    """The losses from the run that made an adapter, if it still exists."""
    from pipeline.stages import artifacts

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
