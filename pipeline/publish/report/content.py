"""What a report says, as plain data that `as_html` and `as_markdown` write down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.evaluation.examples import pages, rows
from pipeline.evaluation.examples.answered_by import Answered
from pipeline.inputs.data import datasets, telling
from pipeline.publish import card
from pipeline.publish.report import curves
from pipeline.stages import artifacts, evaluate
from pipeline.store import Store
from pipeline.store.run import PUBLISH, Run, StageRun
from pipeline.system import checksums

CARDS, CARD = "cards", "card.json"
LARGEST_CARD = 1 << 22  # bytes
MOST_FILES = 40
NO_VERDICT = "There is no verdict: the run has no evaluation with an adapter, or it is not done."
ANSWERED = "The files that gave the recorded answers and losses:"
NO_PROBE = "There was no probe: the evaluated export has no adapter to take off."
NO_ROWS = "Rows of the data are left out of this report."
FEW = "The examples whose loss grew most with the adapter come first; there may be more than these."
SPEEDS = {
    "decode_tokens_per_second": "Tokens per second",
    "prefill_tokens_per_second": "Tokens of the prompt per second",
    "first_token_seconds": "First token after",
    "memory_bytes": "Memory",
}
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    """Cells are text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """Curves by name, each as its steps and their values."""

    title: str
    lines: Sequence[tuple[str, Sequence[int], Sequence[float]]]


Block = Text | Code | Table | Chart


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A report: its title, and sections in their order. Texts are as users and models wrote them."""

    title: str
    sections: Sequence[Section]


def of(home: Path, run: Run, with_rows: bool) -> Report:
    """The report of a run; with examples from its data only if `with_rows`. Raises OSError."""
    sections = [
        Section("Verdict", list(_verdict(run))),
        Section("Figures", list(_figures(run))),
        Section("Cost in speed", list(_speed(run))),
        Section("Curves", list(_curves(home, run))),
        Section("Examples", list(_examples(run)) if with_rows else [Text(NO_ROWS)]),
        Section("Data", list(_data(home, run))),
        Section("Recipe", [Code(card.recipe(run))]),
        Section("Proof", list(_proof(run))),
        Section("Made with", list(_versions(run))),
    ]
    return Report(run.name, [section for section in sections if section.blocks])


def _facts(pairs: Pairs) -> Iterator[Block]:
    if pairs:
        yield Table(("", ""), pairs)


def _verdict(run: Run) -> Iterator[Block]:
    yield Text(run.verdict or NO_VERDICT)
    if run.asked:
        yield Text(f"It was evaluated on the rows of {run.asked}, not on held-out rows.")
    if run.others:
        yield Table(("Other adapters in the export", "Against the base"), list(run.others.items()))
    metrics = _evaluation(run)
    if left_out := evaluate.left_out(metrics):
        yield Text(f"Left out, and in no figure: {', '.join(left_out)}.")
    if why := metrics.get("why_no_answers"):
        yield Text(str(why))
    told = metrics.get("verdict")
    if not isinstance(told, dict) or not isinstance(told.get("difference"), int | float):
        return
    pairs = [("Difference (adapter − base)", display.number(float(told["difference"])))]
    if isinstance(told.get("low"), int | float) and isinstance(told.get("high"), int | float):
        ends = (display.number(float(told[end])) for end in ("low", "high"))
        pairs.append(("95 % interval", " to ".join(ends)))
    named = {"rows": "Rows", "better": "Rows that are better", "worse": "Rows that are worse"}
    pairs += [(words, str(told[name])) for name, words in named.items() if isinstance(told.get(name), int)]
    yield from _facts(pairs)


def _figures(run: Run) -> Iterator[Block]:
    """What each stage measured, but for what has a section of its own."""
    told = [
        (f"{stage.name}: {name.replace('_', ' ')}", display.measure(name, value))
        for stage in run.stages
        if stage.kind != PUBLISH
        for name, value in stage.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not _is_speed(name)
    ]
    yield from _facts(told)
    yield from _answers(run)


def _answers(run: Run) -> Iterator[Block]:
    """How near both sides' answers are to the expected ones, and which checks they pass."""
    told = _evaluation(run).get("answers")
    if not isinstance(told, dict):
        return
    found = [(name.replace("_", " "), sides) for name, sides in told.items() if isinstance(sides, dict)]
    checks = told.get("checks")
    listed = [one for one in checks if isinstance(one, dict)] if isinstance(checks, list) else []
    found += [(f"passes {one.get('check')}", one) for one in listed]
    if found:
        exact = any("float" in each for _, each in found)
        sides = ("base", "adapter", *(["float"] if exact else []))
        cells = [(name, *(_number(each.get(side)) for side in sides)) for name, each in found]
        yield Table(("Answers, mean", "Base", "With adapter", *(["Float"] if exact else [])), cells)


def _is_speed(name: str) -> bool:
    return name.endswith(("tokens_per_second", "first_token_seconds"))


def _number(value: Any) -> str:
    return display.number(float(value)) if isinstance(value, int | float) else ""


def _speed(run: Run) -> Iterator[Block]:
    """Both sides' speed, as measured in turns, or else by the recorded answers."""
    metrics = _evaluation(run)
    measured = metrics.get("tax")
    tax = measured if isinstance(measured, dict) else {}
    told = []
    for name, words in SPEEDS.items():
        sides = [(side, tax.get(side)) for side in ("base", "adapter")]
        figures = [
            of.get(name) if isinstance(of, dict) else metrics.get(f"{side}_{name.removeprefix('decode_')}")
            for side, of in sides
        ]
        told.append((words, *(display.measure(name, each) if _is_figure(each) else "" for each in figures)))
    if known := [row for row in told if any(row[1:])]:
        yield Table(("", "Base", "With adapter"), known)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _curves(home: Path, run: Run) -> Iterator[Block]:
    found = curves.losses(Store(home), run)
    lines = [
        (name, line.steps, line.losses)
        for name, line in (("training", found.training), ("held-out rows", found.held_out))
        if line.steps
    ]
    if lines:
        yield Chart("Loss by step of training", lines)


def _examples(run: Run) -> Iterator[Block]:
    sources = rows.of_run(run)
    if not sources.any:
        return
    found = telling.ended(pages.page(dataclasses.asdict(sources), "worst", False, "", 0))
    yield Text(FEW)
    yield from _answered(sources.answered)
    yield Table(
        ("Line", "Prompt", "Expected", "Base", "With adapter", "Difference"),
        [
            (
                "" if one["line"] is None else f"{one['line']:,}",
                one["prompt"],
                one["expected"],
                *(display.answer(one[side]) if one[side] else "" for side in ("base", "adapter")),
                _number(one["difference"]),
            )
            for one in found["rows"]
        ],
    )


def _data(home: Path, run: Run) -> Iterator[Block]:
    yield Text(card.data(run))
    known = _card(home, run)
    if known is None:
        return
    tokens = known.get("tokens")
    pairs = [("Rows", f"{known['rows']:,}")] if isinstance(known.get("rows"), int) else []
    if isinstance(tokens, dict):
        named = {"median": "Tokens a row, median", "p95": "Tokens that 95 % of rows have at most",
                 "max": "Tokens of the longest row", "cut": "Rows that are cut"}  # fmt: skip
        pairs += [
            (words, f"{tokens[name]:,}") for name, words in named.items() if isinstance(tokens.get(name), int)
        ]
    pairs += [
        (str(found.get("title")), f"{found['rows']:,} rows")
        for found in known.get("findings") or []
        if isinstance(found, dict) and isinstance(found.get("rows"), int)
    ]
    yield from _facts(pairs)


def _card(home: Path, run: Run) -> dict[str, Any] | None:
    """The figures of a data card of the run's data, if one is kept. It holds no text of a row."""
    with suppress(OSError):
        digest = datasets.kept_sha256(Path(run.data))
        for file in sorted((home / CARDS).glob(f"*/{CARD}")):
            with suppress(OSError, ValueError, TypeError, RecursionError):
                if file.stat().st_size <= LARGEST_CARD:
                    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
                    path = Path(str(found["path"]))
                    if digest and path.is_file() and datasets.sha256(path) == digest:
                        return found
    return None


def _answered(who: Answered) -> Iterator[Block]:
    """The files that gave the recorded answers, and which of them are no longer there."""
    if who.sides:
        cells = [(side, name, digest) for side, files in who.lines for name, digest in files]
        yield Table(("Answers", "File", "SHA-256"), cells)
    yield from map(Text, who.changes)


def _proof(run: Run) -> Iterator[Block]:
    sources = rows.of_run(run)
    if sources.any:
        yield Text(ANSWERED)
        yield from _answered(sources.answered)
        probe = _evaluation(run).get("probe")
        yield Text(str(probe.get("text", "")) if isinstance(probe, dict) else NO_PROBE)
    folder = run.shipped
    with suppress(OSError, ValueError, LabError):
        sums = checksums.read(Path(folder)) if folder else {}
        if sums:
            yield Text("SHA-256 of the exported files; 'sha256sum -c SHA256SUMS' compares them.")
            yield Table(("File", "SHA-256"), sorted(sums.items())[:MOST_FILES])


def _versions(run: Run) -> Iterator[Block]:
    folder = run.shipped
    packages = artifacts.packages(Path(folder)) if folder else {}
    yield from _facts([("Run", run.id), *sorted(packages.items())])


def _evaluation(run: Run) -> dict[str, Any]:
    """The metrics of the newest evaluation."""
    found: list[StageRun] = [stage for stage in run.stages if stage.kind == "evaluate"]
    return found[-1].metrics if found else {}
