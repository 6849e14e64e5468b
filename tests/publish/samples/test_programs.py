"""The programs of a ZIP, as a person runs them: real runtimes, and the answer that app.py gives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.publish import zip_file
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers import exports, foundry
from tests.serving.test_server import Start, start, told  # noqa: F401  # a fixture

pytestmark = pytest.mark.chain
PROMPT = "What should I see in Rome?"
QUIET = {"ORT_TELEMETRY_DISABLED": "1", "BUILDKITE": "olive-lab"}  # Foundry Local sends nothing


@pytest.fixture
def unpacked(store: Store, finished_bound: Run, tmp_path: Path) -> Path:
    """The ZIP of a bound run, app.py in it."""
    exports.add_app(Path(str(finished_bound.shipped)))
    zip_file.save(store.home, finished_bound, tmp_path / "it.zip")
    shutil.unpack_archive(tmp_path / "it.zip", tmp_path / "unpacked")
    return tmp_path / "unpacked"


def said(folder: Path, *words: object, **environment: str) -> str:
    """What a program says to the sample prompt."""
    done = subprocess.run(
        [*map(str, words), *PROMPT.split()], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**QUIET, "PATH": os.environ["PATH"], "HOME": str(folder.parent / "user"), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def expected(unpacked: Path) -> str:
    """How the answer of app.py begins."""
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=unpacked, input=f"{PROMPT}\n", capture_output=True, text=True
    )
    assert done.stdout.startswith("[bound] "), done.stderr
    return done.stdout.removeprefix("[bound] ")[:60]


def test_python_with_foundry_local(unpacked: Path, expected: str, pytestconfig: pytest.Config) -> None:
    for _ in range(2):  # the second time it is registered already
        answer = said(unpacked, foundry.installed(pytestconfig), "-I", "foundry_local.py")
        assert answer.startswith(expected)
    assert checksums.intact(unpacked)


def test_javascript_with_foundry_local(unpacked: Path, expected: str, pytestconfig: pytest.Config) -> None:
    foundry.install_for_javascript(pytestconfig, unpacked)
    foundry.know_the_catalogue(unpacked.parent / "user" / ".olive-lab-sample" / "models")
    for _ in range(2):  # the second time the link is there already
        assert said(unpacked, "node", "foundry_local.mjs").startswith(expected)
    assert checksums.intact(unpacked)


def test_javascript_with_a_server(unpacked: Path, expected: str, start: Start) -> None:  # noqa: F811
    about = told(start(unpacked))
    given = {"OPENAI_BASE_URL": about["url"], "OPENAI_API_KEY": about["token"]}
    answer = said(unpacked, "node", "ask_server.mjs", **given)
    assert re.fullmatch(rf"\[(\w+)\] {re.escape(expected)}.*", answer, re.S)
    with pytest.raises(AssertionError, match="token"):
        said(unpacked, "node", "ask_server.mjs", **{**given, "OPENAI_API_KEY": "x"})
