"""A preflight as a table and a few sentences, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import display

COLUMNS = ("Stage", "Memory", "GPU memory", "Disk", "Time")
UNKNOWN = "The model's config.json does not say its sizes, so nothing can be predicted."


def table(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The head and a row a stage, with ranges; without GPU where none is used. [] if nothing is known."""
    if not facts["stages"]:
        return []
    rows = [COLUMNS, *(_row(name, cost) for name, cost in facts["stages"].items()), _all(facts)]
    return rows if facts["gpu"] else [(*row[:2], *row[3:]) for row in rows]


def _row(stage: str, cost: Mapping[str, Any]) -> tuple[str, ...]:
    gpu = cost["gpu_memory"]
    used = sizes(gpu) if gpu and gpu[2] > 0 else "none"
    return stage, sizes(cost["memory"]), used, sizes(cost["disk"]), durations(cost["seconds"])


def _all(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The most of what stages need one after the other, the sum of what stays."""
    costs = list(facts["stages"].values())
    gpu = _most([cost["gpu_memory"] or [0.0, 0.0, 0.0] for cost in costs])
    disk, seconds = (_sum([cost[name] for cost in costs]) for name in ("disk", "seconds"))
    memory = sizes(_most([cost["memory"] for cost in costs]))
    return "all", memory, sizes(gpu) if gpu[2] > 0 else "none", sizes(disk), durations(seconds)


def _most(ranges: Sequence[Sequence[float]]) -> list[float]:
    return [max(values) for values in zip(*ranges, strict=True)]


def _sum(ranges: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) for values in zip(*ranges, strict=True)]


def sizes(given: Sequence[float]) -> str:
    """A range of bytes: `1.1 to 1.3 GB`."""
    return _range(display.size(given[0]), display.size(given[2]))


def durations(given: Sequence[float]) -> str:
    """A range of seconds: `40 to 60 s`."""
    return _range(display.duration(given[0]), display.duration(given[2]))


def _range(low: str, high: str) -> str:
    """Both ends, with the unit once where it is the same; one where they are the same."""
    if low == high:
        return high
    number, _, unit = low.partition(" ")
    same = high.partition(" ")[2] == unit and " " not in unit
    return f"{number if same else low} to {high}"


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What else there is to say: passes over the data, what the ranges rest on, how far off they were."""
    if not facts["stages"]:
        return [UNKNOWN]
    rows, passes, found = facts["rows"], facts["passes"], []
    if passes is not None:
        times = f"{passes:.2g}" if passes < 10 else f"{passes:,.0f}"
        word = "pass" if times == "1" else "passes"
        found.append(f"Training makes {times} {word} over the {rows['train']:,} rows that are not held out.")
    if not rows["counted"]:
        found.append("The rows' tokens are guessed, so memory and time of fine-tuning may be far off.")
    if not facts["calibrated"]:
        found.append(
            "How fast this machine is has not been measured yet, so times are those of another one; it is"
            " measured when nothing is queued."
        )
    if errors := facts["errors"]:
        off = [
            f"{stage} {', '.join(_off(figures))} ({figures['stages']})" for stage, figures in errors.items()
        ]
        found.append(f"Off so far, in the median (of so many stages): {'; '.join(off)}.")
    return found


def _off(figures: Mapping[str, Any]) -> list[str]:
    names = {"memory": "memory", "gpu_memory": "GPU memory", "seconds": "time"}
    return [f"{word} {figures[name]:.0%}" for name, word in names.items() if name in figures]


def fits(facts: Mapping[str, Any]) -> str:
    """Whether it fits, in a few words."""
    there = facts["machine"]
    has = [f"{display.size(there['memory'])} of memory"]
    if facts["gpu"] and there["gpu_memory"]:
        has.append(f"{display.size(there['gpu_memory'])} on the GPU")
    has.append(f"{display.size(there['disk'])} free on the disk")
    return f"This machine has {', '.join(has)}."
