"""The worker with real processes, locks and signals; see children.py for how its stages behave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import SIGN
from lab import plant, processes, serving, until

from pipeline import artifacts, locks, settings, worker
from pipeline.errors import LabError
from pipeline.run import CANCELED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, Run, StageRun
from pipeline.store import Store
from pipeline.worker import Worker

Make = Callable[[str], Worker]


def one_stage(store: Store, name: str = "short") -> str:
    return store.add(name, {}, Path("/d"), {"quantize": {}})


def step_until(served: Worker, condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    def tried() -> object:
        served.step()
        return condition()

    until(tried, what, seconds)


def ended(store: Store, run: str) -> Callable[[], bool]:
    return lambda: store.get(run).status in (DONE, FAILED, CANCELED, INTERRUPTED)


def begun(store: Store, run: str, stage: str = "quantize") -> list[int]:
    """Wait until a stage's process says that it is there; return its ids."""
    sign = store.folder(run, stage) / SIGN
    until(sign.exists, f"the beginning of {stage}")
    return list(json.loads(sign.read_text())["pids"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def go(store: Store, run: str, stage: str = "quantize") -> None:
    (store.folder(run, stage) / "go").touch()


def die_together(store: Store, run: str, process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and the stage it has begun, as a power cut does."""
    pid = begun(store, run)[0]
    process.kill()
    process.wait()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the end of the stage")
    (store.folder(run, "quantize") / SIGN).unlink()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that have more to wait for; those of the time it may take keep the real grace period."""
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.3)


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers in processes of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(behaviour: str, idle_seconds: float = 600.0) -> subprocess.Popen[bytes]:
        environment = settings.child_environment()
        process = subprocess.Popen(serving(home, behaviour, idle_seconds), env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


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
        begun(store, first)
        for _ in range(3):
            served.step()
        assert (store.get(first).status, store.get(second).status) == (RUNNING, QUEUED)
        go(store, first)
        step_until(served, lambda: store.get(second).status == RUNNING, "the second run's turn")
        assert store.get(first).status == DONE

    def test_each_device_has_a_run_of_its_own(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Make
    ) -> None:
        monkeypatch.setattr(settings, "gpus", lambda: 2)
        runs = [one_stage(store, str(n)) for n in range(3)]
        served = stepper("waits")
        served.step()
        assert [store.get(run).status for run in runs] == [RUNNING, RUNNING, QUEUED]
        devices = []
        for run in runs[:2]:
            environment = Path(f"/proc/{begun(store, run)[0]}/environ").read_bytes().split(b"\0")
            devices += [v for v in environment if v.startswith(b"CUDA_VISIBLE_DEVICES=")]
        assert devices == [b"CUDA_VISIBLE_DEVICES=0", b"CUDA_VISIBLE_DEVICES=1"]

    def test_a_publish_does_not_wait_for_the_device(self, store: Store, finished: Run, stepper: Make) -> None:
        run = one_stage(store)
        store.add_publish(finished.id, {"to": "local"})
        served = stepper("waits")
        served.step()
        begun(store, run)
        begun(store, finished.id, "publish")
        go(store, finished.id, "publish")
        step_until(served, lambda: store.get(finished.id).stage("publish").status == DONE, "the publish")
        assert store.get(run).status == RUNNING

    def test_a_stage_reads_nothing_and_has_a_session_of_its_own(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        stepper("waits").step()
        pid = begun(store, run)[0]
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
        until(lambda: not any(map(alive, begun(store, run))), "the end of what it left")

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
        taken = locks.take(folder / worker.LOCK)
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
    def test_the_whole_group_has_ended_within_five_seconds(
        self, store: Store, stepper: Make, behaviour: str
    ) -> None:
        run = plant(store)
        served = stepper(behaviour)
        served.step()
        pids = begun(store, run)
        store.request_cancel(run)
        asked = time.monotonic()
        step_until(served, ended(store, run), "the end of the run", seconds=5.0)
        until(
            lambda: not any(map(alive, pids)),
            "the end of its processes",
            seconds=5.0 - (time.monotonic() - asked),
        )
        found = store.get(run)
        assert (found.status, {s.status for s in found.stages}) == (CANCELED, {CANCELED})
        assert found.stages[0].error is None
        assert not found.cancel_requested

    @pytest.mark.usefixtures("impatient")
    def test_a_stopped_process_is_ended_too(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("waits")
        served.step()
        pid = begun(store, run)[0]
        os.kill(pid, signal.SIGSTOP)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run", seconds=5.0)
        assert not alive(pid)

    def test_a_stage_that_complains_on_its_way_out_is_canceled_all_the_same(
        self, store: Store, stepper: Make
    ) -> None:
        run = one_stage(store)
        served = stepper("complains_when_ended")
        served.step()
        begun(store, run)
        store.request_cancel(run)
        step_until(served, ended(store, run), "the end of the run")
        assert (store.get(run).status, store.get(run).stages[0].error) == (CANCELED, None)

    def test_a_canceled_run_can_be_retried(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        served = stepper("waits")
        served.step()
        begun(store, run)
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
        pids = begun(store, finished.id, "publish")
        store.request_cancel(finished.id)
        publish: Callable[[], StageRun] = lambda: store.get(finished.id).stage("publish")  # noqa: E731
        step_until(served, lambda: publish().status == CANCELED, "the end of the publish", seconds=5.0)
        assert store.get(finished.id).status == DONE
        assert not any(map(alive, pids))


class TestRestart:
    def test_a_killed_worker_leaves_its_stage_alive_and_the_next_one_adopts_it(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run, queued = plant(store), one_stage(store, "queued")
        first = serve("waits")
        pid = begun(store, run)[0]
        first.kill()
        first.wait()
        assert alive(pid)
        second = stepper("finishes")
        second.recover()
        for _ in range(3):
            second.step()
        assert (store.get(run).status, store.get(queued).status) == (RUNNING, QUEUED)
        assert begun(store, run) == [pid]
        go(store, run)
        step_until(second, ended(store, queued), "the end of the queued run")
        assert [s.status for s in store.get(run).stages] == [DONE] * 4
        assert store.get(run).stages[0].metrics == {"stage": "quantize"}

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("behaviour", ["ignores_sigterm", "has_grandchildren", "forks"])
    def test_an_adopted_stage_is_canceled_as_a_whole(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make, behaviour: str
    ) -> None:
        run = one_stage(store)
        first = serve(behaviour)
        pids = begun(store, run)
        first.kill()
        first.wait()
        second = stepper("finishes")
        second.recover()
        store.request_cancel(run)
        asked = time.monotonic()
        step_until(second, ended(store, run), "the end of the run", seconds=5.0)
        until(
            lambda: not any(map(alive, pids)),
            "the end of its processes",
            seconds=5.0 - (time.monotonic() - asked),
        )
        assert store.get(run).status == CANCELED

    def test_an_adopted_stage_that_ends_is_recorded_though_a_fork_of_it_stays(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run = one_stage(store)
        first = serve("forks")
        pids = begun(store, run)
        first.kill()
        first.wait()
        second = stepper("finishes")
        second.recover()
        go(store, run)
        step_until(second, ended(store, run), "the end of the run")
        assert store.get(run).status == DONE
        until(lambda: not any(map(alive, pids)), "the end of its processes")

    def test_a_stage_that_ended_while_no_worker_was_there_is_recorded_as_it_ended(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run = plant(store)
        first = serve("waits")
        pid = begun(store, run)[0]
        first.kill()
        first.wait()
        go(store, run)
        until(lambda: not alive(pid), "the end of the stage")
        assert store.get(run).stages[0].status == RUNNING
        second = stepper("finishes")
        second.recover()
        step_until(second, ended(store, run), "the end of the run")
        assert [s.status for s in store.get(run).stages] == [DONE] * 4

    def test_a_stage_that_died_with_its_worker_is_begun_again_before_all_others(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run, queued = plant(store), one_stage(store, "queued")
        die_together(store, run, serve("waits"))
        store.move(queued, "first")
        second = stepper("finishes")
        second.recover()
        assert (store.get(run).status, store.get(queued).status) == (QUEUED, QUEUED)
        second.step()
        assert (store.get(run).status, store.get(queued).status) == (RUNNING, QUEUED)
        step_until(second, ended(store, queued), "the end of both")
        assert store.get(run).status == DONE

    def test_a_stage_that_keeps_dying_with_its_worker_is_interrupted_and_can_be_retried(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run = plant(store)
        for _ in range(worker.MOST_ATTEMPTS):
            die_together(store, run, serve("waits"))
            second = stepper("finishes")
            second.recover()
        found = store.get(run)
        assert (found.status, found.stages[0].status) == (INTERRUPTED, INTERRUPTED)
        assert (found.stages[0].error or "").startswith("The machine or the worker stopped 3 times")
        last = (store.folder(run, "quantize") / "process.json").stat().st_mtime
        assert found.stages[0].finished == last
        store.retry(run)
        step_until(second, ended(store, run), "the end of the run")
        assert store.get(run).status == DONE

    def test_a_run_between_two_stages_goes_on(self, store: Store, stepper: Make) -> None:
        run = plant(store)
        store.claim("cpu")
        store.finish(run, "quantize", DONE)  # and here the worker was killed
        served = stepper("finishes")
        served.recover()
        assert store.get(run).status == QUEUED
        step_until(served, ended(store, run), "the end of the run")
        assert store.get(run).status == DONE

    def test_an_asked_for_end_survives_the_worker(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run = plant(store)
        first = serve("waits")
        begun(store, run)
        first.kill()
        first.wait()
        store.request_cancel(run)
        second = stepper("finishes")
        second.recover()
        step_until(second, ended(store, run), "the end of the run", seconds=5.0)
        assert store.get(run).status == CANCELED

    def test_a_worker_told_to_stop_leaves_its_stage_alive(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        run, queued = plant(store), one_stage(store, "queued")
        first = serve("waits")
        pid = begun(store, run)[0]
        first.terminate()
        assert first.wait(10) == 0
        assert alive(pid)
        assert (store.get(run).status, store.get(queued).status) == (RUNNING, QUEUED)


class TestServe:
    def test_a_second_worker_on_a_home_is_refused(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        serve("finishes")
        until(lambda: locks.held(store.home / worker.WORKER_LOCK), "the first worker")
        with pytest.raises(LabError, match=f"A worker already serves {store.home}"):
            Worker(store).serve()
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "worker"], capture_output=True, text=True, cwd=settings.ROOT
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"A worker already serves {store.home}.\n"

    def test_it_ends_when_there_is_nothing_to_do(self, store: Store, stepper: Make) -> None:
        run = one_stage(store)
        stepper("finishes").serve(idle_seconds=0.0)
        assert store.get(run).status == DONE
        assert not locks.held(store.home / worker.WORKER_LOCK)

    def test_a_run_queued_at_the_moment_it_gives_up_is_still_served(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Someone queues it while the lock is still held, and so starts no worker."""
        queued: list[str] = []
        close = os.close

        def queue_then_close(descriptor: int) -> None:
            if not queued and Path(f"/proc/self/fd/{descriptor}").readlink().name == worker.WORKER_LOCK:
                queued.append(one_stage(store))
                assert locks.held(store.home / worker.WORKER_LOCK)
            close(descriptor)

        served = stepper("finishes")
        monkeypatch.setattr("pipeline.worker.os.close", queue_then_close)
        served.serve(idle_seconds=0.0)
        assert store.get(queued[0]).status == DONE

    def test_trouble_with_the_store_passes(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = plant(store)
        served = stepper("finishes")
        finish, faults = store.finish, [LabError("runs.db: database or disk is full"), LabError("again")]

        def finish_later(*args: object, **kwargs: object) -> None:
            if faults:
                raise faults.pop()
            finish(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "finish", finish_later)
        monkeypatch.setattr(worker, "TROUBLE_SECONDS", 0.0)
        served.serve(idle_seconds=0.0)
        assert [s.status for s in store.get(run).stages] == [DONE] * 4
        assert "database or disk is full" in capsys.readouterr().out


class TestEnsure:
    def test_one_worker_is_started_however_often_it_is_asked_for(self, store: Store) -> None:
        threads = [threading.Thread(target=worker.ensure, args=(store.home,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert locks.held(store.home / worker.WORKER_LOCK)
        assert len(worker._workers) == 1
        assert len(processes(store.home)) == 1
        assert os.getsid(worker._workers[0].pid) == worker._workers[0].pid
        worker.ensure(store.home)
        assert len(worker._workers) == 1

    def test_a_worker_that_was_killed_is_replaced(self, store: Store) -> None:
        worker.ensure(store.home)
        first = worker._workers[0]
        first.kill()
        until(lambda: not locks.held(store.home / worker.WORKER_LOCK), "the end of the worker")
        worker.ensure(store.home)
        assert [process.pid for process in worker._workers] != [first.pid]
        assert locks.held(store.home / worker.WORKER_LOCK)

    def test_it_serves_though_its_lock_was_taken_for_it(self, store: Store) -> None:
        run = plant(store, seed=-1)  # the real child refuses it, which is enough to see it served
        worker.ensure(store.home)
        until(lambda: store.get(run).status == FAILED, "the end of the run")
        assert (store.get(run).stages[0].error or "").startswith("seed: -1 is not allowed")
        assert "Traceback" in (store.folder(run, "quantize") / "log.txt").read_text()

    def test_closing_the_process_that_queued_a_run_does_not_stop_it(
        self, store: Store, finished: Run
    ) -> None:
        """As when the web process, or the terminal, is closed with everything in its process group."""
        code = (
            "import sys, signal; from pathlib import Path; from pipeline import worker;"
            "worker.ensure(Path(sys.argv[1])); print(flush=True); signal.alarm(60); signal.pause()"
        )
        web = subprocess.Popen(
            [sys.executable, "-c", code, str(store.home)],
            stdout=subprocess.PIPE,
            cwd=settings.ROOT,
            env=settings.child_environment(),
            start_new_session=True,
        )
        assert web.stdout is not None
        web.stdout.readline()
        os.killpg(web.pid, signal.SIGKILL)
        web.communicate()
        stage = store.add_publish(finished.id, {"to": "local", "name": "m", "version": "", "description": ""})
        until(lambda: store.get(finished.id).stage(stage).status == DONE, "the publish")
