"""Processes that escape their stage's group, and a kernel that really kills for want of memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, ENDED, FAILED, INTERRUPTED
from pipeline.worker import processes
from pipeline.worker.loop import Worker
from tests.helpers.lab import alive, spawned, until
from tests.helpers.planted import one_stage

Make = Callable[[str], Worker]
LIMIT = 200 << 20


def step_to_end(served: Worker, store: Store, run: str) -> str:
    until(lambda: served.step() or store.get(run).status in ENDED, "the end of the run")
    return store.get(run).status


class TestEscapees:
    def test_after_its_stage_is_done(self, store: Store, stepper: Make) -> None:
        run = one_stage(store, stage="finetune")
        served = stepper("has_an_escapee")
        served.step()
        _, escaped = spawned(store, run, "finetune")
        assert os.getsid(escaped) == escaped
        (store.folder(run, "finetune") / "go").touch()
        assert step_to_end(served, store, run) == DONE
        assert not alive(escaped)

    def test_after_its_stage_is_canceled(self, store: Store, stepper: Make) -> None:
        run = one_stage(store, stage="finetune")
        served = stepper("has_an_escapee")
        served.step()
        pids = spawned(store, run, "finetune")
        store.request_cancel(run)
        assert step_to_end(served, store, run) == CANCELED
        assert not any(map(alive, pids))

    @pytest.mark.parametrize("ending", ["done", "canceled"])
    def test_after_the_worker_has_changed(self, store: Store, stepper: Make, ending: str) -> None:
        run = one_stage(store, stage="finetune")
        stepper("has_an_escapee").step()
        pids = spawned(store, run, "finetune")
        second = stepper("finishes")
        second.recover()
        if ending == "done":
            (store.folder(run, "finetune") / "go").touch()
        else:
            store.request_cancel(run)
        assert step_to_end(second, store, run) == ending
        until(lambda: not any(map(alive, pids)), "the end of its processes")

    def test_before_the_next_attempt_of_a_stage_that_died_with_its_worker(
        self, store: Store, stepper: Make
    ) -> None:
        run = one_stage(store, stage="finetune")
        first = stepper("has_an_escapee")
        first.step()
        pid, escaped = spawned(store, run, "finetune")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the end of the stage")
        second = stepper("finishes")
        second.recover()
        if store.get(run).status == INTERRUPTED:
            store.retry(run)
        assert step_to_end(second, store, run) == DONE
        assert not alive(escaped)

    def test_only_the_processes_of_that_stage(self, tmp_path: Path) -> None:
        code = "import signal; print(flush=True); signal.alarm(200); signal.pause()"
        started = []
        for name in ("mine", "other"):
            (tmp_path / name).mkdir()
            environment = settings.child_environment(OLIVE_LAB_EVENTS=str(tmp_path / name / "events.jsonl"))
            process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()
            started.append(process)
        mine, other = started
        assert processes.end_all(tmp_path / "mine") == 1
        assert mine.wait(60) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()
        other.communicate()
        mine.communicate()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of our own with a low limit, of either version."""
    name = f"olive-lab-test-{os.getpid()}"
    first = Path("/sys/fs/cgroup/memory")
    folder = (first if first.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here ({error.strerror})")
    limit = next((f for f in ("memory.limit_in_bytes", "memory.max") if (folder / f).exists()), None)
    try:
        if limit is None:
            pytest.skip("the memory controller is not given to cgroups here")
        (folder / limit).write_text(str(LIMIT))
        for swap, value in (("memory.swappiness", "0"), ("memory.swap.max", "0")):
            if (folder / swap).exists():
                (folder / swap).write_text(value)
        yield folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), "the end of what is in the cgroup")
        folder.rmdir()


def test_the_kernels_kill_is_recognised(
    store: Store, stepper: Make, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGROUP", str(cgroup))
    run = one_stage(store, stage="finetune")
    assert step_to_end(stepper("takes_all_memory"), store, run) == FAILED
    error = store.get(run).stages[0].error or ""
    pattern = r"The kernel ended this stage because memory ran out \(it had taken ([\d.]+) (MB|GB)\)\."
    said = re.match(pattern, error)
    assert said, error
    assert (
        said[2] == "GB" or float(said[1]) >= 200
    )  # more where this process, of which the stage was forked, is larger
    assert error.endswith(
        "start a new run with a smaller finetune.batch_size or finetune.max_length, or with"
        " finetune.gradient_checkpointing on."
    )


def test_where_the_kernel_tells_nothing_memory_is_only_likely(
    store: Store, stepper: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "oom_kills", lambda pid: {})
    run = one_stage(store, stage="finetune")
    assert step_to_end(stepper("is_killed"), store, run) == FAILED
    error = store.get(run).stages[0].error or ""
    assert error.startswith("The system killed this stage, most likely because memory ran out")


def test_counters_of_both_versions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert processes._count(file) == 2
    file.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert processes._count(file) == 5
    assert processes.killed_since({file: 4}) is True
    assert processes.killed_since({file: 5}) is False
    assert processes.killed_since({tmp_path / "gone": 5}) is None
    assert processes.oom_kills(os.getpid()), "Linux counts in /proc/vmstat at least"
