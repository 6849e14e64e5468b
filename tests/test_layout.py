"""The house: how many modules lie in a folder, and that no two of a package have one name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline import settings

MOST_MODULES = 12
# Folders that mirror each other: the same subject from two sides.
MIRRORED = ({"publish/azure", "publish/foundry", "publish/hub"}, {"tabs", "routes"})


def modules(top: str) -> list[Path]:
    """All modules below a folder of the project, with paths relative to it."""
    root = settings.ROOT / top
    return [path.relative_to(root) for path in root.rglob("*.py") if not path.stem.startswith("__")]


@pytest.mark.parametrize("top", ["pipeline", "webapp"])
def test_no_folder_has_more_modules_than_a_person_looks_through(top: str) -> None:
    sizes = Counter(path.parent for path in modules(top))
    assert {str(folder): size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def twice(paths: list[Path]) -> list[str]:
    """Names that two modules of a package have, in folders that do not mirror each other."""
    found: dict[str, set[str]] = {}
    for path in paths:
        found.setdefault(path.name, set()).add(path.parent.as_posix())
    return [
        name
        for name, folders in found.items()
        if len(folders) > 1 and not any(folders <= mirrored for mirrored in MIRRORED)
    ]


def test_no_two_modules_of_a_package_have_one_name() -> None:
    assert twice(modules("webapp")) == []
    packages: dict[str, list[Path]] = {}
    for path in modules("pipeline"):
        packages.setdefault(path.parts[0], []).append(path)
    assert {package: names for package, paths in packages.items() if (names := twice(paths))} == {}


def test_two_of_one_name_are_seen() -> None:
    assert twice([Path("a/x.py"), Path("b/x.py"), Path("b/y.py")]) == ["x.py"]
    assert twice([Path("tabs/x.py"), Path("routes/x.py")]) == []


@pytest.mark.parametrize(
    ("marker", "folder"), [("browser", "tests/browser"), ("azure", "tests/publish/azure")]
)
def test_marked_tests_are_where_make_looks_for_them(marker: str, folder: str) -> None:
    """It reads only that folder for them: reading all tests takes as long as some of these."""
    assert f"pytest -q {folder} -m {marker} " in (settings.ROOT / "Makefile").read_text("utf-8")
    files = {
        path
        for path in (settings.ROOT / "tests").rglob("*.py")
        if f"mark.{marker}" in path.read_text("utf-8")
    }
    assert [str(path) for path in files if not path.is_relative_to(settings.ROOT / folder)] == []
