"""Adapters from elsewhere: convert a PEFT LoRA folder into a file for an exported graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, reason
from pipeline.exports.contract import SUFFIX
from pipeline.exports.serving_ids import LAB


def convert(adapter: Path, folder: Path, file: Path | None = None, *, same_base: bool = False) -> Path:
    """Write the PEFT adapter for the exported folder's graph, without exporting again; return the file.

    `same_base` is the user's assurance that a base with another name has the same weights. Raises InputError
    with the reason if the two do not fit, or if the file is there already. Only safetensors are read.
    """
    file = file or Path(f"{adapter.resolve().name}{SUFFIX}")
    if file.suffix != SUFFIX:
        raise InputError(f"{file}: the name of an adapter's file ends in {SUFFIX}")
    if file.exists():
        raise InputError(f"{file}: already exists; give another name with --to")
    if not file.resolve().parent.is_dir():
        raise InputError(f"{file.resolve().parent}: no such folder")
    if not adapter.is_dir():
        raise InputError(f"{adapter}: no such folder; give the folder of a PEFT adapter")
    from pipeline.passes.optimize import lora_inputs, peft_lora

    try:
        config = peft_lora.read_config(adapter)
        if not same_base:
            check_base(config, folder)
        lora_inputs.convert(adapter, folder, file)
    except ValueError as error:
        raise InputError(f"{adapter}: {error}") from None
    except Exception as error:  # whatever the readers of safetensors and ONNX raise for faulty files
        raise InputError(f"{adapter} or the graph cannot be read: {reason(error)}") from None
    return file


def check_base(config: dict[str, Any], folder: Path) -> None:
    """Compare the names of the two bases. Raises ValueError if both are known and differ.

    Sizes alone don't distinguish models of the same shape, and an adapter for the wrong one answers nonsense.
    """
    lab = folder / LAB
    facts = json.loads(lab.read_text("utf-8")) if lab.is_file() else {}
    known = str(facts.get("base") or "") if isinstance(facts, dict) else ""
    given = str(config.get("base_model_name_or_path") or "")
    if known and given and _short(known) not in (_short(given), _kept(given)):
        raise ValueError(
            f"it was trained on {_short(given)}, and the graph is of {_short(known)}; if these are the same"
            " weights, say so with --same-base"
        )


def _kept(name: str) -> str:
    """The short name of a model in a folder that a home keeps: `models/ID-REVISION`."""
    above, _, folder = name.rstrip("/").rpartition("/")
    return folder.rpartition("-")[0].rpartition("--")[2].lower() if above.endswith("models") else ""


def _short(name: str) -> str:
    """A model's name without the folders before it and the commit behind it, in lower case."""
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
