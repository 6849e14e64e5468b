"""How runs, times and sizes are shown on the page: plain data that `assets/draw.js` draws as text."""

from __future__ import annotations

import json
import math
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.exports import row_view
from pipeline.inputs.data.datasets import Report
from pipeline.publish.report.curves import Losses
from pipeline.runs.comparing.scorecard import Row
from pipeline.runs.disk import Storage
from pipeline.runs.history import Row as Compared
from pipeline.runs.history import nearness
from pipeline.store.run import CANCELED, DONE, ENDED, RUNNING, Run, StageRun

LONGEST_CELL = 300
LONGEST_ANSWER = 600  # the examples on the Runs tab have all of it
LARGEST_ANSWERS = 8 << 20  # bytes; a thousand prompts of a few thousand letters have less
LONGEST_EXAMPLE = 20_000
Table = dict[str, Any]


def table(columns: list[str], rows: list[list[Any]], *, empty: str = "", caption: str = "") -> Table:
    """A table. A cell is text or a status; `empty` is shown where there are no rows."""
    return {"columns": columns, "rows": rows, "empty": empty, "caption": caption}


def status(of: Run | StageRun) -> dict[str, str | None]:
    """A cell with the icon, colour and word of a status; `word` stands in for the usual one."""
    if isinstance(of, Run):
        return {"status": of.status, "word": "Canceling…" if of.cancel_requested else None}
    return {"status": of.status, "word": "Not run" if of.status == CANCELED and of.started is None else None}


def recipe_yaml(recipe: dict[str, Any]) -> str:
    """A stored recipe as the YAML that a user would write."""
    return yaml.safe_dump(recipe, default_flow_style=None, sort_keys=False, width=10_000, allow_unicode=True)


def queued(text: str, notes: list[str]) -> dict[str, Any]:
    """What was queued and notes about it, for a place that draws `notice`."""
    return {"text": text, "note": _noted(notes), "kind": "good"}


def _noted(notes: list[str]) -> str:
    return "\n".join(display.valid(note) for note in notes)


def duration(run: Run) -> float | None:
    """Seconds that a run's stages took, without publishing; a running stage counts since its start."""
    stages = [stage for stage in run.stages if stage.kind != "publish" and stage.started]
    took = [
        time.time() - (stage.started or 0) if stage.status == RUNNING else stage.seconds or 0.0
        for stage in stages
    ]
    return sum(took) if took else None


def losses(run: Run) -> str:
    """Held-out loss before and after fine-tuning, if it was measured."""
    for stage in run.stages:
        before, after = stage.metrics.get("eval_loss_before"), stage.metrics.get("eval_loss_after")
        if before is not None and after is not None:
            return f"{display.number(before)} → {display.number(after)}"
    return ""


def question(text: str, notes: list[str], yes: str, about: str = "") -> dict[str, Any]:
    """A question to answer before something is done; without a label for `yes` it is only information."""
    return {
        "text": text,
        "notes": notes,
        "yes": yes,
        "id": about,
        "at": time.time(),
    }  # `at` differs, so it is asked each time


def problems(title: str, error: LabError | OSError) -> dict[str, Any]:
    """What went wrong, for a place that draws `problems`."""
    return listed(title, error.problems if isinstance(error, InputError) else [sentence(error)])


def listed(title: str, items: list[str]) -> dict[str, Any]:
    """Sentences below a title, for a place that draws `problems`: as many, and as long, as a refusal has."""
    return {"title": title, "items": [display.valid(item) for item in InputError(items).problems]}


def dataset(name: str, report: Report, notes: list[str]) -> dict[str, Any]:
    """What a dataset is, for a place that draws `notice`."""
    fields = ", ".join(display.short(field) for field in report.fields) or "none"
    text = f"{display.line(name)}: {report.rows:,} row{'s' * (report.rows != 1)} · fields: {fields}"
    kind = "good" if report.good else "bad"
    return {"text": text, "note": _noted(notes), "kind": kind}


def history(runs: list[Run], *, empty: str = "", checked: list[str] | None = None, picked: str = "") -> Table:
    """Runs, one a row, with ids for selecting one, and boxes to check some for comparison."""
    owned = len({run.owner for run in runs}) > 1
    tagged = any(run.tags for run in runs)
    rows = [
        [
            status(run),
            run.name,
            run.id,
            display.moment(run.created),
            display.duration(duration(run)),
            str(run.recipe.get("model", "")),
            *([run.owner] if owned else []),
            *([", ".join(run.tags)] if tagged else []),
            display.size(sum(stage.bytes for stage in run.stages)),
            losses(run),
        ]
        for run in runs
    ]
    columns = ["Status", "Name", "Run", "Created", "Duration", "Model"]
    columns += [*(["Owner"] if owned else []), *(["Tags"] if tagged else []), "Size", "Held-out loss"]
    made = table(columns, rows, empty=empty or "No runs yet. Start one on the Lab tab.", caption="Runs")
    ids = [run.id for run in runs]
    return {**made, "ids": ids, "check": "Compare", "checked": checked or [], "picked": picked}


def storage(takes: Storage) -> list[list[str]]:
    """What a run takes on disk, as facts."""
    return [
        ["Its results", display.size(takes.results)],
        ["Log and events", display.size(takes.folder)],
        ["Freed if deleted", display.size(takes.freed)],
    ]


def _said(key: str) -> str:
    """`optimize.model_bytes` in plain words."""
    return key.replace(".", ": ").replace("_", " ").removesuffix(" bytes")


def comparison(
    runs: list[Run], differences: list[Compared], metrics: list[Compared], curves: list[Losses]
) -> dict[str, Any]:
    """Runs side by side: two tables with a column for each run, and the curves of those that have any."""
    names = [f"{run.name}\n{run.id}" for run in runs]
    recipe = [[row.key, *("" if v is None else display.number(v) for v in row.values)] for row in differences]
    measured = [
        [_said(row.key), *("" if v is None else display.measure(row.key, v) for v in row.values)]
        for row in metrics
    ]
    lines = [
        {
            "index": index,
            "name": f"{run.name} · {run.id.rpartition('-')[2]}",
            "training": [found.training.steps, found.training.losses],
            "held": [found.held_out.steps, found.held_out.losses],
        }
        for index, (run, found) in enumerate(zip(runs, curves, strict=True))
        if found.training.steps or found.held_out.steps
    ]
    return {
        "runs": [run.id for run in runs],
        "differences": table(
            ["Recipe", *names], recipe, empty="The recipes are the same.", caption="Differences"
        ),
        "metrics": table(
            ["Measured", *names], measured, empty="Nothing is measured yet.", caption="Measured"
        ),
        "curves": lines,
    }


def stages(run: Run) -> Table:
    """The stages of one run with times, sizes and results."""
    columns = ["Stage", "Status", "Time", "Size", "Result"]
    return table(columns, [_stage_row(stage) for stage in run.stages], caption="Stages")


def _stage_row(stage: StageRun) -> list[Any]:
    took = display.duration(stage.seconds)
    if stage.reused:
        took = f"reused ({took})" if took else "reused"
    plain = {key: value for key, value in stage.metrics.items() if isinstance(value, (str, int, float))}
    facts = ", ".join(
        f"{key.replace('_', ' ')}: {display.measure(key, value)}" for key, value in plain.items()
    )
    takes = display.size(stage.bytes) if stage.bytes else ""
    near = nearness(stage)
    is_named = display.short(stage.asked) in stage.verdict  # of no file it is ""
    asked = "" if is_named else f"Evaluated on {display.line(stage.asked)}."
    others = " ".join(f"Adapter {display.short(name)}: {text}" for name, text in stage.others.items())
    said = " ".join(
        text for text in (stage.verdict, others, asked, near and f"Answers: {near}.", facts) if text
    )
    return [stage.name, status(stage), took, takes, stage.error or said]


def first_rows(report: Report) -> Table:
    """The first rows of a dataset, long values cut."""
    names = list(report.fields)[:12]
    rows = [[_cell(row.get(name, "")) for name in names] for row in report.first]
    return table([display.short(name) for name in names], rows, caption="First rows")


def example(report: Report) -> dict[str, Any]:
    """The first row as the model reads it: what is given and what is learned, in turn where it is several."""
    response = report.example.removeprefix(report.example_prompt)
    found: dict[str, Any] = {
        "prompt": _cut(report.example_prompt, LONGEST_EXAMPLE),
        "response": _cut(response, LONGEST_EXAMPLE),
    }
    if report.example_earlier:
        found["turns"] = _turns(report.example_prompt[:LONGEST_EXAMPLE], report.example_earlier)
    return found


def _turns(prompt: str, answers: list[tuple[int, int]]) -> list[str]:
    """A prompt with answers in it as texts, each second of which is learned."""
    ends = [0, *(end for span in answers for end in span), len(prompt)]
    return [display.valid(prompt[start:end]) for start, end in pairwise(ends)]


def tokens(found: dict[str, Any], most: int) -> dict[str, Any]:
    """A row of `row_view`, for a place that draws `tokens`; `most` is how many of them training reads."""
    counts, starts = found["counts"], found["starts"]
    samples = [found["tokens"][start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    said = [f"Line {found['line']:,}: {sum(counts.values()):,} tokens,"]
    said.append(f"{counts['learned'] + counts['end']:,} of them trained on.")
    if counts["cut"]:
        said.append(f"{counts['cut']:,} are cut, because the default of finetune.max_length is {most:,}.")
    if len(starts) > 1:
        said.append("The chat template rewrites earlier answers, so each answer is a sample of its own.")
    if found["left_out"]:
        said.append(f"The last {found['left_out']:,} are not shown.")
    verdict = {"verdict": row_view.verdict(found["served"]), "equal": found["served"]["equal"]}
    return {"samples": samples, "counts": counts, "text": " ".join(said), **verdict}


def _cell(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), LONGEST_CELL)


def _cut(text: str, most: int) -> str:
    """A text for the page: valid Unicode, and cut if long."""
    return display.valid(display.cut(text, most))


def evaluation(
    answers: list[dict[str, Any]],
    verdict: str = "",
    asked: str = "",
    count: int | None = None,
    files: str = "",
) -> Table:
    """The recorded answers of the evaluate stage, and what it says of the adapter and of the `files` that
    answered; of the rows of a file if it `asked` one. They may be the first of `count`."""
    rows = [
        [
            _cut(text, LONGEST_ANSWER)
            for text in (a["prompt"], a["expected"], _text(a["base"]), _text(a["adapter"]))
        ]
        for a in answers
    ]
    columns = ["Prompt", "Expected", "Base", "With adapter"]
    prompts = f"Prompts of {display.line(asked)}" if asked else "Held-out prompts"
    said = f"{prompts}, as the run recorded them"
    if count is not None and count > len(answers):
        said += f"; the first {len(answers):,} of {count:,}"
    if files:
        said += f". {files}"
    return table(columns, rows, caption=f"{verdict} {said}" if verdict else said)


def _text(side: dict[str, Any] | None) -> str:
    return display.answer(side) if side else ""


def answers(run: Run) -> list[dict[str, Any]]:
    """The run's held-out prompts: prompt, expected, base and adapter, of which the last may be null."""
    file = answers_file(run)
    return [] if file is None else read_answers(*file)


def answers_file(run: Run) -> tuple[str, int, int] | None:
    """The file with a finished run's answers, when it was changed, in nanoseconds, and its bytes."""
    path = run.artifact("answers")
    if run.status != DONE or path is None or not Path(path).is_file():
        return None
    facts = Path(path).stat()
    return path, facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=8)
def read_answers(path: str, _changed: int, size: int) -> list[dict[str, Any]]:
    """The answers in a file, read once until it changes: whoever types asks for them at each letter."""
    if size > LARGEST_ANSWERS:
        return []
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    return rows


def scorecard(rows: list[Row], best: str | None = "") -> dict[str, Any]:
    """A scorecard as a table and as points of a chart, and whether everything is measured and compared.

    `best` is the sentence of `compare_ways.best`, None while it is not known yet.
    """
    columns = ["Algorithm", "Status", "Size", "Perplexity, your data, exported"]
    columns += [
        "Perplexity, your data",
        "Distance",
        "Perplexity, general text",
        "Distance",
        "Perplexity, exported",
        "Distance",
        "Quantizing",
        "Peak memory",
        "On the GPU",
        "Tokens/s",
        "Note",
    ]
    cells = [
        [
            row.algorithm,
            {"status": row.status, "word": None},
            display.size(row.bytes),
            display.number(row.exported_data_perplexity) if row.exported_data_perplexity else "",
            display.number(row.data_perplexity) if row.data_perplexity else "",
            display.number(row.data_divergence) if row.data_divergence else "",
            display.number(row.general_perplexity) if row.general_perplexity else "",
            display.number(row.general_divergence) if row.general_divergence else "",
            display.number(row.exported_perplexity) if row.exported_perplexity else "",
            display.number(row.exported_divergence) if row.exported_divergence is not None else "",
            display.duration(row.seconds),
            display.size(row.peak_memory_bytes),
            display.size(row.peak_gpu_memory_bytes),
            f"{row.tokens_per_second:.0f}" if row.tokens_per_second else "",
            row.note,
        ]
        for row in rows
    ]
    points = [
        {
            "name": row.algorithm,
            "bytes": row.bytes,
            "data": _data_perplexity(row),
            "general": row.general_perplexity,
            **({"data_range": ends} if (ends := _data_range(row)) else {}),
        }
        for row in rows
        if row.bytes and row.general_perplexity
    ]
    caption = "Measured; an empty cell is not measured yet, or the note says why"
    if best:
        caption = f"{best} {caption}"
    ended = best is not None and all(row.status in ENDED for row in rows)
    return {"table": table(columns, cells, caption=caption), "points": points, "ended": ended}


def _data_perplexity(row: Row) -> float | None:
    """Of the exported graph on a typical response, as its interval is; of earlier versions what they have."""
    given = (row.typical_perplexity, row.exported_data_perplexity, row.data_perplexity)
    return next((one for one in given if one is not None), None)


def _data_range(row: Row) -> list[float] | None:
    """Between which perplexities of a typical response a way lies, if the float model's is exact; None if
    unknown."""
    found, middle = row.against_float or {}, row.typical_perplexity
    ends = [found.get(name) for name in ("difference", "low", "high")]
    if middle is None or not all(isinstance(end, int | float) for end in ends):
        return None
    difference, low, high = (float(end) for end in ends if end is not None)
    return [middle * math.exp(end - difference) for end in (low, high)]
