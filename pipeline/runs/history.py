"""The history: find runs, compare them, and keep notes and tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, Run, StageRun

LONGEST_NOTES = 10_000
LONGEST_SEARCH = 200  # letters: each word is looked for in the notes of every run
MOST_TAGS = 20
MOST_OFFERED = 200  # tags, and owners, to choose from: each look at the history sends them
LONGEST_TAG = 40
ON, OFF = "on", "off"
UNTOLD = ("name", "group")  # keys of a recipe that have no effect on what a run does


@dataclass(frozen=True)
class Row:
    """A line of a comparison: its subject, and a value for each run, None if it has none."""

    key: str
    values: tuple[Any, ...]


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
    """The tags, sorted: of many, those of most runs."""
    return _usual(tag for run in runs for tag in run.tags)


def owners(runs: Sequence[Run]) -> list[str]:
    """The owners, sorted, as `tags`; runs without an owner are skipped."""
    return _usual(run.owner for run in runs if run.owner)


def _usual(words: Iterable[str]) -> list[str]:
    return sorted((word for word, _ in Counter(words).most_common(MOST_OFFERED)), key=str.casefold)


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
    for tag in kept if len(kept) <= MOST_TAGS else ():
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
    """How near an evaluation's answers are to the expected: "exact match 0.00 → 0.40, …", with the
    float model's if that was asked; "" if unknown."""
    told = stage.metrics.get("answers")
    if not isinstance(told, dict):
        return ""
    found = []
    for name, words in NEARNESS.items():
        sides = told.get(name)
        figures = [sides.get(side) for side in ("base", "adapter")] if isinstance(sides, dict) else []
        shown = [f"{figure:.2f}" for figure in figures if isinstance(figure, int | float)]
        if shown:
            exact = sides.get("float") if isinstance(sides, dict) else None
            beside = f" (float {exact:.2f})" if isinstance(exact, int | float) else ""
            found.append(f"{words} {' → '.join(shown)}{beside}")
    return ", ".join(found)
