"""Who voted what: `votes/ballots.jsonl` in a run's folder, one line a vote, the latest one counts.

Lines are appended under a lock and written through to the disk. A line that was cut off, because the
machine stopped, is skipped; the next vote begins a line of its own. A vote names its row by position and by
a digest of its texts, so that votes on answers that have changed don't count.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
import time
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import InputError, LabError
from pipeline.system.files import to_json, write_whole

FOLDER, FILE, SECRET = "votes", "ballots.jsonl", "secret"
DROPPED = "dropped-{}.jsonl"  # the ballots as they were before some were dropped, by a name of their own
BASE, ADAPTER, TIE, BAD = "base", "adapter", "tie", "bad"
CHOICES = (ADAPTER, BASE, TIE, BAD)
PERSON: Kind = "person"
JUDGE: Kind = "judge"
LONGEST_NAME = 40  # as the page's "Your name"
MOST_VOTERS = 200  # people that a result counts: the first
LARGEST = 16 << 20  # bytes of a run's votes, some 150,000 of them; those that others replaced go then
SECRET_BYTES = 32
END_BYTES = 100  # more than a line that says "shortened"
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
PUNCTUATION = " .-_'’@+(),&/"
COLON_ALIKE = "\u02d0\u02d1"  # letters, by their category
GONE = "This run was deleted meanwhile; restore it on the Runs tab to vote on its answers."
FULL = (
    "This run has as many votes as are kept. If most are of made-up names, whoever runs the lab can drop"
    " them: see `votes` with --only and --drop-others."
)
VOTE_FIRST = (
    f"{MOST_VOTERS} people have revealed the sides without a vote, as many as may; vote on a row first."
)
NO_NAME = "your name: write it at the top of the page, so that your votes are kept as yours"
BAD_NAME = f"your name: up to {LONGEST_NAME} letters, digits, spaces and . - _ ' @ are allowed, and no colon"

Kind = Literal["person", "judge"]


class Voter(NamedTuple):
    """A voter. Names that differ in case only are one person; a judge is of another kind than people."""

    kind: Kind
    key: str

    @property
    def shown(self) -> str:
        """As results name it where nobody has typed the name: no person's name has a colon."""
        return f"judge:{self.key}" if self.kind == JUDGE else self.key


class Vote(NamedTuple):
    """The latest vote of a voter on a row."""

    of: str  # digest of the row's texts
    choice: str


@dataclass
class Votes:
    """All that was voted on a run, by voter and row. `names` are voters as they wrote themselves."""

    by: dict[Voter, dict[int, Vote]] = field(default_factory=dict)
    names: dict[Voter, str] = field(default_factory=dict)
    revealed: set[Voter] = field(default_factory=set)  # who has seen which side was which
    unread: int = 0  # lines that are cut off or say nothing

    def of(self, voter: Voter) -> dict[int, Vote]:
        """The votes of one voter, by row."""
        return self.by.get(voter, {})


def person(name: str) -> tuple[Voter, str]:
    """The voter of a name that somebody typed, and the name as it is shown. Raises InputError."""
    text = " ".join(unicodedata.normalize("NFKC", name).split())
    if not text:
        raise InputError(NO_NAME)
    if len(text) > LONGEST_NAME or not all(_is_of_a_name(letter) for letter in text):
        raise InputError(BAD_NAME)
    return Voter(PERSON, text.casefold()), text


def _is_of_a_name(letter: str) -> bool:
    if letter in PUNCTUATION:
        return True
    return unicodedata.category(letter)[0] in "LMN" and letter not in COLON_ALIKE


def read(run: Path) -> Votes:
    """The votes in a run's folder; read on from where this process has read them last."""
    book = _book(run / FOLDER / FILE)
    book.read_on()
    return book.votes


def _read_afresh(run: Path) -> Votes:
    """The votes in a run's folder, whatever was read before."""
    book = _Book(run / FOLDER / FILE)
    book.read_on()
    return book.votes


def cast(run: Path, voter: Voter, name: str, row: int, vote: Vote) -> None:
    """Keep a vote. Raises LabError if there is no room for it, or the run is gone.

    Whoever votes may: a limit of names would let made-up ones close the vote for all. A result counts few.
    """
    if read(run).of(voter).get(row) == vote:
        return
    _append(run, {"kind": voter.kind, "voter": name, "row": row, "of": vote.of, "choice": vote.choice})


def reveal(run: Path, voter: Voter, name: str) -> None:
    """Keep that a voter has seen which side was which. Raises LabError as `cast` does.

    Who has no vote takes no voter's place, or made-up names would close the vote for all.
    """
    known = read(run)
    if voter not in known.revealed:
        if voter not in known.by and len(known.revealed - known.by.keys()) >= MOST_VOTERS:
            raise LabError(VOTE_FIRST)
        _append(run, {"kind": voter.kind, "voter": name, "revealed": True})


def secret(run: Path) -> bytes:
    """The random secret of a run, made when first asked for. Raises LabError if the run is gone."""
    file = run / FOLDER / SECRET
    found = _secret(file)
    if found is None:
        with _held(run):  # so that two processes agree on one
            found = _secret(file)
            if found is None:
                found = secrets.token_bytes(SECRET_BYTES)
                write_whole(file, found)
    return found


def _secret(file: Path) -> bytes | None:
    try:
        found = file.read_bytes()
    except FileNotFoundError:
        return None
    return found if len(found) == SECRET_BYTES else None


def sign(key: bytes, *words: object) -> bytes:
    """The HMAC of some words with a run's secret."""
    return hmac.digest(key, json.dumps(words, allow_nan=False).encode(), "sha256")


@contextmanager
def _held(run: Path) -> Iterator[int]:
    """As `_locked`, for what is lost if the run is deleted meanwhile."""
    with _locked(run) as descriptor:
        yield descriptor
        if not _is_there(run / FOLDER / FILE, descriptor):
            raise LabError(GONE)


@contextmanager
def _locked(run: Path) -> Iterator[int]:
    """The ballots of a run, open to append to and locked. Raises LabError if the run's folder is gone.

    The folder of the run is not made: a deleted one would come back as an empty one.
    """
    path = run / FOLDER / FILE
    while True:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, _APPEND, 0o600)
        except FileNotFoundError:
            raise LabError(GONE) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_there(path, descriptor):  # else it was shortened meanwhile
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _append(run: Path, facts: dict[str, Any]) -> None:
    """Append a line, whole or not at all. Raises LabError, OSError."""
    line = to_json({"at": time.time(), **facts}, ensure_ascii=False).encode() + b"\n"
    if not _appended(run, line):
        _shorten(run)
        if not _appended(run, line):
            raise LabError(FULL)


def _appended(run: Path, line: bytes) -> bool:
    """Append a line if there is room for it."""
    with _held(run) as descriptor:
        size = os.fstat(descriptor).st_size
        if size + len(line) > LARGEST:
            return False
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # somebody's last line was cut off
            line = b"\n" + line
        try:
            written = os.write(descriptor, line)
            if written != len(line):  # a full disk takes a part
                os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    return True


def _shorten(run: Path) -> None:
    """Leave out votes that later ones have replaced: anybody may vote on the same row for ever.

    No vote that is the latest one is left out, or made-up names could remove others. Raises LabError if these
    alone are too many, and changes nothing.
    """
    with _locked(run):
        votes = _read_afresh(run)
        text = _text(votes, _voters(votes)[: len(votes.by) + MOST_VOTERS])
        if len(text) > LARGEST // 2:
            raise LabError(FULL)
        write_whole(run / FOLDER / FILE, text)


def drop_others(run: Path, people: Collection[Voter]) -> tuple[int, Path]:
    """Drop the votes of all but these people and judges; return how many people are dropped, and the file
    beside that keeps all as they were before. Raises LabError if the run is gone, OSError.
    """
    with _locked(run):
        votes = _read_afresh(run)
        kept = [voter for voter in _voters(votes) if voter.kind == JUDGE or voter in people]
        file = run / FOLDER / FILE
        before = file.with_name(DROPPED.format(secrets.token_hex(4)))
        write_whole(before, file.read_bytes())
        write_whole(file, _text(votes, kept))
    return len(votes.by.keys() - kept), before


def _voters(votes: Votes) -> list[Voter]:
    """All voters, and behind them those who have only looked."""
    return [*votes.by, *sorted(votes.revealed - votes.by.keys())]


def _text(votes: Votes, voters: Iterable[Voter]) -> bytes:
    """All that counts of these voters, as a file.

    A number may be given to the next file once a file is gone: no two of these start in the same way.
    """
    head = to_json({"shortened": secrets.token_hex(16)}).encode() + b"\n"
    return b"".join([head, *(_lines(votes, voter) for voter in voters)])


def _lines(votes: Votes, voter: Voter) -> bytes:
    """All that counts of a voter."""
    who = {
        "kind": voter.kind,
        "voter": voter.key if voter.kind == JUDGE else votes.names[voter],
    }
    facts: list[dict[str, Any]] = [
        {**who, "row": row, "of": vote.of, "choice": vote.choice} for row, vote in votes.of(voter).items()
    ]
    facts += [{**who, "revealed": True}] if voter in votes.revealed else []
    return b"".join(to_json(line, ensure_ascii=False).encode() + b"\n" for line in facts)


class _Book:
    """The votes of one file, and how far it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def _begin(self) -> None:
        """Nothing is read yet."""
        self.votes = Votes()
        self._next = 0
        self._ends = b"", b""  # how what was read starts and ends

    def read_on(self) -> None:
        """Read what was appended; all of it where the file is another one. A line without an end waits."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._begin()
            return
        with file:
            if _ends(file.fileno(), self._next) != self._ends:
                self._begin()
            file.seek(self._next)
            *lines, rest = file.read(2 * LARGEST).split(b"\n")
            self._next = file.tell() - len(rest)
            self._ends = _ends(file.fileno(), self._next)
        for line in filter(None, lines):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, InputError, RecursionError):
                self.votes.unread += 1

    def _take(self, facts: dict[str, Any]) -> None:
        """Count one line. Raises ValueError, KeyError, TypeError, InputError for one that says nothing."""
        if "shortened" in facts:
            return
        kind, name = facts["kind"], facts["voter"]
        voter = Voter(JUDGE, str(name)) if kind == JUDGE else person(name)[0]
        shown = voter.shown if kind == JUDGE else name
        if facts.get("revealed") is True:
            self.votes.revealed.add(voter)
            self.votes.names.setdefault(voter, shown)
            return
        row, of, choice = facts["row"], facts["of"], facts["choice"]
        if choice not in CHOICES or type(row) is not int or type(of) is not str:
            raise ValueError("no vote")
        cast = self.votes.by.setdefault(voter, {})
        cast.pop(row, None)  # so that the latest one is the last
        cast[row] = Vote(of, choice)
        self.votes.names.setdefault(voter, shown)


def _ends(descriptor: int, size: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of the first so many: another file of this size has others."""
    start = max(0, size - END_BYTES)
    return os.pread(descriptor, min(size, END_BYTES), 0), os.pread(descriptor, size - start, start)


@lru_cache(maxsize=16)
def _book(path: Path) -> _Book:
    return _Book(path)
