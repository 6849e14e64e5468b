"""A judge votes on the rows of a run, each in both orders; where the order decides, it is a tie.

It is done by a process that outlives the page, or by the command line. Its votes are kept as they come, so
that it resumes. The folder `votes` of the run has `judge.json` with progress, `judge.lock`, which is held
meanwhile, and `judge.stop` to end it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.runs.voting import ballots, blind_rows
from pipeline.runs.voting.ballots import ADAPTER, BAD, BASE, TIE, Vote
from pipeline.runs.voting.blind_rows import Row
from pipeline.runs.voting.judge_client import Client, Judge, Unfit
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, RUNNING
from pipeline.system import locks, own_process
from pipeline.system.files import write_whole

AT_ONCE = 4  # rows
MOST_JUDGES = 2  # processes of a home at a time: each asks the operator's endpoint about AT_ONCE rows
LOOK_SECONDS = 0.5  # between looks for whether it is to stop
MOST_SECONDS = 6 * 3600.0
MOST_UNFIT = 3  # rows that cannot be judged before one is: then none will be
STATE, LOCK, STOP = "judge.json", "judge.lock", "judge.stop"
AGAIN = "Ask the judge again: it resumes."
BUSY = "A judge is at work on this run already; wait until it has finished, or stop it."
MANY = f"The judge is at work on {MOST_JUDGES} other runs; wait until one of them is done, or stop it there."
TOO_LONG = f"The judge took longer than {MOST_SECONDS / 3600:.0f} hours. {AGAIN}"
ENDED = f"The machine stopped, or the judge's process was ended. {AGAIN}"
_begun: list[subprocess.Popen[bytes]] = []  # kept until they end, so that none stays a zombie
Sides = tuple[str, str]
Facts = dict[str, Any]  # model, status, error; rows, done, left_out, order_decided
Tell = Callable[[Facts], None]


class Stopped(LabError):
    """Somebody has asked for the end."""


def facts(run: Path) -> Facts | None:
    """How far the judge of a run is; None if none was asked."""
    known = _read(run)
    if known is not None and known["status"] == RUNNING and not locks.held(_beside(run, LOCK)):
        known = _read(run)  # it may have ended meanwhile
        if known is not None and known["status"] == RUNNING:
            known |= {"status": INTERRUPTED, "error": ENDED}
    return known


def start(store: Store, run: str, judge: Judge) -> None:
    """Have a process ask the judge. Raises LabError if one does already, if MOST_JUDGES work on other runs,
    or there is nothing to judge."""
    blind_rows.recorded(store.get(run))
    folder = store.folder(run)
    held = [_take(folder)]
    try:
        held.append(_place(store.home))
        _write(folder, judge, {"status": RUNNING, "error": None})
        words = ["-m", "pipeline.runs.voting.judging", run, judge.url, judge.model, judge.key]
        environment = settings.child_environment(OLIVE_LAB_HOME=str(store.home))
        process = own_process.start(words, environment, keep=held, apart=True)
        _begun[:] = [*(other for other in _begun if other.poll() is None), process]
    finally:
        for lock in held:
            os.close(lock)


def _place(home: Path) -> int:
    """One of the places for processes of this home, held until closed. Raises LabError."""
    for number in range(MOST_JUDGES):
        if (taken := locks.take(home / "judges" / f"{number}.lock")) is not None:
            return taken
    raise LabError(MANY)


def stop(run: Path) -> None:
    """End a judge's work, in a moment. Raises InputError if there is none."""
    known = facts(run)
    if known is None or known["status"] != RUNNING:
        raise InputError("judge: is not at work on this run")
    _beside(run, STOP).touch()


def now(store: Store, run: str, judge: Judge, tell: Tell) -> Facts:
    """Ask the judge in this process, and tell how far it is. Raises LabError if one does already."""
    blind_rows.recorded(store.get(run))
    lock = _take(store.folder(run))
    try:
        return _work(store, run, judge, tell)
    finally:
        os.close(lock)


def _take(run: Path) -> int:
    """The lock of a run's judge. Raises LabError if it is held, or the run's folder is gone."""
    try:
        (run / ballots.FOLDER).mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        raise LabError(ballots.GONE) from None
    lock = locks.take(_beside(run, LOCK))
    if lock is None:
        raise LabError(BUSY)
    _beside(run, STOP).unlink(missing_ok=True)
    return lock


def _beside(run: Path, name: str) -> Path:
    return run / ballots.FOLDER / name


def _read(run: Path) -> Facts | None:
    try:
        known: Facts = json.loads(_beside(run, STATE).read_bytes())
    except (OSError, ValueError):
        return None
    return known


def _write(run: Path, judge: Judge, told: Facts) -> Facts:
    known = {"rows": 0, "done": 0, "left_out": 0, "order_decided": 0, **told, "model": judge.model}
    write_whole(_beside(run, STATE), known)
    return known


def _work(store: Store, run: str, judge: Judge, tell: Tell) -> Facts:
    """Judge, and write how that goes and ends. Raises LabError where it failed, after that is written."""
    folder = store.folder(run)
    known: Facts = {"status": RUNNING, "error": None}

    def say(more: Facts) -> None:
        known.update(_write(folder, judge, {**known, **more}))
        tell(known)

    try:
        answers = blind_rows.recorded(store.get(run))
        asyncio.run(_judge(folder, blind_rows.load(answers).asked, judge, say))
    except Stopped:
        say({"status": CANCELED, "error": f"Stopped. {AGAIN}"})
    except (LabError, OSError) as error:
        with suppress(OSError):  # the run may be gone, or the disk full
            say({"status": FAILED, "error": sentence(error)})
        raise
    else:
        say({"status": DONE})
    return known


async def _judge(run: Path, asked: Iterable[Row], judge: Judge, say: Tell) -> None:
    """Ask about all rows without a vote of this judge. Raises LabError, Stopped."""
    rows = list(asked)
    key = ballots.secret(run)
    before = ballots.read(run).of(judge.voter)
    left = [row for row in rows if row.number not in before or before[row.number].of != row.of]
    counts: Facts = {"rows": len(rows), "done": len(rows) - len(left), "left_out": 0, "order_decided": 0}
    todo = iter(left)
    say(counts)

    async def work(client: Client) -> None:
        for row in todo:
            if _beside(run, STOP).exists():
                raise Stopped("stopped")
            try:
                choice, by_order = await _choice(client, row, blind_rows.sides(key, row, judge.voter))
            except Unfit:
                counts["left_out"] += 1
                if not counts["done"] and counts["left_out"] >= min(MOST_UNFIT, len(rows)):
                    raise
            else:
                ballots.cast(run, judge.voter, judge.model, row.number, Vote(row.of, choice))
                counts["done"] += 1
                counts["order_decided"] += by_order
            say(counts)

    try:
        async with asyncio.timeout(MOST_SECONDS), Client(judge) as client, asyncio.TaskGroup() as group:
            watching = group.create_task(_until_stopped(run))
            tasks = [group.create_task(work(client)) for _ in range(AT_ONCE)]
            await asyncio.wait(tasks)
            watching.cancel()
    except TimeoutError:
        raise LabError(TOO_LONG) from None
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


async def _until_stopped(run: Path) -> None:
    """Raises Stopped once that is asked for, also while the endpoint takes its time for a row."""
    while not _beside(run, STOP).exists():
        await asyncio.sleep(LOOK_SECONDS)
    raise Stopped("stopped")


async def _choice(client: Client, row: Row, order: Sides) -> tuple[str, bool]:
    """What the judge prefers in both orders, and whether the order decides; then it is a tie.

    Which side comes first in the first question is drawn for each row, so that the endpoint cannot tell sides
    by when they come either.
    """
    about = (row.prompt, row.system, row.expected)
    texts = {BASE: row.base, ADAPTER: row.adapter}
    found = []
    for first, second in (order, order[::-1]):
        said = await client.prefers(*about, texts[first], texts[second])
        found.append({"a": first, "b": second}.get(said, said))
    if found[0] == found[1]:
        return found[0], False
    return (BAD if set(found) == {BAD} else TIE), set(found) == {BASE, ADAPTER}


def _main(run: str, url: str, model: str, key: str) -> int:
    settings.quiet_this_process()
    settings.keep_private()
    judge = Judge(url, model, key)
    store = Store(settings.home())
    try:
        _work(store, run, judge, lambda told: None)
    except (LabError, OSError):
        return 1  # what it was is in its file
    except Exception as error:  # nobody foresaw it
        _write(store.folder(run), judge, {"status": FAILED, "error": f"{sentence(error)} {AGAIN}"})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
