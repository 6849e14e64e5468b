"""The files of a report: what goes into a ZIP, a registry or a file of the user's."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Literal, get_args

from pipeline import settings
from pipeline.publish.report import as_html, as_markdown, content
from pipeline.store import Store
from pipeline.store.run import Run

Format = Literal["html", "md"]
FORMATS: tuple[Format, ...] = get_args(Format)
NAMES = ("report.html", "report.md")
ANSWERS = "answers.json"
ROWS_HELP = (
    "Include rows of the data: a report with examples (report.html, report.md) and answers.json, which hold"
    " prompts, expected answers and generated ones; off, nothing that is published holds a row"
)


def text(home: Path, run: Run, kind: Format, rows: bool) -> str:
    """The report of a run as HTML or Markdown; with examples from its data only if `rows`."""
    found = content.of(home, run, rows)
    return as_html.page(found) if kind == "html" else as_markdown.page(found)


def written(home: Path, run: Run, rows: bool) -> dict[str, str]:
    """The report in both formats by file name, and with `rows` the recorded answers."""
    found = content.of(home, run, rows)
    files = dict(zip(NAMES, (as_html.page(found), as_markdown.page(found)), strict=True))
    answers = run.artifact("answers")
    if rows and answers and Path(answers).is_file():
        files[ANSWERS] = Path(answers).read_text("utf-8")
    return files


def with_rows(home: Path, run: Run, rows: bool) -> dict[str, str]:
    """What a publisher adds where rows of the data are to be included: `written`; else nothing."""
    return written(home, run, True) if rows else {}


def asked(run: str, kind: Format, rows: bool) -> Generator[str, None, str]:
    """`text`, as a process is asked for it."""
    yield "Writing the report…"
    home = settings.home()
    return text(home, Store(home).get(run), kind, rows)
