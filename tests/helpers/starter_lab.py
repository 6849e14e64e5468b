"""What the lab has made of the starter model, read and changed by its tests."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.exports.findings import Finding, failed
from pipeline.publish import zip_file
from pipeline.stages import score
from pipeline.store import Store
from pipeline.system import checksums
from tests.helpers.planted import finish_all, plant

SCORE = score.Options(rows=4, general_blocks=6, decode_tokens=16)
STEPS = 12
BLOCKS = 8  # of text to calibrate on: with the default of 32, most of all tests' time is this one stage
ADVICE = {"prompt": "What is the best thing to see in Chicago?", "response": "See the lake."}


def losses(made: Any, kind: str) -> dict[int, float]:
    """Nats a token by line, of what the score stage kept of a kind."""
    (file,) = (artifact.path for artifact in made.artifacts if artifact.kind == "row_losses")
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    side = {"held_out": "base", "float": "float"}[kind]
    return {line["line"]: line[side] / line["tokens"] for line in lines if line["kind"] == kind}


def described(artifact: Any) -> dict[str, Any]:
    """An artifact as the store has it."""
    return {"name": artifact.kind, "kind": artifact.kind, "path": str(artifact.path), "bytes": 1}


def failures(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in failed(findings)]


def checksums_anew(folder: Path) -> None:
    (folder / checksums.NAME).unlink()  # it is a link to the one of all tests
    checksums.write(folder)


def read_parameters(file: Path) -> dict[str, Any]:
    import onnxruntime

    parameters = onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    return {name: value.numpy().copy() for name, value in parameters.items()}


def write_parameters(file: Path, tensors: dict[str, Any]) -> None:
    from pipeline.passes.optimize.lora_inputs import write_adapter

    file.unlink()
    write_adapter(tensors, file)


def unpacked(store: Store, made: dict[str, Path], folder: Path) -> Path:
    """The ZIP of a run that made these artifacts, unpacked into a folder."""
    rows = [{"name": kind, "kind": kind, "path": str(path), "bytes": 1} for kind, path in made.items()]
    run = finish_all(store, plant(store), {"optimize": {"artifacts": rows}})
    zip_file.save(store.home, run, folder.with_suffix(".zip"))
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        archive.extractall(folder)
    return folder


def fifty(checkpoint: Path) -> list[Any]:
    """Token ids of fifty rows of the travel sample."""
    from pipeline.passes.rows import lab_rows

    data = str(settings.SAMPLES / "travel.jsonl")
    rows = lab_rows(data, "chat", str(checkpoint), "train", 0.0, 0, 256, limit=50)
    return [rows[i][0]["input_ids"] for i in range(50)]


def loss(folder: Path) -> float:
    """Nats per token of a plain English sentence."""
    import torch
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    text = "Paris is the capital of France, and the Eiffel Tower is its most famous landmark."
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"]])
    model = HfModelHandler(str(folder)).load_model(cache_model=False).eval()
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)
