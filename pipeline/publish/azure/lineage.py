"""Where a version came from: tags to show, properties to look up. Card and recipe are in the folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.inputs.data import content_facts
from pipeline.inputs.models import starter_package
from pipeline.publish import card
from pipeline.stages import artifacts
from pipeline.store.run import PUBLISH, Run
from pipeline.system import checksums
from pipeline.system.files import to_json

LONGEST_TAG = 256
LONGEST_PROPERTY = 1000
CONTENT = "olive_lab_content"  # the property with a hash of all files
VERIFIED = "verified"
OURS = "olive-lab"  # the folder in the container for our files
# Tags that are shown and searched: an interrupted check is found by `run` and `verified`.
OWN_TAGS = (
    "run", "run_name", "base", "base_revision", "data", "data_sha256", "algorithm", "bits", "method",
    "made_with", VERIFIED,
)  # fmt: skip
HEADLINES = ("eval_loss_after", "adapter_tokens_per_second", "perplexity")


def content(sums: Mapping[str, str]) -> str:
    """SHA-256 over the names and checksums of all files."""
    return hashlib.sha256(checksums.text(sums).encode()).hexdigest()


def prefix(digest: str) -> str:
    """The folder of that content in the container, so that the same content is stored once."""
    return f"{OURS}/{digest}"


def parse_tags(text: str) -> dict[str, str]:
    """`key=value, key=value` as tags. Raises InputError."""
    tags = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (side.strip() for side in part.partition("="))
        if not key or not equals or len(part) > LONGEST_TAG or not part.isprintable():
            raise InputError(
                f"tags: {part[:80]!r} is not allowed; allowed: key=value, several with commas between"
            )
        if key.lower() in OWN_TAGS or key.lower().endswith(tuple(f"_{name}" for name in HEADLINES)):
            raise InputError(
                f"tags: {key} is a tag that the lab itself sets; choose another name, such as my_{key}"
            )
        tags[key] = value
    return tags


def tags(run: Run, given: Mapping[str, str]) -> dict[str, str]:
    """Tags for lists of versions, and the user's own, which never have our names (see `parse_tags`)."""
    recipe = run.recipe
    quantize, finetune = recipe.get("quantize") or {}, recipe.get("finetune") or {}
    base, _, revision = _base(run).partition("@")
    found = {
        "run": run.id,
        "run_name": run.name,
        "base": base,
        "base_revision": revision,
        "data": str(card.shown(run)["data"]),
        "data_sha256": data_hash(run),
        "algorithm": str(quantize.get("algorithm", "")),
        "bits": str(quantize.get("bits", "")),
        "method": str(finetune.get("method", "")),
        "made_with": "olive-lab",
    }
    measured = metrics(run)
    found |= {key: value for name in HEADLINES for key, value in measured.items() if key.endswith(f"_{name}")}
    found = {key: _short(value, LONGEST_TAG) for key, value in found.items() if value}
    return {**given, **found, VERIFIED: "false"}


def properties(run: Run, digest: str, size: int) -> dict[str, str]:
    """Everything known, as texts: the recipe by stage, versions of packages, every metric."""
    source = Path(str(run.shipped))
    found = {
        CONTENT: digest,
        "olive_lab_bytes": str(size),
        "olive_lab_run": run.id,
        "base_model": _base(run),
        "data_sha256": data_hash(run),
        "packages": _json(artifacts.packages(source)),
    }
    for key, value in run.recipe.items():
        shown = {"model": _model(run), "data": card.shown(run)["data"]}.get(key, value)
        found[f"recipe_{key}"] = _json(shown) if isinstance(shown, (dict, list)) else str(shown)
    found |= metrics(run)
    return {
        key: _short(value, LONGEST_PROPERTY)
        for key, value in found.items()
        if value not in ("", "None", "{}")
    }


def metrics(run: Run) -> dict[str, str]:
    """Every number that a stage measured, as `stage_name`."""
    return {
        f"{stage.name}_{name}": f"{value:.6g}" if isinstance(value, float) else str(value)
        for stage in run.stages
        if stage.kind != PUBLISH
        for name, value in stage.metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def data_hash(run: Run) -> str:
    """SHA-256 of the dataset, "" if it is not known."""
    return content_facts.sha256(Path(run.data))


def _base(run: Run) -> str:
    """The base model with what pins its content: `org/name@commit`, or the starter's version."""
    shown = _model(run)
    return f"{shown}@{starter_package.version()}" if shown == "starter" else shown


def _model(run: Run) -> str:
    """The name of the base for Azure: the full address if the model is in Azure."""
    model = str(run.recipe["model"])
    return model if model.startswith("azureml:") else str(card.shown(run)["model"])


def _json(value: Any) -> str:
    return to_json(value, separators=(",", ":"), ensure_ascii=True)


def _short(text: str, longest: int) -> str:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"
