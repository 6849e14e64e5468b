"""A report as one page of HTML: nothing in it asks any other place for anything, and no script runs."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from pipeline import display
from pipeline.publish.report.content import Block, Chart, Code, Report, Table, Text

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 56, 24  # of a chart
MOST_POINTS = 300
STYLE = """
:root { color-scheme: light dark; --text: #292524; --soft: #57534e; --line: #d8d4cf; --back: #fff;
  --one: #66732b; --two: #9a4f1c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e9e6e2; --soft: #b3ada7; --line: #3a3632; --back: #171513;
    --one: #a6b25a; --two: #e0a06c; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 60rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top;
  white-space: pre-wrap; min-width: 5rem; }
th { overflow-wrap: normal; }
pre { border: 1px solid var(--line); padding: .8rem; white-space: pre-wrap; font-size: .85rem; }
svg { width: 100%; max-width: 40rem; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.axis { stroke: var(--line); fill: none; } .line { fill: none; stroke-width: 2; stroke-linecap: round; }
.line-0 { stroke: var(--one); } .line-1 { stroke: var(--two); stroke-dasharray: 5 3; }
svg text.name-0 { fill: var(--one); } svg text.name-1 { fill: var(--two); }
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


def page(report: Report) -> str:
    """The whole page. Every text of the report is escaped."""
    title = _text(report.title)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
    ]
    for section in report.sections:
        parts.append(f"<h2>{_text(section.title)}</h2>")
        parts += [_block(block) for block in section.blocks]
    return "\n".join([*parts, "</main></body></html>\n"])


def _text(text: str) -> str:
    return escape(display.plain(text))


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{_text(block.text)}</pre>"
    return _table(block) if isinstance(block, Table) else _chart(block)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    named = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="wide" tabindex="0"><table>{named}<tbody>{rows}</tbody></table></div>'


def _chart(chart: Chart) -> str:
    """Curves as lines of SVG, with the ends of both axes."""
    lines = [(name, list(_finite(steps, values))) for name, steps, values in chart.lines]
    points = [point for _, line in lines for point in line]
    if not points:
        return ""
    across, up = (_Range([point[axis] for point in points]) for axis in (0, 1))
    drawn = []
    for at, (name, line) in enumerate(lines):
        thinned = line[:: math.ceil(len(line) / MOST_POINTS) or 1]
        found = [_place(across.share(step), up.share(value)) for step, value in thinned]
        places = " ".join(found if len(found) > 1 else found * 2)  # one point is a dot
        drawn.append(f'<polyline class="line line-{at % 2}" points="{places}"/>')
        drawn.append(f'<text class="name-{at % 2}" x="{WIDTH - 230 + 100 * at}" y="20">{_text(name)}</text>')
    ends = (
        f'<text x="0" y="18">{up.high:.3g}</text><text x="0" y="{HEIGHT - BOTTOM}">{up.low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{across.low:.0f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 6}" text-anchor="end">{across.high:.0f}</text>'
    )
    axes = f'<path class="axis" d="M{LEFT} 8V{HEIGHT - BOTTOM - 8}H{WIDTH - 8}"/>'
    return (
        f'<p>{_text(chart.title)}</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{_text(chart.title)}">{axes}{"".join(drawn)}{ends}</svg>'
    )


def _place(across: float, up: float) -> str:
    """A point of a curve, by its shares of both axes, from 0 to 1."""
    return f"{LEFT + across * (WIDTH - LEFT - 8):.1f},{8 + (1 - up) * (HEIGHT - BOTTOM - 16):.1f}"


def _finite(steps: Sequence[int], values: Sequence[Any]) -> Iterator[tuple[float, float]]:
    for step, value in zip(steps, values, strict=False):
        if isinstance(step, int | float) and math.isfinite(step) and math.isfinite(value):
            yield float(step), float(value)


class _Range:
    """From the least to the greatest of some numbers."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self.low, self.high = min(numbers), max(numbers)

    def share(self, number: float) -> float:
        """Where between both a number is, from 0 to 1."""
        return (number - self.low) / (self.high - self.low) if self.high > self.low else 0.5
