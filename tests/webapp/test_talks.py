"""Conversations in the home: kept whole, found by their name alone, and removed when they are old."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.system import files
from webapp import talks
from webapp.talks import Answer, Talk, Turn

NAME = "a-name-of-22-letters-x"
TURN = Turn("Where?", "Be brief.", (Answer("base@run", "There.", [["Tokens", "2"]]),))


def test_a_conversation_is_kept(home: Path) -> None:
    talk = Talk("run", ("adapter@other",), (TURN, TURN))
    talks.save(home, NAME, talk)
    assert talks.load(home, NAME) == talk
    assert [(turn.prompt, text) for turn, text in talk.after("base@run")] == [("Where?", "There.")] * 2
    assert talk.after("adapter@other") == []
    assert (home / "talks" / f"{NAME}.json").stat().st_mode & 0o77 == 0
    assert talks.load(home, NAME.replace("a", "b")) == Talk()


@pytest.mark.parametrize(
    "name", ["", "short", "../../datasets/x/rows", "x" * 23, "a-name-of-22-letters-/", "é" * 22]
)
def test_only_a_name_of_ours_is_a_file(home: Path, name: str) -> None:
    assert talks.load(home, name) == Talk()
    with pytest.raises(InputError, match="has no name; reload the page"):
        talks.save(home, name, Talk())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "", "also": [], "turns": [1]}', "\udcff"])
def test_a_file_that_is_broken_is_an_empty_conversation(home: Path, text: str) -> None:
    (home / "talks").mkdir()
    (home / "talks" / f"{NAME}.json").write_text(text, "utf-8", "surrogateescape")
    assert talks.load(home, NAME) == Talk()


def test_too_long_a_conversation_is_refused_and_the_kept_one_stays(home: Path) -> None:
    kept = Talk("run", (), (TURN,) * talks.MOST_TURNS)
    talks.save(home, NAME, kept)
    large = Turn("", "", (Answer("base@run", "x" * talks.LARGEST, []),))
    for turns in ((*kept.turns, TURN), (large,)):
        with pytest.raises(LabError, match="too long to be continued"):
            talks.save(home, NAME, Talk("run", (), turns))
    assert talks.load(home, NAME) == kept


def test_a_disk_that_is_nearly_full_keeps_what_is_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them may have gigabytes."""
    talks.save(home, NAME, Talk(turns=(TURN,)))
    monkeypatch.setattr(files, "KEPT_FREE", 1 << 62)
    with pytest.raises(LabError, match="nearly full"):
        talks.save(home, NAME, Talk(turns=(TURN, TURN)))
    assert talks.load(home, NAME) == Talk(turns=(TURN,))


def planted(home: Path, name: str, model: str, came: float, used: float) -> None:
    """A conversation that came and was continued so many days ago."""
    talks.save(home, name, Talk(model))
    file = home / "talks" / f"{name}.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"arrived": time.time() - came * 24 * 3600}))
    os.utime(file, (time.time() - used * 24 * 3600,) * 2)


def test_many_new_ones_leave_what_others_keep(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client can add thousands in minutes. Continuing one does not make it a new one."""
    monkeypatch.setattr(talks, "MOST", 6)
    names = [f"a-name-of-22-letters-{letter}" for letter in "abcdefghi"]
    planted(home, names[0], "kept for long", came=9, used=9)
    planted(home, names[1], "continued", came=9, used=9)
    talks.save(home, names[1], Talk("continued", (), (TURN,)))
    for number, name in enumerate(names[2:8]):
        planted(home, name, "crowd", came=0.02 - number / 1000, used=0.02 - number / 1000)
    talks.save(home, names[8], Talk("somebody else's"))
    talks.tidy(home)
    left = [talks.load(home, name).model for name in names]
    assert left[:2] + left[6:] == ["kept for long", "continued", "crowd", "crowd", "somebody else's"]
    assert sorted(left[2:6]) == ["", "", "", "crowd"], "any of those not kept by use"


def test_one_of_an_older_version_was_there_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talks, "MOST", 2)
    names = [f"a-name-of-22-letters-{letter}" for letter in "abc"]
    for name in names:
        talks.save(home, name, Talk("run"))
    file = home / "talks" / f"{names[0]}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"arrived": None}))
    os.utime(file, (time.time() - 9 * 24 * 3600,) * 2)
    talks.tidy(home)
    assert [talks.load(home, name).model for name in names] == ["run", "", "run"]


def test_old_ones_and_the_oldest_of_too_many_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talks, "MOST", 3)
    ages = (0, 1, 31, 2, 3)  # days
    for age in ages:
        planted(home, f"a-name-of-22-letter-{age:02}", f"{age}", came=40, used=age)
    talks.tidy(home)
    assert [talks.load(home, f"a-name-of-22-letter-{age:02}").model for age in ages] == [
        "0",
        "1",
        "",
        "2",
        "",
    ]
    monkeypatch.setattr(talks, "OLD_SECONDS", 36 * 3600.0)
    talks.tidy(home)
    assert [file.name for file in sorted((home / "talks").iterdir())] == [
        f"a-name-of-22-letter-{age:02}.json" for age in (0, 1)
    ]
