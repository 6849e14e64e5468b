"""The metadata of a model card for the hub: the YAML above its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.inputs.models import licences
from pipeline.publish import card
from pipeline.store.run import Run

STARTER = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the starter model on the hub


def card_text(home: Path, run: Run, name: str, description: str, with_peft: bool) -> str:
    """The model card with its metadata. It names no version, so that it is the same for the same content."""
    facts = yaml.safe_dump(metadata(home, run, with_peft), sort_keys=False, allow_unicode=True)
    return f"---\n{facts}---\n{card.text(home, run, name, description)}"


def metadata(home: Path, run: Run, with_peft: bool) -> dict[str, Any]:
    """The card's facts by the hub's names. No dataset, because the user's own is not on the hub."""
    adapted = bool(run.artifact("onnx_adapter") or run.artifact("merged"))
    tags = ["olive-lab", "olive", "onnx", "onnxruntime-genai"]
    tags += ["lora"] if adapted else []
    tags += ["peft"] if with_peft else []
    tags += [algorithm] if (algorithm := _algorithm(run)) else []
    return {
        **_made_of(run),
        **licences.on_hub(licences.of(str(run.recipe["model"]), home)),
        "library_name": card.GENAI,
        "pipeline_tag": "text-generation",
        "inference": False,  # it is for the user's own machine; the hub cannot run it
        "tags": tags,
    }


def base(run: Run) -> str | None:
    """The base as a hub id; None for one that the hub does not have."""
    model = str(run.recipe["model"])
    if model == "starter":
        return STARTER
    name = model.partition("@")[0]
    return None if name.startswith(("/", "azureml:")) or name.count("/") != 1 else name


def _made_of(run: Run) -> dict[str, str]:
    of, relation = base(run), _relation(run)
    if of is None:
        return {}
    return {"base_model": of, **({"base_model_relation": relation} if relation else {})}


def _relation(run: Run) -> str | None:
    """How the model was derived from its base, in one of the hub's words."""
    if run.artifact("merged") or run.artifact("bound"):
        return "finetune"
    if run.artifact("onnx_adapter"):
        return "adapter"
    return "quantized" if _algorithm(run) else None


def _algorithm(run: Run) -> str:
    return str((run.recipe.get("quantize") or {}).get("algorithm", ""))
