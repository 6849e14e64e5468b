"""A report as Markdown: nothing that users, data or models wrote is more than text."""

from __future__ import annotations

import re

import pytest

from pipeline.publish.report import as_html, as_markdown
from pipeline.publish.report.content import Chart, Report, Section
from tests.publish.report.test_as_html import REPORT


def test_markdown_shows_every_text_literally() -> None:
    page = as_markdown.page(REPORT)
    outside = re.sub(r"^(`{3,})yaml\n.*?\1$", "", page, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^#+ ", outside, re.MULTILINE) == ["# ", "## ", "## "]
    assert not re.search(r"(?<!\\)[<\[`]", outside)
    assert len({line.count(" | ") for line in outside.splitlines() if line.startswith("| ")}) == 1


@pytest.mark.parametrize("count", [1, 2, 500])
def test_a_long_curve_is_thinned_and_keeps_its_end(count: int) -> None:
    steps = list(range(1, count + 1))
    report = Report("x", [Section("Curves", [Chart("Loss", [("training", steps, [1.0] * count)])])])
    assert f"| {count} | 1 |" in as_markdown.page(report)
    assert as_markdown.page(report).count("\n| ") <= as_markdown.MOST_POINTS + 4
    assert len(as_html.page(report)) < 12_000
