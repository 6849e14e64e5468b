"""The README is short, its tree names every folder, and its tabs are those of the page."""

from __future__ import annotations

import ast
import re

from pipeline import settings

README = (settings.ROOT / "README.md").read_text("utf-8")
MOST_LINES = 150


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_the_tree_names_every_folder_by_its_path() -> None:
    tree = README[README.index("\nwebapp/  ") :].partition("```")[0]
    named = re.findall(r"^(\S+/) ", tree, re.MULTILINE)
    assert [name for name in named if not (settings.ROOT / name).is_dir()] == []
    modules = [path for top in ("pipeline", "webapp") for path in (settings.ROOT / top).rglob("*.py")]
    pages = (settings.ROOT / "docs").rglob("*.*")
    files = [*modules, *(page for page in pages if page.suffix in (".md", ".png"))]
    folders = {f"{path.parent.relative_to(settings.ROOT)}/" for path in files} | {"webapp/assets/"}
    assert {name for name in named if name.startswith(("webapp", "pipeline", "docs"))} == folders
    assert len(named) == len(set(named))


def test_the_tabs_are_those_of_the_page_in_their_order() -> None:
    module = ast.parse((settings.ROOT / "webapp" / "app.py").read_text("utf-8"))
    values = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TABS"
    ]
    shown = re.findall(r"docs/pictures/(\w+)\.png\) \| \*\*(\w+)\*\*", README)
    assert [name for name, _ in shown] == list(ast.literal_eval(values[0]))
    assert [label.lower() for _, label in shown] == [name for name, _ in shown]
