"""Which of our functions reach which others, as far as their source says it: by name, through imports."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from pipeline import settings

PACKAGES = ("pipeline", "webapp")
STEPS = "check_turns.steps"  # whose first argument is carried out by a thread, and can be left


def reaching(goals: Collection[str], but: Collection[str] = ()) -> set[str]:
    """The functions, methods and classes, as "module.name", that mention one of the goals or of these, other
    than through those in `but` and through what they give a thread that can be left."""
    found = {*goals}
    while more := {name for name, mentioned in _mentioned().items() if mentioned & found} - found - {*but}:
        found |= more
    return found


@cache
def _mentioned() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for file in (settings.ROOT / package).rglob("*.py"):
            module = ".".join(file.relative_to(settings.ROOT).with_suffix("").parts).removesuffix(".__init__")
            found |= _of_module(module, file)
    return found


def _of_module(module: str, file: Path) -> dict[str, set[str]]:
    tree = ast.parse(file.read_text())
    names = dict(_names(tree, module))
    found: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[f"{module}.{node.name}"] = _mentions(node, names)
        elif isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            of = {f"{module}.{node.name}.{one.name}": _mentions(one, names) for one in methods}
            found |= {**of, f"{module}.{node.name}": set(of)}
    return found


def _names(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """What names stand for in a module: what it imports, anywhere, and what it defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, f"{module}.{node.name}"


def _mentions(function: ast.AST, names: dict[str, str]) -> set[str]:
    found, todo = set(), [function]
    own = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)} | {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    names = {name: what for name, what in names.items() if name not in own}
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Call) and ast.unparse(node.func) == STEPS:
            todo += [*node.args[1:], *(given.value for given in node.keywords)]
            continue
        if isinstance(node, ast.Name | ast.Attribute) and (name := _resolved(node, names)):
            found.add(name)
        todo += ast.iter_child_nodes(node)
    return found


def _resolved(node: ast.AST, names: dict[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return None
    return ".".join([names[node.id], *reversed(parts)])
