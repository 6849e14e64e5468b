"""What a base model is before it is used: size, licence, context, and whether this machine can take it.

The rule is a simple one, of what the lab measured (`benchmarks/RESULTS.md`), in bytes:

    main memory   1.5 times the float weights (2 bytes a parameter), and 1 GB for the libraries; a tenth of
                  what there is stays for other programs
    GPU memory    0.65 a parameter for the weights in 4 bit, and 3 GB for a batch
    disk          the float weights where they are not here yet, 1.3 a parameter for results, and 1 GB

It says what surely does not fit; what a long row or a large batch takes is not in it: that follows from all
options of a recipe, see `pipeline/stages/costs/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.inputs.models import architectures, catalogue, licences
from pipeline.inputs.models.base_models import Model
from pipeline.system import files
from pipeline.system.capacity import Capacity

GB = 1000**3
FLOAT = 2  # bytes of a weight
MOST_PARAMETERS = 10**13  # what has more is no model but a number in a file,
MOST_CONTEXT = 10**9  # and what reads more tokens
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
TIED = ("gemma", "gemma2", "gemma3", "gemma3_text")  # kinds whose output layer is the embedding, unless said
ACCEPT = "accept its license at https://huggingface.co/{} and run `hf auth login` on this machine"


@dataclass(frozen=True)
class About:
    """What is known of a model; None for what is not.

    bytes is the size of its weights in files, `here` says whether they are in this lab or a folder.
    """

    id: str
    title: str
    licence: str | None
    parameters: int | None
    context: int | None
    gated: bool | None
    bytes: int | None
    here: bool


@dataclass(frozen=True)
class Fit:
    """Whether a machine can take a model, None where that is not known, and why."""

    fits: bool | None
    reason: str

    @property
    def word(self) -> str:
        """It in a word or two."""
        return {True: "fits", False: "does not fit", None: "size unknown"}[self.fits]


def of_entry(entry: catalogue.Entry, home: Path) -> About:
    """What the catalogue says of a model."""
    ending = r"-[\w.]+(?<!\.part)" if entry.id == "starter" else "-[0-9a-f]{12}"
    name = re.compile(re.escape(entry.id.replace("/", "--")) + ending)
    here = any(name.fullmatch(path.name) for path in (home / "models").glob("[!.]*"))
    known = entry.licence, entry.parameters, entry.context, entry.gated, entry.bytes
    return About(entry.id, entry.title, *known, here=here)


def of_model(model: Model, home: Path) -> About:
    """What a model's own files, and where it was asked the hub, say of it."""
    folder, listed = model.folder(home), catalogue.entry(model.id)
    here, context = folder.is_dir(), architectures.positions(model.config)
    counted = listed.parameters if listed else parameters(model.config)
    stored = files.size(*folder.glob("*.safetensors")) if here else model.hub.get("bytes")
    licence = licences.of(model.pinned, home) or model.hub.get("licence")
    return About(
        model.id,
        listed.title if listed else display.line(folder.name if model.kind == "folder" else model.id),
        display.line(licence, licences.LONGEST) if licence else None,
        counted,
        context if context and context <= MOST_CONTEXT else None,
        model.hub.get("gated", listed.gated if listed else None if model.kind == "hub" else False),
        stored or (listed.bytes if listed else FLOAT * counted if counted else None),
        here,
    )


def parameters(config: Mapping[str, Any]) -> int | None:
    """How many weights the matrices of a model have, as its config.json gives their shapes.

    None if it does not say, or the model is not built of plain decoder layers.
    """
    config = config.get("text_config") or config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = [config.get(name) for name in names]
    if not all(type(size) is int and size > 0 for size in sizes) or any(config.get(key) for key in EXPERTS):
        return None
    hidden, inner, layers, heads, vocabulary = (int(size) for size in sizes if size)
    head, shared = config.get("head_dim") or hidden // heads, config.get("num_key_value_heads") or heads
    if type(head) is not int or type(shared) is not int:
        return None
    matrices = 2 if config.get("model_type") == "phi" else 3
    layer = 2 * hidden * head * (heads + shared) + matrices * hidden * inner
    tied = config.get("tie_word_embeddings", config.get("model_type") in TIED)
    total = layers * layer + vocabulary * hidden * (1 if tied else 2)
    return total if 0 < total <= MOST_PARAMETERS else None


def fit(about: About, there: Capacity) -> Fit:
    """Whether a machine with so much memory and disk can take a model."""
    if not about.parameters:
        return Fit(None, "its config does not say how many parameters it has")
    count = about.parameters
    memory = int(1.5 * FLOAT * count) + GB
    room = (0 if about.here else about.bytes or FLOAT * count) + int(1.3 * count) + GB
    rows = [("memory", memory, int(0.9 * there.memory)), ("disk space", room, there.disk)]
    if there.gpu_memory is not None:
        rows.insert(1, ("GPU memory", int(0.65 * count) + 3 * GB, there.gpu_memory))
    for what, needed, given in rows:
        if needed > given:
            return Fit(
                False,
                f"needs about {display.size(needed)} of {what}, and {display.size(given)} can be used here",
            )
    needs = ", ".join(f"{display.size(needed)} of {what}" for what, needed, _ in rows)
    return Fit(True, f"needs about {needs}")


def words(about: About, found: Fit) -> str:
    """A model in one line: size, licence, context, whether it is gated, and whether it fits."""
    told = [
        display.parameters(about.parameters) if about.parameters else "",
        display.size(about.bytes),
        about.licence or "license unknown",
        f"{about.context:,} tokens" if about.context else "",
        "gated" if about.gated else "",
        found.word,
        "in this lab" if about.here else "",
    ]
    return " · ".join(word for word in told if word)


def gate(about: About) -> str:
    """What to do before a gated model can be fetched; "" for one that is open, or here."""
    return ACCEPT.format(about.id) if about.gated and not about.here else ""
