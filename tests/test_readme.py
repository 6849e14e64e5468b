"""What the README points at is there, and its tree names every module."""

from __future__ import annotations

import re

from pipeline import settings

README = (settings.ROOT / "README.md").read_text("utf-8")


def test_links_and_pictures_exist() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (settings.ROOT / t).is_file()] == []


LISTED = ("stages", "tabs", "verbs")  # folders whose line names the modules without their ending


def test_the_tree_names_every_module() -> None:
    tree = README[README.index("\nwebapp/  ") :].partition("```")[0]
    names = set(re.findall(r"[\w.]+", tree))
    modules = [p for top in ("pipeline", "webapp") for p in (settings.ROOT / top).rglob("*.py")]
    missing = [
        str(p.relative_to(settings.ROOT))
        for p in modules
        if "__" not in p.stem and p.name not in names and not (p.parent.name in LISTED and p.stem in names)
    ]
    assert missing == []
