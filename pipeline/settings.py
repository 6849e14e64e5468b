"""The only place that reads the environment."""

from __future__ import annotations

import getpass
import math
import os
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from pipeline import display, home_check
from pipeline.errors import InputError

ROOT = (
    Path(__file__).resolve().parent.parent
)  # where our packages are: a checkout, or where a wheel is installed
_PACKAGED = ROOT / "pipeline" / "samples"  # exists only where a wheel is installed
INSTALLED = _PACKAGED.is_dir()
SAMPLES = _PACKAGED if INSTALLED else ROOT / "data" / "samples"
COMMAND = "olive-lab"  # what a wheel installs
LARGEST = 1_000_000_000  # number that a variable may have

# No telemetry: Gradio, Olive and the Hub each have their own switch.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # what a hub wants to be said as a warning is not ours to say
    "OLIVE_DISABLE_TELEMETRY": "1",
    # Olive 0.13 sends a message with a device id before it reads that switch, and without a network waits ten
    # seconds for an answer at exit. On what it takes for a build server it sends nothing.
    "BUILDKITE": "olive-lab",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # its progress bars would fill the log; progress goes through events
    "PYTHONWARNINGS": "ignore::FutureWarning",  # warnings from libraries to their developers
    # An allocator that Arrow has and does not use starts a thread, and where it may not, tries again for each
    # block: its lines filled the page's log with ten megabytes a second.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
# Threads that wait for each other spin only briefly before they sleep. Spinning longer gains nothing on an
# idle machine, and next to two busy processes it made training ten times as slow.
SHARING = {"GOMP_SPINCOUNT": "10000"}
# What a stage is started with on a CPU. glibc keeps freed blocks of up to 32 MiB in heaps, as holes that the
# next ones do not fit into: a step with checkpointing took 2.22 and 2.36 GB. A block of this size and more is
# mapped by itself and given back at once: 1.37 and 1.41 GB. Its pages are new each time, which takes a tenth
# of the time of small models, so PyTorch asks for large ones: see "preflight" in benchmarks/RESULTS.md.
EVEN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
    "THP_MEM_ALLOC_ENABLE": "1",
}  # fmt: skip
# For a process that forks, see `worker/ahead/warm.py`. OpenBLAS starts threads when it is loaded. And PyTorch
# finds out without CUDA if there is a GPU.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
EVENTS = "OLIVE_LAB_EVENTS"  # names the events file of a stage, and so marks its processes
TRAINING_GPUS = "OLIVE_LAB_TRAINING_GPUS"  # with commas between them, for a training that uses several
ROOM = "OLIVE_LAB_ROOM"  # a variable whose place in memory another one takes
_ROOM_BYTES = 8192  # a path has up to 4096, and characters up to four bytes
# Variables that a process needs to compute: paths, the GPU, the number of threads. An allow list of prefixes,
# because an unknown variable may hold a secret.
_LOCAL = (
    "CONDA_", "CUDA", "CUDNN_", "GOMP_", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HOME", "KMP_", "LANG",
    "LC_", "LD_", "MALLOC_", "MKL_", "NCCL_", "NUMEXPR_", "NVIDIA_", "OLIVE_LAB_", "OMP_", "OPENBLAS_", "ORT",
    "PATH", "PYTHON", "PYTORCH_", "TEMP", "TMP", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TRITON_", "TZ",
    "USER", "VIRTUAL_ENV", "XDG_",
)  # fmt: skip
# Of ours, which no process that reads a model gets: two secrets, and the GPUs, which a trial does not use.
_KEPT_BACK = ("OLIVE_LAB_WEBHOOK", "OLIVE_LAB_SERVE_TOKEN", TRAINING_GPUS)
# How names of variables end that hold a login, whatever they start with: NVIDIA_API_KEY is one.
_LOGINS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")
# Variables that say where software is, and where libraries keep what they have compiled.
_SOFTWARE = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")
_COMPILED = {"TRITON_CACHE_DIR": ".triton", "TRITON_HOME": ".triton", "CUDA_CACHE_PATH": ".nv"}
# After each event Gradio would sum up all past ones, for a dashboard that we don't show.
GRADIO = {
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_RUN_HISTORY": "False",
}


def home() -> Path:
    """The folder of everything that is kept (`OLIVE_LAB_HOME`, default `data/` of a checkout, the user's data
    folder where the lab is installed), made if missing. It must belong to who runs the
    lab, and others may not write to it.

    Raises InputError if it cannot be made, is not so, or its file system cannot hold a lab; and, because
    everything starts here, for a variable that is not a number.
    """
    max_upload_bytes(), checkpoint_seconds(), exit_seconds()
    path = home_path()
    try:
        path = path.expanduser()
    except RuntimeError:
        raise InputError(f"OLIVE_LAB_HOME: this user has no home folder for {path}; name another") from None
    try:
        path = path.resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except RuntimeError:
        raise InputError(f"OLIVE_LAB_HOME: {path} is a link to itself; name a folder") from None
    except OSError as error:
        raise InputError(f"OLIVE_LAB_HOME: {path} cannot be made a folder ({error.strerror})") from None
    home_check.need(path)
    return path


def _default_home() -> Path:
    if not INSTALLED:
        return ROOT / "data"
    import platformdirs

    return Path(platformdirs.user_data_dir("olive-lab", appauthor=False))


def call_it(command: str) -> None:
    """Remember the command that started us, for hints of this process and those it starts."""
    os.environ["OLIVE_LAB_COMMAND"] = command


def command() -> str:
    """How the verbs are called here, for hints: `olive-lab` or `python -m pipeline`."""
    return os.environ.get("OLIVE_LAB_COMMAND") or "python -m pipeline"


def page_command() -> str:
    """How the page is started here: `olive-lab app` or `python -m webapp`."""
    return f"{COMMAND} app" if command() == COMMAND else "python -m webapp"


def events_path() -> Path | None:
    """The events file of the stage this process runs, or None outside a stage."""
    value = os.environ.get(EVENTS)
    return Path(value) if value else None


def report_to(path: Path) -> None:
    """Make `path` this process's events file."""
    os.environ[EVENTS] = str(path)


def training_gpus() -> list[str]:
    """The GPUs of this process's training, by their numbers (the worker sets it); [] where it uses one."""
    return [number for number in os.environ.get(TRAINING_GPUS, "").split(",") if number]


def rank_environment(gpu: str) -> dict[str, str]:
    """The environment of a process that trains along with this one, on that GPU."""
    return child_environment(CUDA_VISIBLE_DEVICES=gpu, **{TRAINING_GPUS: ""})


def user() -> str:
    """Whose runs the command line starts (`OLIVE_LAB_USER`, default the name of the system's user)."""
    try:
        return os.environ.get("OLIVE_LAB_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number and no name
        return ""


def webhook() -> str | None:
    """The address that gets JSON with a `text` when a run ends (`OLIVE_LAB_WEBHOOK`). May hold a secret."""
    return os.environ.get("OLIVE_LAB_WEBHOOK") or None


def serve_token() -> str | None:
    """The token that `serve` asks its clients for (`OLIVE_LAB_SERVE_TOKEN`, default a new one each time)."""
    return os.environ.get("OLIVE_LAB_SERVE_TOKEN") or None


def azure_identity() -> str | None:
    """The managed identity to use where this machine has several (`AZURE_CLIENT_ID`).

    Compute instances set `DEFAULT_IDENTITY_CLIENT_ID` themselves.
    """
    return os.environ.get("AZURE_CLIENT_ID") or os.environ.get("DEFAULT_IDENTITY_CLIENT_ID") or None


def azure_authority() -> str | None:
    """Where to log in to Azure if that is not Microsoft's public cloud (`AZURE_AUTHORITY_HOST`)."""
    return os.environ.get("AZURE_AUTHORITY_HOST") or None


def foundry_local() -> Path | None:
    """Where Foundry Local's package is installed, made if missing (`OLIVE_LAB_FOUNDRY_LOCAL`, default where
    `make install` puts it, else under the home).
    """
    given = os.environ.get("OLIVE_LAB_FOUNDRY_LOCAL")
    return Path(given).expanduser().absolute() if given else None


def max_upload_bytes() -> int:
    """The largest dataset a browser may upload, in MB (`OLIVE_LAB_MAX_UPLOAD_MB`, default 512).

    Raises InputError, as do the two below, for anything but a number of at least 0.
    """
    return int(_number("OLIVE_LAB_MAX_UPLOAD_MB", 512) * 1024 * 1024)


def checkpoint_seconds() -> float:
    """Least seconds between two checkpoints of a training (`OLIVE_LAB_CHECKPOINT_SECONDS`, default 20).

    A crash can cost that much work. Lower it on machines that are often taken away.
    """
    return _number("OLIVE_LAB_CHECKPOINT_SECONDS", 20)


def exit_seconds() -> float:
    """Seconds a stage may take to exit once its result is written (`OLIVE_LAB_EXIT_SECONDS`, default 30).

    After that its processes are killed and the result counts: a library's thread may prevent the exit.
    """
    return _number("OLIVE_LAB_EXIT_SECONDS", 30)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= LARGEST:  # NaN compares false with everything
        raise InputError(
            f"{name}: {display.value(text)} is not allowed; allowed: a number from 0 to {LARGEST:,}"
        )
    return number


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a process of ours: importable from anywhere, quiet, unbuffered."""
    return {**SHARING, **os.environ, **QUIET, **_import_path(), "PYTHONUNBUFFERED": "1", **extra}


def stage_environment(on_gpu: bool, **extra: str) -> dict[str, str]:
    """The environment of a process that carries out a stage, on a GPU or not. What the user has set stays."""
    return {**({} if on_gpu else EVEN_MEMORY), **child_environment(**extra)}


def roomy(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that imports much and then forks others, which `become` what they are."""
    return {**environment, **_ONE_THREAD, ROOM: "-" * _ROOM_BYTES}


def become(environment: Mapping[str, str]) -> None:
    """Have this process's variables be these and no others."""
    os.environ.clear()
    os.environ.update(environment)


def blas_threads() -> int:
    """How many threads the user wants OpenBLAS to have; 0 if that was not said."""
    names = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # in its own order
    given = next((value for name in names if (value := os.environ.get(name))), "")
    return int(given) if given.isascii() and given.isdigit() else 0


def imports_ahead() -> bool:
    """Whether a process with all libraries loaded waits for runs (`OLIVE_LAB_AHEAD`, default 1).

    It takes 600 MB, and a stage forked from it starts at once. With 0 each stage loads them itself.
    """
    return os.environ.get("OLIVE_LAB_AHEAD") != "0"


def _import_path() -> dict[str, str]:
    """What makes our packages importable, whatever folder a process runs in.

    Installed packages are found anyway. If their folder came first, as a path or as the current folder, an
    old backport in it, such as `pathlib`, would replace the standard module.
    """
    if ROOT in {Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())}:
        return {"PYTHONSAFEPATH": "1"}
    given = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), given) if path)}


def local_environment(**extra: str) -> dict[str, str]:
    """The environment of a process of ours that reads a model and needs no login: without secrets."""
    kept = {name: value for name, value in child_environment(**extra).items() if _is_local(name)}
    return {**SHARING, **kept, **QUIET}


def _is_local(name: str) -> bool:
    return name.startswith(_LOCAL) and name not in _KEPT_BACK and not name.upper().endswith(_LOGINS)


def computes_with(name: str) -> bool:
    """Whether a process that only computes may know the variable of this name."""
    return _is_local(name) or name in {*EVEN_MEMORY, *SHARING, *QUIET, TRAINING_GPUS}


def forget_secrets() -> None:
    """Take from this process's environment what one that only computes does not need."""
    for name in [name for name in os.environ if not computes_with(name)]:
        del os.environ[name]


def stay_offline() -> None:
    """Switch the hub's client off: it reads this when it is imported, also in processes that are started."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def bare_environment() -> dict[str, str]:
    """The environment of a process of ours that needs neither paths nor secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH",
            "PYTHONSAFEPATH", "TZ", *QUIET)  # fmt: skip
    return {name: value for name, value in child_environment().items() if name in kept}


def quiet_this_process() -> None:
    """Switch telemetry off, before any library that has some is imported."""
    os.environ.update(QUIET)


def uploads() -> Path:
    """Where Gradio puts what a browser sends. The app empties it at its start, so nobody else may use it.

    Raises InputError for a link, which uploads are not read through, and for a file.
    """
    path = home() / ".gradio-uploads"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink() or not path.is_dir():
        raise InputError(f"{path} must be a folder, and no link; remove it, and start again.")
    return path


@contextmanager
def importing_gradio() -> Iterator[None]:
    """Import Gradio inside: quiet, its uploads in the home, and the Hub's client unable to call out.

    The client reads its switch when it is imported. The switch is reset afterwards, because our other
    processes may download a model.
    """
    os.environ.update({**QUIET, **GRADIO, "GRADIO_TEMP_DIR": str(uploads())})
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with gradio_without_stubs():
            yield
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def readable() -> list[Path]:
    """Folders that runs may read besides the model's, the home's and the system's, with colons between them
    (`OLIVE_LAB_READABLE`, default none), as for drivers in a place of their own.
    """
    return _paths("OLIVE_LAB_READABLE")


def software() -> list[Path]:
    """Where drivers and libraries that compute are, if variables say so."""
    return [path for name in _SOFTWARE for path in _paths(name)]


def compiled() -> list[Path]:
    """Where libraries that compute keep what they have compiled."""
    return [path for name, usual in _COMPILED.items() for path in _paths(name) or [person() / usual]]


def person() -> Path:
    """The home folder of whose processes these are; / where there is none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def home_path() -> Path:
    """Where `home` is, without looking whether it is there or can be made."""
    return Path(os.environ.get("OLIVE_LAB_HOME") or _default_home())


def _paths(variable: str) -> list[Path]:
    """The absolute ones of the paths in a variable."""
    given = map(Path, os.environ.get(variable, "").split(os.pathsep))
    return [path for path in given if path.is_absolute()]


def public_only() -> bool:
    """Whether private models of the hub are refused (`OLIVE_LAB_PUBLIC_ONLY`, default 0). The app sets it for
    the processes that answer its page.
    """
    return os.environ.get("OLIVE_LAB_PUBLIC_ONLY") == "1"


SCRATCH = "OLIVE_LAB_SCRATCH"


def scratch() -> Path | None:
    """The folder that whoever started this process removes after it (`store.scratch`), if it has one."""
    given = os.environ.get(SCRATCH)
    return Path(given) if given else None


def secret(variable: str) -> str | None:
    """What a variable holds that the operator has named, such as the key of a judge's endpoint."""
    return os.environ.get(variable) or None


@contextmanager
def gradio_without_stubs() -> Iterator[None]:
    """Import Gradio inside in half the time: it does not renew its files for type checkers.

    Otherwise it parses the source of each of its components twice and compares the result with the stub
    beside it, which its package brings along anyway.
    """
    sys.meta_path.insert(0, _StublessFinder)
    try:
        yield
    finally:
        sys.meta_path.remove(_StublessFinder)


class _StublessFinder:
    """Finds the module with which Gradio writes stubs, and nothing else."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "gradio.component_meta":
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _StublessLoader(name, spec.origin)
        return spec


class _StublessLoader(SourceFileLoader):
    """Loads that module so that it writes none."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        setattr(module, "create_or_modify_pyi", lambda *_: None)  # noqa: B010 - unknown to mypy


def visible_gpus() -> str | None:
    """Which GPUs this user may use, with commas between them (`CUDA_VISIBLE_DEVICES`, default all)."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def compute_on(device: str) -> None:
    """Have this process, and those it starts, see one GPU alone; `device` is as in `hardware.devices`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")


def keep_private() -> None:
    """Make files that this process writes readable by their user only."""
    os.umask(0o077)


def python() -> str:
    """The interpreter that runs our own processes."""
    return sys.executable
