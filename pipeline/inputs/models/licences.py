"""The licence of a base model: as its own files name it, else as the catalogue does."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from pipeline.inputs import safe_yaml
from pipeline.inputs.models import base_models, catalogue
from pipeline.inputs.prompts.model_template import tops
from pipeline.system import files

LONGEST = base_models.LONGEST_LICENCE
HEAD = 1 << 16  # bytes read of a file
# As the Hugging Face Hub names them; it lists other names under `other`.
HUB = frozenset(
    re.findall(
        r"\S+",
        """
        afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
        bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
        bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
        cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
        cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
        creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
        gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2
        llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
        openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib
        """,
    )
)


def of(model: str, home: Path) -> str | None:
    """The licence of a recipe's `model`, or None where neither its files nor the catalogue name one.

    Works offline: for a hub model it reads the files that were fetched for a run.
    """
    folder = folder_of(model, home)
    listed = known.licence if (known := catalogue.entry(model)) else None
    return _front_matter(folder) or listed or _title(folder)


def folder_of(model: str, home: Path) -> Path:
    """Where the files of a recipe's `model` are, if it has any here: a real path when it was launched.

    What became a link since is not read through: whoever may write there may not read what it leads to.
    """
    if Path(model).is_absolute():
        return Path(model)
    real = home.resolve()
    if model.startswith("azureml:"):
        return base_models.Model(model, "azureml", "", {}, None).folder(real)
    name, _, revision = model.partition("@")
    return base_models.Model(name, "hub", revision, {}, None).folder(real)


def on_hub(licence: str | None) -> dict[str, str]:
    """A licence as metadata of a hub card: `license`, and a name if the hub does not list it."""
    if not licence:
        return {}
    said = licence.lower().strip()
    for known in (said, said.removesuffix(" license"), said.replace(" ", "")):
        if known in HUB:
            return {"license": known}
    named = re.sub(r"[^a-z0-9.]+", "-", said).strip("-.")
    return {"license": "other", **({"license_name": named} if named else {})}


def _front_matter(folder: Path) -> str | None:
    """What the YAML at the head of a model's README.md says: `license_name` where `license` is `other`."""
    return _stated(_head(folder / "README.md").removeprefix("\ufeff"))


@lru_cache(maxsize=64)  # YAML of HEAD bytes may take a second
def _stated(head: str) -> str | None:
    if not head.startswith("---\n") or "\n---" not in head:
        return None
    try:
        facts = safe_yaml.load(head[4:].partition("\n---")[0])
    except ValueError:
        return None
    if not isinstance(facts, dict):
        return None
    said = facts.get("license")
    named = facts.get("license_name") if said in ("other", None) else said
    words = named or said
    return words[:LONGEST] if isinstance(words, str) else None  # a list has no single answer


def _title(folder: Path) -> str | None:
    """The first line of a model's licence file."""
    for file in sorted(folder.glob("LICENSE*")):
        for line in _head(file).splitlines():
            if line.strip():
                return line.strip()[:LONGEST]
    return None


def _head(file: Path) -> str:
    """The beginning of a text file, "" where there is none."""
    if not file.is_file():  # to open a pipe may take for ever
        return ""
    try:
        head = files.read_inside(file, tops(file.parent), HEAD)
    except OSError:
        return ""
    return head.decode("utf-8", "replace").replace("\r\n", "\n")
