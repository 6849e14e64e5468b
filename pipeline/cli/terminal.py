"""Runs as text on a terminal: following one while it works, tables, the summary at the end."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import display, settings
from pipeline.evaluation.examples import answered_by
from pipeline.inputs.data import telling
from pipeline.runs import history
from pipeline.runs.preflight import wording
from pipeline.stages import events
from pipeline.store import Store, device_locks
from pipeline.store.run import DONE, ENDED, EVENTS, QUEUED, RUNNING, Run, StageRun
from pipeline.store.turns import Waiting
from pipeline.system import terminal_guard

if TYPE_CHECKING:  # so that a list of runs is shown faster
    from pipeline.exports.findings import Finding
    from pipeline.runs.comparing.scorecard import Row

POLL_SECONDS = 0.2
KINDS = {"learned": "trained", "given": "prompt", "special": "special", "end": "end of turn", "cut": "cut"}
BAR_WIDTH = 24
MOST_ANSWERS = 5  # prompts whose answers a summary shows
MOST_CHECKS = 200  # that are shown; a folder with as many adapters as it may have takes 140


def fetched(named: Path) -> tuple[tuple[Path, ...], str]:
    """`prepare_data.bringing` with its steps on standard error, so that what is printed stays as it is."""
    from pipeline.runs.data import prepare_data

    said: list[str] = []

    def tell(step: str) -> None:
        if step not in said[-1:]:
            said.append(step)
            print(display.plain(step), file=sys.stderr, flush=True)

    return telling.ended(prepare_data.bringing(named), tell)


def run(store: Store, run_id: str, *, summarize: bool = True) -> int:
    """Follow a run to its end: a line a stage, live where the output is a terminal. Returns the exit code."""
    shown: set[str] = set()
    line = _Line()
    facts: dict[str, events.Newest] = {}
    for found in _watch(store, run_id):
        if found.status == QUEUED and (reason := _waits(store, run_id)):
            line.show(reason)
        for stage in found.stages:
            if stage.name in shown or stage.status == QUEUED:
                continue
            if stage.status == RUNNING:
                path = store.folder(found.id, stage.name) / EVENTS
                newest = facts.setdefault(stage.name, events.Newest(path))
                line.show(_progress(stage, newest.read()))
            else:
                shown.add(stage.name)
                line.settle(_ended(stage))
    found = store.get(run_id)
    if summarize:
        print("\n" + summary(found))
    return 0 if found.status == DONE else 1


def log(store: Store, run_id: str, stage: str, *, wait: bool) -> None:
    """Write a stage's log to standard output; with `wait` until the stage has ended."""
    path = store.folder(run_id, stage) / "log.txt"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # the last character may be only half written
    offset = _copy_from(path, 0, decoder)
    if wait:
        for _ in _watch(store, run_id, stage):
            offset = _copy_from(path, offset, decoder)
        _copy_from(path, offset, decoder)


def until_ended(store: Store, run_id: str, stage: str | None = None) -> Run:
    """Wait for the end of a run, or of one stage of it."""
    for _ in _watch(store, run_id, stage):
        pass
    return store.get(run_id)


def table(runs: list[Run]) -> str:
    """Runs as aligned columns."""
    tagged = any(found.tags for found in runs)
    rows = [("RUN", "NAME", "STATUS", "CREATED", *(["TAGS"] if tagged else []), "STAGES")]
    for found in runs:
        created = display.moment(found.created)
        stages = " ".join(f"{s.name}:{s.status}" for s in found.stages)
        tags = [", ".join(found.tags)] if tagged else []
        rows.append((found.id, found.name, found.status, created, *tags, stages))
    return "\n".join(columns(rows))


def waiting(runs: Sequence[Waiting]) -> str:
    """Waiting runs as aligned columns, the next one first."""
    rows = [("", "RUN", "NAME", "OWNER", "QUEUED")]
    for number, found in enumerate(runs, 1):
        created = display.moment(found.created)
        rows.append((str(number), found.id, found.name, found.owner, created))
    return "\n".join(columns(rows))


def checks(findings: Sequence[Finding]) -> str:
    """What `verify` found, as aligned columns; of very many the first, and how many more."""
    rows = [("CHECK", "RESULT", "")]
    rows += [(found.check, found.status, found.message) for found in findings[:MOST_CHECKS]]
    if (more := len(findings) - MOST_CHECKS) > 0:
        rows.append((f"{more:,} more", "", "--json has them all"))
    return "\n".join(columns(rows))


def scores(rows: Sequence[Row]) -> str:
    """A scorecard as aligned columns; below them, what each way costs on the rows, or why cells are empty."""
    shown = [
        (
            "ALGORITHM",
            "STATUS",
            "SIZE",
            "PPL DATA EXPORTED",
            "PPL DATA",
            "KL DATA",
            "PPL GENERAL",
            "KL GENERAL",
            "PPL EXPORTED",
            "KL EXPORTED",
            "TIME",
            "PEAK MEMORY",
            "ON GPU",
            "TOKENS/S",
        )
    ]
    for row in rows:
        shown.append(
            (
                row.algorithm,
                row.status,
                display.size(row.bytes or None),
                _figure(row.exported_data_perplexity, ".2f"),
                _figure(row.data_perplexity, ".2f"),
                _figure(row.data_divergence, ".3f"),
                _figure(row.general_perplexity, ".2f"),
                _figure(row.general_divergence, ".3f"),
                _figure(row.exported_perplexity, ".2f"),
                _figure(row.exported_divergence, ".3f"),
                display.duration(row.seconds),
                display.size(row.peak_memory_bytes or None),
                display.size(row.peak_gpu_memory_bytes or None),
                _figure(row.tokens_per_second, ".0f"),
            )
        )
    return "\n".join([*columns(shown), *(f"\n{row.algorithm}: {row.note}" for row in rows if row.note)])


def preflight(facts: Mapping[str, Any]) -> str:
    """What each stage of a run takes, and what this machine has."""
    shown = wording.table(facts)
    rows = [tuple(word.upper() for word in shown[0]), *shown[1:]] if shown else []
    return "\n".join([*(columns(rows) if rows else []), "", wording.fits(facts), *wording.sentences(facts)])


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def summary(found: Run) -> str:
    """Stages with times, sizes and results, then the held-out answers side by side."""
    rows = [("STAGE", "STATUS", "TIME", "SIZE", "RESULT")]
    for stage in found.stages:
        took = display.duration(stage.seconds)
        status = f"{stage.status}, reused" if stage.reused else stage.status
        rows.append((stage.name, status, took, display.size(stage.bytes or None), _result(stage)))
    parts = [f"Run {found.id} ({found.name}): {found.status}", *columns(rows)]
    if found.verdict:
        parts += ["", display.plain(found.verdict)]
    parts += [f"Adapter {display.short(name)}: {display.plain(said)}" for name, said in found.others.items()]
    if display.short(found.asked) not in found.verdict:  # of no file it is ""
        parts += [f"Evaluated on {display.line(found.asked)}, not on held-out rows."]
    parts += [f"Answers: {near}" for stage in found.stages if (near := history.nearness(stage))]
    parts += [str(why) for stage in found.stages if (why := stage.metrics.get("why_no_answers"))]
    parts += _proof(found)
    parts += [f"\n{stage.name}: {stage.error}" for stage in found.stages if stage.error]
    path = found.artifact("answers")
    if path is not None and Path(path).is_file():
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        parts += ["", *_answers(rows[:MOST_ANSWERS])]
        if (more := len(rows) - MOST_ANSWERS) > 0:
            parts += [f"{more:,} more {'prompt' if more == 1 else 'prompts'} with answers: {path}"]
    return "\n".join(parts)


def _proof(found: Run) -> list[str]:
    """The files that gave the recorded answers, which of them are others by now, and what the probe found."""
    who = answered_by.of_run(found)
    said = [who.sentence, *who.changes] if who.sides else []
    probes = [stage.metrics["probe"] for stage in found.stages if "probe" in stage.metrics]
    said += [f"Probe: {probe['text']}" for probe in probes if isinstance(probe, dict)]
    return [display.plain(text) for text in said]


def _watch(store: Store, run_id: str, stage: str | None = None) -> Iterator[Run]:
    """Yield the run again and again until it, or the stage, has ended. Keeps a worker running."""
    from pipeline.worker import loop

    while True:
        found = store.get(run_id)
        yield found
        ended = (found.stage(stage).status if stage else found.status) in ENDED
        if ended and not found.cancel_requested:
            return
        loop.ensure(store.home)
        time.sleep(POLL_SECONDS)


def _waits(store: Store, run_id: str) -> str:
    """What a queued run waits for; "" if it starts at once."""
    if store.paused:
        return f"The queue is paused; `{settings.command()} resume` lets runs start."
    queue = store.queue()
    first = next((run for run in queue if run.id == run_id), None)
    if first is not None and (waits := device_locks.waits(store, first)):
        return waits[0].upper() + waits[1:]
    ids = [waiting.id for waiting in queue]
    before = (ids.index(run_id) if run_id in ids else 0) + len(store.running())
    return f"Waiting for {before} {'run' if before == 1 else 'runs'} ahead of it" if before else ""


def _progress(stage: StageRun, facts: dict[str, Any]) -> str:
    done = min(max(facts.get("progress") or 0.0, 0.0), 1.0)
    bar = "█" * round(done * BAR_WIDTH) + "░" * (BAR_WIDTH - round(done * BAR_WIDTH))
    words = [f"{stage.name:<9} {bar} {done:4.0%}"]
    if facts.get("eta_seconds"):
        words.append(f"{display.duration(facts['eta_seconds'])} left")
    if "step" in facts:
        words.append(f"step {facts['step']}/{facts.get('total_steps', '?')}")
    if facts.get("loss") is not None:
        words.append(f"loss {facts['loss']:.3f}")
    words.append(str(facts.get("message", "")))
    return "  ".join(words)


def _ended(stage: StageRun) -> str:
    took = display.duration(stage.seconds)
    words = [f"{stage.name:<9} {'reused' if stage.reused else stage.status}", took]
    words += [display.size(stage.bytes or None), _result(stage), stage.error or ""]
    return "  ".join(word for word in words if word)


def _result(stage: StageRun) -> str:
    """The one or two most important figures of a stage, and how many rows they leave out."""
    from pipeline.stages import evaluate

    m = stage.metrics
    told = [_figures(m)]
    if cut := m.get("rows_cut", 0) + m.get("held_out_cut", 0):
        told.append(f"{cut:,} {'row' if cut == 1 else 'rows'} cut to max_length")
    told += evaluate.left_out(m)
    return ", ".join(text for text in told if text)


def _figures(m: dict[str, Any]) -> str:
    if m.get("eval_loss_before") is not None and m.get("eval_loss_after") is not None:
        return f"held-out loss {m['eval_loss_before']:.3f} -> {m['eval_loss_after']:.3f}"
    if m.get("held_out_perplexity_merged") is not None:
        merged, beside = m["held_out_perplexity_merged"], m["held_out_perplexity_detachable"]
        return f"held-out perplexity merged {merged:.3f}, detachable {beside:.3f}"
    if m.get("eval_loss_graph") is not None:
        trained = f", trained {m['eval_loss_trained']:.3f}" if m.get("eval_loss_trained") else ""
        return f"held-out loss of the graph {m['eval_loss_graph']:.3f}{trained}"
    if "version" in m:
        return f"{m['name']} version {m['version']}"
    # A merged adapter has no base side, and without fine-tuning there is no other.
    sides = [(side, m.get(f"{side}_tokens_per_second")) for side in ("base", "adapter", "float")]
    speeds = ", ".join(f"{side} {speed:.0f} tokens/s" for side, speed in sides if speed)
    return speeds or str(m.get("not_run_here", ""))


def _answers(rows: list[dict[str, Any]]) -> list[str]:
    """Held-out prompts with both answers below each."""
    lines = []
    for row in rows:
        lines.append(f"PROMPT   {' '.join(row['prompt'].split())}")
        for side in ("base", "adapter", "float", *filter(answered_by.is_other, row)):
            if row.get(side):
                speed = f"({row[side]['tokens_per_second']:.0f} tokens/s)"
                lines.append(f"{side:<8} {' '.join(display.answer(row[side]).split())} {speed}")
        lines.append("")
    return lines


def tokens(found: dict[str, Any], most: int) -> str:
    """A row that `row_view` gives, a token a line, and what training and serving make of it."""
    counts, served = found["counts"], found["served"]
    rows = [("", "id", "", "")]
    for at, token in enumerate(found["tokens"]):
        if at and at in found["starts"]:
            rows.append(("", "", "", "a sample of its own, because the template rewrites earlier answers"))
        text = json.dumps(token["text"], ensure_ascii=False)
        rows.append((str(at + 1), str(token["id"]), KINDS[token["kind"]], display.line(text)))
    lines = columns(rows)
    if found["left_out"]:
        lines.append(f"… and {found['left_out']:,} more tokens")
    learned = counts["learned"] + counts["end"]
    lines += ["", f"{sum(counts.values()):,} tokens, {learned:,} of them trained on"]
    if counts["cut"]:
        lines.append(f"{counts['cut']:,} tokens are cut (finetune.max_length is {most:,})")
    from pipeline.exports import row_view

    lines.append(row_view.verdict(served))
    return "\n".join(lines)


def votes(told: dict[str, Any]) -> str:
    """What a blind vote says: the verdict, who voted what, whether they agree, and judges."""
    said = [told["text"]]
    if told["voters"]:
        head = ("VOTER", "ROWS", "ADAPTER", "BASE", "TIE", "BOTH BAD")
        names = ("voter", "rows", "adapter", "base", "tie", "bad")
        said += ["", *columns([head, *(tuple(str(one[name]) for name in names) for one in told["voters"])])]
    agreed = told["agreement"]
    if agreed["share"] is not None:
        alpha = f"; Krippendorff's alpha {agreed['alpha']:.2f}" if agreed["alpha"] is not None else ""
        equal = f"{agreed['share']:.0%} of the votes on {agreed['rows']:,} shared rows are equal"
        said += ["", f"Agreement of {agreed['voters']:,} voters: {equal}{alpha}."]
    for judge in told["judges"]:
        shared = judge["with_people"]
        with_people = f" Agrees with people in {shared['share']:.0%} of {shared['rows']:,} rows." * bool(
            shared["rows"]
        )
        said += ["", f"{judge['voter']}: {judge['text']}{with_people}"]
    if told["equal_answers"]:
        said += ["", f"{told['equal_answers']:,} more rows have equal answers and are not asked."]
    if told["more_voters"]:
        said += ["", f"{told['more_voters']:,} other voters don't count."]
    if told["left_out"]:
        said += ["", f"{told['left_out']:,} votes are on answers that have changed since, and don't count."]
    return display.plain("\n".join(said))


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines, with their cells aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _copy_from(path: Path, offset: int, decoder: codecs.IncrementalDecoder) -> int:
    """Print a log from `offset` on; return the offset to continue from."""
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(64 * 1024):
            sys.stdout.write(decoder.decode(block))
            offset += len(block)
    sys.stdout.flush()
    return offset


class _Line:
    """A line rewritten in place on a terminal; elsewhere it is printed when a new tenth is reached."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.last = ""

    def show(self, text: str) -> None:
        if self.live:
            text = terminal_guard.harmless(" ".join(text.split("\n")))  # cut to the width of the terminal
            terminal_guard.rewrite(text[: _terminal_columns() - 1])
        elif text[:36] != self.last:  # the stage and its bar: a new line for each part of the bar
            self.last = text[:36]
            print(text, flush=True)

    def settle(self, text: str) -> None:
        if self.live:
            terminal_guard.rewrite(text, end="\n")
        else:
            print(text, flush=True)


def _terminal_columns() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns
