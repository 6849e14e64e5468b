"""A fork of the warm process is like a process started for its stage; whatever ends, the run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import NO_MORE, LabError
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, ENDED, EVENTS
from pipeline.worker import loop
from pipeline.worker import processes as processes_of
from pipeline.worker.ahead import warm
from pipeline.worker.job import Job, lives
from pipeline.worker.loop import Worker
from tests.helpers.lab import CHILDREN, alive, open_files, processes, serving, spawned, until
from tests.helpers.planted import one_stage, plant

Make = Callable[..., Worker]


@pytest.fixture
def make(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Workers that have a warm process from the start, which imports what IMPORTS says."""
    monkeypatch.setenv("OLIVE_LAB_AHEAD", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU for workers in other processes either
    monkeypatch.setattr(warm, "affordable", lambda: True)
    made: list[Worker] = []

    def one(behaviour: str = "waits", imports: str = "nothing", *, ready: bool = True) -> Worker:
        monkeypatch.setenv("IMPORTS", imports)
        served = Worker(store, child=[str(CHILDREN), behaviour])
        served.ahead = True
        made.append(served)
        if ready:
            until(lambda: served.step() or process(served).ready(), "a warm process")
        return served

    yield one
    for served in made:
        served.warm.dismiss()
        for job in served.jobs.values():
            if job.process is not None:
                job.process.kill()
                job.process.wait()


def process(served: Worker) -> warm.Warm:
    found = served.warm.of("cpu")
    assert found is not None
    return found


def job(served: Worker) -> Job:
    """The one that is at work, or waits."""
    return served.jobs["cpu"]


def is_fork(served: Worker) -> bool:
    return not isinstance(job(served).process, subprocess.Popen)


def to_end(served: Worker, run: str) -> Any:
    """Step until the run has ended; its first stage."""
    until(lambda: served.step() or served.store.get(run).status in ENDED, "the end of the run")
    return served.store.get(run).stages[0]


def go(served: Worker, run: str, stage: str = "quantize") -> None:
    """Let a stage end, and step until the worker has seen it."""
    (served.store.folder(run, stage) / "go").touch()
    until(lambda: served.step() or served.store.get(run).stage(stage).status == DONE, f"the end of {stage}")


class TestForks:
    def test_every_stage_is_one(self, store: Store, make: Make) -> None:
        served = make()
        run = plant(store)
        pids = set()
        for stage in ("quantize", "finetune", "optimize", "evaluate"):
            pids |= set(spawned_by(served, run, stage))
            assert is_fork(served)
            assert lives(store.folder(run, stage))
            go(served, run, stage)
            assert not lives(store.folder(run, stage))
            assert store.get(run).stage(stage).metrics == {"stage": stage}
        assert len(pids) == 4
        assert store.get(run).status == DONE

    def test_they_are_what_started_processes_are(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In environment, group, files, limits, signals, and how soon it is killed for want of memory."""
        found = []
        monkeypatch.setenv("PYTHONHASHSEED", "0")
        for ahead in (True, False):
            served = make("tells", ready=ahead)
            served.ahead = ahead
            run = one_stage(store, f"ahead {ahead}")
            until(lambda served=served: served.step() or served.jobs, "the beginning of the stage")
            assert is_fork(served) == ahead
            told = to_end(served, run).metrics
            found.append(json.loads(json.dumps(told).replace(run, "RUN")))
            log = (store.folder(run, "quantize") / "log.txt").read_text()
            assert log == "to standard output\nto standard error\n"
            served.warm.dismiss()
        forked, started = found
        assert forked.pop("words")[-2:] == started.pop("words")[-2:] == ["RUN", "quantize"]
        assert forked == started
        assert forked["own"] == [True, True]
        assert forked["parent"] == os.getpid()

    def test_its_mark_is_seen_by_others_and_it_has_nobody_elses_files(self, store: Store, make: Make) -> None:
        served = make()
        run = one_stage(store)
        (pid,) = spawned_by(served, run, "quantize")
        folder = store.folder(run, "quantize")
        assert f"OLIVE_LAB_EVENTS={folder / EVENTS}".encode() in processes_of._environment(pid)
        assert open_files(process(served).process.pid, folder) == []
        assert processes_of.end_all(folder) == 1
        assert process(served).ready()
        assert "killed this stage" in to_end(served, run).error or "memory" in to_end(served, run).error

    @pytest.mark.parametrize(
        "behaviour", ["fails", "is_silent", "has_no_room", "is_killed", "crashes", "finishes"]
    )
    def test_however_they_end_it_is_said_as_of_started_ones(
        self, store: Store, make: Make, behaviour: str
    ) -> None:
        found = []
        for ahead in (True, False):
            served = make(behaviour, ready=ahead)
            served.ahead = ahead
            run = one_stage(store, f"ahead {ahead}")
            stage = to_end(served, run)
            found.append((stage.status, re.sub(r"[\d.]+ [MG]B", "N MB", stage.error or "")))
        assert found[0] == found[1]

    @pytest.mark.parametrize("behaviour", ["ignores_sigterm", "has_grandchildren", "has_an_escapee"])
    def test_a_canceled_one_ends_with_all_that_it_has_started(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, behaviour: str
    ) -> None:
        monkeypatch.setattr("pipeline.worker.job.GRACE_SECONDS", 0.05)
        served = make(behaviour)
        run = one_stage(store)
        pids = spawned_by(served, run, "quantize")
        store.request_cancel(run)
        assert to_end(served, run).status == CANCELED
        until(lambda: not any(map(alive, pids)), "the end of its processes")
        assert process(served).ready()

    def test_what_they_take_is_not_what_the_warm_process_once_took(self, store: Store, make: Make) -> None:
        """Its own peak was 400 MB higher, while it imported."""
        served = make("measures", "much and lets it go")
        run = one_stage(store)
        assert to_end(served, run).metrics["peak"] < 200 << 20

    def test_nobody_has_to_reap_a_process_in_between(self, store: Store, make: Make) -> None:
        def ended() -> set[str]:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            return {pid for pid in children if not alive(int(pid))}

        of_other_tests = ended()
        served = make("finishes")
        to_end(served, one_stage(store))
        assert ended() <= of_other_tests


def spawned_by(served: Worker, run: str, stage: str) -> list[int]:
    """The processes of a stage, once it is at work."""
    until(lambda: served.step() or served.jobs, "the beginning of a stage")
    return spawned(served.store, run, stage)


def test_there_is_one_for_each_gpu_from_the_start(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pipeline.system.hardware.gpus", lambda: 2)
    served = make(ready=False)
    served.step()
    environments = []
    for slot in [*served.devices, "cpu", loop.PUBLISH_SLOT]:
        found = served.warm.of(slot)
        environments.append(found.environment.get("CUDA_VISIBLE_DEVICES") if found else None)
    assert environments == ["0", "1", None, None]


def test_a_training_on_several_gpus_is_a_fork_like_others(make: Make) -> None:
    found = process(make())
    assert found.serves({**found.environment, settings.TRAINING_GPUS: "0,1"})
    assert not found.serves({**found.environment, "CUDA_VISIBLE_DEVICES": "1"})


class TestKilled:
    def test_the_warm_process(self, store: Store, make: Make) -> None:
        """Its stage goes on, and the next one is a fork of another."""
        served = make()
        run = plant(store)
        spawned_by(served, run, "quantize")
        first = process(served)
        first.process.kill()
        first.process.wait()
        until(lambda: served.step() or (process(served) is not first and process(served).ready()), "another")
        go(served, run)
        spawned_by(served, run, "finetune")
        assert is_fork(served)
        go(served, run, "finetune")

    def test_the_warm_process_while_nobody_looks(self, store: Store, make: Make) -> None:
        served = make()
        served.ahead = False
        process(served).process.kill()
        process(served).process.wait()
        run = one_stage(store)
        spawned_by(served, run, "quantize")
        assert not is_fork(served)
        go(served, run)

    def test_one_that_hangs_is_done_without_and_nothing_of_it_is_left(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(warm, "FORK_SECONDS", 0.1)
        served = make()
        hung = process(served)
        os.kill(hung.process.pid, signal.SIGSTOP)
        run = one_stage(store)
        spawned_by(served, run, "quantize")
        assert not is_fork(served)
        assert hung.process.poll() == -signal.SIGKILL
        go(served, run)

    def test_the_worker(self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """The warm process ends with it, even one that is importing; its stage goes on and is adopted."""
        make(ready=False)
        for imports in ("nothing", "for ever"):
            monkeypatch.setenv("IMPORTS", imports)
            run = one_stage(store, imports)
            first = subprocess.Popen(
                [*serving(store.home, "waits"), "ahead"], env=settings.child_environment()
            )
            if imports == "nothing":
                (pid,) = spawned(store, run, "quantize")
                assert os.getsid(pid) == pid
            else:
                until(lambda: len(processes(store.home)) == 2, "the worker and its warm process")
            first.kill()
            first.wait()
            left = int(imports == "nothing")
            until(lambda left=left: len(processes(store.home)) == left, "the end of the warm process")
            second = make("finishes", ready=False)
            second.ahead = False
            second.recover()
            if left:
                assert job(second).process is None
                assert lives(store.folder(run, "quantize"))
                (store.folder(run, "quantize") / "go").touch()
            assert to_end(second, run).status == DONE
            assert processes(store.home) == []


class TestWithout:
    """What a stage is that cannot have a fork: a process started for it, as ever."""

    @pytest.mark.parametrize("imports", ["a thread", "in vain"])
    def test_after_imports_that_allow_none_another_is_not_tried(
        self, store: Store, make: Make, imports: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        served = make("finishes", imports, ready=imports != "in vain")
        for name in ("first", "second"):
            assert to_end(served, one_stage(store, name)).status == DONE
        assert served.warm.of("cpu") is None
        said = capfd.readouterr().out
        assert imports == "in vain" or said == (
            "A stage is started on its own: an import has started a thread\n"
        )

    def test_after_a_change_of_our_sources_there_is_another(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as earlier:
            earlier.setattr(warm, "sources", lambda: "of an earlier version")
            served = make()
        self.is_without_and_then_with(served, one_stage(store), plant(store))

    @pytest.mark.parametrize("kind", ["a package", "a module"])
    def test_after_a_change_of_what_is_installed_there_is_another(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "packages").mkdir()
        module = tmp_path / "packages" / "some_library.py"
        module.write_text("version = 1\n")
        monkeypatch.setenv("PYTHONPATH", str(module.parent))
        served = make("waits", "a module")
        if kind == "a module":
            module.write_text("version = 2.0\n")
        else:
            (module.parent / "some_library-2.0.dist-info").mkdir()
        self.is_without_and_then_with(served, one_stage(store), plant(store))

    def is_without_and_then_with(self, served: Worker, first: str, second: str) -> None:
        old = process(served)
        spawned_by(served, first, "quantize")
        assert not is_fork(served)
        until(lambda: served.step() or process(served).ready(), "another warm process")
        assert process(served) is not old
        go(served, first)
        spawned_by(served, second, "quantize")
        assert is_fork(served)
        go(served, second)

    def test_a_stage_with_another_environment(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served = make()
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        run = one_stage(store)
        spawned_by(served, run, "quantize")
        assert not is_fork(served)
        go(served, run)

    def test_qlora_needs_what_is_hidden(self, store: Store, make: Make) -> None:
        served = make()
        run = plant(store, "qlora", {"finetune": {"method": "qlora"}})
        spawned_by(served, run, "finetune")
        assert not is_fork(served)
        go(served, run, "finetune")

    def test_it_ends_when_memory_is_short(self, store: Store, make: Make) -> None:
        served = make("finishes", "all memory")
        assert process(served).process.wait(60) == 0

    def test_it_is_not_started_without_memory_nor_against_the_users_will(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served = make(ready=False)
        monkeypatch.setenv("OLIVE_LAB_AHEAD", "0")
        served.step()
        assert served.warm.of("cpu") is None
        monkeypatch.setenv("OLIVE_LAB_AHEAD", "1")
        monkeypatch.setattr(warm, "affordable", lambda: False)
        served.step()
        assert served.warm.of("cpu") is None

    @pytest.mark.parametrize("error", [LabError(NO_MORE), OSError(28, "No space left on device")])
    def test_one_that_cannot_be_started_keeps_no_stage_from_its_turn(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        served, run = make(ready=False, behaviour="finishes"), one_stage(store)

        def refused(*_: object) -> None:
            raise error

        monkeypatch.setattr(warm, "Warm", refused)
        until(lambda: served.step() or store.get(run).status == DONE, "the end of the run")

    def test_one_that_keeps_ending_is_given_up(self, store: Store, make: Make) -> None:
        served = make()
        seen = set()
        while (found := served.warm.of("cpu")) is not None:
            seen.add(found.process.pid)
            found.process.kill()
            found.process.wait()
            served.step()
        assert len(seen) == warm.MOST_STARTS


class TestImporting:
    def test_a_stage_waits_for_imports_that_go_on(self, store: Store, make: Make) -> None:
        served = make("waits", "when told", ready=False)
        run = one_stage(store)
        until(lambda: served.step() or served.jobs, "the run's turn")
        served.step()
        assert job(served).waits
        assert not lives(store.folder(run, "quantize"))
        (store.home / "import").touch()
        until(lambda: served.step() or not job(served).waits, "the end of the wait")
        assert is_fork(served)
        go(served, run)

    def test_a_run_that_waits_can_be_canceled(self, store: Store, make: Make) -> None:
        served = make("waits", "for ever", ready=False)
        run = one_stage(store)
        until(lambda: served.step() or served.jobs, "the run's turn")
        (store.folder(run, "quantize")).mkdir(exist_ok=True)
        old = {"status": "failed", "error": "an earlier attempt's"}
        (store.folder(run, "quantize") / "result.json").write_text(json.dumps(old))
        store.request_cancel(run)
        stage = to_end(served, run)
        assert (stage.status, stage.error) == (CANCELED, None)

    def test_imports_that_do_not_end_are_given_up(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served = make("finishes", "for ever", ready=False)
        run = one_stage(store)
        until(lambda: served.step() or served.jobs, "the run's turn")
        hung = process(served).process
        monkeypatch.setattr(warm, "IMPORT_SECONDS", 0.0)
        assert to_end(served, run).status == DONE
        assert hung.poll() == -signal.SIGKILL
        assert served.warm.of("cpu") is None

    def test_without_the_app_they_begin_when_a_stage_has_worked_for_a_while(
        self, store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "AHEAD_SECONDS", 0.0)
        served = make(ready=False)
        served.ahead = False
        last = one_stage(store, "nothing follows")
        until(lambda: served.step() or (served.jobs and job(served).looked_ahead), "a look ahead")
        assert served.warm.of("cpu") is None
        go(served, last)
        run = plant(store)
        until(lambda: served.step() or served.warm.of("cpu"), "a warm process")
        assert not is_fork(served)
        go(served, run)
        until(lambda: served.step() or not job(served).waits, "the end of the wait")
        assert is_fork(served)
        go(served, run, "finetune")
