"""One training over two NVIDIA GPUs: what it learns, and what is left when one of its processes is killed.

Each training is in a process of its own that sees the first GPU, as the worker starts stages.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import settings
from pipeline.passes.finetune import further
from pipeline.stages import events, finetune
from pipeline.store.run import RESULT
from pipeline.system import hardware
from tests.helpers import tiny
from tests.helpers.carry import OPTIONS, context_of, stage
from tests.helpers.lab import alive, until

pytestmark = pytest.mark.gpu
LONG = {"max_steps": 24, "batch_size": 6, "gradient_accumulation": 1, "max_length": 64, "eval_every": 8}
TRAINS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.gpu import test_ranks
print(json.dumps(test_ranks.trained(Path(sys.argv[2]), json.loads(sys.argv[3]))))
"""
SECONDS = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if hardware.gpus() < 2:
        pytest.skip("needs two GPUs")
    tiny.build("llama", tmp_path / "model")
    return tmp_path


def trained(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the metrics of a training."""
    made = context_of(folder, folder / "model")
    context = replace(made, device="cuda", template="{prompt} {response}<|im_end|>")
    own = f"trained-{len(settings.training_gpus())}"  # in one folder the second finds what the first did
    return stage(context, own, finetune, replace(OPTIONS, **changes)).metrics


def start(folder: Path, gpus: str, changes: dict[str, Any]) -> subprocess.Popen[str]:
    environment = settings.child_environment(
        CUDA_VISIBLE_DEVICES=gpus.partition(",")[0],
        **{settings.EVENTS: str(folder / "events.jsonl"), settings.TRAINING_GPUS: gpus},
    )
    return subprocess.Popen(
        [sys.executable, "-c", TRAINS, str(settings.ROOT), str(folder), json.dumps(changes)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def learned(folder: Path, gpus: str, changes: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metrics of a training, and its events."""
    file = folder / "events.jsonl"
    file.unlink(missing_ok=True)
    with start(folder, gpus, changes) as process:
        said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said[-5000:]
    return json.loads(said.splitlines()[-1]), events.read(file)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 3, "gradient_accumulation": 2},
        {"packing": True, "max_length": 200, "batch_size": 2},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_two_learn_what_one_learns(folder: Path, changes: dict[str, Any]) -> None:
    one, alone = learned(folder, "0", {**LONG, **changes})
    two, both = learned(folder, "0,1", {**LONG, **changes})
    assert two["gpus"] == 2
    losses = [[event["loss"] for event in told if "loss" in event] for told in (alone, both)]
    assert len(losses[0]) == len(losses[1]) == 24
    allowed = 0.05 if "precision" in changes else 2e-3
    assert losses[1] == pytest.approx(losses[0], rel=allowed)
    assert two["eval_loss_after"] == pytest.approx(one["eval_loss_after"], rel=allowed)
    recorded = [any("Recorded" in event.get("message", "") for event in told) for told in (alone, both)]
    assert recorded == [not changes.get("packing", False)] * 2


def test_qlora_on_two(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="requirements.txt names it")
    made, _ = learned(folder, "0,1", {**LONG, "method": "qlora", "precision": "auto"})
    assert made["eval_loss_after"] < made["eval_loss_before"] - 0.5


@contextmanager
def killed_after(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens inside, the process does not go on for hours."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("victim", ["first", "other"])
def test_a_killed_process_leaves_nothing_behind(folder: Path, victim: str) -> None:
    """While both wait for each other on the GPU, as they nearly always do."""
    endless = {**LONG, "max_steps": 100_000, "eval_every": 0}
    with start(folder, "0,1", endless) as process, killed_after(process):
        told = folder / "events.jsonl"
        until(lambda: told.exists() and b'"step": 30,' in told.read_bytes(), "thirty steps", SECONDS)
        (other,) = [
            child for child in psutil.Process(process.pid).children() if further.ENTRY[1] in child.cmdline()
        ]
        os.kill(process.pid if victim == "first" else other.pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    until(lambda: not alive(other.pid), "the end of the other process")
    assert process.returncode == (-signal.SIGKILL if victim == "first" else 1)
    if victim == "other":
        sentence = "GPU process 2 of 2 was ended (Killed), and this training with it"
        assert sentence in said, said[-5000:]
        result = folder / RESULT  # where the process could not fail by itself
        assert not result.exists() or json.loads(result.read_text())["error"].startswith(sentence)
