"""Workers that die, are told to stop, or are asked for again; see children.py for how their stages behave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, QUEUED, RESULT, RUNNING, Run
from pipeline.system import locks
from pipeline.worker import job, loop
from pipeline.worker.loop import Worker
from tests.helpers.lab import alive, die_together, ended, go, processes, spawned, step_until, until
from tests.helpers.planted import one_stage, plant

Make = Callable[[str], Worker]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that have more to wait for; those of the time it may take keep the real grace period."""
    monkeypatch.setattr(job, "GRACE_SECONDS", 0.3)


class TestRestart:
    def test_a_killed_worker_leaves_its_stage_alive_and_the_next_one_adopts_it(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run, queued = plant(store), one_stage(store, "queued")
        first = serve("waits")
        pid = spawned(store, run)[0]
        first.kill()
        first.wait()
        assert alive(pid)
        second = stepper("finishes")
        second.recover()
        for _ in range(3):
            second.step()
        assert (store.get(run).status, store.get(queued).status) == (RUNNING, QUEUED)
        assert spawned(store, run) == [pid]
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
        pids = spawned(store, run)
        first.kill()
        first.wait()
        second = stepper("finishes")
        second.recover()
        store.request_cancel(run)
        step_until(second, ended(store, run), "the end of the run")
        until(lambda: not any(map(alive, pids)), "the end of its processes")
        assert store.get(run).status == CANCELED

    def test_an_adopted_stage_that_ends_is_recorded_though_a_fork_of_it_stays(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]], stepper: Make
    ) -> None:
        run = one_stage(store)
        first = serve("forks")
        pids = spawned(store, run)
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
        pid = spawned(store, run)[0]
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
        for _ in range(loop.MOST_ATTEMPTS):
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
        spawned(store, run)
        first.kill()
        first.wait()
        store.request_cancel(run)
        second = stepper("finishes")
        second.recover()
        step_until(second, ended(store, run), "the end of the run")
        assert store.get(run).status == CANCELED

    def test_a_worker_told_to_stop_leaves_its_stage_alive(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        run, queued = plant(store), one_stage(store, "queued")
        first = serve("waits")
        pid = spawned(store, run)[0]
        first.terminate()
        assert first.wait(60) == 0
        assert alive(pid)
        assert (store.get(run).status, store.get(queued).status) == (RUNNING, QUEUED)


class TestServe:
    def test_a_second_worker_on_a_home_is_refused(
        self, store: Store, serve: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        serve("finishes")
        until(lambda: locks.held(store.home / loop.WORKER_LOCK), "the first worker")
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
        assert not locks.held(store.home / loop.WORKER_LOCK)

    def test_a_run_queued_at_the_moment_it_gives_up_is_still_served(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Someone queues it while the lock is still held, and so starts no worker."""
        queued: list[str] = []
        close = os.close

        def queue_then_close(descriptor: int) -> None:
            if not queued and Path(f"/proc/self/fd/{descriptor}").readlink().name == loop.WORKER_LOCK:
                queued.append(one_stage(store))
                assert locks.held(store.home / loop.WORKER_LOCK)
            close(descriptor)

        served = stepper("finishes")
        monkeypatch.setattr("pipeline.worker.loop.os.close", queue_then_close)
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
        monkeypatch.setattr(loop, "TROUBLE_SECONDS", 0.0)
        served.serve(idle_seconds=0.0)
        assert [s.status for s in store.get(run).stages] == [DONE] * 4
        assert "database or disk is full" in capsys.readouterr().out


class TestOneRunAlone:
    """Whatever is wrong with a run, the next one gets its turn, from this worker and from any other."""

    def claimed(self, store: Store) -> tuple[str, Path]:
        """A run that a worker has taken and left, and where its stage's result is expected."""
        run = one_stage(store)
        assert store.claim("cpu") == (run, "quantize")
        folder = store.folder(run, "quantize")
        folder.mkdir()
        return run, folder / RESULT

    @pytest.mark.parametrize(
        ("left", "said"),
        [
            ('{"status": "failed", "error": "no exporter for Llama\\ud800"}', "no exporter for Llama\ufffd"),
            ('{"status": "failed", "unheard": 1}', "This failed with an internal error (TypeError: "),
            ('["no mapping"]', "This failed with an internal error (TypeError: "),
            ("[" * 100_000, "This failed (RecursionError: "),
        ],
        ids=["half a surrogate", "unknown", "a list", "deep"],
    )
    def test_a_result_that_cannot_be_recorded_ends_its_run_alone(
        self, store: Store, stepper: Make, left: str, said: str
    ) -> None:
        (first, result), second = self.claimed(store), one_stage(store, "second")
        result.write_text(left)
        stepper("finishes").serve(idle_seconds=0.0)
        assert store.get(first).status == FAILED
        assert str(store.get(first).stages[0].error).startswith(said)
        assert store.get(second).status == DONE

    def test_the_same_while_the_worker_serves(self, store: Store, stepper: Make) -> None:
        runs = [one_stage(store, name) for name in ("first", "second")]
        served = stepper("reports_oddly")
        step_until(served, ended(store, runs[1]), "the end of the second run")
        assert [store.get(run).status for run in runs] == [FAILED, FAILED]
        assert served.jobs == {}

    def test_what_cannot_be_looked_at_keeps_its_device_until_it_passes(
        self, store: Store, stepper: Make
    ) -> None:
        """Or another's would begin there, and be lost when the first one's next stage does."""
        (first, result), second = self.claimed(store), one_stage(store, "second")
        result.mkdir()
        served = stepper("finishes")
        served.recover()
        for _ in range(3):
            served.step()
        assert (store.get(first).status, store.get(second).status) == (RUNNING, QUEUED)
        assert {type(trouble) for trouble in served.troubles} == {IsADirectoryError}
        result.rmdir()
        step_until(served, ended(store, second), "the end of the second run")
        assert (store.get(first).status, served.jobs) == (DONE, {})

    def test_what_does_not_pass_ends_that_run_alone(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(loop, "TROUBLE_SECONDS", 0.0)
        (first, result), second = self.claimed(store), one_stage(store, "second")
        result.mkdir()
        stepper("finishes").serve(idle_seconds=0.0)
        assert (store.get(first).status, store.get(second).status) == (FAILED, DONE)
        assert f"{result} cannot be used" in str(store.get(first).stages[0].error)
        assert capsys.readouterr().out.count(f"{result} cannot be used") >= loop.MOST_TROUBLES

    def test_nothing_is_given_up_while_nothing_can_be_recorded(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a full disk, however long."""
        run, served = one_stage(store), stepper("finishes")
        with monkeypatch.context() as patch:

            def full(*_: object, **__: object) -> None:
                raise LabError("runs.db: database or disk is full")

            patch.setattr(store, "finish", full)
            until(lambda: served.step() or len(served.troubles) > 3 * loop.MOST_TROUBLES, "many troubles")
            assert store.get(run).status == RUNNING
        step_until(served, ended(store, run), "the end of the run")
        assert store.get(run).status == DONE

    def test_what_goes_wrong_before_a_stage_begins_is_tried_again(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And nothing is taken for its process, or result, that an earlier attempt left."""
        run = one_stage(store)
        (folder := store.folder(run, "quantize")).mkdir()
        (folder / "process.json").write_text(json.dumps({"pid": os.getpid()}))
        (folder / RESULT).write_text('{"status": "failed", "error": "of an earlier attempt"}')
        served, get, faults = stepper("finishes"), store.get, [LabError("locked"), LabError("locked")]

        def locked(*given: str, **more: bool) -> Run:
            if faults:
                raise faults.pop()
            return get(*given, **more)

        monkeypatch.setattr(store, "get", locked)
        step_until(served, lambda: not faults, "the faults")
        step_until(served, ended(store, run), "the end of the run")
        assert (store.get(run).status, len(served.troubles)) == (DONE, 2)

    def test_a_run_whose_next_stage_is_about_to_be_taken_is_not_queued_beside_it(
        self, store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another device could take it up."""
        run, served = plant(store), stepper("finishes")

        def locked(*_: str) -> None:
            raise LabError("locked")

        with monkeypatch.context() as patch:
            patch.setattr(store, "claim_next", locked)
            step_until(served, lambda: store.get(run).stages[0].status == DONE, "the first stage's end")
            served.recover()
            assert store.get(run).status == RUNNING
        step_until(served, ended(store, run), "the end of the run")
        assert [stage.status for stage in store.get(run).stages] == [DONE] * 4

    def test_two_that_were_left_on_one_device_are_seen_to_in_turn(self, store: Store, stepper: Make) -> None:
        (first, _), second = self.claimed(store), one_stage(store, "second")
        assert store.claim("cpu") == (second, "quantize")
        stepper("finishes").serve(idle_seconds=0.0)
        assert [store.get(run).status for run in (first, second)] == [DONE, DONE]


class TestEnsure:
    def test_one_worker_is_started_however_often_it_is_asked_for(self, store: Store) -> None:
        threads = [threading.Thread(target=loop.ensure, args=(store.home,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert locks.held(store.home / loop.WORKER_LOCK)
        assert len(loop._workers) == 1
        until(lambda: processes(store.home), "the worker among the processes")  # a moment after it began
        assert len(processes(store.home)) == 1
        assert os.getsid(loop._workers[0].pid) == loop._workers[0].pid
        loop.ensure(store.home)
        assert len(loop._workers) == 1

    def test_a_worker_that_was_killed_is_replaced(self, store: Store) -> None:
        loop.ensure(store.home)
        first = loop._workers[0]
        first.kill()
        until(lambda: not locks.held(store.home / loop.WORKER_LOCK), "the end of the worker")
        loop.ensure(store.home)
        assert [process.pid for process in loop._workers] != [first.pid]
        assert locks.held(store.home / loop.WORKER_LOCK)

    def test_it_serves_though_its_lock_was_taken_for_it(self, store: Store) -> None:
        run = plant(store, seed=-1)  # the real child refuses it, which is enough to see it served
        loop.ensure(store.home)
        until(lambda: store.get(run).status == FAILED, "the end of the run")
        assert (store.get(run).stages[0].error or "").startswith("seed: -1 is not allowed")
        assert "Traceback" in (store.folder(run, "quantize") / "log.txt").read_text()

    def test_closing_the_process_that_queued_a_run_does_not_stop_it(
        self, store: Store, finished: Run
    ) -> None:
        """As when the web process, or the terminal, is closed with everything in its process group."""
        code = (
            "import sys, signal; from pathlib import Path; from pipeline.worker import loop;"
            "loop.ensure(Path(sys.argv[1])); print(flush=True); signal.alarm(200); signal.pause()"
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
