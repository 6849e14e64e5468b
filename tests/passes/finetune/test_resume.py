"""A training killed with SIGKILL goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.stages import finetune
from pipeline.stages.context import Context
from tests.helpers import tiny
from tests.helpers.carry import OPTIONS, context_of, stage

pytestmark = pytest.mark.chain
# Dropout needs the dice, accumulation and three batches an epoch need the sampler's place, the held-out
# rows need the best adapter so far.
LONG = replace(OPTIONS, max_steps=60, dropout=0.1, gradient_accumulation=2, eval_every=8)
TOLERANCE = 1e-6  # of weights of size 0.1; the same machine gives the same bits

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.passes.finetune import test_resume
from pipeline.passes.finetune import training
training.due = lambda steps, *others: steps >= 3  # such a short training would write none
save = training.ResponseTrainer._save_rng_state
def killed(self, folder):
    if self.state.global_step == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
training.ResponseTrainer._save_rng_state = killed
test_resume.trained(test_resume.context_of(Path(sys.argv[2]), Path(sys.argv[2]) / "model"), "killed")
"""


def trained(context: Context, name: str) -> Any:
    return stage(context, name, finetune, LONG)


def test_killed_while_it_writes_a_checkpoint_and_resumed(
    tmp_path: Path, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    from safetensors.torch import load_file

    context = context_of(tmp_path, tiny.build("llama", tmp_path / "model"))
    whole = trained(context, "whole")
    steps = {event["step"]: event for event in reported() if "loss" in event}
    child = [sys.executable, "-c", KILLED, str(settings.ROOT), str(tmp_path)]
    done = subprocess.run(child, env=settings.child_environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = tmp_path / "killed" / "checkpoints"
    assert [folder.name for folder in left.glob("checkpoint-*")] == ["checkpoint-27"]
    assert (left / "part" / "checkpoint-30" / "adapter_model.safetensors").is_file()  # half of one
    before = len(reported())
    resumed = trained(context, "killed")
    assert [event["resumed"] for event in reported()[before:] if "resumed" in event] == [27]
    again = {event["step"]: event for event in reported()[before:] if "loss" in event}
    assert list(again) == list(range(28, 61))
    for step, event in again.items():
        for fact in ("loss", "learning_rate", "grad_norm"):
            assert event[fact] == pytest.approx(steps[step][fact], rel=1e-5), (step, fact)
    for fact in ("best_step", "train_loss", "eval_loss_before", "eval_loss_after", "steps"):
        assert resumed.metrics[fact] == pytest.approx(whole.metrics[fact], rel=1e-6), fact
    first, second = (
        load_file(made.artifacts[0].path / "adapter_model.safetensors") for made in (whole, resumed)
    )
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) <= TOLERANCE
    assert max(float(weight.abs().max()) for weight in first.values()) > 0.1


@pytest.mark.parametrize(
    ("steps", "seconds", "cost", "expected"),
    [
        (3, 19, 0, False),  # too soon after the last
        (3, 21, 0, True),
        (2, 21, 0, False),  # less than a twentieth of 60 steps
        (2, 301, 0, True),
        (3, 50, 3, False),  # writing would take more than a twentieth of the time
        (3, 61, 3, True),
    ],
)
def test_checkpoints_follow_the_time(steps: int, seconds: float, cost: float, expected: bool) -> None:
    from pipeline.passes.finetune.training import due

    assert due(steps, 60, seconds, cost) is expected
