"""data_check: a check in a process of its own finds the same, can be left, and gets one of few places."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError, TakesLong
from pipeline.inputs.data import datasets, lengths
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import rendering
from pipeline.runs import data_check
from pipeline.runs.data_check import _Question
from pipeline.system import locks, own_process
from tests.helpers.lab import until

GOOD = '{"prompt": "a", "response": "b", "x": 1e999}\n{"prompt": "c", "response": "d"}\n'
LONG_ROW = json.dumps({"prompt": "a" * 3000, "response": "b"}) + "\n"
GETTING = "Getting the tokenizer of starter…"
Steps = Generator[str, None, datasets.Report]
Begin = Callable[[], Steps]


@pytest.fixture
def never_here() -> Iterator[None]:
    """Whoever asks has no time of this process."""

    def no_time() -> None:
        raise TakesLong("no time")

    token = datasets.go_on.set(no_time)
    yield
    datasets.go_on.reset(token)


@pytest.fixture
def endless(home: Path, tmp_path: Path, never_here: None) -> Iterator[Begin]:
    """Begin checks that wait until the test ends: for a tokenizer, which another process seems to fetch."""
    rows = tmp_path / "endless.jsonl"
    rows.write_text(LONG_ROW * 3)
    model = base_models.resolve("starter")
    kept = home / "models" / ".tokenizers" / model.folder(home).name
    begun: list[Steps] = []

    def begin() -> Steps:
        steps = data_check.checking(rows, "chat", model, max_length=512)
        begun.append(steps)
        until(lambda: next(steps) == GETTING, "the step")
        return steps

    kept.parent.mkdir(parents=True)
    with locks.locked(kept.with_name(f".{kept.name}.lock")):
        yield begin
        for steps in begun:
            steps.close()
    assert data_check._places == []
    assert not own_process._groups


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


def asked(path: Path, template: str, model: base_models.Model | None = None) -> _Question:
    return _Question(path, template, model, 0.1, 0, 32)


@pytest.mark.parametrize(
    ("content", "template"),
    [
        (GOOD, "{prompt} {response}"),
        ('{"a": 1}\n' * 30 + GOOD, "{prompt} {response}"),
        (GOOD + "{\nnull\n" + GOOD, "chat"),
        (GOOD + LONG_ROW * 2, "chat"),
    ],
    ids=["good", "misfits", "broken", "long"],
)
def test_a_process_of_its_own_finds_the_same(
    home: Path, tmp_path: Path, model_folder: Path, bytes_as_tokens: Path, content: str, template: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    question = asked(path, template, base_models.resolve(str(model_folder)) if LONG_ROW in content else None)
    found = datasets.ended(data_check._elsewhere(question))
    assert found == datasets.ended(data_check._here(question))
    assert len(found.notes) == 3 * (LONG_ROW in content)


@pytest.mark.parametrize(
    ("path", "template"), [("/none.jsonl", "chat"), ("/proc/self/mem", "chat"), (__file__, "{")]
)
def test_what_is_wrong_comes_through(home: Path, path: str, template: str) -> None:
    raised = []
    for check in (data_check._here, data_check._elsewhere):
        with pytest.raises((InputError, OSError)) as caught:
            datasets.ended(check(asked(Path(path), template)))
        raised.append((type(caught.value), caught.value.args, getattr(caught.value, "problems", None)))
    assert raised[0] == raised[1]


def test_what_takes_long_here_is_done_elsewhere(home: Path, dataset: Path, never_here: None) -> None:
    steps = data_check.checking(dataset, "{prompt} {response}", None)
    assert next(steps) == data_check.WAITS
    assert datasets.ended(steps).rows == 20
    assert data_check._places == []


def test_what_others_keep_busy_is_not_waited_for(
    home: Path, tmp_path: Path, model_folder: Path, bytes_as_tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(LONG_ROW * 2)
    model = base_models.resolve(str(model_folder))
    for module in (rendering, lengths):
        monkeypatch.setattr(module, "WAIT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "PROCESSES", 0)  # all are busy
        assert data_check.check(tmp_path / "rows.jsonl", "chat", model, max_length=32).rows == 2
    for _ in range(lengths.AT_ONCE):
        lengths._free.acquire()
    report = data_check.check(tmp_path / "rows.jsonl", "{prompt} {response}", model, max_length=32)
    for _ in range(lengths.AT_ONCE):
        lengths._free.release()
    assert report.notes[0].startswith("All 2 rows are longer than 32 tokens")


def test_who_leaves_ends_the_process_and_all_that_it_started(endless: Begin) -> None:
    steps = endless()
    assert next(steps) == GETTING, "it may be left at any time, though nothing is new"
    pid = data_check._places[0].process.pid
    assert len(group(pid)) == 2, "with the process that renders"
    steps.close()
    until(lambda: not group(pid), "the end of all")
    assert data_check._places == []


def test_it_ends_with_who_asks_for_it(endless: Begin) -> None:
    endless()
    process = data_check._places[0].process
    assert process.stdin is not None
    process.stdin.close()  # as the kernel does it for a process that is killed
    until(lambda: not group(process.pid), "the end of all")


def test_the_end_of_the_app_is_its_end(endless: Begin) -> None:
    steps = endless()
    own_process.close()
    with pytest.raises(LabError, match=r"has ended \(code -9\); try again"):
        datasets.ended(steps)


def test_it_lets_others_go_first(endless: Begin) -> None:
    endless()
    assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in group(data_check._places[0].process.pid)] == [
        os.getpriority(os.PRIO_PROCESS, 0) + data_check.NICE
    ] * 2


def test_where_all_places_are_new_the_next_one_is_refused(
    endless: Begin, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "LONG", 1)
    monkeypatch.setattr(data_check, "OLD_SECONDS", 600.0)
    steps = endless()
    with pytest.raises(LabError, match="such checks have just started; try again in a minute"):
        data_check.check(dataset, "{prompt} {response}", None)
    assert next(steps) == GETTING


def test_the_oldest_makes_room_and_says_so(
    endless: Begin, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_check, "LONG", 2)
    first, second = endless(), endless()
    monkeypatch.setattr(data_check, "OLD_SECONDS", 0.0)
    assert data_check.check(dataset, "{prompt} {response}", None).rows == 20
    with pytest.raises(LabError, match="Others wait to check their data, so this check was ended after"):
        datasets.ended(first)
    assert next(second) == GETTING


def test_none_takes_longer_than_allowed(endless: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = endless()
    monkeypatch.setattr(data_check, "MOST_SECONDS", -1.0)
    with pytest.raises(LabError, match="longer than 10 minutes; use the command line"):
        next(steps)


def test_a_question_is_asked_whole(model_folder: Path) -> None:
    question = asked(Path("/a\udcff"), "chat", base_models.resolve(str(model_folder)))
    assert question.model is not None
    assert _Question.from_json(question.to_json()) == question
    assert _Question.from_json(asked(Path("/a"), "{").to_json()) == asked(Path("/a"), "{")
    assert dataclasses.asdict(question.model)["chat"]["source"]
