"""An export's graph, built while its adapter is trained on a GPU: it is the same for any adapter.

A process forked from that of the training carries out the export without the adapter, and the optimize stage
adds the adapter to what it finds. If nothing is there, it builds the graph by itself, so what fails here
costs only time, and is reported where it fails again.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import sentence
from pipeline.stages import optimize
from pipeline.stages.events import emit
from pipeline.system import capacity, checksums, files, hardware
from pipeline.system.files import write_whole
from pipeline.worker.ahead import warm

TRAINING, EXPORT = "finetune", "optimize"  # the stages that this is about
FOLDER = "ahead"  # of what is built, in the training's folder
PART, OUTPUT, WORK, KEY, LOG = "ahead.part", "output", "work", "key", "log.txt"
LEAST_CORES = 4  # with fewer, training would wait for it
SHARE = 4  # times the checkpoint's size in memory, beside what must be free to import
MOST_SAID = 2000  # characters of its log that are shown where it failed
NOT_BUILT = "The export's graph was not built beside the training:\n{said}"
WAIT_SECONDS = 300.0  # after a training, for what would have to begin again otherwise


def wanted(options: Any, inputs: dict[str, Path]) -> bool:
    """Whether the export of a checkpoint with these options can be built beside the training."""
    checkpoint = inputs.get("checkpoint")
    if checkpoint is None or options is None or options.adapter == "merged" or not hardware.on_gpu():
        return False
    if (options.device, options.provider) != ("cpu", optimize.CPU) or hardware.cores() < LEAST_CORES:
        return False
    needed = SHARE * files.size(checkpoint)
    fits = capacity.memory() > needed + 2 * warm.ENOUGH_MEMORY  # a container may have less than is free
    return fits and warm.can_fork() and warm.affordable(beside=needed)


class Building:
    """The process that builds it. A context manager, whose end ends it and deletes what is incomplete."""

    def __init__(self, folder: Path, key: str, build: Callable[[Path, Path], object]) -> None:
        """Start in the folder of the training what `build(output, scratch)` does; `key` names the result.

        Raises OSError where no process can be started, or the disk is full.
        """
        self._part, self._made, self._key = folder / PART, folder / FOLDER, key
        for old in (self._part, self._made):
            shutil.rmtree(old, ignore_errors=True)
        self._part.mkdir(parents=True)
        self._process = warm.fork_beside(
            lambda: build(self._part / OUTPUT, self._part / WORK), self._part / LOG
        )

    def __enter__(self) -> Building:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._part, ignore_errors=True)

    def finish(self) -> bool:
        """Wait for it, and leave what it has made for `taken`; returns whether there is something."""
        if self._process.poll() is None:
            emit(message="Finishing the export's graph")
        said = ""
        try:
            if self._process.wait(WAIT_SECONDS) == 0:
                shutil.rmtree(self._part / WORK, ignore_errors=True)
                write_whole(self._part / KEY, self._key)
                self._part.replace(self._made)
                return True
            said = (self._part / LOG).read_text("utf-8", errors="replace")[-MOST_SAID:]
        except (OSError, subprocess.TimeoutExpired) as error:  # of a full disk, say
            said = sentence(error)
        print(NOT_BUILT.format(said=said), flush=True)
        return False


def taken(folder: Path, key: str, work: Path) -> Path | None:
    """Move what was built in the folder of a training into `work`; the exported folder there, or None if it
    is not of that key."""
    made = folder / FOLDER
    try:
        same = (made / KEY).read_text("utf-8") == key
        made.replace(work / FOLDER)
    except OSError:
        return None
    graph = work / FOLDER / OUTPUT / optimize.GRAPH
    weights = graph.with_name(f"{graph.name}.data")
    if not same or not graph.is_file() or not weights.is_file():
        return None
    checksums.begin(weights)  # which no pass changes any more
    return graph.parent


def forget(folder: Path) -> None:
    """Delete what was built in the folder of a training and not used."""
    for old in (PART, FOLDER):
        shutil.rmtree(folder / old, ignore_errors=True)
