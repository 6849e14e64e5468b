"""Kill -9 whatever is at work in a lab, again and again, and look at what is left: `make soak`.

python tests/survival/soak.py [--minutes 10] [--kills 20] [--seed N] [--home FOLDER]

The real web process, worker and stages, on a model so small that a run takes 20 seconds. After each kill only
the web process is started again; the rest has to come back by itself. Of each kind of kill there are so many
as asked for, even if the minutes are over then; there are more if they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from pipeline import settings  # noqa: E402
from pipeline.stages import events  # noqa: E402
from pipeline.store import Store  # noqa: E402
from pipeline.store.run import DONE, ENDED, QUEUED, RETRYABLE, RUNNING, Run  # noqa: E402
from pipeline.system import locks  # noqa: E402
from pipeline.worker.job import lives  # noqa: E402
from tests.helpers import tiny  # noqa: E402 - where they are is known only now
from tests.helpers.lab import processes  # noqa: E402
from tests.survival.watch import Watch  # noqa: E402

KINDS = ("web", "worker", "child", "warm", "all")
RECIPE: dict[str, Any] = {
    "quantize": {"algorithm": "rtn", "calibration_length": 64},
    "finetune": {"max_steps": 240, "max_length": 64, "r": 4},
    "optimize": {"precision": "int4"},
    "evaluate": {"prompts": 1, "max_new_tokens": 4},
}
CHECKPOINT_SECONDS = "0.2"
LONGEST_WAIT = 6.0  # seconds between a recovery and the next kill
LONGEST_RECOVERY = 300.0
LONGEST_RUN = 600.0
SHARED = 3  # each third run is one that was there already, under another name


@dataclass
class Kill:
    """One kill, and what came of it. `checkpoint` is the newest one left, `offset` the end of the events."""

    kind: str
    run: str
    stage: str
    queued: list[str]
    checkpoint: int | None = None
    offset: int = 0
    seconds: float = 0.0
    alone: bool = True  # it came back without being asked to
    resumed: int | None = None


@dataclass
class Soak:
    """A lab that works, and somebody who kills it."""

    home: Path
    seed: int
    say: Callable[[str], None] = print
    kills: list[Kill] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    web: subprocess.Popen[bytes] | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.home.mkdir(parents=True, exist_ok=True)
        self.store = Store(self.home)
        self.watch = Watch(self.store)
        model, data = self.home / "models" / "tiny", self.home / "rows.jsonl"  # where the page offers it
        tiny.build("llama", model)
        tiny.dataset(data, 16)
        self.recipe = self.home / "soak.yaml"
        self.recipe.write_text(
            yaml.safe_dump({"name": "s", "model": str(model), "data": str(data), **RECIPE})
        )

    def go(self, times: int, minutes: float = 0.0) -> None:
        """Kill `times` of each kind, and more until the minutes are over; then let all runs end and look."""
        over = time.monotonic() + 60 * minutes
        kinds: list[str] = []
        try:
            self.start_web()
            self.watch.start()
            while kinds or len(self.kills) < times * len(KINDS) or time.monotonic() < over:
                if not kinds:
                    kinds = list(KINDS)
                    self.dice.shuffle(kinds)
                self.keep_busy()
                pause(self.dice.uniform(0.3, LONGEST_WAIT))
                self.strike(kinds.pop())
            self.drain()
        finally:
            self.stop()
        self.watch.end()
        self.examine()

    def keep_busy(self) -> None:
        """See that one run waits behind the one at work."""
        while sum(run.status in (QUEUED, RUNNING) for run in self.store.list()) < 2:
            count = len(self.submitted)
            seed = count - 1 if count % SHARED == SHARED - 1 else count
            done = subprocess.run(
                [sys.executable, "-m", "pipeline", "submit", str(self.recipe),
                 "--set", f"seed={seed}", "--set", f"name=run-{count}"],
                cwd=ROOT, env=self.environment(), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            self.submitted.append(done.stdout.strip())

    def strike(self, kind: str) -> None:
        """Kill, note what was there, and wait until the lab has recovered."""
        self.keep_busy()
        first = kind == "child" and not any(kill.kind == "child" for kill in self.kills)
        wanted = "finetune" if first else ""  # the one with most to lose is struck in any case
        run, stage = self.wait(lambda: self.at_work(wanted), "a stage at work", LONGEST_RUN)
        queued = [run.id for run in self.store.list() if run.status == QUEUED]
        kill = Kill(kind, run, stage, queued)
        if kind == "warm":
            self.wait(self.warm, "a process that forks stages")
        began = time.monotonic()
        alive = {
            "web": self.web_pids, "worker": self.workers, "child": lambda: self.children(run, stage),
            "warm": self.warm,
            "all": lambda: [*self.workers(), *self.web_pids(), *processes(self.home)],
        }[kind]()  # fmt: skip
        for pid in alive:
            kill_nine(pid)
        self.wait(lambda: not set(alive) & set(processes(self.home)), "the end of what was killed")
        if kind in ("child", "all"):
            self.wait(lambda: not lives(self.store.folder(run, stage)), "the end of the killed stage")
            self.note_checkpoint(kill)
        self.recover(kill)
        kill.seconds = time.monotonic() - began
        self.kills.append(kill)
        self.say(
            f"{len(self.kills):4}  {kind:7} {stage:9} of {run}  checkpoint {kill.checkpoint}"
            f"  {kill.seconds:5.1f} s  {'by itself' if kill.alone else 'after a retry'}"
        )

    def note_checkpoint(self, kill: Kill) -> None:
        """Whether the killed stage left a checkpoint that its next attempt has to go on from."""
        folder = self.store.folder(kill.run, kill.stage)
        kill.offset = size(folder / "events.jsonl")
        left = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/checkpoint-*")]
        if left and not (folder / "result.json").exists():
            kill.checkpoint = max(left)

    def recover(self, kill: Kill) -> None:
        """Start what a machine's own start would, and wait until work goes on."""
        if kill.kind in ("web", "all"):
            self.start_web()
        self.wait(lambda: locks.held(self.home / "worker.lock"), "a worker")
        if kill.kind == "child":
            self.wait(lambda: self.left_alone(kill) or self.begun_again(kill), "a word on the killed stage")
        else:
            self.wait(lambda: self.left_alone(kill) or is_alive(self.store, kill.run), "work that goes on")
            for run in kill.queued:
                if self.store.get(run).status not in (QUEUED, RUNNING, DONE):
                    self.faults.append(f"{run} was queued, and is {self.store.get(run).status}")
        found = self.store.get(kill.run)
        if found.status in RETRYABLE:
            kill.alone = False
            if not found.current or not found.current.error:
                self.faults.append(f"{kill.run} is {found.status}, nobody says why")
            self.post(f"/runs/{kill.run}/retry")

    def left_alone(self, kill: Kill) -> bool:
        """Whether the struck run has ended, well or not."""
        return self.store.get(kill.run).status in ENDED

    def begun_again(self, kill: Kill) -> bool:
        """Whether the struck run goes on, because what was killed had done its work or was put back."""
        stage = self.store.get(kill.run).stage(kill.stage)
        return stage.status in (DONE, QUEUED) or is_alive(self.store, kill.run)

    def drain(self) -> None:
        """Let everything end."""
        for run in self.submitted:
            self.wait(lambda run=run: self.store.get(run).status in ENDED, f"the end of {run}", LONGEST_RUN)
        if left := list((self.home / "artifacts").glob("*.part")) + list(self.store.runs.glob("*/*/work")):
            self.faults.append(f"half-written: {left}")

    def examine(self) -> None:
        """Look at what is left of all runs."""
        self.faults += self.watch.faults
        found = {run.id: run for run in self.store.list()}
        self.faults += [f"{run} is lost" for run in self.submitted if run not in found]
        for run in found.values():
            if run.status != DONE:
                self.faults.append(f"{run.id} is {run.status}: {run.current and run.current.error}")
            for stage in run.stages:
                self.examine_events(run, stage.name)
        for kill in self.kills:
            self.examine_resumption(kill)

    def examine_events(self, run: Run, stage: str) -> None:
        """No more attempts than kills, no line torn but by a kill, and no step of a training left out."""
        path = self.store.folder(run.id, stage) / "events.jsonl"
        if not path.exists():
            return
        told, _ = events.read(path)
        struck = sum((k.run, k.stage) == (run.id, stage) and k.kind in ("child", "all") for k in self.kills)
        attempts = sum("attempt" in event for event in told)
        finished = sum(
            event.get("message") in ("Done", "Reused") and "eta_seconds" in event for event in told
        )
        torn = len(path.read_bytes().splitlines()) - len(told)
        if not 1 <= attempts <= 1 + struck or not 1 <= finished <= 1 + struck or torn > struck:
            self.faults.append(
                f"{run.id} {stage}: {attempts} attempts, finished {finished} times, {torn} torn lines after"
                f" {struck} kills"
            )
        step = 0
        for event in told:
            if "attempt" in event:
                step = 0
            step = event.get("resumed", step)
            if "loss" in event:
                if event["step"] != step + 1:
                    self.faults.append(f"{run.id} {stage}: step {event['step']} after step {step}")
                step = event["step"]

    def examine_resumption(self, kill: Kill) -> None:
        """Whether a checkpoint that was left has been gone on from."""
        if kill.checkpoint is None:
            return
        told, _ = events.read(self.store.folder(kill.run, kill.stage) / "events.jsonl", kill.offset)
        first = next((e for e in told if "resumed" in e or "loss" in e or e.get("message") == "Reused"), {})
        if first.get("message") == "Reused":  # it had kept its result before it was killed
            kill.checkpoint = None
            return
        kill.resumed = first.get("resumed")
        if kill.resumed is None or kill.resumed < kill.checkpoint:
            self.faults.append(f"{kill.run} began anew, though step {kill.checkpoint} was kept")

    # -- processes -----------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        return settings.child_environment(
            OLIVE_LAB_HOME=str(self.home), OLIVE_LAB_CHECKPOINT_SECONDS=CHECKPOINT_SECONDS
        )

    def start_web(self) -> None:
        if self.web is not None:
            self.web.wait()
        self.port = self.port or free_port()
        with (self.home / "web.log").open("ab") as log:
            self.web = subprocess.Popen(
                [sys.executable, "-m", "webapp", "--port", str(self.port)],
                cwd=ROOT, env=self.environment(), stdout=log, stderr=log,
            )  # fmt: skip
        self.wait(self.answers, "the page")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/lab/style.css", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def post(self, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=30) as reply:
            json.load(reply)

    def web_pids(self) -> list[int]:
        return [self.web.pid] if self.web else []

    def workers(self) -> list[int]:
        return [pid for pid in processes(self.home) if command(pid)[1:4] == ["-m", "pipeline", "worker"]]

    def warm(self) -> list[int]:
        """The process that has imported what stages need, or is about to; it has no words of a stage."""
        return [
            pid
            for pid in processes(self.home)
            if command(pid)[2:4] == ["pipeline.worker.stage_process", "--warm"]
        ]

    def children(self, run: str, stage: str) -> list[int]:
        """Processes that hold the stage's lock, but for a worker that is just handing it over."""
        lock = str(self.store.folder(run, stage) / "lock")
        children = [
            pid for pid in processes(self.home) if command(pid)[2:3] == ["pipeline.worker.stage_process"]
        ]
        return [pid for pid in children if has_open(pid, lock)]

    def at_work(self, wanted: str) -> tuple[str, str] | None:
        """The stage that is at work now, if it is the one that is wanted."""
        for run, stage, _ in self.store.running():
            if (
                stage.startswith(wanted)
                and lives(self.store.folder(run, stage))
                and self.children(run, stage)
            ):
                return run, stage
        return None

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = LONGEST_RECOVERY) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{what} did not come within {seconds:g} s; seed {self.seed}, {self.home}"
                )
            pause(0.05)
        return found

    def stop(self) -> None:
        for pid in processes(self.home):
            kill_nine(pid)
        if self.web is not None:
            self.web.wait()

    def table(self) -> str:
        """What came of the kills, a line a kind."""
        head = [
            "killed",
            "times",
            "by itself",
            "median s",
            "max s",
            "checkpoint left",
            "resumed",
        ]
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        for kind in KINDS:
            of = [kill for kill in self.kills if kill.kind == kind]
            seconds = [kill.seconds for kill in of] or [0.0]
            cells = [
                {"all": "all at once"}.get(kind, kind), len(of), sum(kill.alone for kill in of),
                f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}",
                sum(kill.checkpoint is not None for kill in of), sum(kill.resumed is not None for kill in of),
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append(f"\n{len(self.submitted)} runs, {self.watch.looks} looks, {len(self.faults)} violations")
        return "\n".join([*lines, *self.faults])


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def is_alive(store: Store, run: str) -> bool:
    return any(lives(store.folder(run, stage.name)) for stage in store.get(run).stages)


def kill_nine(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it was named twice, or has ended


def command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def has_open(pid: int, path: str) -> bool:
    try:
        return any(str(link.readlink()) == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # it has ended meanwhile, or closed a file


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=20, help="of each kind, at least")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--home", type=Path, help="an empty folder; it is kept (default: a temporary one)")
    args = parser.parse_args()
    home = (args.home or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    print(f"seed {args.seed}, {home}", flush=True)
    began = time.monotonic()
    soak = Soak(home, args.seed, lambda text: print(text, flush=True))
    soak.go(args.kills, args.minutes)
    print(f"\n{soak.table()}\n{(time.monotonic() - began) / 60:.1f} minutes, seed {args.seed}")
    if not soak.faults and args.home is None:
        shutil.rmtree(home)
    return bool(soak.faults)


if __name__ == "__main__":
    sys.exit(main())
