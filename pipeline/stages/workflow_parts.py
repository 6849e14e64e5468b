"""Pieces of an Olive workflow that all stages share. Pure functions without Olive or files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.stages.context import Context

PASSES = settings.ROOT / "pipeline" / "passes"
SCRIPTS = {"lab_rows": "rows.py", "lab_calibration": "quantize/calibration.py"}
# Olive's device and provider for where a stage's process runs.
HERE = {"cpu": ("cpu", "CPUExecutionProvider"), "cuda": ("gpu", "CUDAExecutionProvider")}


def hf_model(folder: Path) -> dict[str, Any]:
    """A Hugging Face folder as Olive's input model: never code from it, never pickles."""
    return {
        "type": "HfModel",
        "model_path": str(folder),
        "task": "text-generation",
        "load_kwargs": {"trust_remote_code": False, "extra_args": {"use_safetensors": True}},
    }


def rows(name: str, context: Context, kind: str = "lab_rows", **params: Any) -> dict[str, Any]:
    """The dataset as an Olive data config; `params` are those of the component `kind`."""
    return {
        "name": name,
        "user_script": str(PASSES / SCRIPTS[kind]),
        "load_dataset_config": {
            "type": kind,
            "params": {
                "path": str(context.data),
                "template": context.template,
                "model": str(context.model),
                "eval_fraction": context.eval_fraction,
                "seed": context.seed,
                **params,
            },
        },
    }


def workflow(
    context: Context,
    input_model: dict[str, Any],
    passes: dict[str, dict[str, Any]],
    data_configs: list[dict[str, Any]] | None = None,
    target: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """A whole workflow: everything but the output stays in the scratch folder.

    `target` is the device and provider that the result is for, by default those of this process.
    """
    device, provider = target or HERE[context.device]
    accelerator = {"device": device, "execution_providers": [provider]}
    return {
        "input_model": input_model,
        "data_configs": data_configs or [],
        "systems": {"local": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "passes": passes,
        "host": "local",
        "target": "local",
        "evaluate_input_model": False,
        "no_artifacts": True,
        "log_severity_level": 1,
        "cache_dir": str(context.work / "olive-cache"),
        "output_dir": str(context.output),
    }
