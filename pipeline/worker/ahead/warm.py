"""A process that has imported what all stages need, and forks one process for each stage.

Importing torch, transformers and Olive takes seconds, on slow machines half a minute, and each stage of a run
has its own process. The worker has one warm process for each device. It has no thread but its own and does
not start CUDA, because neither survives a fork. A fork becomes a child of the worker, with
the environment, the lock, the log and the mark of its stage, so what ends, adopts and measures stages need
not know how they were made.

It ends with the worker, when sources have changed, or when memory is short. A stage that cannot have a fork
is started as a process of its own, as the first one of a run often is.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.system import own_process
from pipeline.system.files import to_json
from pipeline.worker.ahead import forking

FLAG = "--warm"
READY = b"ready"
MOST_BYTES = 1 << 20  # of a message
ENOUGH_MEMORY = 4 << 30  # bytes that must be free to start one: it takes more than half a gigabyte
LEAST_MEMORY = 1 << 30  # bytes free, with fewer of which it ends
LOOK_SECONDS = 5.0  # between two looks at the memory
IMPORT_SECONDS = 300.0  # after which it is given up
FORK_SECONDS = 20.0  # without a fork after that time, the stage is started on its own
NICE = 5  # steps by which a process beside a stage gives way
MOST_STARTS = 3  # of processes that ended, one after another, before they were of any use
ALL = (
    "olive.workflows", "olive.engine", "olive.passes.pytorch.quant_utils", "transformers.masking_utils",
    "transformers.pipelines",
)  # fmt: skip
_OOM = Path("/proc/self/oom_score_adj")


@dataclass(frozen=True)
class Request:
    """What to fork a process for: a stage, and the environment that a process started for it would have."""

    run: str
    stage: str
    environment: dict[str, str]


class Refused(LabError):
    """There is no fork. `again`: another warm process may do better."""

    def __init__(self, why: str, again: bool) -> None:
        super().__init__(why)
        self.again = again


def without_bitsandbytes() -> None:
    """Hide bitsandbytes from this process: if it is installed, PEFT imports it, which takes seconds."""
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # makes the import fail


def serves(options: dict[str, Any]) -> bool:
    """Whether a process without bitsandbytes can run a stage with these options."""
    return options.get("method") != "qlora"


def affordable(beside: int = 0) -> bool:
    """Whether there is enough memory to import everything beside a stage, and for so many bytes more."""
    return _free_memory() > ENOUGH_MEMORY + beside


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def prepare(stage: str) -> None:
    """Import what a stage needs."""
    from pipeline.stages.all_stages import about  # not for the worker, which imports this module too
    from pipeline.stages.execute import import_torchmetrics

    import_torchmetrics()
    for module in (*ALL, *about(stage, "MODULES", ())):
        importlib.import_module(module)


def prepare_all() -> None:
    """Import what any stage needs."""
    from pipeline.stages.all_stages import STAGES

    without_bitsandbytes()
    for stage in STAGES:
        prepare(stage)


# -- the worker's side ----------------------------------------------------------------------------------


class Warm:
    """A warm process as the worker sees it."""

    def __init__(self, child: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start it with the environment of stages, but for what differs between them."""
        self.environment = _common(environment)
        self.began = time.monotonic()
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        task = {"channel": theirs.fileno(), "worker": os.getpid(), "sources": sources()}
        with theirs, log.open("ab") as output:
            self.process = own_process.start(
                [*child, FLAG, to_json(task), forking.ROOM],
                settings.roomy(self.environment),
                stdout=output,
                stderr=output,
                keep=[theirs.fileno()],
                apart=True,
            )
        self.channel.setblocking(False)
        self._ready = False

    def ready(self) -> bool:
        """Whether it has imported everything and still lives."""
        if not self._ready:
            with suppress(BlockingIOError, ConnectionError):
                self._ready = self.channel.recv(MOST_BYTES) == READY
        return self._ready and self.process.poll() is None

    def serves(self, environment: dict[str, str]) -> bool:
        """Whether it was started with that environment, apart from what differs between stages."""
        return _common(environment) == self.environment

    def fork(self, request: Request, lock: int, log: int) -> forking.Forked:
        """A process that carries out the stage, with its lock and log: a child of this one, in a session of
        its own. Raises Refused; a fork that there is then has the mark of the stage, or goes with `dismiss`.
        """
        self.channel.settimeout(FORK_SECONDS)
        try:
            with forking.adopting():
                socket.send_fds(self.channel, [to_json(asdict(request)).encode()], [lock, log])
                answer = self.channel.recv(MOST_BYTES)
        except OSError as error:  # it has just ended, or hangs
            raise Refused(sentence(error), again=True) from None
        if not answer:
            raise Refused("it has ended", again=True)
        facts = json.loads(answer)
        if "pid" not in facts:
            raise Refused(facts["refused"], facts["again"])
        try:
            os.waitid(os.P_PID, facts["pid"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise Refused("the system does not hand over its forks", again=False) from None
        return forking.Forked(facts["pid"])

    def dismiss(self) -> None:
        """End it, with what it is just forking."""
        self.channel.close()
        own_process.kill(self.process)
        self.process.wait()


def _common(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment that all stages on a device share."""
    apart = (settings.EVENTS, settings.TRAINING_GPUS)
    return {name: value for name, value in environment.items() if name not in apart}


class Shelf:
    """The worker's warm processes, at most one for each slot, and so device."""

    def __init__(self, child: Sequence[str], log: Path) -> None:
        self._child, self._log = child, log
        self._warm: dict[str, Warm] = {}
        self._useless: dict[str, int] = {}  # how many have ended since one was of use

    def start(self, slot: str, environment: dict[str, str]) -> None:
        """Start one for a slot unless there is one, memory is short, or it was of no use before."""
        self._look(slot)
        useless = self._useless.get(slot, 0)
        if slot in self._warm or useless >= MOST_STARTS or not settings.imports_ahead() or not affordable():
            return
        try:
            self._warm[slot] = Warm(self._child, environment, self._log)
        except (LabError, OSError) as error:
            print(f"Nothing is imported ahead of a stage: {sentence(error)}", flush=True)
            self._useless[slot] = useless + 1

    def importing(self, slot: str) -> bool:
        """Whether one is still importing: to wait for it is faster than to import again."""
        self._look(slot)
        return slot in self._warm and not self._warm[slot].ready()

    def fork(self, slot: str, request: Request, lock: int, log: int) -> forking.Forked | None:
        """A process for a stage from the one of that slot; None if the stage has to be started on its own.

        Then there may be one of it, which has its mark.
        """
        self._look(slot)
        warm = self._warm.get(slot)
        if warm is None or not warm.ready() or not warm.serves(request.environment):
            return None
        try:
            forked = warm.fork(request, lock, log)
        except Refused as refused:
            print(f"A stage is started on its own: {refused}", flush=True)
            self._drop(slot, 1 if refused.again else MOST_STARTS)
            return None
        self._useless[slot] = 0
        return forked

    def dismiss(self) -> None:
        """End all."""
        for slot in list(self._warm):
            self._warm.pop(slot).dismiss()

    def _look(self, slot: str) -> None:
        """Forget one that has ended, or does not come to an end with importing."""
        warm = self._warm.get(slot)
        if warm is None:
            return
        code = warm.process.poll()
        if code is not None:  # an import failed, or it was killed, or ended for want of memory
            self._drop(slot, MOST_STARTS if code > 0 else 1)
        elif not warm.ready() and time.monotonic() - warm.began > IMPORT_SECONDS:
            self._drop(slot, MOST_STARTS)

    def _drop(self, slot: str, useless: int) -> None:
        self._warm.pop(slot).dismiss()
        self._useless[slot] = self._useless.get(slot, 0) + useless

    def of(self, slot: str) -> Warm | None:
        """The one of a slot."""
        return self._warm.get(slot)


# -- whether it is what a process started now would be --------------------------------------------------


def sources() -> str:
    """A digest of when our source files were changed."""
    import hashlib

    facts = [(str(path), _state(path)) for path in sorted((settings.ROOT / "pipeline").rglob("*.py"))]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _packages() -> dict[str, tuple[int, int, int] | None]:
    """The states of what says which packages are installed."""
    found = {}
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 - a path for each takes long
                if name.endswith((".dist-info", ".egg-info", ".pth")):
                    found[os.path.join(folder, name)] = _state(os.path.join(folder, name))  # noqa: PTH118
    return found


def _modules() -> dict[str, tuple[int, int, int] | None]:
    """The states of all files that this process has imported."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {file: state for file in files if file and (state := _state(file))}


def _state(path: str | Path) -> tuple[int, int, int] | None:
    """What changes with a file; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of these
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# -- its own side ---------------------------------------------------------------------------------------


def serve(task: str, carry_out: Callable[[str, str], int], load: Callable[[], object] = prepare_all) -> int:
    """Load, then fork a process for each request, until the worker ends or this one has to.

    Returns the exit code: of this process, or in a fork that of `carry_out(run, stage)`.
    """
    facts = json.loads(task)
    own_process.end_with(facts["worker"])
    with socket.socket(fileno=facts["channel"]) as worker:
        importance = _end_first()
        packages = _packages()
        load()
        files = _modules()
        gc.collect()
        gc.freeze()  # what is never collected is not written to either, so forks share it
        with suppress(OSError):  # the worker has ended, so there is no request either
            worker.sendall(READY)
        while True:
            given = _request(worker)
            if given is None:
                return 0
            request, descriptors = given
            same = sources() == facts["sources"] and _packages() == packages
            same = same and all(_state(file) == state for file, state in files.items())
            answer = _refusal(same) or _fork(request, descriptors, importance)
            if not answer:
                break  # this is the fork
            for descriptor in descriptors:
                os.close(descriptor)
            with suppress(OSError):
                worker.sendall(to_json(answer).encode())
            if "pid" not in answer:
                return 0
    return carry_out(request.run, request.stage)


def _end_first() -> str:
    """Have the kernel end this process before others where memory runs out; returns what it was like."""
    before = _OOM.read_text()
    with suppress(OSError):  # some containers forbid it
        _OOM.write_text(f"{own_process.EXPENDABLE}\n")
    return before


def _request(worker: socket.socket) -> tuple[Request, list[int]] | None:
    """The next request, with the descriptors of the stage's lock and log; None if this process shall end."""
    while not select.select([worker], [], [], LOOK_SECONDS)[0]:
        if _free_memory() < LEAST_MEMORY:
            return None
    try:
        message, descriptors, _, _ = socket.recv_fds(worker, MOST_BYTES, 2)
    except ConnectionResetError:
        return None
    return (Request(**json.loads(message)), descriptors) if message else None


def _refusal(same: bool) -> dict[str, Any] | None:
    """Why this process should not fork, as an answer to the worker."""
    if forking.threads() > 1:
        return {"refused": "an import has started a thread", "again": False}
    if not same:
        return {"refused": "our sources or the packages have changed", "again": True}
    if _free_memory() < LEAST_MEMORY:
        return {"refused": "memory is short", "again": True}
    return None


def _fork(request: Request, descriptors: Sequence[int], importance: str) -> dict[str, Any]:
    """Fork a process for a stage that becomes a child of the worker; the answer for it, {} in the fork.

    A process in between forks it and ends; until it has its mark, it belongs to the group of this one.
    """
    hears, tells = os.pipe()
    between = os.fork()
    if not between:
        if os.fork():
            os._exit(0)
        os.close(hears)
        _begin(request, descriptors, importance, tells)
        return {}
    os.close(tells)
    os.waitpid(between, 0)
    with os.fdopen(hears, "rb") as pipe:
        answer = pipe.read()
    facts: dict[str, Any] = json.loads(answer or '{"refused": "a fork has ended at once", "again": true}')
    return facts


def _begin(request: Request, descriptors: Sequence[int], importance: str, tells: int) -> None:
    """Make a fork what a process started for the stage would be, and say so; ends it if that fails."""
    answer: dict[str, Any] = {"pid": os.getpid()}
    try:
        words = [request.run, request.stage]
        forking.rename(FLAG, words, f"{settings.EVENTS}={request.environment[settings.EVENTS]}")
        sys.argv[sys.argv.index(FLAG) :] = words
        os.setsid()
        settings.become(request.environment)
        if _OOM.read_text() != importance:
            _OOM.write_text(importance)
        _, log = descriptors  # the lock is held for as long as its descriptor is open
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.close(log)
        _be_itself()
    except Exception as error:
        answer = {"refused": sentence(error), "again": False}
    os.write(tells, to_json(answer).encode())
    os.close(tells)
    if "pid" not in answer:
        os._exit(1)


def _be_itself() -> None:
    """Draw what a process draws when libraries are loaded. Raises LabError if it could not use a GPU."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
        if torch.cuda._is_in_bad_fork():
            raise LabError("an import has started CUDA")


# -- in a process of a stage ----------------------------------------------------------------------------


def can_fork() -> bool:
    """Whether this process has imported what stages need, and has one thread."""
    return all(name in sys.modules for name in ALL) and forking.threads() == 1


def fork_trial(trial: Callable[[Path], int], scratch: Path) -> forking.Forked:
    """A process that carries out `trial(scratch)`, as one started for it would be; for one that `can_fork`.

    It ends at once, without what libraries and callers of this one wanted done at their end.
    """
    return _forked(lambda: trial(scratch), settings.local_environment())


def fork_beside(work: Callable[[], object], log: Path) -> forking.Forked:
    """A process that does `work` at the same time as this one its own; for one that `can_fork`.

    It writes what it says to `log` and no events, has no GPU and a process group of its own, gives way to
    others, is ended before them where memory runs out, and ends with this one at the latest.
    """
    parent = os.getpid()
    environment = settings.local_environment(CUDA_VISIBLE_DEVICES="", **{settings.EVENTS: ""})

    def beside() -> int:
        own_process.end_with(parent)
        _end_first()
        os.setpgid(0, 0)
        os.nice(NICE)
        with log.open("ab") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            os.dup2(output.fileno(), sys.stderr.fileno())
        work()
        return 0

    return _forked(beside, environment)


def _forked(work: Callable[[], int], environment: dict[str, str]) -> forking.Forked:
    """A fork of this process that does `work`, which returns its exit code, in an environment."""
    pid = os.fork()
    if pid:
        return forking.Forked(pid)
    code = 1
    try:
        forking.close_files()
        settings.become(environment)
        _be_itself()
        forking.use_all_cores()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
