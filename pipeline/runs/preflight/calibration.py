"""How fast this machine is: measured once, in well under a minute, when nothing else is queued or running.

`python -m pipeline.runs.preflight.calibration HOME` measures and writes `calibration.json` there. It is a
process of its own, nice to others, and at most one a home.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.stages.costs.machine import FILE, VERSION
from pipeline.store import Store
from pipeline.system import files, hardware, locks, own_process
from pipeline.system.peak_memory import memory_now

NICE = 10  # as other processes that nobody waits for
LOCK = "calibration.lock"
TOKENS, INPUTS, OUTPUTS = 512, 1024, 2816  # of the product that is timed: a layer of a small model
GPU_SCALE = 4  # larger by so much on a GPU, which a small product leaves idle
SECONDS = 0.6  # for each rate
MODULES = (
    "olive.workflows", "olive.engine", "olive.passes.pytorch.quant_utils", "transformers.masking_utils",
    "pipeline.passes.finetune.quant_lora",
)  # fmt: skip
WRITTEN = 64 << 20


def wanted(store: Store) -> bool:
    """Whether there is no calibration of this machine yet, and nothing is queued or running."""
    with suppress(OSError):
        if (store.home / FILE).is_file():
            return False
    return not store.queue() and not store.running()


def ensure(store: Store) -> bool:
    """Start a calibration in the background if one is `wanted`; return whether one was started."""
    process = _start(store) if wanted(store) else None
    _started[:] = [one for one in _started if one.poll() is None]
    if process is not None:
        _started.append(process)
    return process is not None


def now(store: Store) -> None:
    """Calibrate and wait for it, unless somebody else does so."""
    process = _start(store)
    if process is not None:
        process.wait()


def _start(store: Store) -> subprocess.Popen[bytes] | None:
    """The process that measures; None if there is one already."""
    held = locks.take(store.home / LOCK)
    if held is None:
        return None
    try:
        return own_process.start(
            ["-m", __name__, str(store.home)],
            settings.stage_environment(hardware.on_gpu(), OLIVE_LAB_HOME=str(store.home)),
            stdout=subprocess.DEVNULL,  # nobody reads what libraries say
            stderr=subprocess.DEVNULL,
            keep=[held],  # it holds the lock from the start
            apart=True,
        )
    finally:
        os.close(held)


_started: list[subprocess.Popen[bytes]] = []


def measure(home: Path) -> dict[str, Any]:
    """Measure this machine: what `machine.read` reads."""
    import importlib

    # Once in another process before: what is timed must not be the disk's first read of these files.
    words = ["-c", "\n".join(f"import {module}" for module in MODULES)]
    own_process.run(words, None, settings.child_environment())
    began = time.monotonic()
    for module in MODULES:
        importlib.import_module(module)
    import torch

    seconds = time.monotonic() - began
    rates, plain = _rates("cpu"), memory_now()
    found: dict[str, Any] = {"cpu": {**rates, "import_seconds": seconds, "import_bytes": plain}}
    found["cpu"]["native_bf16"] = bool(torch.cpu._is_amx_tile_supported())
    found["cpu"]["mixed_bf16"] = bool(torch.cpu._is_avx512_bf16_supported())
    common = {"copy": _copy(), "disk": _disk(home)}
    found["cpu"] |= common
    if torch.cuda.is_available():
        began = time.monotonic()
        rates = _rates("cuda")
        seconds += min(time.monotonic() - began, 2.0)
        found["gpu"] = {
            **rates,
            **common,
            "import_seconds": seconds,
            "import_bytes": memory_now(),
            "plain_bytes": plain,
            "plain_product": found["cpu"]["product_fp32"],
            "native_bf16": True,
        }
    return {"version": VERSION, "time": time.time(), **found}


def _rates(device: str) -> dict[str, float]:
    import torch

    scale = GPU_SCALE if device == "cuda" else 1
    flops = 2.0 * TOKENS * INPUTS * OUTPUTS * scale**3
    rates = {}
    for name, dtype in (("product_bf16", torch.bfloat16), ("product_fp32", torch.float32)):
        a = torch.randn(TOKENS * scale, INPUTS * scale, device=device, dtype=dtype)
        b = torch.randn(INPUTS * scale, OUTPUTS * scale, device=device, dtype=dtype)
        rates[name] = flops / _seconds(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    groups = torch.randn(1 << 12 if device == "cpu" else 1 << 20, 64, device=device)
    rates["elements"] = groups.numel() / _seconds(
        lambda: (groups / 0.1).add_(8.0).round_().clamp_(0, 15).sub_(8.0).mul_(0.1), device
    )
    small = torch.ones(8, device=device)
    rates["call_seconds"] = _seconds(lambda: small.add_(1.0), device, calls=1000)
    return rates


def _seconds(work: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds of one call: the mean over as many as fit into a moment, `calls` between looks at a clock."""
    import torch

    def turn() -> float:
        for _ in range(calls):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    turn()
    began = now = turn()
    turns = 0
    while now - began < SECONDS:
        now, turns = turn(), turns + 1
    return (now - began) / (turns * calls)


def _copy() -> float:
    """Bytes a second copied in main memory."""
    import torch

    source = torch.ones(1 << 24)
    target = torch.empty_like(source)
    return 4.0 * source.numel() / _seconds(lambda: target.copy_(source), "cpu")


def _disk(home: Path) -> float:
    """Bytes a second written to the home's disk, with what it takes until they are there."""
    path = home / f".calibration-{os.getpid()}"
    content = os.urandom(1 << 20)
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(WRITTEN >> 20):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)


def main(home: Path) -> int:
    """Measure, and keep what was found unless a run has come between: it would be slower than the machine."""
    with suppress(OSError):
        os.nice(NICE)
    found = measure(home)
    store = Store(home)
    if not store.queue() and not store.running():
        files.write_whole(home / FILE, found)
    return 0


if __name__ == "__main__":
    settings.quiet_this_process()
    sys.exit(main(Path(sys.argv[1])))
