"""People ask models on the Compare tab while the worker trains the starter: all of it real."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.exports.chat import chat_processes
from pipeline.inputs.models import base_models, hub_models
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store.run import CANCELED, ENDED, RUNNING
from pipeline.system import checksums
from pipeline.system.files import write_whole
from pipeline.worker import probe
from tests.helpers import exports, planted
from tests.helpers.lab import until

os.environ.update({**settings.QUIET, **settings.GRADIO, "HF_HUB_OFFLINE": "1"})

with settings.gradio_without_stubs():
    from webapp import talks
    from webapp.tabs.comparing import prompting
    from webapp.ui import columns

pytestmark = pytest.mark.chain

PROMPTS = ("Where is it?", "What is there?")
CHANGES = [
    "quantize=null", "optimize=null", "evaluate=null", "eval_fraction=0.02",
    "finetune.max_steps=5000", "finetune.batch_size=1", "finetune.max_length=64", "finetune.r=4",
]  # fmt: skip
SLACK = 64 << 20  # bytes: what the next answers of a process take more than its first one
PATIENCE = 300.0


def answering(store, export: Path, name: str, sign: int) -> str:
    """A finished run with an export that answers, and an adapter of its own."""
    run = planted.finished(store, name)
    folder = Path(store.get(run).artifact("onnx"))
    shutil.copytree(export, folder, dirs_exist_ok=True)
    weights = {"a": sign * exports.random(exports.WIDTH, 3), "b": exports.random(3, exports.WIDTH)}
    exports.write_adapter(folder / exports.ADAPTER, weights)
    checksums.write(folder)
    return run


def training(store) -> str:
    """Queue a run that fine-tunes the starter for long, as one whose small copy was tried before."""
    chosen = recipe.load(settings.SAMPLES / "travel.yaml", CHANGES)
    files = hub_models.without_weights(
        base_models.resolve(chosen.model), store.home, store.home / "small", lambda _: None
    )
    walk, _ = probe.keys(chosen, files)
    (store.home / probe.PROBES).mkdir(exist_ok=True)
    write_whole(store.home / probe.PROBES / f"{walk}.json", {"model": chosen.model})
    return submit.submit(store, chosen)


def steps(store, run: str) -> int:
    """How far a training is."""
    try:
        lines = (store.folder(run, "finetune") / "events.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return 0
    assert store.get(run).status not in ENDED, store.get(run).stage("finetune").error
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def peaks() -> list[int]:
    """The most memory that each process of a model has had, in bytes."""
    found = []
    for server in chat_processes._servers.values():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        found.append(int(line.split()[1]) * 1024)
    return found


async def ask(run: str, at: int) -> list[tuple[str, ...]]:
    """A person asks a run two questions, one after the other: what the columns show in the end."""
    shown = []
    for number, prompt in enumerate(PROMPTS):
        asked = (run, [], f"conversation-of-user-{at}", prompt, 8, 1.0, 7, "", number > 0)
        async for step in prompting.compare(*asked):
            last = step
        assert last[3 * columns.MOST] is None, last[3 * columns.MOST]
        shown.append(last[: len(columns.SIDES)])
    return shown


def test_two_people_get_their_answers_while_the_starter_trains(store, written_export):
    """Nothing is lost, on either side, and memory is what one loaded graph each takes."""
    runs = [answering(store, written_export, name, sign) for name, sign in (("one", 1), ("two", -1))]

    async def one_by_one():
        found = []
        for at, run in enumerate(runs):
            found.append((await ask(run, at), *peaks()))
            await chat_processes.shutdown()
        return found

    async def together():
        try:
            return await asyncio.gather(*(ask(run, at) for at, run in enumerate(runs))), peaks()
        finally:
            await chat_processes.shutdown()

    alone = asyncio.run(asyncio.wait_for(one_by_one(), PATIENCE))
    trains = training(store)
    until(lambda: steps(store, trains) > 0, "a step of the training", PATIENCE)
    said, most = asyncio.run(asyncio.wait_for(together(), PATIENCE))
    before = steps(store, trains)
    until(lambda: steps(store, trains) > before, "another step after the answers", PATIENCE)

    assert said == [texts for texts, _ in alone]
    assert said[0][0][0] == said[1][0][0], "the same base"
    assert said[0] != said[1]
    for at in range(len(runs)):
        kept = talks.load(store.home, f"conversation-of-user-{at}").turns
        assert [turn.prompt for turn in kept] == [*PROMPTS]
        assert [tuple(answer.text for answer in turn.answers) for turn in kept] == said[at]
    assert len(most) == len(runs)
    assert max(most) <= max(peak for _, peak in alone) + SLACK

    assert store.get(trains).status == RUNNING
    store.request_cancel(trains)
    until(lambda: store.get(trains).status in ENDED, "the end of the training", PATIENCE)
    assert store.get(trains).status == CANCELED
