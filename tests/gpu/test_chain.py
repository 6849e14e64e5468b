"""The whole sample lab on an NVIDIA GPU, through the command line, exported once for each device."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.system import hardware

pytestmark = pytest.mark.gpu
EXPORTS = {
    "cpu": [],
    "gpu": ["--set", "optimize.device=gpu", "--set", "optimize.provider=CUDAExecutionProvider"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for both exports, so that the second reuses what was quantized and trained for the first."""
    assert hardware.gpus() > 0, "no GPU answers nvidia-smi"
    return tmp_path_factory.mktemp("home")


def cli(home: Path, *words: str) -> str:
    command = [settings.python(), "-m", "pipeline", *words]
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home))
    done = subprocess.run(command, env=environment, cwd=settings.ROOT, capture_output=True, text=True)
    logs = "".join(p.read_text(errors="replace")[-3000:] for p in home.glob("runs/*/*/log.txt"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


@pytest.mark.parametrize("device", EXPORTS)
def test_the_lab_runs(home: Path, device: str) -> None:
    print(cli(home, "run", str(settings.SAMPLES / "travel.yaml"), *EXPORTS[device]))
    run: dict[str, Any] = json.loads(cli(home, "list", "--json"))[0]
    stages = {stage["name"]: stage for stage in run["stages"]}
    assert run["status"] == "done"
    assert stages["quantize"]["reused"] == (device == "gpu")
    training = stages["finetune"]["metrics"]
    assert training["dtype"] == "bfloat16"
    assert training["eval_loss_after"] < 0.7 * training["eval_loss_before"]
    asked = "What is the best thing to see in Chicago?"
    answer = json.loads(cli(home, "chat", run["id"], asked, "--json", "--max-new-tokens", "48"))
    assert "Bean" in answer["adapter"]["text"]
    assert answer["adapter"]["text"] != answer["base"]["text"]
    print(json.dumps(answer, indent=1))
