"""A stage whose GPU memory runs out says so, and what to take smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import settings
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.store.run import FAILED
from pipeline.system import hardware
from tests.helpers import tiny

pytestmark = pytest.mark.gpu
LIMIT = 2 << 20  # bytes; torch takes 2 MB at once for small tensors, and 20 MB for larger ones
CONFINED = """
import sys, torch
from pipeline.worker import stage_process
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(int(sys.argv[3]) / total)
sys.exit(stage_process.main(sys.argv[1], sys.argv[2]))
"""
STAGES = {
    "quantize": {"quantize": {"algorithm": "gptq", "calibration_length": 256}, "finetune": None},
    "finetune": {"quantize": None, "finetune": {"batch_size": 16, "max_length": 256, "max_steps": 12}},
}
SAID = {
    "quantize": "a smaller quantize.calibration_blocks or quantize.calibration_length",
    "finetune": (
        "a smaller finetune.batch_size or finetune.max_length, or with finetune.gradient_checkpointing on"
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_names_its_options(store: Store, no_worker: list[Path], tmp_path: Path, stage: str) -> None:
    assert hardware.gpus() > 0, "no GPU answers nvidia-smi"
    tiny.build("llama", tmp_path / "model")
    tiny.dataset(tmp_path / "rows.jsonl", 64)
    given = {
        "name": "large", "model": "./model", "data": "rows.jsonl", "optimize": None, "evaluate": None,
        **STAGES[stage],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    run = submit.submit(store, recipe.load(tmp_path / "recipe.yaml"))
    folder = store.folder(run, stage)
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, run, stage, str(LIMIT)],
        env=settings.child_environment(OLIVE_LAB_EVENTS=str(folder / "events.jsonl")),
        cwd=settings.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == FAILED
    assert result["error"] == f"GPU memory ran out; start a new run with {SAID[stage]}."
