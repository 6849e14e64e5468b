"""What a training tells of itself, as events say it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.chain


def test_gpu_memory_is_the_most_so_far_and_the_peak_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes.finetune import progress

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert progress.gpu_memory() == {}
    peaks = iter([5, 9])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.delattr(torch.cuda, "reset_peak_memory_stats")  # the stage's own peak would be lost
    assert [progress.gpu_memory()["gpu_memory_bytes"] for _ in range(2)] == [5, 9]


def test_looking_at_held_out_rows_does_not_count_as_slow_training() -> None:
    from pipeline.passes.finetune.progress import Progress

    made = Progress()
    made.seconds, made.aside, made._tokens = 10.0, 6.0, 400
    assert made.tokens_per_second() == 100
    assert Progress().tokens_per_second() == 0
    args, control = SimpleNamespace(learning_rate=1.0), SimpleNamespace()
    state = SimpleNamespace(global_step=0, num_input_tokens_seen=0, max_steps=1)
    made.on_train_begin(args, state, control)
    made.on_log(args, state, control, logs={"eval_loss": 1.0})  # no step: nothing to tell
    assert made.seconds == 10.0
