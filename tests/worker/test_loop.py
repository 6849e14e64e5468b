"""The worker with real processes, locks and signals; see children.py for how its stages behave."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.stages import artifacts
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, QUEUED, RUNNING, Run, StageRun
from pipeline.system import hardware, locks
from pipeline.worker import job
from pipeline.worker.loop import Worker
from tests.helpers.lab import alive, ended, go, spawned, step_until, until
from tests.helpers.planted import one_stage, plant

Make = Callable[[str], Worker]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that have more to wait for; those of the time it may take keep the real grace period."""
    monkeypatch.setattr(job, "GRACE_SECONDS", 0.3)


class TestStages:
    def test_a_run_goes_from_stage_to_stage_to_its_end(self, store: Store, stepper: Make) -> None:
        run = plant(store)
        step_until(stepper("finishes"), ended(store, run), "the end of the run")
        found = store.get(run)
        assert found.status == DONE
        assert [(s.name, s.status, s.metrics) for s in found.stages] == [
            (name, DONE, {"stage": name}) for name in ("quantize", "finetune", "optimize", "evaluate")
        ]
        assert (store.folder(run, "finetune") / "log.txt").read_text() == "working on finetune\n"

    def test_one_run_at_a_time_on_a_device(self, store: Store, stepper: Make) -> None:
        first, second = one_stage(store, "first"), one_stage(store, "second")
        served = stepper("waits")
        served.step()
        spawned(store, first)
        for _ in range(3):
            served.step()
        assert (store.get(first).status, store.get(second).status) == (RUNNING, QUEUED)
        go(store, first)
        step_until(served, lambda: store.get(second).status == RUNNING, "the second run's turn")
        assert store.get(first).status == DONE

    def test_each_device_has_a_run_of_its_own(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Make
    ) -> None:
        monkeypatch.setattr(hardware, "gpus", lambda: 2)
        runs = [one_stage(store, str(n)) for n in range(3)]
        served = stepper("waits")
        served.step()
        assert [store.get(run).status for run in runs] == [RUNNING, RUNNING, QUEUED]
        devices = []
        for run in runs[:2]:
            environment = Path(f"/proc/{spawned(store, run)[0]}/environ").read_bytes().split(b"\0")
            devices += [v for v in environment if v.startswith(b"CUDA_VISIBLE_DEVICES=")]
        assert devices == [b"CUDA_VISIBLE_DEVICES=0", b"CUDA_VISIBLE_DEVICES=1"]

    def test_memory_is_given_back_on_a_cpu_and_not_beside_a_gpu(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Make
    ) -> None:
        for name in settings.EVEN_MEMORY:
            monkeypatch.delenv(name, raising=False)
        found = []
        for gpus in (0, 1):
            monkeypatch.setattr(hardware, "gpus", lambda gpus=gpus: gpus)
            run = one_stage(store, str(gpus))
            stepper("waits").step()
            found.append(Path(f"/proc/{spawned(store, run)[0]}/environ").read_bytes().split(b"\0"))
        mark = f"MALLOC_MMAP_THRESHOLD_={1 << 20}".encode()
        assert [mark in environment for environment in found] == [True, False]

    def test_a_publish_does_not_wait_for_the_device(self, store: Store, finished: Run, stepper: Make) -> None:
        run = one_stage(store)
        store.add_publish(finished.id, {"to": "local"})
        served = stepper("waits")
        served.step()
        spawned(store, run)
        spawned(store, finished.id, "publish")
        go(store, finished.id, "publish")
        step_until(served, lambda: store.get(finished.id).stage("publish").status == DONE, "the publish")
        assert store.get(run).status == RUNNING

    def test_a_stage_reads_nothing_and_has_a_session_of_its_own(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        stepper("waits").step()
        pid = spawned(store, run)[0]
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")


class TestEndings:
    @pytest.mark.parametrize(
        ("behaviour", "sentence"),
        [
            ("fails", "The template has no response."),
            ("is_killed", "Somebody, or another program, killed this stage (SIGKILL); retry it."),
            ("crashes", "This stage crashed (Aborted); its log shows the last steps."),
            ("is_silent", "This stage ended without saying why; its log shows the last steps."),
            ("has_no_room", "The disk is full; free some space in the home folder and retry."),
        ],
    )
    def test_a_stage_that_ends_badly_says_so_in_one_sentence(
        self, store: Store, stepper: Make, behaviour: str, sentence: str
    ) -> None:
        run = plant(store)
        step_until(stepper(behaviour), ended(store, run), "the end of the run")
        found = store.get(run)
        assert (found.status, found.stages[0].status) == (FAILED, FAILED)
        assert (found.stages[0].error or "").startswith(sentence)
        assert "\n" not in (found.stages[0].error or "")
        assert [stage.status for stage in found.stages[1:]] == [CANCELED] * 3

    def test_a_retried_stage_is_not_taken_for_its_earlier_attempt(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        step_until(stepper("fails"), ended(store, run), "the first end")
        store.retry(run)
        step_until(stepper("is_silent"), ended(store, run), "the second end")
        assert (store.get(run).stages[0].error or "").startswith("This stage ended without saying why")

    def test_what_a_stage_leaves_running_is_ended_with_it(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("leaves_grandchildren")
        step_until(served, ended(store, run), "the end of the run")
        assert store.get(run).status == DONE
        until(lambda: not any(map(alive, spawned(store, run))), "the end of what it left")

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("status", [DONE, FAILED])
    @pytest.mark.parametrize("adopted", [False, True])
    def test_a_stage_that_never_exits_counts_as_what_it_wrote(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch, status: str, adopted: bool
    ) -> None:
        monkeypatch.setenv("OLIVE_LAB_EXIT_SECONDS", "0.1")
        run = one_stage(store)
        if status == FAILED:
            store.folder(run, "quantize").mkdir()
            (store.folder(run, "quantize") / "fails").touch()
        served = stepper("never_exits")
        served.step()
        (pid,) = spawned(store, run)
        if adopted:
            served = stepper("finishes")
            served.recover()
        step_until(served, ended(store, run), "the end of the run")
        assert store.get(run).status == status
        assert store.get(run).stages[0].error == (None if status == DONE else "The template has no response.")
        until(lambda: not alive(pid), "the end of its process")
        log = (store.folder(run, "quantize") / "log.txt").read_text()
        assert log.strip() == (
            "The process of quantize did not exit within 0.1 seconds of writing its result; it is ended, and"
            " the result counts."
        )

    def test_a_stage_that_exits_in_time_is_left_alone(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("never_exits")
        served.step()
        spawned(store, run)
        until((store.folder(run, "quantize") / job.RESULT).exists, "the result")
        for _ in range(3):
            served.step()
        assert store.get(run).status == RUNNING

    def test_a_stage_that_cannot_be_started_fails_with_the_reason(self, store: Store, stepper: Make) -> None:
        run, good = one_stage(store), one_stage(store, "good")
        store.folder(run, "quantize").write_text("a file where the folder should be")
        served = stepper("finishes")
        step_until(served, ended(store, good), "the end of the other run")
        assert store.get(run).status == FAILED
        assert "File exists" in (store.get(run).stages[0].error or "")

    def test_a_stage_whose_folder_is_in_use_fails_and_the_worker_goes_on(
        self, store: Store, stepper: Make
    ) -> None:
        run = one_stage(store)
        folder = store.folder(run, "quantize")
        taken = locks.take(folder / job.LOCK)
        assert taken is not None
        step_until(stepper("finishes"), ended(store, run), "the end of the run")
        os.close(taken)
        assert "A process of an earlier attempt still runs" in (store.get(run).stages[0].error or "")

    def test_a_killed_stage_leaves_nothing_half_written(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("is_killed")
        part = artifacts.part(store.home, "quantize", "0123")
        (part / "weights").write_bytes(b"half")
        (store.folder(run, "quantize") / "work").mkdir(parents=True)
        step_until(served, ended(store, run), "the end of the run")
        assert not part.exists()
        assert not (store.folder(run, "quantize") / "work").exists()


class TestCancel:
    @pytest.mark.parametrize("behaviour", ["waits", "ignores_sigterm", "has_grandchildren", "forks"])
    def test_the_whole_group_is_ended_soon(self, store: Store, stepper: Make, behaviour: str) -> None:
        assert job.GRACE_SECONDS < 5  # what the test waits for leaves room for a slow machine
        run = plant(store)
        served = stepper(behaviour)
        served.step()
        pids = spawned(store, run)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run")
        until(lambda: not any(map(alive, pids)), "the end of its processes")
        found = store.get(run)
        assert (found.status, {s.status for s in found.stages}) == (CANCELED, {CANCELED})
        assert found.stages[0].error is None
        assert not found.cancel_requested

    @pytest.mark.usefixtures("impatient")
    def test_a_stopped_process_is_ended_too(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("waits")
        served.step()
        pid = spawned(store, run)[0]
        os.kill(pid, signal.SIGSTOP)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run")
        assert not alive(pid)

    def test_a_stage_that_complains_on_its_way_out_is_canceled_all_the_same(
        self, store: Store, stepper: Make
    ) -> None:
        run = one_stage(store)
        served = stepper("complains_when_ended")
        served.step()
        spawned(store, run)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run")
        assert (store.get(run).status, store.get(run).stages[0].error) == (CANCELED, None)

    def test_a_canceled_run_can_be_retried(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("waits")
        served.step()
        spawned(store, run)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run")
        go(store, run)
        store.retry(run)
        step_until(served, ended(store, run), "the end of the second attempt")
        assert store.get(run).status == DONE

    @pytest.mark.usefixtures("impatient")
    def test_a_publish_is_canceled_without_its_run(self, store: Store, finished: Run, stepper: Make) -> None:
        store.add_publish(finished.id, {"to": "local"})
        served = stepper("ignores_sigterm")
        served.step()
        pids = spawned(store, finished.id, "publish")
        store.request_cancel(finished.id)
        publish: Callable[[], StageRun] = lambda: store.get(finished.id).stage("publish")  # noqa: E731
        step_until(served, lambda: publish().status == CANCELED, "the end of the publish")
        assert store.get(finished.id).status == DONE
        assert not any(map(alive, pids))

    @pytest.mark.usefixtures("impatient")
    def test_what_a_canceled_publish_was_fetching_is_removed(
        self, store: Store, finished: Run, stepper: Make
    ) -> None:
        store.add_publish(finished.id, {"to": "local"})
        served = stepper("fetches")
        served.step()
        spawned(store, finished.id, "publish")
        file = Path(json.loads((store.folder(finished.id, "publish") / "half.json").read_text())["file"])
        assert file.is_file()
        parts = [store.home / name for name in ("registry/junk/.1.part", "checked/junk-1")]
        for part in parts:
            part.mkdir(parents=True)
            (part / "half").write_text("half")
        store.request_cancel(finished.id)
        step_until(served, lambda: store.get(finished.id).stage("publish").status == CANCELED, "the end")
        assert not any(left.exists() for left in (file.parent, *parts))
