"""Which of the programs go into a run's ZIP: those that can ask what the run has exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import InputError
from pipeline.exports import contract, serving_ids
from pipeline.exports.verifying import json_files
from pipeline.inputs.prompts import templates
from pipeline.publish import inference_model

HERE = Path(__file__).parent
SERVER, PYTHON, JAVASCRIPT = "ask_server.mjs", "foundry_local.py", "foundry_local.mjs"
NAMES = (SERVER, PYTHON, JAVASCRIPT, inference_model.NAME)
ABOUT = {  # two lines of the card each
    SERVER: """JavaScript without any package, over HTTP: `olive-lab serve .` serves this folder where the
  lab is installed, and `node {name}` (Node.js 20) asks it.""",
    PYTHON: """Python with Foundry Local, Microsoft's runtime for devices:
  `pip install foundry-local-sdk==2.2.1` and `python {name}`.""",
    JAVASCRIPT: """JavaScript (Node.js 20) with Foundry Local, in this folder:
  `npm install foundry-local-sdk@1.2.3` and `node {name}`.""",
}
APART = """Foundry Local has no adapters: bind this one to the graph (`olive-lab bind RUN --to FOLDER`), or
run the recipe with `optimize.adapter: bound`, whose ZIP has programs for it."""


def texts(folder: Path, model: str) -> dict[str, str]:
    """The programs for an exported folder by name, and what they read; Foundry Local knows it as `model`."""
    found = {SERVER: _source(SERVER)}
    if _for_foundry(folder):
        named = inference_model.model_id(model, "1")
        found |= {PYTHON: _source(PYTHON), JAVASCRIPT: _source(JAVASCRIPT)}
        found[inference_model.NAME] = inference_model.text(folder, named)
    return found


def lines(folder: Path, offered: Mapping[str, str]) -> str:
    """Markdown on the programs that `texts` has offered: two lines each."""
    found = [f"- `{name}`: {ABOUT[name].format(name=name)}" for name in offered if name in ABOUT]
    more = ["", APART] if _has_adapters(folder) else []
    return "\n".join(["For other apps, each with your prompt behind it:", "", *found, *more, ""])


def _source(name: str) -> str:
    return (HERE / f"{name}.txt").read_text("utf-8")


def _for_foundry(folder: Path) -> bool:
    """Whether Foundry Local's sessions can ask a folder as it is: the adapted model itself, for a CPU, with
    the chat template of its base. For another template, publishing writes one that it can render."""
    try:
        config = json_files.small_json(folder, json_files.CONFIG)
        lab = json_files.small_json(folder, serving_ids.LAB)
        providers = config["model"]["decoder"].get("session_options", {}).get("provider_options")
        template = templates.parse(str(lab["template"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, InputError):
        return False
    return not (_has_adapters(folder) or providers) and isinstance(template, templates.ChatTemplate)


def _has_adapters(folder: Path) -> bool:
    return any(folder.glob(f"*{contract.SUFFIX}"))
