"""Processes for the worker's tests: stages that behave well or badly, and a worker that starts such stages.

`python tests/helpers/children.py BEHAVIOUR RUN STAGE` takes the place of the worker's
`python -m pipeline.worker.stage_process RUN STAGE`.
None of them outlives a minute, whatever a test forgets.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store import Store
    from pipeline.worker.loop import Worker

SIGN = "ready.json"  # written when the behaviour has begun: {"pids": [...]}


def folder() -> Path:
    return Path(os.environ["OLIVE_LAB_EVENTS"]).parent


def write(name: str, facts: dict[str, object]) -> None:
    part = folder() / f".{name}.part"
    part.write_text(json.dumps(facts))
    part.replace(folder() / name)


def ready(*pids: int) -> None:
    write("process.json", {"pid": os.getpid()})
    write(SIGN, {"pids": [os.getpid(), *pids]})


def forever() -> None:
    threading.Event().wait()


def done() -> None:
    write("result.json", {"status": "done", "seconds": 0.5, "metrics": {"stage": sys.argv[-1]}})


def finishes() -> None:
    print(f"working on {sys.argv[-1]}")
    done()


def fetches() -> None:
    """Into a temporary file, until it is killed."""
    file = Path(tempfile.mkdtemp()) / "half"
    file.write_text("half")
    write("half.json", {"file": str(file)})
    ignores_sigterm()


def waits() -> None:
    """Until the test writes `go`."""
    ready()
    while not (folder() / "go").exists():
        threading.Event().wait(0.01)
    done()


def trains_along() -> None:
    """The first of two processes of a training, which waits and does not see that the other one has ended."""
    from pipeline.passes.finetune import further

    further.GRACE_SECONDS = 0.2
    with further.started(folder(), ["0", "1"], {}, [__file__, "along"]) as others:
        others.meet()
        ready(*(process.pid for process in others._processes))
        forever()


def along() -> None:
    """The other one."""
    from pipeline.passes.finetune import further
    from pipeline.system import own_process

    shared = Path(sys.argv[2])
    own_process.end_with(json.loads((shared / further.TASK).read_text())["parent"])
    print("taking steps", flush=True)
    further.ready(shared, int(sys.argv[3])).touch()
    forever()


def never_exits() -> None:
    """Its result is written, and a thread that is no daemon keeps the process: some libraries have such."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=forever).start()
    ready()
    if not (folder() / "fails").exists():
        done()
    else:
        write("result.json", {"status": "failed", "error": "The template has no response.", "seconds": 0.1})


def fails() -> None:
    write("result.json", {"status": "failed", "error": "The template has no response.", "seconds": 0.1})
    sys.exit(1)


def reports_oddly() -> None:
    write("result.json", {"status": "failed", "unheard": 1})


def is_silent() -> None:
    sys.exit(0)


def has_no_room() -> None:
    sys.exit(28)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes() -> None:
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGABRT)


def ignores_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    forever()


def complains_when_ended() -> None:
    """Like a trainer whose loader was ended with it: it reports a failure of its own."""

    def complain(*_: object) -> None:
        write(
            "result.json", {"status": "failed", "error": "RuntimeError: a loader was killed", "seconds": 0.1}
        )
        sys.exit(1)

    signal.signal(signal.SIGTERM, complain)
    ready()
    forever()


def stubborn() -> subprocess.Popen[bytes]:
    """A process of the same group that ignores SIGTERM, and says when it does."""
    code = "import signal,sys;signal.signal(15,1);signal.alarm(200);print(flush=True);signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def has_grandchildren() -> None:
    """It ends at SIGTERM; what it has started does not."""
    ready(stubborn().pid)
    forever()


def leaves_grandchildren() -> None:
    """It ends well, but what it has started stays."""
    process = stubborn()
    ready(process.pid)
    done()
    os._exit(0)


def escapee() -> subprocess.Popen[bytes]:
    """A stubborn process with a session of its own, which no signal to the group reaches."""
    code = "import signal,sys;signal.signal(15,1);signal.alarm(200);print(flush=True);signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def has_an_escapee() -> None:
    ready(escapee().pid)
    while not (folder() / "go").exists():
        threading.Event().wait(0.01)
    done()
    os._exit(0)


def tells() -> None:
    """What it is, as it and others see it."""
    import resource

    status = Path("/proc/self/status").read_text().splitlines()
    wanted = ("Uid", "Gid", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp")
    limits = (getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
    print("to standard output")
    print("to standard error", file=sys.stderr)
    metrics = {
        "parent": os.getppid(),
        "own": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "folder": str(Path.cwd()),
        "umask": os.umask(0o077),
        "environment": dict(os.environ),
        "words": sys.argv,
        "files": sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()),
        "limits": [resource.getrlimit(limit) for limit in limits],
        "status": [line for line in status if line.startswith(wanted)],
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "nice": os.nice(0),
        "cores": sorted(os.sched_getaffinity(0)),
        "streams": [sys.stdout.isatty(), sys.stdout.write_through, sys.stderr.encoding],
    }
    write("result.json", {"status": "done", "seconds": 0.5, "metrics": metrics})


def measures() -> None:
    """Its peak of memory."""
    from pipeline.system import peak_memory

    with peak_memory.GroupPeak() as peak:
        pass
    write("result.json", {"status": "done", "seconds": 0.5, "metrics": {"peak": peak.bytes()}})


def takes_all_memory() -> None:
    """In the cgroup that CGROUP names, which has little; the kernel ends it then."""
    (Path(os.environ["CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
    ready()
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))


def forks() -> None:
    """A forked process, which holds the stage's lock too, outlives it."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(200)
        os.write(tell, b".")
        forever()
    os.read(told, 1)
    ready(pid)
    while not (folder() / "go").exists():
        threading.Event().wait(0.01)
    done()
    os._exit(0)


def fill(file: Path) -> None:
    """Write until the disk takes not one byte more, and fail with that."""
    with file.open("wb", 0) as filled:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while True:
                    filled.write(b"x" * size)
        filled.write(b"x")


def keep_full(filler: Path) -> None:
    """Take whatever room there is, again and again."""
    while not threading.Event().wait(0.0005):
        with suppress(OSError), filler.open("ab", 0) as file:
            file.write(b"x" * 4096)


def fills_the_disk() -> None:
    """The real child; the stage that FULL names writes more than there is room for, others write a little.

    If there shall be room for nothing (GREEDY), it writes outside its own folder, where nobody cleans up.
    """
    from pipeline import settings
    from pipeline.stages import execute
    from pipeline.stages.context import Artifact, Context, Results
    from pipeline.system import files
    from pipeline.worker import probe, stage_process

    filler, greedy = settings.home() / "filler", os.environ["GREEDY"] == "for nothing"
    full = sys.argv[3] == os.environ["FULL"]

    def work(stage: ModuleType, options: object, context: Context) -> Results:
        if full:
            fill(filler if greedy else context.output / "weights")
        (context.output / "made").write_text(sys.argv[3])
        return Results([Artifact("made", KINDS[sys.argv[3]], context.output / "made")])

    execute.execute = work
    probe.require = lambda *_: None
    files.KEPT_FREE = -(1 << 40)  # so that the disk itself refuses
    if full and sys.argv[3] == "publish":  # which copies more than this leaves
        free = os.statvfs(settings.home()).f_bavail * os.statvfs(settings.home()).f_frsize
        with suppress(OSError), filler.open("wb", 0) as file:
            file.write(b"x" * (free - (0 if greedy else 1 << 17)))
        if greedy:  # others, such as a backup that ends, may free some of it
            threading.Thread(target=keep_full, args=(filler,), daemon=True).start()
    sys.exit(stage_process.main(sys.argv[2], sys.argv[3]))


KINDS = {
    "quantize": "checkpoint",
    "finetune": "adapter",
    "optimize": "onnx",
    "evaluate": "answers",
    "score": "score",
}


def full_disk() -> None:
    """`full_disk HOME RECIPE`: queue a run, serve it while a stage of it fills the disk, make room, retry.

    Says what came of it.
    """
    from pipeline.runs import submit
    from pipeline.runs.preflight import fitting
    from pipeline.stages import recipe
    from pipeline.store import Store
    from pipeline.system import files
    from pipeline.worker import loop

    home, stage = Path(sys.argv[2]), os.environ["FULL"]
    store = Store(home)
    loop.ensure = lambda home: None
    files.KEPT_FREE = fitting.KEPT_FREE = 0  # the disk of the test is a small one
    if stage == "publish":
        run = exported(store)
        store.add_publish(run, {"to": "local", "name": "trips"})
    else:
        run = submit.submit(store, recipe.load(Path(sys.argv[3]), ["score.rows=8"]))
    served = loop.Worker(store, child=[__file__, "fills_the_disk"])
    faults = served_to_end(served, run, stage)
    found = store.get(run).stage(stage)
    half = [
        str(path)
        for pattern in ("artifacts/*.part", "runs/*/*/work", "registry/*/.*")
        for path in home.glob(pattern)
    ]
    facts = {"status": found.status, "error": found.error, "half": half, "faults": sorted(faults)}
    (home / "filler").unlink(missing_ok=True)
    os.environ["FULL"] = "none"
    if stage == "publish":
        stage = store.add_publish(run, {"to": "local", "name": "trips"})
    else:
        store.retry(run)
    served_to_end(served, run, stage)
    found = store.get(run)
    print(json.dumps({**facts, "retried": found.stage(stage).status, "run": found.status}))


def served_to_end(served: Worker, run: str, stage: str) -> set[str]:
    """Step until the stage, and without a fault of its own the run, has ended; return the worker's faults."""
    from pipeline.errors import LabError
    from pipeline.store.run import ENDED

    faults: set[str] = set()
    ended = False
    while not ended:
        try:
            served.step()
            found = served.store.get(run)
            ended = found.status in ENDED and found.stage(stage).status in ENDED
        except LabError as error:
            faults.add(str(error))
            (served.store.home / "filler").unlink(missing_ok=True)
        threading.Event().wait(0.02)
    return faults


def exported(store: Store) -> str:
    """A finished run with a small export that really answers."""
    from pipeline.system import checksums
    from tests.helpers import exports
    from tests.helpers.planted import finish_all, plant

    folder = exports.write(store.home / "artifacts" / "optimize-0123456789abcdef" / "model")
    (folder / "vocab.txt").write_bytes(b"words " * 50_000)
    checksums.write(folder)
    artifact = {"name": "model", "kind": "onnx", "path": str(folder), "bytes": 50_000}
    return finish_all(store, plant(store), {"optimize": {"artifacts": [artifact]}}).id


def serve() -> None:
    from pipeline.store import Store
    from pipeline.worker.loop import Worker

    _, _, home, behaviour, idle, *ahead = sys.argv
    worker = Worker(Store(Path(home)), child=[__file__, behaviour])
    signal.signal(signal.SIGTERM, worker.stop)
    worker.serve(idle_seconds=float(idle), ahead=bool(ahead))


def as_warm() -> None:
    """Fork stages as a warm process does, without importing anything; each behaves."""
    from pipeline.worker.ahead import warm

    behaviour = sys.argv[1]

    def carry_out(run: str, stage: str) -> int:
        signal.alarm(200)  # which forks do not inherit
        globals()[behaviour]()
        return 0

    sys.exit(warm.serve(sys.argv[3], carry_out, IMPORTS[os.environ.get("IMPORTS", "nothing")]))


def fail_to_import() -> None:
    raise ImportError("no such library")


def import_when_told() -> None:
    while not (Path(os.environ["OLIVE_LAB_HOME"]) / "import").exists():
        threading.Event().wait(0.01)


def take_and_let_go() -> None:
    taken = bytearray(400 << 20)
    taken[::4096] = b"x" * len(taken[::4096])


def need_all_memory() -> None:
    from pipeline.worker.ahead import warm

    warm.LEAST_MEMORY, warm.LOOK_SECONDS = 1 << 60, 0.01


SOME = "some_library"  # that a test has made
IMPORTS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "a thread": lambda: threading.Thread(target=forever, daemon=True).start(),
    "for ever": forever,
    "in vain": fail_to_import,
    "when told": import_when_told,
    "a module": lambda: importlib.import_module(SOME),
    "much and lets it go": take_and_let_go,
    "all memory": need_all_memory,
}


if __name__ == "__main__":
    signal.alarm(200)
    as_warm() if "--warm" in sys.argv else globals()[sys.argv[1]]()
