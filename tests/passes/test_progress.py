"""What a training takes of the machine, as events say it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.chain


def gauges(monkeypatch: pytest.MonkeyPatch, utilization: Any) -> Any:
    """Gauges of a machine whose GPU held 5, then 9 bytes at most."""
    import torch

    from pipeline.passes import progress

    peaks = iter([5, 9])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.delattr(torch.cuda, "reset_peak_memory_stats")  # the stage's own peak would be lost
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    return progress.Gauges()


def test_a_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    made = gauges(monkeypatch, lambda: 87)
    facts = [made.read() for _ in range(2)]
    assert [fact["gpu_memory_bytes"] for fact in facts] == [5, 9]
    assert all(fact["gpu_utilization"] == 87 and fact["memory_bytes"] > 10**7 for fact in facts)


def test_a_driver_that_does_not_tell_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses() -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    made = gauges(monkeypatch, refuses)
    assert made.read().keys() == made.read().keys() == {"memory_bytes", "gpu_memory_bytes"}
    assert capsys.readouterr().out.count("nvidia-ml-py does not seem to be installed") == 1


def test_without_a_gpu_there_is_main_memory_only() -> None:
    from pipeline.passes.progress import Gauges

    assert Gauges().read().keys() == {"memory_bytes"}


def test_looking_at_held_out_rows_does_not_count_as_slow_training() -> None:
    from pipeline.passes.progress import Progress

    made = Progress()
    made.seconds, made.aside, made._tokens = 10.0, 6.0, 400
    assert made.tokens_per_second() == 100
    assert Progress().tokens_per_second() == 0
    args, control = SimpleNamespace(learning_rate=1.0), SimpleNamespace()
    state = SimpleNamespace(global_step=0, num_input_tokens_seen=0, max_steps=1)
    made.on_train_begin(args, state, control)
    made.on_log(args, state, control, logs={"eval_loss": 1.0})  # no step: nothing to tell
    assert made.seconds == 10.0
