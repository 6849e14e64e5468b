"""Processes for the worker's tests: stages that behave well or badly, and a worker that starts such stages.

`python tests/children.py BEHAVIOUR RUN STAGE` takes the place of `python -m pipeline.child RUN STAGE`.
None of them outlives a minute, whatever a test forgets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

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


def waits() -> None:
    """Until the test writes `go`."""
    ready()
    while not (folder() / "go").exists():
        threading.Event().wait(0.01)
    done()


def fails() -> None:
    write("result.json", {"status": "failed", "error": "The template has no response.", "seconds": 0.1})
    sys.exit(1)


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
    code = "import signal,sys;signal.signal(15,1);signal.alarm(60);print(flush=True);signal.pause()"
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
    code = "import signal,sys;signal.signal(15,1);signal.alarm(60);print(flush=True);signal.pause()"
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
        signal.alarm(60)
        os.write(tell, b".")
        forever()
    os.read(told, 1)
    ready(pid)
    while not (folder() / "go").exists():
        threading.Event().wait(0.01)
    done()
    os._exit(0)


def fills_the_disk() -> None:
    """The real child, with a stage that writes more than there is room for.

    If there shall be room for nothing, it writes outside its own folder, where nobody cleans up after it.
    """
    from pipeline import child, settings
    from pipeline.stages import Context, Results, execute

    def fill(stage: object, options: object, context: Context) -> Results:
        greedy = os.environ["GREEDY"] == "for nothing"
        with (settings.home() / "filler" if greedy else context.output / "weights").open("wb", 0) as file:
            for size in (65536, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)
            file.write(b"x")
        return Results([])

    execute.execute = fill
    sys.exit(child.main(sys.argv[2], sys.argv[3]))


def full_disk() -> None:
    """`full_disk HOME RECIPE`: queue a run, serve it while its stage fills the disk, say what came of it."""
    from pipeline import recipe, submit, worker
    from pipeline.errors import LabError
    from pipeline.store import Store

    home = Path(sys.argv[2])
    store = Store(home)
    worker.ensure = lambda home: None
    run = submit.submit(store, recipe.load(Path(sys.argv[3])))
    served = worker.Worker(store, child=[__file__, "fills_the_disk"])
    faults, status = set(), "queued"
    while status in ("queued", "running"):
        try:
            served.step()
            status = store.get(run).status
        except LabError as error:
            faults.add(str(error))
            (home / "filler").unlink(missing_ok=True)
        threading.Event().wait(0.02)
    parts = [path.name for path in (home / "artifacts").iterdir() if path.name != ".locks"]
    stage = store.get(run).stages[0]
    facts = {"status": stage.status, "error": stage.error, "parts": parts, "faults": sorted(faults)}
    print(json.dumps(facts))


def serve() -> None:
    from pipeline.store import Store
    from pipeline.worker import Worker

    _, _, home, behaviour, idle = sys.argv
    worker = Worker(Store(Path(home)), child=[__file__, behaviour])
    signal.signal(signal.SIGTERM, worker.stop)
    worker.serve(idle_seconds=float(idle))


def as_spare() -> None:
    """Wait as a spare does, without importing anything, then behave."""
    from pipeline import spare

    def carry_out(run: str, stage: str) -> int:
        sys.argv[2:] = [run, stage]
        globals()[sys.argv[1]]()
        return 0

    spare.ALL, spare.MODULES = (), {}
    sys.exit(spare.wait(sys.argv[3], int(sys.argv[4]), carry_out))


if __name__ == "__main__":
    signal.alarm(60)
    as_spare() if "--spare" in sys.argv else globals()[sys.argv[1]]()
