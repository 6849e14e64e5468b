"""The trial before a run, forked from the process of a stage that has imported what it needs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.inputs.models import hub_models
from pipeline.runs.submit import submit
from pipeline.stages.recipe import load
from pipeline.store import Store
from pipeline.worker import probe
from pipeline.worker.ahead import warm
from pipeline.worker.stage_process import StageJob, Watch, _try

TRIES = """
import atexit, json, os, sys
from pathlib import Path
from pipeline.system import locks
from pipeline.worker.ahead import warm
scratch = Path(sys.argv[1])
held = locks.take(scratch / "lock")
atexit.register(print, "the stage ends")

def trial(folder):
    facts = {
        "environment": dict(os.environ), "group": os.getpgid(0),
        "mark": "OLIVE_LAB_EVENTS=" + str(scratch) in Path("/proc/self/environ").read_text().split("\\0"),
        "locks": [link for n in os.listdir("/proc/self/fd") if (link := Path(f"/proc/self/fd/{n}")).exists()
                  and str(link.readlink()).endswith("lock")],
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    print("tried")
    raise ValueError(3)

with warm.fork_trial(trial, scratch) as process:
    code = process.wait()
print(code, os.getpgid(0) == json.loads((scratch / "facts.json").read_text())["group"])
"""


def test_a_trial_that_is_forked_is_as_one_that_is_started(tmp_path: Path) -> None:
    """Without secrets and locks of its stage, found by its mark, and nothing of the stage's end is done."""
    done = subprocess.run(
        [sys.executable, "-c", TRIES, str(tmp_path)],
        env=settings.child_environment(OLIVE_LAB_EVENTS=str(tmp_path), OLIVE_LAB_WEBHOOK="http://secret"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["tried", "1 True", "the stage ends"], done.stderr
    assert "ValueError: 3" in done.stderr
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["mark"]
    assert facts["locks"] == []
    assert "OLIVE_LAB_WEBHOOK" not in facts["environment"]
    assert facts["environment"]["OLIVE_LAB_EVENTS"] == str(tmp_path)


@pytest.mark.parametrize(
    ("can_fork", "method", "forks"), [(True, "lora", True), (True, "qlora", False), (False, "lora", False)]
)
def test_a_stage_forks_its_trial_if_it_can_and_nothing_hidden_is_try(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch,
    can_fork: bool, method: str, forks: bool,
) -> None:  # fmt: skip
    run = submit(store, load(recipe_file))
    given = store.get(run)
    chosen = StageJob.of(store, given, "quantize")
    tuned = dataclasses.replace(chosen.recipe.finetune, method=method)
    chosen = dataclasses.replace(chosen, recipe=dataclasses.replace(chosen.recipe, finetune=tuned))
    asked: list[Any] = []
    monkeypatch.setattr(warm, "can_fork", lambda: can_fork)
    monkeypatch.setattr(probe, "require", lambda *given: asked.extend(given))
    monkeypatch.setattr(probe, "start", lambda scratch: ("started", scratch))
    monkeypatch.setattr(warm, "fork_trial", lambda _, scratch: ("forked", scratch))
    with Watch(0.0) as watch:
        _try(chosen, watch)
    assert asked[-1](store.home) == ("forked" if forks else "started", store.home)


def test_what_unpacking_the_model_has_started_keeps_the_trial_from_being_forked(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork would wait for good for threads of the process that it was forked from."""
    chosen = StageJob.of(store, store.get(submit(store, load(recipe_file))), "quantize")
    may, started = [True], []

    def unpack(*_given: Any) -> Path:
        may[0] = False
        return store.home

    monkeypatch.setattr(warm, "can_fork", lambda: may[0])
    monkeypatch.setattr(hub_models, "without_weights", unpack)
    monkeypatch.setattr(probe, "start", started.append)
    monkeypatch.setattr(warm, "fork_trial", lambda *_given: pytest.fail("it was forked"))
    monkeypatch.setattr(probe, "require", lambda *given: given[-1](store.home))
    with Watch(0.0) as watch:
        _try(chosen, watch)
    assert started == [store.home]
