"""What the README points at is there, and its tree names every folder."""

from __future__ import annotations

import re

from pipeline import settings

README = (settings.ROOT / "README.md").read_text("utf-8")


def test_links_and_pictures_exist() -> None:
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (settings.ROOT / t).is_file()] == []


def test_the_tree_names_every_folder_by_its_path() -> None:
    tree = README[README.index("\nwebapp/  ") :].partition("```")[0]
    named = {
        name
        for name in re.findall(r"^(\S+/) ", tree, re.MULTILINE)
        if name.startswith(("webapp", "pipeline"))
    }
    modules = [path for top in ("pipeline", "webapp") for path in (settings.ROOT / top).rglob("*.py")]
    folders = {f"{path.parent.relative_to(settings.ROOT)}/" for path in modules} | {"webapp/assets/"}
    assert named == folders
