"""How fast a machine is, as its calibration found it: what predictions of time and memory are scaled by."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2  # of what a calibration measures
FILE = "calibration.json"  # in the home
GPU_TRAFFIC = 32.0  # bytes that a GPU moves for each number that it rounds


@dataclass(frozen=True)
class Machine:
    """What a calibration measured; rates are per second, `*_bytes` are resident bytes of a process.

    product_bf16, product_fp32   multiplications and additions of matrix products, in either type
    elements                     float32 numbers divided, rounded and clamped, as quantization does
    copy                         bytes copied in main memory
    disk                         bytes written and synced in the home
    call_seconds                 a small operation of PyTorch
    import_seconds, import_bytes a stage's libraries, loaded (on a GPU with CUDA, which has computed once)
    plain_bytes                  the same without CUDA, for stages that compute on the processor; 0: no less
    plain_product                float32 products of the processor beside a GPU; 0: as product_fp32
    native_bf16                  whether training chooses bfloat16 by itself
    mixed_bf16                   whether, where not, it chooses it for products alone
    gpu                          whether all this is of a GPU, but for copy and disk
    """

    product_bf16: float = 300e9
    product_fp32: float = 80e9
    elements: float = 250e6
    copy: float = 5e9
    disk: float = 200e6
    call_seconds: float = 12e-6
    import_seconds: float = 8.0
    import_bytes: float = 620e6
    plain_bytes: float = 0.0
    plain_product: float = 0.0
    native_bf16: bool = True
    mixed_bf16: bool = False
    gpu: bool = False
    measured: bool = False  # False: these are the numbers of some other machine

    def product(self, dtype: str) -> float:
        """Multiplications and additions a second in a type."""
        return self.product_bf16 if dtype in ("bfloat16", "mixed") else self.product_fp32

    @property
    def on_processor(self) -> float:
        """Float32 multiplications and additions a second of the processor."""
        return self.plain_product or self.product_fp32

    @property
    def traffic(self) -> float:
        """Bytes a second that simple operations read and write where training computes."""
        return GPU_TRAFFIC * self.elements if self.gpu else self.copy

    @property
    def libraries(self) -> float:
        """Bytes of a process that has imported a stage's libraries and computes on the processor."""
        return self.plain_bytes or self.import_bytes


# Where there is a GPU and no calibration yet: an H100's.
GPU = Machine(
    product_bf16=400e12, product_fp32=45e12, elements=40e9, copy=8e9, disk=500e6, call_seconds=10e-6,
    import_seconds=20.0, import_bytes=1.6e9, plain_bytes=1.0e9,
    plain_product=600e9, gpu=True,
)  # fmt: skip


def read(home: Path, gpu: bool) -> Machine:
    """The calibration kept in a home; numbers of some other machine where there is none, or an old one."""
    assumed = GPU if gpu else Machine()
    try:
        found = json.loads((home / FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return assumed
    if not isinstance(found, dict) or found.get("version") != VERSION:
        return assumed
    return parsed(found.get("gpu" if gpu else "cpu"), assumed)


def parsed(given: Any, assumed: Machine) -> Machine:
    """A calibration read from its file; `assumed` replaces anything that is not a positive number."""
    if not isinstance(given, Mapping):
        return assumed
    found: dict[str, Any] = {"measured": True}
    for known in dataclasses.fields(Machine):
        value: Any = given.get(known.name)
        if (known.type == "float" and _positive(value)) or (
            known.type == "bool" and known.name.endswith("_bf16") and value in (True, False)
        ):
            found[known.name] = value
    return dataclasses.replace(assumed, **found)


def _positive(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )
