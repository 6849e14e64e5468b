"""data_card: cards are made apart, kept and found again; copies without rows are the same each time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TypeVar

import pytest

from pipeline.errors import Busy, InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.telling import ended
from pipeline.runs.data import data_card
from pipeline.runs.data.data_card import Question

T = TypeVar("T")
ROWS = [
    {"prompt": "Where is it?", "response": "It is here."},
    {"prompt": "Where is it?", "response": "It is here."},
    {"prompt": "Whom do I ask?", "response": "Ask jane@acme.org, please"},
    {"prompt": "What is this then?", "response": "Nothing of the kind."},
]


@pytest.fixture
def asked(tmp_path: Path, home: Path) -> Question:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Question(path, "{prompt} {response}", None, 512)


def test_a_card_is_made_and_kept(asked: Question, home: Path) -> None:
    card = ended(data_card.card(asked))
    assert [(found["name"], found["first"]) for found in card["findings"]] == [
        ("duplicates", [2]),
        ("emails", [3]),
    ]
    assert list(data_card.lines_with(home, card["key"], ["emails", "duplicates"])) == [2, 3]
    assert list(data_card.card(asked)) == []  # nothing is made again
    assert data_card.kept(home, card["key"]) == card
    assert "jane" not in (home / "cards" / card["key"] / "card.json").read_text()


@pytest.mark.parametrize("key", ["", "..", "../datasets", "g" * 32, "0" * 32 + "/.."])
def test_no_path_comes_from_a_key(home: Path, key: str) -> None:
    with pytest.raises(InputError, match="no such card"):
        data_card.kept(home, key)


def test_a_card_depends_on_all_that_it_is_asked(asked: Question) -> None:
    changes = [{"template": "{response} {prompt}"}, {"max_length": 20}, {"seed": 1}, {"eval_fraction": 0.2}]
    keys = {asked.key(), *(dataclasses.replace(asked, **change).key() for change in changes)}  # type: ignore[arg-type]
    assert len(keys) == 5


def test_rows_are_left_out_and_the_others_keep_their_lines(asked: Question, home: Path) -> None:
    without = dataclasses.replace(asked, leave_out=("duplicates", "emails"))

    def left(asked: Question, name: str) -> tuple[Path, int]:
        (home / name).mkdir(parents=True)
        found: tuple[Path, int] = ended(data_card.without(asked, home / name))
        return found

    path, went = left(without, "one")
    assert went == 2
    assert [line for line, _ in datasets.rows(path)] == [1, 4]
    first = path.read_bytes()
    shutil.rmtree(home / "cards")
    assert path.read_bytes() == first, "others' cards do not take it away from whoever works with it"
    again, went = left(without, "two")
    assert (went, again.read_bytes()) == (2, first)
    data_card.mark(path, without.choice())
    assert left(dataclasses.replace(without, path=path), "three") == (path, 0)
    other = dataclasses.replace(without, path=path, template="{response} {prompt}")
    assert left(other, "four")[0] != path, "another choice is made again"


def test_the_cards_used_last_are_kept(asked: Question, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        folder = home / "cards" / (f"{number}" * 32)
        folder.mkdir(parents=True)
        os.utime(folder, (number, number))
    monkeypatch.setattr(data_card, "MOST_KEPT", 2)
    data_card._forget_old(home / "cards")
    assert sorted(path.name[0] for path in (home / "cards").iterdir()) == ["1", "2"]


def test_cards_go_with_their_dataset_and_what_was_left_goes_too(asked: Question, home: Path) -> None:
    kept = ended(data_card.card(asked))["key"]
    young, old = (home / "cards" / f".{kept}-{name}.part" for name in ("young", "old"))
    for part in (young, old):
        part.mkdir()
    os.utime(old, (1, 1))
    data_card.tidy(home)
    assert data_card.kept(home, kept) is not None
    assert (young.exists(), old.exists()) == (True, False)
    asked.path.unlink()
    data_card.tidy(home)
    assert data_card.kept(home, kept) is None


def test_what_is_wrong_is_said(asked: Question, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no placeholder"):
        ended(data_card.card(dataclasses.replace(asked, template="nothing")))
    with pytest.raises(OSError, match="No such file"):
        ended(data_card.card(dataclasses.replace(asked, path=tmp_path / "none")))


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_is_kept(asked: Question, home: Path) -> None:
    odd = dataclasses.replace(asked, eval_fraction="x")  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"internal error \(TypeError: .* details are in errors\.log of the"):
        ended(data_card.card(odd))
    assert "Traceback (most recent call last)" in (home / "errors.log").read_text()


def test_only_so_many_are_made_at_once(asked: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_card, "AT_ONCE", 1)
    first = data_card.card(asked)
    next(first)
    with pytest.raises(Busy):
        ended(data_card.card(asked))
    first.close()
    assert ended(data_card.card(asked))["rows"] == 4


def test_a_process_that_ends_is_named(asked: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = data_card.card(asked)
    killed: list[data_card.own_process.subprocess.Popen[bytes]] = []
    start = data_card.own_process.start_group

    def started(*given: object) -> object:
        process = start(*given)  # type: ignore[arg-type]
        data_card.own_process.kill(process)
        killed.append(process)
        return process

    monkeypatch.setattr(data_card.own_process, "start_group", started)
    with pytest.raises(LabError, match="has ended; try again"):
        ended(steps)
    assert len(killed) == 1
