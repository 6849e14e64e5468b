"""Folders of processes that are killed: nothing of theirs stays."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.runs import check_pool, kept_datasets
from pipeline.runs.data import prepare_data
from pipeline.store import scratch
from pipeline.system import own_process
from tests.helpers.lab import contents, until

WRITES = """
import pathlib, signal, sys, tempfile
folder = tempfile.mkdtemp()
pathlib.Path(folder, "half").write_text("made")
pathlib.Path(sys.argv[1]).write_text(folder)
signal.pause()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, for this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def pool(home: Path, temporary: Path) -> Iterator[check_pool._State]:
    check_pool.open_up()
    yield check_pool._state
    check_pool.close()


def test_a_check_that_is_left_leaves_nothing(home: Path, pool: check_pool._State, temporary: Path) -> None:
    """It is killed while it has half-made files in both folders."""
    steps = check_pool.ask("tests.store.test_scratch:making", {})
    until(lambda: next(steps) == "made", "the files")
    made = [file.name for file, _ in contents(home / scratch.FOLDER)]
    assert made.count("half") == 2
    steps.close()
    left = [path for path, _ in contents(home) if path.name != scratch.LOCK]
    assert left == [*contents(temporary)] == []
    check_pool.close()
    assert [*(home / scratch.FOLDER).iterdir()] == [*temporary.iterdir()] == []


def making() -> Iterator[str]:
    """What that process does: it half makes a dataset and a temporary file, until it is killed."""
    with prepare_data.work_folder(settings.home()) as work, tempfile.TemporaryDirectory() as folder:
        for place in (work, Path(folder)):
            (place / "half").write_text("made")
        while True:
            yield "made"


def test_what_a_process_that_checks_keeps_stays(home: Path, pool: check_pool._State, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    kept = Path(check_pool.answer("tests.store.test_scratch:keeping", {"rows": str(rows)}))
    assert kept.is_relative_to(home / "datasets")
    check_pool.close()
    assert kept.read_bytes() == rows.read_bytes()
    assert [path.name for path in (home / "datasets").iterdir()] == [kept.parent.name]


def keeping(rows: str) -> Generator[str, None, str]:
    """Keep a dataset; its path."""
    yield "Keeping…"
    return str(kept_datasets.keep(settings.home(), Path(rows)))


def test_only_what_nobody_holds_is_cleared(home: Path, temporary: Path) -> None:
    held, left = scratch.Scratch(home), scratch.Scratch(home)
    (left.folder / "half").write_text("made")
    assert left._held is not None
    os.close(left._held)  # as if its page had been killed
    scratch.clear(home)
    assert held.folder.is_dir()
    assert not left.folder.exists()
    for _ in range(2):
        held.remove()
    assert not held.folder.exists()


def test_one_that_cannot_be_made_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch.Scratch(home).remove()
    before = len([*Path("/proc/self/fd").iterdir()])
    make = Path.mkdir

    def full(path: Path, *given: Any, **named: Any) -> None:
        if path.name == "tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(path, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(OSError, match="No space"):
            scratch.Scratch(home)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as lowest:
        free = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # so many are open already
    try:
        with pytest.raises(OSError, match="Too many open files"):
            scratch.Scratch(home)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [*(home / scratch.FOLDER).iterdir()] == []
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_process_that_is_ended_leaves_no_temporary_files(temporary: Path, tmp_path: Path) -> None:
    began = tmp_path / "began"

    class Left(Exception):
        pass

    def look() -> None:
        if began.is_file() and began.read_text():
            raise Left

    with own_process.while_wanted(look), pytest.raises(Left):
        own_process.run(["-c", WRITES, str(began)], None, settings.local_environment())
    assert Path(began.read_text()).is_relative_to(temporary)
    assert [*temporary.iterdir()] == []
