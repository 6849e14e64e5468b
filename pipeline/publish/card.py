"""The card and recipe of a model that leaves the lab; they reveal nothing about this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.exports import contract
from pipeline.exports.bound import binding
from pipeline.inputs.data import content_facts
from pipeline.inputs.models import licence_text, licences
from pipeline.stages import artifacts
from pipeline.store.run import PUBLISH, Run
from pipeline.system import checksums

CARD = "README.md"
WITH_ADAPTER = "A language model with a detachable LoRA adapter, for ONNX Runtime GenAI."
BOUND = "A language model with a LoRA adapter as constants of its graph, for ONNX Runtime GenAI."
MERGED = "A language model with a LoRA adapter merged into its weights, for ONNX Runtime GenAI."
WITHOUT = "A language model for ONNX Runtime GenAI."
UNKNOWN = "not stated"
FIGURES = {  # of an evaluation, by the names of its metrics behind that of the side
    "loss": "Loss on held-out answers (nats a token)",
    "loss_on_general_text": "Loss on general text (nats a token)",
    "tokens_per_second": "Tokens per second",
    "first_token_seconds": "Seconds to the first token",
}
NOT_JUDGED = "There is no verdict: it was not evaluated beside its base."
LICENCE = "LICENSE-base-model.txt"
GENAI = "onnxruntime-genai"
MARKUP = re.compile(r"([\\`*_\[\]<>#|~!&$])")  # characters that Markdown treats as markup
IN_WORKSPACE = re.compile(r"azureml://subscriptions/.+/models/([^/]+)/versions/([^/]+)")


def text(home: Path, run: Run, title: str, description: str = "", use: str = "") -> str:
    """The model card as Markdown: what the model is, what it is made of, its results, how to run it.

    Whatever a user wrote (names, `description`, the recipe) appears as plain text. `use` is Markdown on how
    to run it, where that is not app.py.
    """
    packages = artifacts.packages(Path(str(run.shipped)))
    known = {"merged": MERGED, "bound": BOUND, "onnx_adapter": WITH_ADAPTER}
    about = next((words for kind, words in known.items() if run.artifact(kind)), WITHOUT)
    facts = {
        "Base model": shown(run)["model"],
        "Licence of the base": _licence(home, run),
        **_adapters(run),
        "Data": data(run),
        "Run": run.id,
    }
    measured = {stage.name: stage.metrics for stage in run.stages if stage.metrics and stage.kind != PUBLISH}
    return (
        "\n\n".join(
            [
                f"# {plain(title)}",
                plain(description) or about,
                "\n".join(f"- {name}: {plain(value)}" for name, value in facts.items()),
                f"{use or app(run)}\nCheck the files with `sha256sum -c {checksums.NAME}`.",
                *_judged(run),
                f"## Recipe\n\n{block(recipe(run))}",
                f"## Measured\n\n{block(_yaml(measured))}",
                f"## Made with\n\n{block(_yaml(packages)) if packages else UNKNOWN.capitalize() + '.'}",
            ]
        )
        + "\n"
    )


def texts(home: Path, run: Run) -> dict[str, str]:
    """What lies beside every card, by name: the text of the base's licence, where it is at hand."""
    found = licence_text.of(str(run.recipe["model"]), home)
    return {LICENCE: found} if found is not None else {}


def _licence(home: Path, run: Run) -> str:
    named = licences.of(str(run.recipe["model"]), home) or UNKNOWN
    if texts(home, run):
        return f"{named}, its text is in {LICENCE}"
    return f"{named}, its text was not at hand: see the page of the base model"


def _adapters(run: Run) -> dict[str, str]:
    """Each adapter of the model by its name and the checksum of its file."""
    folder = Path(str(run.shipped))
    if bound := binding.facts_of(folder):
        found = {str(bound.get("adapter")): str(bound.get("sha256"))}
    elif run.artifact("merged"):
        weights = sorted(Path(str(run.artifact("adapter"))).glob("*.safetensors"))
        found = {path.name: checksums.of(path.parent, [path.name])[path.name] for path in weights}
    else:
        names = sorted(path.name for path in folder.glob(f"*{contract.SUFFIX}"))
        known = checksums.read(folder) if names else {}
        found = {name: known.get(name) or checksums.of(folder, [name])[name] for name in names}
    told = "; ".join(f"{name}, SHA-256 {digest}" for name, digest in found.items())
    return {"Adapter": told} if told else {}


def _judged(run: Run) -> list[str]:
    """The verdict of the evaluation, and the figures of both sides beside each other."""
    if not run.verdict:
        adapted = any(run.artifact(kind) for kind in ("merged", "bound", "onnx_adapter"))
        return [f"## Is the adapter better?\n\n{NOT_JUDGED}"] if adapted else []
    metrics = next(stage.metrics for stage in reversed(run.stages) if stage.verdict)
    rows = []
    asked = {"loss": f"Loss on the answers of {plain(run.asked)} (nats a token)"} if run.asked else {}
    for name, words in (FIGURES | asked).items():
        both = [metrics.get(f"{side}_{name}") for side in ("base", "adapter")]
        if all(isinstance(figure, int | float) for figure in both):
            rows.append(f"| {words} | {both[0]:.4g} | {both[1]:.4g} |")
    table = "\n".join(["| | Base | With adapter |", "| --- | --- | --- |", *rows])
    return [f"## Is the adapter better?\n\n{plain(run.verdict)}", *([table] if rows else [])]


def recipe(run: Run) -> str:
    """The run's recipe as YAML. Paths of a model or data on this machine are cut to their last part."""
    return _yaml(shown(run))


def shown(run: Run) -> dict[str, Any]:
    """The recipe as others may see it."""
    found = {**run.recipe, **{key: _last(str(run.recipe[key])) for key in ("model", "data")}}
    for name, options in run.recipe.items():
        if isinstance(options, dict) and options.get("data"):
            found[name] = {**options, "data": _last(str(options["data"]))}
    return found


def _last(path: str) -> str:
    """The part of a path or address that is useful to others and reveals nothing about this machine."""
    if found := IN_WORKSPACE.fullmatch(path):
        return f"azureml:{found[1]}:{found[2]}"
    return Path(path).name if Path(path).is_absolute() else path


def data(run: Run) -> str:
    """The dataset's name, with rows and hash if the home still has its copy."""
    copy, known = Path(run.data), [str(shown(run)["data"])]
    if (counted := content_facts.of(copy)) is not None:
        known.append(f"{counted.rows:,} rows")
    if found := content_facts.sha256(copy):
        known.append(f"SHA-256 {found}")
    return ", ".join(known)


def app(run: Run) -> str:
    """Markdown on how to run the folder's app.py."""
    packages = artifacts.packages(Path(str(run.shipped)))
    return f"Run it with `pip install {_genai(run, packages)}` and `python app.py`."


def _genai(run: Run, packages: dict[str, str]) -> str:
    """The package to install to run it: both sets of packages have the same version."""
    gpu = f"{GENAI}-cuda"
    version = packages.get(GENAI) or packages.get(gpu)
    name = gpu if (run.recipe.get("optimize") or {}).get("device") == "gpu" else GENAI
    return f"{name}=={version}" if version else name


def plain(text: str) -> str:
    """Text on one line of Markdown that is shown literally: no markup, no HTML, nothing invisible."""
    seen = "".join(letter if letter.isprintable() else " " for letter in text)
    return MARKUP.sub(r"\\\1", " ".join(seen.split()))


def block(text: str) -> str:
    """A block of YAML in Markdown, in a fence longer than any in it, so that no text of it can end it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}yaml\n{text}{fence}"


def _yaml(facts: dict[str, Any]) -> str:
    dumped: str = yaml.safe_dump(
        facts, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000
    )
    return dumped
