"""Losses of fine-tuning, from the events of its attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.publish.report import curves
from pipeline.stages import events
from pipeline.store import Store
from tests.helpers.planted import finish_all, one_stage, plant


class TestLosses:
    def tell(self, store: Store, run: str, *told: dict[str, Any]) -> Path:
        path = store.folder(run, "finetune") / "events.jsonl"
        path.parent.mkdir(exist_ok=True)
        for facts in told:
            events.append(path, facts)
        return path

    def test_the_newest_attempt_counts(self, store: Store) -> None:
        run = plant(store)
        path = self.tell(store, run, {"attempt": True}, {"step": 1, "loss": 9.0}, {"attempt": True})
        with path.open("a") as file:
            file.write('{"step": 1, "lo\n[1]\n')
        self.tell(store, run, {"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.5}, {"loss": None})
        found = curves.losses(store, store.get(run))
        assert (found.training.steps, found.training.losses) == ([1], [2.5])
        assert (found.held_out.steps, found.held_out.losses) == ([0], [3.0])

    def test_an_attempt_that_resumes_adds_to_the_older_one(self, store: Store) -> None:
        run = plant(store)
        first = [{"step": n, "loss": 9.0 - n} for n in range(1, 6)]
        self.tell(store, run, {"attempt": True}, {"step": 0, "eval_loss": 3.0}, *first)
        self.tell(store, run, {"attempt": True})
        waiting = curves.losses(store, store.get(run))
        assert waiting.training.steps == [1, 2, 3, 4, 5]
        self.tell(store, run, {"step": 0, "eval_loss": 3.0}, {"resumed": 3}, {"step": 4, "loss": 1.0})
        found = curves.losses(store, store.get(run))
        assert found.training.steps == [1, 2, 3, 4]
        assert found.training.losses == [8.0, 7.0, 6.0, 1.0]
        assert found.held_out.steps == [0]

    def test_a_long_training_is_thinned_evenly_and_keeps_its_start(self, store: Store) -> None:
        run = plant(store)
        path = store.folder(run, "finetune") / "events.jsonl"
        path.parent.mkdir()
        path.write_text("".join(f'{{"step": {n}, "loss": {n}}}\n' for n in range(10_000)))
        found = curves.losses(store, store.get(run)).training
        assert 1000 <= len(found.steps) <= 2000
        assert found.steps == list(range(0, 10_000, 8))
        assert found.losses == found.steps

    def test_a_reused_adapter_has_the_losses_of_the_run_that_made_it(self, store: Store) -> None:
        adapter = {"name": "a", "kind": "adapter", "bytes": 1}
        adapter["path"] = str(store.home / "artifacts" / "finetune-abc" / "adapter")
        maker, user = plant(store), plant(store)
        finish_all(store, maker, {"finetune": {"artifacts": [adapter]}})
        self.tell(store, maker, {"step": 1, "loss": 2.5})
        reusing = finish_all(store, user, {"finetune": {"artifacts": [adapter], "reused": True}})
        self.tell(store, user, {"attempt": True}, {"message": "Reused"})
        assert curves.losses(store, reusing).training.losses == [2.5]
        store.delete(maker)
        assert curves.losses(store, reusing).training.losses == [2.5]
        assert store.forget(maker, before=store.get(maker).deleted)
        assert curves.losses(store, reusing).training.losses == []

    def test_a_run_that_does_not_train_has_none(self, store: Store) -> None:
        run = one_stage(store)
        assert curves.losses(store, store.get(run)) == curves.Losses()
