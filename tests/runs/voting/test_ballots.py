"""Who voted what: kept through cuts, deletion, many writers, and names that want to be others."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.runs.voting import ballots
from pipeline.runs.voting.ballots import JUDGE, PERSON, Vote, Voter

ADA, SHOWN = ballots.person("Ada")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def cast(run: Path, row: int, choice: str, name: str = "Ada") -> None:
    ballots.cast(run, *ballots.person(name), row, Vote("d", choice))


def choices(run: Path, voter: Voter) -> dict[int, str]:
    return {row: vote.choice for row, vote in ballots.read(run).of(voter).items()}


def file(run: Path) -> Path:
    return run / "votes" / "ballots.jsonl"


def test_the_latest_vote_of_a_voter_on_a_row_counts(run):
    cast(run, 0, "base")
    cast(run, 1, "tie")
    cast(run, 0, "adapter", "  ADA ")
    cast(run, 0, "bad", "Grace")
    found = ballots.read(run)
    assert choices(run, ADA) == {0: "adapter", 1: "tie"}
    assert choices(run, ballots.person("grace")[0]) == {0: "bad"}
    assert list(found.of(ADA)) == [1, 0]
    assert found.names[ADA] == "Ada"
    assert file(run).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_line_that_was_cut_off_is_skipped_and_the_next_one_counts(run, cut):
    cast(run, 0, "base")
    cast(run, 1, "base")
    with file(run).open("r+b") as torn:
        torn.truncate(file(run).stat().st_size - cut)
    assert list(ballots.read(run).of(ADA)) == [0]
    cast(run, 1, "adapter")
    assert choices(run, ADA) == {0: "base", 1: "adapter"}
    assert ballots.read(run).unread == (cut > 1)


def test_what_says_nothing_is_counted_and_harms_nothing(run):
    cast(run, 0, "base")
    hostile = [
        b"[1]", b"null", b"\xff\xfe", b"[" * 100_000,
        b'{"kind":"person","voter":"Ada","row":true,"of":"d","choice":"tie"}',
        b'{"kind":"person","voter":"judge:x","row":0,"of":"d","choice":"tie"}',
        b'{"kind":"person","voter":7}',
        b'{"kind":"x","voter":"Ada","row":0,"of":"d","choice":"adapter\\u0000"}',
    ]  # fmt: skip
    with file(run).open("ab") as more:
        more.write(b"\n".join([*hostile, b""]))
    found = ballots.read(run)
    assert found.unread == len(hostile)
    assert found.by == {ADA: {0: Vote("d", "base")}}


def test_votes_of_many_at_once_are_all_there(run):
    def votes(name: str) -> None:
        for row in range(25):
            cast(run, row, "tie", name)

    threads = [threading.Thread(target=votes, args=[f"voter {n}"]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ballots._book.cache_clear()
    found = ballots.read(run)
    assert [len(votes) for votes in found.by.values()] == [25] * 4
    assert found.unread == 0


def test_a_run_that_was_deleted_is_a_sentence_and_stays_deleted(run, monkeypatch):
    cast(run, 0, "base")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), shutil.rmtree(run)))
    with pytest.raises(LabError, match="was deleted meanwhile"):
        cast(run, 1, "base")
    with pytest.raises(LabError, match="was deleted meanwhile"):
        cast(run, 1, "base")
    with pytest.raises(LabError, match="was deleted meanwhile"):
        ballots.secret(run)
    assert not run.exists()
    assert ballots.read(run).by == {}


def test_a_full_disk_leaves_no_half_a_line(run, monkeypatch):
    cast(run, 0, "base")
    before = file(run).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        cast(run, 1, "base")
    assert file(run).read_bytes() == before


def test_there_is_an_end_to_votes(run, monkeypatch):
    cast(run, 1, "base", "two")
    monkeypatch.setattr(ballots, "LARGEST", 40)
    with pytest.raises(LabError, match="as many votes as are kept"):
        cast(run, 2, "base", "two")


def test_who_votes_for_ever_closes_no_vote(run, monkeypatch):
    """Only the latest vote on a row counts, so what is full is shortened to these."""
    ballots.cast(run, Voter(JUDGE, "gpt"), "gpt", 0, Vote("d", "base"))
    cast(run, 0, "base")
    ballots.reveal(run, *ballots.person("Ada"))
    ballots.reveal(run, *ballots.person("Only Looks"))
    monkeypatch.setattr(ballots, "LARGEST", 4000)
    monkeypatch.setattr(ballots, "MOST_VOTERS", 3)
    for turn in range(100):
        cast(run, 1, ("adapter", "tie")[turn % 2], "𝒜" * 20)
        assert file(run).stat().st_size <= 4000
    ballots._book.cache_clear()
    found = ballots.read(run)
    assert (found.unread, len(found.revealed)) == (0, 2)
    assert choices(run, ADA) == {0: "base"}
    assert [(voter.shown, [*cast]) for voter, cast in found.by.items()] == [
        ("judge:gpt", [0]), ("ada", [0]), ("a" * 20, [1])
    ]  # fmt: skip


def test_nobody_s_latest_vote_is_ever_left_out(run, monkeypatch):
    """Neither by names that only look, nor by those that vote, whoever came first; then no more is taken."""
    monkeypatch.setattr(ballots, "MOST_VOTERS", 2)
    ballots.cast(run, Voter(JUDGE, "gpt"), "gpt", 0, Vote("d", "base"))
    for number in range(100):
        cast(run, 0, "base", f"made up {number}")
        ballots.reveal(run, *ballots.person(f"made up {number}"))
    for row in range(3):
        cast(run, row, "base")
    ballots.reveal(run, *ballots.person("Ada"))
    ballots.reveal(run, *ballots.person("ß" * 40))
    for turn in range(400):
        cast(run, 0, ("adapter", "tie")[turn % 2], "Mallory")
    size = file(run).stat().st_size
    monkeypatch.setattr(ballots, "LARGEST", size)
    cast(run, 3, "tie")
    assert file(run).stat().st_size < size * 0.6
    ballots._book.cache_clear()
    found = ballots.read(run)
    assert (len(found.by), found.unread) == (103, 0)
    assert choices(run, ADA) == {0: "base", 1: "base", 2: "base", 3: "tie"}
    assert ADA in found.revealed
    assert found.revealed - found.by.keys() == {ballots.person("ß" * 40)[0]}
    before = file(run).read_bytes()
    monkeypatch.setattr(ballots, "LARGEST", len(before) + 10)
    with pytest.raises(LabError, match="as many votes as are kept"):
        cast(run, 0, "tie")
    assert file(run).read_bytes() == before


def test_an_operator_drops_the_votes_of_others_and_has_them_still(run):
    ballots.cast(run, Voter(JUDGE, "gpt"), "gpt", 0, Vote("d", "base"))
    for name in ("made up", "Ada", "Grace", "another"):
        cast(run, 0, "base", name)
        ballots.reveal(run, *ballots.person(name))
    ballots.reveal(run, *ballots.person("only looks"))
    before = file(run).read_bytes()
    dropped, kept = ballots.drop_others(run, [ADA, ballots.person("grace")[0]])
    assert (dropped, kept.read_bytes()) == (2, before)
    found = ballots.read(run)
    assert list(found.names.values()) == ["judge:gpt", "Ada", "Grace"]
    assert found.revealed == {ADA, ballots.person("grace")[0]}
    again, other = ballots.drop_others(run, [ADA])
    assert (again, kept.read_bytes(), other == kept) == (1, before, False)
    cast(run, 1, "tie")
    assert choices(run, ADA) == {0: "base", 1: "tie"}


def test_a_file_with_the_number_of_an_earlier_one_is_read_from_its_start(run, tmp_path):
    """File systems give numbers again. Votes that are not seen would be gone with the next shortening."""
    for turn in range(20):
        cast(run, 0, ("adapter", "tie")[turn % 2], "Mallory")
    ballots.read(run)
    number = file(run).stat().st_ino
    other = tmp_path / "other"
    other.mkdir()
    for row in range(40):
        cast(other, row, "base")
    file(run).write_bytes(file(other).read_bytes())
    assert file(run).stat().st_ino == number
    assert choices(run, ADA) == dict.fromkeys(range(40), "base")
    starts = set()
    for _ in range(3):
        ballots._shorten(run)
        starts.add(file(run).read_bytes()[: ballots.END_BYTES])
    assert len(starts) == 3
    assert choices(run, ADA) == dict.fromkeys(range(40), "base")


def test_shortening_goes_by_the_file_and_not_by_what_was_read_before(run):
    cast(run, 0, "base")
    ballots.read(run).by.clear()
    ballots._shorten(run)
    assert choices(run, ADA) == {0: "base"}


def test_a_vote_that_waits_while_the_file_is_shortened_is_kept(run, monkeypatch):
    cast(run, 0, "base")
    there, looks = ballots._is_there, []

    def shortened(path, descriptor):
        looks.append(path)
        if len(looks) == 1:
            shutil.copy(path, path.with_suffix(".new")).replace(path)
        return there(path, descriptor)

    monkeypatch.setattr(ballots, "_is_there", shortened)
    cast(run, 1, "tie")
    assert choices(run, ADA) == {0: "base", 1: "tie"}
    assert len(looks) == 3


def test_the_same_vote_again_takes_no_room(run):
    cast(run, 0, "base")
    size = file(run).stat().st_size
    cast(run, 0, "base")
    assert file(run).stat().st_size == size


def test_made_up_names_that_only_reveal_keep_nobody_from_voting(run, monkeypatch):
    monkeypatch.setattr(ballots, "MOST_VOTERS", 2)
    for name in ("one", "two"):
        ballots.reveal(run, *ballots.person(name))
    with pytest.raises(LabError, match="people have revealed the sides without a vote"):
        ballots.reveal(run, *ballots.person("three"))
    cast(run, 0, "base", "three")
    ballots.reveal(run, *ballots.person("three"))
    assert len(ballots.read(run).revealed) == 3


@pytest.mark.parametrize(
    "name",
    ["judge:gpt", "ｊｕｄｇｅ：gpt", "judge\u02d0gpt", "judge\u2236gpt", "judge\ua789gpt", "a\nb\x00",
     "\u202eada", "x" * 41, "<b>ada</b>", "\ud800"],
)  # fmt: skip
def test_no_person_can_have_the_name_of_a_judge_or_one_that_hides(name):
    with pytest.raises(InputError, match="your name"):
        ballots.person(name)


@pytest.mark.parametrize("name", ["", " \t\n", "\u3000"])
def test_a_name_is_needed(name):
    with pytest.raises(InputError, match="write it at the top"):
        ballots.person(name)


@pytest.mark.parametrize("name", ["Åsa Ö.", "O’Brien", "李雷", "नमिता", "ʻIolani", "ada_2@x", "علي"])
def test_names_of_people_are_taken(name):
    assert ballots.person(f" {name} ")[1] == name


def test_a_judge_is_another_voter_than_a_person_of_any_name(run):
    ballots.cast(run, Voter(JUDGE, "ada"), "ada", 0, Vote("d", "base"))
    cast(run, 0, "adapter", "ada")
    found = ballots.read(run)
    assert found.by[Voter(JUDGE, "ada")][0].choice == "base"
    assert found.by[Voter(PERSON, "ada")][0].choice == "adapter"
    assert sorted(found.names.values()) == ["ada", "judge:ada"]


def test_each_run_has_a_secret_of_its_own_that_stays(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    made = ballots.secret(run)
    assert (len(made), ballots.secret(run)) == (32, made)
    assert ballots.secret(other) != made
    assert (run / "votes" / "secret").stat().st_mode & 0o777 == 0o600
