"""A confined process reads what it was given, and no other file, whoever opens it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.inputs import confined
from pipeline.system import own_process

OPENS = """
import subprocess, sys
from pathlib import Path
sys.modules["torch"] = None
from tokenizers.models import WordPiece
from pipeline.inputs import confined

given, other, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
assert how == "free" or confined.to([given])
how = sys.argv[4]
try:
    if how == "native":
        words = WordPiece(other, unk_token="a").id_to_token(0)
    elif how == "child":
        read = "print(open(__import__('sys').argv[1]).read())"
        words = [sys.executable, "-S", "-c", read, other]
        done = subprocess.run(words, capture_output=True, text=True)
        words = done.stdout.strip() or done.stderr.splitlines()[-1]
    elif how == "folder":
        words = ",".join(path.name for path in Path(other).parent.iterdir())
    else:
        words = Path(other).read_text("utf-8")
    print("read", words)
except Exception as error:
    print("refused", error)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")


def said(given: Path, other: Path, how: str, confinement: str = "confined") -> str:
    words = ["-c", OPENS, str(given), str(other), confinement, how]
    done = own_process.run(words, 60, settings.bare_environment())
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "own.txt").write_text("own\n", "utf-8")
    (tmp_path / "linked.txt").write_text("linked\n", "utf-8")
    (folder / "link.txt").symlink_to(tmp_path / "linked.txt")
    (tmp_path / "elsewhere").mkdir()
    (folder / "way").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "secret.txt").write_text("secret\n", "utf-8")
    return folder


@pytest.mark.parametrize("how", ["python", "native", "child", "folder"])
def test_nothing_else_is_read_by_whatever_opens_it(given: Path, how: str) -> None:
    if not landlock():
        pytest.skip("this system has no Landlock")
    other = given.parent / "elsewhere" / "secret.txt"
    assert "secret" in said(given, other, how, "free").removeprefix("read ")
    assert "read secret" not in (answer := said(given, other, how))
    assert "ermission" in answer or "not permitted" in answer, answer


@pytest.mark.parametrize("name", ["own", "link"])
def test_what_is_given_is_read_and_what_it_links_to(given: Path, name: str) -> None:
    if not landlock():
        pytest.skip("this system has no Landlock")
    assert said(given, given / f"{name}.txt", "native") == f"read {name.replace('link', 'linked')}"


def landlock() -> bool:
    """Whether the kernel has it, asked of a process: it holds for good."""
    words = ["-c", "from pipeline.inputs import confined; print(confined.to([]))"]
    return own_process.run(words, 60, settings.bare_environment()).stdout.strip() == "True"


def test_the_home_in_a_checkout_is_none_of_what_python_needs() -> None:
    inside = [path for path in confined._python() if settings.ROOT.is_relative_to(path)]
    assert not inside, inside
    assert settings.ROOT / "pipeline" in confined._python()
