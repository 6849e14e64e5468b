"""The reference pages are what the code says, and nothing in the code is missing from them."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from docs import make_reference
from pipeline import settings
from pipeline.inputs.options import describe
from pipeline.stages.recipe import OPTIONS

# Set by our own processes for each other.
INTERNAL = {
    "OLIVE_LAB_EVENTS",
    "OLIVE_LAB_COMMAND",
    "HF_HUB_OFFLINE",
    "PYTHONPATH",
    "DEFAULT_IDENTITY_CLIENT_ID",
}


@pytest.mark.parametrize("name", make_reference.PAGES)
def test_the_committed_page_is_current(name: str) -> None:
    committed = (make_reference.FOLDER / name).read_text("utf-8")
    assert committed == make_reference.PAGES[name](), "out of date: run `make reference`"


def test_the_folder_holds_these_pages_only() -> None:
    assert {path.name for path in make_reference.FOLDER.iterdir()} == set(make_reference.PAGES)


def test_every_option_is_on_the_recipe_page_with_its_help() -> None:
    page = make_reference.recipe()
    for cls in OPTIONS.values():
        for option in describe(cls):
            assert f"| `{option.name}` |" in page
            assert option.help in page


def test_every_argument_of_every_verb_is_explained() -> None:
    for parser in make_reference.verbs().values():
        for action in make_reference.arguments(parser):
            assert make_reference.about(action)


def test_every_variable_that_is_read_is_on_the_settings_page() -> None:
    page = make_reference.settings_page()
    names = {name for name in _read_from_environment() if name not in INTERNAL}
    assert "OLIVE_LAB_HOME" in names
    assert {name for name in names if f"`{name}`" not in page} == set()


def _read_from_environment() -> set[str]:
    """Names in `os.environ.get(NAME)`, `os.environ[NAME]` and `_number(NAME, ...)` of settings.py."""
    found: set[Any] = set()
    for node in ast.walk(ast.parse((settings.ROOT / "pipeline" / "settings.py").read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "_number"):
            found.add(getattr(node.args[0], "value", None))
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            found.add(getattr(node.slice, "value", None))
    return {name for name in found if isinstance(name, str)}
