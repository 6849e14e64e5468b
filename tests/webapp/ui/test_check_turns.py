"""Turns: what all events that read datasets have as their share of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.store import Store
from webapp.app import page
from webapp.tabs import data, lab
from webapp.ui import check_turns, parts

SAMPLE = str(settings.SAMPLES / "travel.jsonl")


@pytest.fixture
def always_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_turns, "BRIEF_SECONDS", -1.0)
    monkeypatch.setattr(datasets, "TELL_SECONDS", 0.0)


@pytest.fixture
def taken() -> Iterator[None]:
    """All places of long checks are taken by others."""
    for _ in range(check_turns.LONG):
        assert check_turns._long.acquire(blocking=False)
    yield
    for _ in range(check_turns.LONG):
        check_turns._long.release()


def checked() -> tuple[Any, ...]:
    return data.found(None, SAMPLE, "{prompt} {response}", "starter")


def test_a_short_check_needs_no_place_of_the_long_ones(
    home: Path, taken: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_turns, "BRIEF_SECONDS", 600.0)
    assert checked()[1] is None


def test_a_long_check_ends_where_many_are_in_progress(home: Path, always_long: None, taken: None) -> None:
    _, problems, *_, use = checked()
    assert "3 such checks are in progress; try again in some minutes" in json.dumps(problems)
    assert not use["interactive"]


def test_a_long_check_gives_its_place_back(home: Path, always_long: None) -> None:
    for _ in range(check_turns.LONG + 1):
        assert checked()[1] is None
    steps = data.look(None, SAMPLE, "{prompt} {response}", "starter")
    for _ in range(3):
        next(steps)
    steps.close()  # type: ignore[attr-defined]  # the reader has left
    for _ in range(check_turns.LONG):
        assert check_turns._long.acquire(blocking=False)
    for _ in range(check_turns.LONG):
        check_turns._long.release()


def test_no_check_takes_longer_than_allowed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_turns, "MOST_SECONDS", -1.0)
    assert "longer than 10 minutes; use the command line" in json.dumps(checked()[1])


def test_rows_that_do_not_fit_take_time_of_the_turn_too(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(check_turns.Turn, "go_on", lambda _: read.append(1))
    (tmp_path / "misfits.jsonl").write_text('{"prompt": "a"}\n' * 100)
    with check_turns.turn():
        datasets.check(tmp_path / "misfits.jsonl", "{prompt} {response}")
    assert len(read) >= 100


def test_looking_whether_there_are_rows_takes_time_of_the_turn(
    home: Path, uploaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(check_turns.Turn, "go_on", lambda _: read.append(1))
    data.found(uploaded(b'{"prompt": "a"}\n' * 3), None, "{prompt} {response}", "starter")
    assert len(read) >= 2 * 4  # with the ends of the file


def test_launching_has_the_same_share_and_starts_nothing_beyond_it(
    home: Path, store: Store, always_long: None, taken: None
) -> None:
    problems, *_ = lab.launch_sample("Ann")
    assert "3 such checks are in progress" in json.dumps(problems)
    assert store.list() == []


def test_every_event_of_these_places_takes_a_turn() -> None:
    """A handler that reads datasets asks for a turn, in its own module."""
    limited = [fn for fn in page().fns.values() if fn.concurrency_id == parts.CHECKS["concurrency_id"]]
    names = {getattr(fn.fn, "func", fn.fn).__module__ for fn in limited}
    assert len(limited) >= 7
    for name in names:
        text = Path(settings.ROOT, *name.split(".")).with_suffix(".py").read_text()
        assert "check_turns.turn()" in text or "check_turns.Turn()" in text, name


def test_a_turn_ends_with_its_thread_s_work(always_long: None) -> None:
    with check_turns.turn():
        datasets.go_on.get()()
        assert check_turns._long._value == check_turns.LONG - 1  # type: ignore[attr-defined]
    datasets.go_on.get()()
    assert check_turns._long._value == check_turns.LONG  # type: ignore[attr-defined]


def test_a_turn_says_which_way_out_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_turns, "MOST_SECONDS", -1.0)
    with check_turns.turn(), pytest.raises(LabError, match="command line"):
        datasets.go_on.get()()
