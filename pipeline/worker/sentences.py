"""Errors for stages that ended without reporting one themselves."""

from __future__ import annotations

import errno
import os
import signal

from pipeline import display
from pipeline.errors import ANY_SMALLER, sentence


def death(stage: str, code: int | None, killed_for_memory: bool | None, taken_bytes: int) -> str:
    """The error of a stage that ended without a result.

    `code` is its exit code, None if another worker started it; `killed_for_memory` is None if unknown.
    """
    from pipeline.stages.all_stages import (
        about,
    )  # imported late, because `ensure` imports this module but needs no stages

    if code == -signal.SIGKILL and killed_for_memory is False:
        return "Somebody, or another program, killed this stage (SIGKILL); retry it."
    if code == -signal.SIGKILL:
        known = killed_for_memory
        return (
            f"The {'kernel ended' if known else 'system killed'} this stage{'' if known else ', most likely'}"
            f" because memory ran out (it had taken {display.size(taken_bytes)}). Retry it when the machine"
            f" is less busy, or start a new run with {about(stage, 'SMALLER', ANY_SMALLER)}."
        )
    if code == errno.ENOSPC:
        return sentence(OSError(code, os.strerror(code)))
    if code is not None and code < 0:
        return f"This stage crashed ({signal.strsignal(-code)}); its log shows the last steps."
    return "This stage ended without saying why; its log shows the last steps."


def too_few_gpus(wanted: int, found: int) -> str:
    """The error of a stage that uses more GPUs than this machine has."""
    return (
        f"finetune.gpus: {wanted} GPUs are wanted, and runs may use {found} here; start a new run with fewer,"
        " or retry it on a machine with as many."
    )


def lingers(stage: str, seconds: float) -> str:
    """The note for a stage whose process does not exit."""
    return (
        f"The process of {stage} did not exit within {seconds:g} seconds of writing its result; it is ended,"
        " and the result counts."
    )


def interrupted_publish() -> str:
    """The error of a publish that died with its worker."""
    return (
        "The machine or the worker stopped while this was published; check whether the version exists,"
        " and if not, publish again."
    )


def interrupted(times: int) -> str:
    """The error of a stage that died with its worker that many times."""
    return (
        f"The machine or the worker stopped {times} times while this ran, so it is not restarted"
        " automatically; its log shows the last steps. Retry resumes it."
    )
