"""The page's modules fit together: what one imports, or a button names, another exports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from pipeline import settings
from webapp.ui.theme import ASSETS

MODULES = sorted(path.name for path in ASSETS.glob("*.js"))
IMPORT = re.compile(r'^import \{ ([^}]*) \} from "\./([\w.]+)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)


def text(module: str) -> str:
    return (ASSETS / module).read_text("utf-8")


def imports(module: str) -> dict[str, list[str]]:
    """What a module imports, by the module it comes from."""
    found = {}
    for names, source in IMPORT.findall(text(module)):
        found[source] = [name.partition(" as ")[0] for name in names.split(", ")]
    return found


def called() -> Iterator[tuple[str, str]]:
    """Functions that events of the page call, with their modules."""
    for path in sorted((settings.ROOT / "webapp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "parts.live":
                name, *module = [ast.literal_eval(given) for given in node.args]
                yield name, module[0] if module else "page.js"


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_exported(module: str) -> None:
    assert text(module).count("\nimport ") + text(module).startswith("import ") == len(imports(module))
    for source, names in imports(module).items():
        assert set(names) <= set(EXPORT.findall(text(source))), source


def test_what_events_call_is_exported() -> None:
    wanted = set(called())
    assert {("open", "page.js"), ("arrive", "page.js"), ("signed", "queue.js")} <= wanted
    missing = [(name, module) for name, module in wanted if name not in EXPORT.findall(text(module))]
    assert missing == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: set(imports(module)) for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_a_run_is_shown_without_the_page_around_it() -> None:
    """The view knows nothing of tabs and buttons: the page hands in what it calls."""
    assert "page.js" not in text("run.js")
    assert "class RunView" in text("run.js")
