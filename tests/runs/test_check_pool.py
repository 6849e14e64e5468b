"""check_pool: who asks is answered, can leave at any time, and what takes long lets others go first."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.runs import check_pool
from pipeline.system import own_process
from tests.helpers.lab import until

HERE = f"{__name__}:"
STARTED = "started"
KEPT: list[bytes] = []
Steps = Generator[str, None, Any]
Begin = Callable[..., Steps]


def echo(text: str) -> Generator[str, None, Any]:
    """Asked of a process by the tests."""
    yield "one"
    yield "two"
    return {"text": text, "pid": os.getpid(), "much": float("inf")}


def fails(text: str) -> Generator[str, None, Any]:
    """Asked of a process by the tests."""
    yield "one"
    raise KeyError(text)


def wait_for_ever() -> Generator[str, None, None]:
    """Asked of a process by the tests; it starts another one, as what renders templates does."""
    if os.fork():
        yield STARTED
    while True:
        os.read(os.pipe()[0], 1)


def wait_with(path: str) -> Generator[str, None, None]:
    """Asked of a process by the tests."""
    yield STARTED
    yield from wait_for_ever()


def talk(length: int) -> Generator[str, None, Any]:
    """Asked of a process by the tests."""
    yield ""
    return "a" * length


def grow(length: int) -> Generator[str, None, None]:
    """Asked of a process by the tests; it keeps what it takes."""
    yield ""
    KEPT.append(b"a" * length)


def crash() -> Generator[str, None, None]:
    """Asked of a process by the tests."""
    yield ""
    os._exit(7)


@pytest.fixture
def pool(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[check_pool._State]:
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", 600.0)  # whatever else this machine does
    check_pool.open_up()
    yield check_pool._state
    check_pool.close()
    assert check_pool._state.busy == check_pool._state.long == []
    assert not own_process._groups


@pytest.fixture
def endless(pool: check_pool._State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Ask what is never answered, and takes long from the first moment; left when the test ends."""
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", -1.0)
    begun: list[Steps] = []

    def begin(share: str = "") -> Steps:
        steps = check_pool.ask(HERE + "wait_for_ever", {}, share)
        begun.append(steps)
        until(lambda: next(steps) == STARTED, "the step")
        return steps

    yield begin
    for steps in begun:
        steps.close()


def test_a_dataset_is_in_use_until_the_question_about_it_ends(
    home: Path, pool: check_pool._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a crowd, those used last stay: one use at its start would be an old one minutes later."""
    monkeypatch.setattr(check_pool, "USE_SECONDS", 0.0)
    kept = home / "datasets" / "a1" / "rows.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    steps = check_pool.ask(HERE + "wait_with", {"path": str(kept)})
    until(lambda: next(steps) == STARTED, "the step")
    os.utime(kept, (1, 1))
    next(steps)
    facts = kept.stat()
    assert facts.st_atime > facts.st_mtime == 1
    steps.close()


def answered(steps: Steps) -> Any:
    """What they return in the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def asked(name: str = "echo", **given: Any) -> Any:
    return answered(check_pool.ask(HERE + name, given or {"text": "a"}))


def group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, of_group, *_ = (entry / "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # none, or ended meanwhile
        if int(of_group) == leader and state not in "ZX":
            found.append(int(entry.name))
    return found


def test_a_warm_process_answers_one_question_after_the_other(pool: check_pool._State) -> None:
    warm = {process.process.pid for process in pool.idle}
    assert len(warm) == check_pool.WARM
    first, second = asked(text="\udcff"), asked()
    assert first["text"] == "\udcff"
    assert first["pid"] == second["pid"] in warm
    assert {process.process.pid for process in pool.idle} == warm


def test_steps_come_as_they_are_told(pool: check_pool._State) -> None:
    assert list(check_pool.ask(HERE + "echo", {"text": ""}))[-2:] == ["one", "two"]


def test_more_questions_than_warm_processes_are_answered_too(pool: check_pool._State) -> None:
    steps = [check_pool.ask(HERE + "echo", {"text": str(number)}) for number in range(4)]
    for each in steps:
        next(each)
    assert [answered(each)["text"] for each in steps] == ["0", "1", "2", "3"]
    assert len(pool.idle) == check_pool.WARM


def test_there_is_an_end_to_processes(pool: check_pool._State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pool, "MOST", 1)
    steps = check_pool.ask(HERE + "echo", {"text": ""})
    next(steps)
    with pytest.raises(LabError, match="Many others check data just now"):
        asked()
    steps.close()
    assert asked()["text"] == "a"


def test_one_that_has_ended_is_replaced(pool: check_pool._State) -> None:
    for process in pool.idle:
        own_process.kill(process.process)
        process.process.wait()
    assert asked()["text"] == "a"
    assert len(pool.idle) == check_pool.WARM


def test_one_that_has_grown_answers_no_further_question(
    pool: check_pool._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked("grow", length=check_pool.GROWN // 16) is None
    before = {process.process.pid for process in pool.idle}
    assert asked("grow", length=check_pool.GROWN) is None
    assert len(before - {process.process.pid for process in pool.idle}) == 1


def test_an_answer_without_an_end_is_not_collected(
    pool: check_pool._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_pool, "LONGEST_ANSWER", 1 << 20)
    with pytest.raises(LabError, match="too much to show; use a part of the file"):
        asked("talk", length=1 << 21)


def test_none_takes_more_than_its_share_of_the_memory(pool: check_pool._State) -> None:
    with pytest.raises(LabError, match="more memory than one check may"):
        asked("talk", length=2 * check_pool.MEMORY)
    assert asked()["text"] == "a"


def test_where_no_app_runs_it_is_done_here(home: Path) -> None:
    assert asked()["pid"] == os.getpid()


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_is_kept(pool: check_pool._State, home: Path) -> None:
    with pytest.raises(LabError) as caught:
        asked("fails", text="multi_cache")
    assert str(caught.value) == (
        "This failed with an internal error (KeyError: 'multi_cache'); try again; if it fails again, report"
        " it. The details are in errors.log of the home folder."
    )
    assert "Traceback (most recent call last)" in (home / "errors.log").read_text()


def test_a_crash_is_said_and_hurts_nobody_else(pool: check_pool._State) -> None:
    with pytest.raises(LabError, match=r"has ended \(code .*\); try again"):
        answered(check_pool.ask(HERE + "crash", {}))
    assert asked()["text"] == "a"


def test_who_leaves_ends_the_process_and_all_that_it_started(endless: Begin, pool: check_pool._State) -> None:
    steps = endless()
    assert next(steps) == STARTED, "it may be left at any time, though nothing is new"
    pid = pool.busy[0].process.pid
    assert len(group(pid)) == 2
    steps.close()
    until(lambda: not group(pid), "the end of all")
    assert len(pool.idle) == check_pool.WARM


def test_it_ends_with_who_asks_for_it(endless: Begin, pool: check_pool._State) -> None:
    endless()
    process = pool.busy[0].process
    assert process.stdin is not None
    process.stdin.close()  # as the kernel does it for a process that is killed
    until(lambda: not group(process.pid), "the end of all")


def test_the_end_of_the_app_is_its_end(endless: Begin, pool: check_pool._State) -> None:
    steps = endless()
    check_pool.close()
    with pytest.raises(LabError, match=r"has ended \(code -9\); try again"):
        answered(steps)
    assert pool.idle == []


def test_what_takes_long_lets_others_go_first(endless: Begin, pool: check_pool._State) -> None:
    endless()
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in group(pool.busy[0].process.pid)] == [
        os.getpriority(os.PRIO_PROCESS, 0) + check_pool.NICE
    ] * 2
    assert len(pool.idle) == check_pool.WARM, "a new one is ready for brief questions"


def test_where_all_places_are_new_the_next_long_one_is_refused(
    endless: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_pool, "LONG", 1)
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 600.0)
    steps = endless()
    with pytest.raises(LabError, match="such checks have just started; try again in a minute"):
        asked()
    assert next(steps) == STARTED


def test_a_brief_question_needs_no_place_of_the_long_ones(
    endless: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_pool, "LONG", 1)
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 600.0)
    endless()
    monkeypatch.setattr(check_pool, "BRIEF_SECONDS", 600.0)
    assert asked()["text"] == "a"


def test_the_oldest_makes_room_and_says_so(endless: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_pool, "LONG", 2)
    first, second = endless(), endless()
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 0.0)
    assert asked()["text"] == "a"
    with pytest.raises(LabError, match="Others wait to check their data, so this check was ended after"):
        answered(first)
    assert next(second) == STARTED


def test_those_of_one_share_make_room_for_each_other_alone(
    endless: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_pool, "SHARE", 2)
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 600.0)
    other, first, second = endless(), endless("plans"), endless("plans")
    with pytest.raises(LabError, match="such checks have just started; try again in a minute"):
        endless("plans")
    endless("curves")
    monkeypatch.setattr(check_pool, "OLD_SECONDS", 0.0)
    endless("plans")
    with pytest.raises(LabError, match="Others wait to check their data, so this check was ended after"):
        answered(first)
    assert (next(other), next(second)) == (STARTED, STARTED)


def test_none_takes_longer_than_allowed(endless: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = endless()
    monkeypatch.setattr(check_pool, "MOST_SECONDS", -1.0)
    with pytest.raises(LabError, match="longer than 10 minutes; use the command line"):
        next(steps)


def test_a_full_disk_leaves_no_process_that_nobody_asks(
    pool: check_pool._State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cannot be kept warm then, as it gets a folder."""
    steps = check_pool.ask(f"{HERE}echo", {"text": "a"})
    next(steps)
    (process,) = pool.busy

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(check_pool, "_top_up", full)
    with pytest.raises(OSError, match="No space"):
        steps.close()
    assert process.process.poll() is not None
    assert not process._scratch.folder.exists()
