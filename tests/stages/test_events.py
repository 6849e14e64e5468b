from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.stages import events


def test_events_are_read_back_from_where_one_left_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.append(path, {"step": 1})
    first, offset = events.read(path)
    events.append(path, {"step": 2, "message": "Größe ✓"})
    second, end = events.read(path, offset)
    assert [e["step"] for e in first] == [1]
    assert [(e["step"], e["message"]) for e in second] == [(2, "Größe ✓")]
    assert end == path.stat().st_size
    assert events.read(path, end) == ([], end)
    assert first[0]["time"] <= second[0]["time"]


def test_there_are_no_events_before_the_first(tmp_path: Path) -> None:
    assert events.read(tmp_path / "events.jsonl") == ([], 0)


def test_a_line_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    found, offset = events.read(path)
    assert found == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert events.read(path, offset) == ([{"step": 2}], path.stat().st_size)


def test_a_torn_line_costs_neither_the_next_event_nor_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')  # a process was killed here
    events.append(path, {"attempt": True})
    found, _ = events.read(path)
    assert [list(e)[-1] for e in found] == ["step", "attempt"]


def test_what_json_lacks_becomes_null(tmp_path: Path) -> None:
    class Scalar:
        """As numpy and torch hand them out."""

        def __init__(self, value: float) -> None:
            self.value = value

        def __float__(self) -> float:
            return self.value

    path = tmp_path / "events.jsonl"
    nan = float("nan")
    events.append(
        path, {"loss": nan, "metrics": {"a": [float("inf"), 1.5]}, "b": Scalar(2.0), "c": Scalar(nan)}
    )
    event = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (event["loss"], event["metrics"], event["b"], event["c"]) == (None, {"a": [None, 1.5]}, 2.0, None)


def test_emit_writes_where_the_stage_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_LAB_EVENTS", str(tmp_path / "events.jsonl"))
    events.emit(progress=0.5)
    assert events.read(tmp_path / "events.jsonl")[0][0]["progress"] == 0.5


def test_emit_does_nothing_outside_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLIVE_LAB_EVENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    events.emit(progress=0.5)
    assert list(tmp_path.iterdir()) == []


def write_many(path: Path, writer: int) -> None:
    for number in range(200):
        events.append(path, {"writer": writer, "number": number, "padding": "x" * 500})


def test_processes_that_write_at_once_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_many, args=(path, n)) for n in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    seen = [(e["writer"], e["number"]) for e in events.read(path)[0]]
    assert sorted(seen) == [(w, n) for w in range(3) for n in range(200)]


def test_the_facts_are_those_of_the_newest_attempt(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    facts = events.Newest(path)
    assert facts.read() == {}
    path.write_text(
        '{"attempt": true}\n{"progress": 0.9, "message": "old"}\n{"torn\n'
        '{"attempt": true}\n{"progress": 0.1, "x": 1}\n{"progress": 0.2'
    )
    assert facts.read() == {"progress": 0.1}
    with path.open("a") as file:
        file.write("5}\n")
    assert facts.read() == {"progress": 0.25}
    assert events.Newest(path).read() == {"progress": 0.25}


def test_what_a_stage_said_long_ago_is_still_known(tmp_path: Path) -> None:
    """Samples of memory come every two seconds, a message of a slow stage once in an hour."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"message": "Calibrating", "progress": 0.1}\n' + '{"memory_bytes": 123456}\n' * 500)
    assert events.Newest(path).read() == {"message": "Calibrating", "progress": 0.1}


def test_attempts_are_told_apart_in_one_place() -> None:
    """Whoever wants what the newest one said asks `Newest`; `comparison` joins the losses of several."""
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix()
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        if 'get("attempt")' in (text := path.read_text("utf-8")) or "ATTEMPT)" in text
    }
    assert found == {"pipeline/stages/events.py", "pipeline/publish/report/curves.py"}
