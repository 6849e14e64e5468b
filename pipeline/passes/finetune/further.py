"""The further processes of a training over several GPUs: the first one starts, watches and ends them.

They are in its session and have the mark of its stage, so whatever ends a stage ends them, and they end
when it does. When one of them ends early, the first process fails with one sentence, also while it
waits for a GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.store.run import FAILED, RESULT
from pipeline.system import own_process
from pipeline.system.files import write_whole

ENTRY = ("-m", "pipeline.passes.finetune.rank")
FOLDER = "ranks"  # beside the checkpoints
TASK = "task.json"
# How long the first process has to fail by itself once another has ended; then it is ended as it stands.
GRACE_SECONDS = 5.0
LOOK_SECONDS = 0.05
MOST_LOG = 4000  # characters of a failed process's log that are shown


class Lost(LabError):
    """Another process of this training has ended."""


class Further:
    """The processes of all ranks but the first; `gpus` names the GPU of each rank."""

    def __init__(self, folder: Path, gpus: Sequence[str], words: Sequence[str]) -> None:
        self.folder = folder
        self.count = len(gpus)
        self.lost: str | None = None  # why one has ended before its time, as a sentence
        self._seen = threading.Event()  # that one has
        self._over = threading.Event()  # this training, one way or the other
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, self.count):
            with log(folder, rank).open("wb") as output:
                started = own_process.start(
                    [*words, str(folder), str(rank)],
                    settings.rank_environment(gpus[rank]),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            self._processes.append(started)
            threading.Thread(target=self._watch, args=(rank, started), daemon=True).start()

    def meet(self) -> None:
        """Wait until all are ready to compute. Raises LabError if one has ended before."""
        while not all(ready(self.folder, rank).exists() for rank in range(1, self.count)):
            if self._seen.wait(LOOK_SECONDS):
                raise LabError(self.lost or "")

    def why_lost(self) -> str | None:
        """Why one has ended, after waiting for a moment for that to be known."""
        self._seen.wait(GRACE_SECONDS)
        return self.lost

    def end(self) -> None:
        """End all that still run."""
        self._over.set()
        for process in self._processes:
            process.kill()
            process.wait()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if code == 0 or self._over.is_set():
            return
        self.lost = self.lost or self._sentence(rank, code)
        self._seen.set()
        if not self._over.wait(GRACE_SECONDS):  # it waits for a GPU, which waits for the other process
            end_stage(f"{self._shown(rank)}\n{self.lost}", self.lost)

    def _sentence(self, rank: int, code: int) -> str:
        """Why a process has ended: as it says itself, or by its exit code."""
        name = f"GPU process {rank + 1} of {self.count}"
        own = error(self.folder, rank)
        if own.exists():
            return f"{name}: {own.read_text('utf-8')}"
        how = f"was ended ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        last = next((line for line in reversed(self._shown(rank).splitlines()) if line.strip()), "")
        wrote = f"; its last line: {display.line(last)}" if last else ""
        return f"{name} {how}, and this training with it{wrote}; retry it."

    def _shown(self, rank: int) -> str:
        return log(self.folder, rank).read_text("utf-8", "replace")[-MOST_LOG:]

    def show(self) -> None:
        """Print the end of their logs into ours."""
        for rank in range(1, self.count):
            print(f"GPU process {rank + 1} of {self.count} wrote:\n{self._shown(rank)}", flush=True)


@contextmanager
def started(
    checkpoints: Path, gpus: Sequence[str], task: dict[str, Any], words: Sequence[str] = ENTRY
) -> Iterator[Further]:
    """Inside, a process runs for each GPU but the first, which is ours, with a folder that they share and the
    `task` in it. Raises LabError in place of what follows from the end of one of them.
    """
    folder = checkpoints / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    write_whole(folder / TASK, {**task, "count": len(gpus), "parent": os.getpid()})
    further = Further(folder, gpus, words)
    try:
        yield further
    except BaseException as error:
        lost = further.why_lost() if isinstance(error, Lost) else None
        further.show()
        if lost:
            raise LabError(lost) from error
        raise
    finally:
        further.end()
        shutil.rmtree(folder, ignore_errors=True)


def end_stage(text: str, reason: str) -> None:
    """End this process at once, as a stage that failed for that reason, from any thread."""
    print(text, file=sys.stderr, flush=True)
    events = settings.events_path()
    if events is not None:
        write_whole(events.parent / RESULT, {"status": FAILED, "error": reason})
    os._exit(1)


def log(folder: Path, rank: int) -> Path:
    """What a rank prints."""
    return folder / f"{rank}.log"


def ready(folder: Path, rank: int) -> Path:
    """Is there once a rank can compute."""
    return folder / f"{rank}.ready"


def error(folder: Path, rank: int) -> Path:
    """Why a rank has failed, as a sentence."""
    return folder / f"{rank}.error"
