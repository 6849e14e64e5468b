"""The inputs and outputs of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """One thing that a stage made. `path` is absolute; `kind` says what it can be used for.

    Kinds: "checkpoint" (Hugging Face folder), "adapter" (PEFT folder), "onnx" (folder that ONNX Runtime
    GenAI loads), "onnx_adapter" (one .onnx_adapter file), "bound" (such a folder whose graph has the
    adapter as constants), "merged" (JSON in an "onnx" folder whose weights include the adapter: what
    merging changed), "workflow" (an Olive workflow that was not run),
    "answers" (JSON of the evaluation), "row_losses" (JSON lines: both sides' losses by row), "score" (JSON
    of the measurements).
    """

    name: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Context:
    """What a stage is given to work with. All paths are absolute."""

    model: Path  # the base as a float Hugging Face folder
    inputs: dict[str, Path]  # artifacts of earlier stages by kind: checkpoint, adapter, onnx, onnx_adapter
    data: Path  # the dataset, JSON lines, already checked
    template: str  # "chat" or a text with {placeholders}
    eval_fraction: float
    seed: int
    device: str  # "cpu" or "cuda": where this stage's process runs
    output: Path  # the folder to write; renamed into place when the stage is done
    work: Path  # a scratch folder, deleted afterwards
    checkpoints: Path  # kept between attempts of the same stage, so that training can resume
    config: dict[str, Any] = field(
        default_factory=dict
    )  # the base's config.json, so that workflows stay pure
    name: str = ""  # the base as the recipe calls it
    measured: Path | None = None  # what earlier evaluations measured, row by row; None keeps nothing
    # Exports of the same checkpoint with the same options, newest first, with the modules that fit them.
    graphs: dict[Path, list[str]] = field(default_factory=dict)
    ahead: Path | None = None  # this export without its adapter, made while that was trained

    @property
    def base_name(self) -> str:
        """The name of the base for others: of a folder on this machine, only the last part."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def base(self) -> Path:
        """The checkpoint later stages build on: quantized if that stage ran, else the float model."""
        return self.inputs.get("checkpoint", self.model)


@dataclass(frozen=True)
class Results:
    """What a finished stage hands on."""

    artifacts: list[Artifact]
    metrics: dict[str, Any] = field(default_factory=dict)
