"""What README and docs say is so: links lead somewhere, paths and commands are real, error texts are ours."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import make_reference
from pipeline import settings
from pipeline.inputs.options import describe
from pipeline.stages.recipe import OPTIONS, Basics, from_dict
from webapp import __main__ as page

ROOT = settings.ROOT
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TOPS = r"(?:pipeline|webapp|tests|benchmarks|docs|data/samples|\.ci)"
MOST_PICTURE_BYTES = 80_000
IN_A_WHEEL = "pipeline/samples/"  # where an installed lab has data/samples/

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@each_page
def test_every_link_leads_to_a_file_and_its_heading(path: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (heading and heading not in _headings(file)):
            broken.append(target)
    assert broken == []


@each_page
def test_every_path_exists(path: Path) -> None:
    named = re.findall(rf"(?<![\w./-])({TOPS}/[\w./-]*)", path.read_text("utf-8"))
    here = [name for name in named if name != IN_A_WHEEL]
    assert [name for name in here if not (ROOT / name.rstrip(".")).exists()] == []


@each_page
def test_every_command_is_one_of_ours_with_its_flags(path: Path) -> None:
    assert [fault for line in _code(path) for fault in _faults(line)] == []


@each_page
def test_every_recipe_is_valid(path: Path) -> None:
    basics = {option.name for option in describe(Basics)}
    for block in re.findall(r"```yaml\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        given = yaml.safe_load(block)
        assert given.keys() <= basics | OPTIONS.keys()
        from_dict({"data": "a.jsonl", **given})


@pytest.mark.parametrize(
    ("name", "heading"), [("troubleshooting.md", "# "), ("how-to/azure.md", "## When it does not work")]
)
def test_every_error_text_is_in_the_code(name: str, heading: str) -> None:
    text = (ROOT / "docs" / name).read_text("utf-8")
    said = list(_said(text[text.index(heading) :]))
    assert said
    assert [one for one in said if not _in_code(one)] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, left = set(), [ROOT / "README.md"]
    while left:
        path = left.pop()
        if path in found or path.suffix != ".md":
            continue
        found.add(path)
        targets = re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8"))
        left += [(path.parent / target).resolve() for target in targets if "://" not in target]
    assert [page for page in PAGES if page not in found] == []


def test_pictures_are_small_and_all_shown() -> None:
    pictures = set((ROOT / "docs" / "pictures").iterdir())
    assert [path.name for path in pictures if path.stat().st_size > MOST_PICTURE_BYTES] == []
    shown = {
        (path.parent / target).resolve()
        for path in PAGES
        for target in re.findall(r"\]\(([^)\s]+\.png)\)", path.read_text("utf-8"))
    }
    assert shown == pictures


def _headings(path: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _code(path: Path) -> Iterator[str]:
    """Lines of code blocks and spans of code; a continued line is one."""
    text = path.read_text("utf-8")
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def _faults(line: str) -> Iterator[str]:
    """What of a command line is not ours."""
    found = re.match(r"make (?:\w+=\S+ )?([a-z-]+)", line)
    if found and found[1] not in _make_targets():
        yield line
    if not (found := re.search(r"python -m (pipeline|webapp|benchmarks|docs)(\.\w+)?(.*)", line)):
        return
    module = ROOT / (found[1] + (found[2] or "").replace(".", "/"))
    if not (module.with_suffix(".py").exists() or (module / "__main__.py").exists()):
        yield line
    if found[2] or found[1] in ("benchmarks", "docs"):
        return
    words = shlex.split(re.sub(r"[\[\]]", "", found[3].partition(" | ")[0]), comments=True)
    parser: Any = page.parser() if found[1] == "webapp" else None
    if found[1] == "pipeline" and words and words[0] not in ("--help", "VERB"):
        parser = make_reference.verbs().get(words[0])
        if parser is None:
            yield line
            return
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    yield from (line for flag in flags if parser and flag not in parser._option_string_actions)


@cache
def _make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def _said(text: str) -> Iterator[str]:
    """Error texts: the first cells of tables whose first column is what it says."""
    for table in re.findall(r"^\| it says .*\n\|[ |-]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            yield from (said.strip() for said in row.split("|")[1].split(" / "))


def _in_code(said: str) -> bool:
    """Whether one text of the code has the pieces around `…`, in this order."""
    pieces = [piece.strip(" .,;:") for piece in re.split(r"…|\.\.\.", said)]
    wanted = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
    return any(wanted.search(text) for text in _texts())


@cache
def _texts() -> list[str]:
    """Every text of the code, with `…` where a value is put in, and the Makefile."""
    found = [(ROOT / "Makefile").read_text("utf-8")]
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "webapp").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
    return found
