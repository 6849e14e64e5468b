"""Every option of a recipe as Markdown, from the dataclasses: `python -m pipeline.runs.recipe_docs`.

`docs/recipe.md` is its output; a test keeps the two the same.
"""

from __future__ import annotations

from pipeline.inputs.options import Option, describe
from pipeline.stages.recipe import OPTIONS, Basics

HEAD = """# Recipe

All that a user chose for a run, as YAML. Every key has a default; a stage set to `null` is left out. Unknown
keys and values that are not allowed are refused before anything starts. This page is written by
`python -m pipeline.runs.recipe_docs`.
"""


def markdown() -> str:
    """The whole page: the keys above the stages, then each stage with its options."""
    parts = [HEAD, "## Top level\n", _table(describe(Basics))]
    for name, cls in OPTIONS.items():
        parts += [f"## {name}\n", _table(describe(cls))]
    return "\n".join(parts)


def _table(options: list[Option]) -> str:
    rows = ["| key | default | allowed | what it does |", "| --- | --- | --- | --- |"]
    for option in options:
        default = f"`{option.default}`" if option.default != "" else ""
        rows.append(f"| `{option.name}` | {default} | {option.allowed()} | {option.help} |")
    text = "\n".join(rows) + "\n"
    return text.replace("True", "true").replace("False", "false").replace("`None`", "`null`")


if __name__ == "__main__":
    print(markdown(), end="")
