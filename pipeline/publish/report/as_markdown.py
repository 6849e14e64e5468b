"""A report as Markdown, for a repository or a wiki."""

from __future__ import annotations

from pipeline.publish import card
from pipeline.publish.report.content import Block, Chart, Code, Report, Table, Text

MOST_POINTS = 12  # of a curve, which is a table here


def page(report: Report) -> str:
    """The whole text. Whatever users and models wrote in it is shown literally."""
    parts = [f"# {card.plain(report.title)}"]
    for section in report.sections:
        parts.append(f"## {card.plain(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return card.plain(block.text)
    if isinstance(block, Code):
        return card.block(block.text)
    return _table(block) if isinstance(block, Table) else _chart(block)


def _table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    ruled = [line if at == 1 else [card.plain(cell) for cell in line] for at, line in enumerate(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def _chart(chart: Chart) -> str:
    """Some points of each curve, its last among them."""
    parts = [card.plain(chart.title)]
    for name, steps, values in chart.lines:
        every = max(1, -(-len(steps) // MOST_POINTS))
        chosen = sorted({*range(0, len(steps), every), len(steps) - 1})
        rows = [[f"{steps[at]}", f"{values[at]:.4g}"] for at in chosen]
        parts.append(_table(Table((f"Step, {name}", "Loss"), rows)))
    return "\n\n".join(parts)
