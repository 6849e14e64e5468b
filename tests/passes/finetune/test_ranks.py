"""Two processes that train together, over gloo on the CPU, learn what one alone learns."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.passes.finetune import further
from pipeline.stages import finetune
from pipeline.stages.context import Context, Results
from pipeline.system import own_process
from tests.helpers.carry import OPTIONS, stage
from tests.helpers.lab import alive, until

pytestmark = pytest.mark.chain
Reported = Callable[[], list[dict[str, Any]]]
TOLERANCE = 1e-5  # of weights of size 0.1: sums in another order


class Forked:
    """A process that is forked from this one, where importing libraries in a new one would take long."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], stdout: IO[bytes]) -> None:
        import torch

        from pipeline.passes.finetune import rank

        self._lock, self._code = threading.Lock(), None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            settings.become(environment)
            torch.set_num_threads(1)  # other threads are not forked
            code = rank.main(Path(words[-2]), int(words[-1]))
        finally:
            os._exit(code)

    def wait(self) -> int:
        with self._lock:
            if self._code is None:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self._code

    def kill(self) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how many processes trainings have from now on."""
    start = own_process.start

    def forked(words: Sequence[str], environment: Mapping[str, str], **how: Any) -> Any:
        along = words[1] == further.ENTRY[1]
        return Forked(words, environment, how["stdout"]) if along else start(words, environment, **how)

    monkeypatch.setattr(own_process, "start", forked)
    return lambda count: monkeypatch.setenv(
        settings.TRAINING_GPUS, ",".join(map(str, range(count))) if count > 1 else ""
    )


def weights(made: Results) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(made.artifacts[0].path / "adapter_model.safetensors")


def alike(one: Results, two: Results) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) <= TOLERANCE
    for fact in ("steps", "train_loss", "eval_loss_before", "eval_loss_after", "rows_cut"):
        assert two.metrics[fact] == pytest.approx(one.metrics[fact], rel=1e-5), fact
    assert one.metrics.get("best_step") == two.metrics.get("best_step")


def test_packed_rows_and_steps_with_fewer_packs_than_processes(
    context: Context, reported: Reported, on: Callable[[int], None]
) -> None:
    options = replace(OPTIONS, packing=True, max_length=200, batch_size=2)
    on(1)
    one = stage(context, "one", finetune, options)
    on(2)
    two = stage(context, "two", finetune, options)
    alike(one, two)
    assert (one.metrics.get("gpus"), two.metrics["gpus"]) == (None, 2)
    steps = [event for event in reported() if "loss" in event]
    assert [event["step"] for event in steps] == [*range(1, 13), *range(1, 13)]
    for alone, together in zip(steps[:12], steps[12:], strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert not (context.output.parent / "two" / "checkpoints" / further.FOLDER).exists()


def test_a_training_resumes_with_another_number_of_processes(
    context: Context, reported: Reported, on: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two, then one, then two, as one alone; rows are cut, accumulated, and chosen by losses on others."""
    from pipeline.passes.finetune import training

    class Ended(Exception):
        pass

    options = replace(OPTIONS, batch_size=3, gradient_accumulation=2, eval_every=4, max_length=70)
    on(1)
    whole = stage(context, "whole", finetune, options)
    save, ends = training.ResponseTrainer._save_checkpoint, [4, 8, 0]

    def saved(self: Any, *given: Any) -> None:
        save(self, *given)
        if self._ranks.rank == 0 and self.state.global_step == ends[0]:
            raise Ended

    monkeypatch.setattr(training, "due", lambda steps, *others: steps >= 4)
    monkeypatch.setattr(training.ResponseTrainer, "_save_checkpoint", saved)
    for count in (2, 1):
        on(count)
        with pytest.raises(Ended):
            stage(context, "parts", finetune, options)
        ends.pop(0)
    on(2)
    alike(whole, stage(context, "parts", finetune, options))
    told = reported()
    assert [event["resumed"] for event in told if "resumed" in event] == [4, 8]
    losses = [event["loss"] for event in told if "loss" in event]
    assert losses[12:] == pytest.approx(losses[:12], rel=1e-5)


def test_a_killed_process_ends_the_training_with_a_sentence(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process that is started as always."""
    from pipeline.passes.finetune.progress import Progress

    on_log, killed = Progress.on_log, []

    def log(self: Progress, args: Any, state: Any, *given: Any, **more: Any) -> None:
        if state.global_step == 3:
            (rank,) = [child for child in psutil.Process().children() if further.ENTRY[1] in child.cmdline()]
            killed.append(rank.pid)
            rank.kill()
        on_log(self, args, state, *given, **more)

    monkeypatch.setattr(Progress, "on_log", log)
    monkeypatch.setenv(settings.TRAINING_GPUS, "0,1")
    with pytest.raises(LabError, match=r"GPU process 2 of 2 was ended \(Killed\), and this training with it"):
        stage(context, "killed", finetune, OPTIONS)
    until(lambda: not alive(killed[0]), "its end")
