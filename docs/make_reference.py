"""Write docs/reference/ from the code: `make reference`, or `python -m docs.make_reference`.

Recipe: from the option dataclasses. Command line: from argparse. Settings: from the docstrings of
pipeline/settings.py. Routes: from the routers of webapp/routes/. A test fails when a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from pipeline import __main__ as cli
from pipeline import settings
from pipeline.inputs.options import Option, describe
from pipeline.stages.recipe import OPTIONS, Basics
from webapp import __main__ as page
from webapp.routes import data_cards, examples, live, queue, runs, votes

FOLDER = settings.ROOT / "docs" / "reference"
WRITTEN = "This page is written from the code by `make reference`; change the code, not this page.\n"

RECIPE = f"""# Recipe

A recipe is everything you choose for a run, as YAML. Every key has a default; a stage set to `null` is left
out. Unknown keys and values that are not allowed are refused before anything starts.
{WRITTEN}
```yaml
name: travel
model: starter                      # a catalogue id, a hub id, or a local folder
data: travel.jsonl                  # relative to the recipe
template: chat                      # the model's own, or a text such as "Q: {{prompt}}\\nA: {{response}}"
quantize: {{algorithm: awq, bits: 4, group_size: auto}}
finetune: {{method: lora, r: 16, alpha: 32, max_steps: 60}}
optimize: {{device: cpu, provider: CPUExecutionProvider, precision: int4}}
evaluate: {{prompts: 20, max_new_tokens: 64}}
```
"""

COLUMNS = """## columns

`columns: {prompt: [a, b], response: [c], system: []}` says which columns of the data are prompt, response and
system; several are joined with a blank line between them. Left out, they are taken as recognised, which is
recorded.
"""

COMMANDS = f"""# Command line

Use `.venv/bin/python`, which `make install` makes.
{WRITTEN}
A `RUN` is the id that `list` shows. Exit codes: 0 success, 1 a run or stage failed, 2 bad input and
nothing was started.

On a terminal, control characters in logs, names and answers are shown as `\\u001b`; into a pipe or a file,
`logs` writes them unchanged. Ctrl-C stops following a run; the run itself continues.
"""

SETTINGS = f"""# Settings

Environment variables. Set them where the app or the command line starts: the worker and the stages inherit
them.
{WRITTEN}
The home must be on a disk of this machine. Shares such as SMB lack locks or permissions; they are refused,
and the message names what they lack.

| variable | default | what it does |
| --- | --- | --- |
"""
LIBRARIES = """
## Read by the libraries

| variable | what it does |
| --- | --- |
| `HF_TOKEN` | Token for the Hugging Face Hub; it takes precedence over `hf auth login` |
| `HF_HOME`, `HF_HUB_CACHE` | The Hub's own cache: read where the Hub cannot be reached, never filled |
| `HF_HUB_OFFLINE` | `1`: take models from that cache only |
| `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, `AZURE_CLIENT_SECRET` | A service principal: login `environment` |
| `ARM_CLOUD_METADATA_URL` | Addresses of an Azure cloud other than the public one |
| `CUDA_HOME`, `CUDA_PATH`, `CONDA_PREFIX`, `LD_LIBRARY_PATH` | Where drivers are: runs may read there |
| `TRITON_CACHE_DIR`, `TRITON_HOME`, `CUDA_CACHE_PATH` | Where GPU libraries keep what they have compiled |
| `REQUESTS_CA_BUNDLE` | Certificates to trust, such as those of your proxy |
"""
ROUTES = f"""# Routes

What the page's scripts ask the server for, besides Gradio's own routes. Pages from other sites are refused,
and so are host names that were not given with `--allow-host`. A run is named by its id; no route takes a
path. `404` means that the run, stage or group is unknown, `409` that the action is not possible now, `503`
that the store cannot be used: try again after the seconds in `Retry-After`. The page's scripts and style are
under `/lab/`.
{WRITTEN}
| method | path | query | what it answers |
| --- | --- | --- | --- |
"""

# What arguments mean where a verb has no words of its own for them, by what stands for them or by name.
COMMON = {
    "RUN|FOLDER": "A run's id, or an exported folder",
    "run": "A run's id",
    "runs": "More runs",
    "recipe": "A recipe, or a run to repeat with changes",
    "data": "The dataset; several files are one",
    "adapter": "A folder with a LoRA adapter as PEFT saves it",
    "target": "An exported folder, or a run",
    "stage": "The stage; default: the one that runs or ran last",
    "prompt": "What to ask",
    "where": "Where to move it",
    "what": "What to show",
    "model": "The model to download",
    "json": "Print JSON",
    "to": "Where to publish",
    "tag": "Tag; `list` shows only runs with it, `note` adds it",
    "untag": "Tag to remove",
    "owner": "Only runs of this owner",
    "group": "Only runs of this group, such as a sweep",
    "side": "Without the adapter, with it, or both",
    "max_new_tokens": "Longest answer, in tokens",
    "seed": "Makes an answer with a temperature repeatable",
}


def recipe() -> str:
    """The keys above the stages, then each stage with its options."""
    parts = [RECIPE, "## Top level\n", _options(describe(Basics)), COLUMNS]
    for name, cls in OPTIONS.items():
        parts += [f"## {name}\n", _options(describe(cls))]
    return "\n".join(parts)


def command_line() -> str:
    """Every verb with its arguments, then the app's."""
    parts = [COMMANDS]
    for name, parser in verbs().items():
        parts.append(_command(f"python -m pipeline {name}", parser, _summary(name)))
    parts.append(_command("python -m webapp", page.parser(), "Serve the page."))
    return "\n".join(parts)


def settings_page() -> str:
    """Every variable that pipeline/settings.py reads, as the docstring of its function describes it."""
    rows = [f"| `{name}` | {default} | {what} |" for name, default, what in _variables()]
    return SETTINGS + "\n".join(rows) + "\n" + LIBRARIES


def routes() -> str:
    """Every route of ours."""
    rows = [
        f"| {', '.join(sorted(route.methods or ()))} | `{route.path}` | {_query(route)} |"
        f" {_first(route.endpoint)} |"
        for route in our_routes()
    ]
    return ROUTES + "\n".join(rows) + "\n"


PAGES = {
    "recipe.md": recipe,
    "command-line.md": command_line,
    "settings.md": settings_page,
    "routes.md": routes,
}


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The parser of each verb by name, with all its flags."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, verb in _choices().choices.items():
        flags, verb.flags = verb.flags, None
        if flags is not None:
            flags(verb)
        found[name] = verb
    return found


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a person may give: all but --help and what is hidden."""
    hidden = (argparse.SUPPRESS, "show this help message and exit")
    return [action for action in parser._actions if action.help not in hidden]


def our_routes() -> Iterator[APIRoute]:
    """The routes of our routers, runs first."""
    routers: tuple[APIRouter, ...] = (
        runs.router,
        live.router,
        queue.router,
        data_cards.router,
        examples.router,
        votes.router,
    )
    for router in routers:
        yield from (route for route in router.routes if isinstance(route, APIRoute))


def about(action: argparse.Action) -> str:
    """What an argument means. Raises KeyError for one that nothing is known of."""
    text = action.help or COMMON.get(str(action.metavar)) or COMMON[action.dest]
    told = "default" in text or action.default in (None, False, "") or isinstance(action.default, list)
    return (text if told else f"{text} (default: %(default)s)") % {"default": action.default}


def _choices() -> Any:
    parser = cli._parser()
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))


def _summary(name: str) -> str:
    return next(str(a.help) for a in _choices()._choices_actions if a.dest == name)


def _command(title: str, parser: argparse.ArgumentParser, summary: str) -> str:
    given = arguments(parser)
    text = f"## {title.removeprefix('python -m pipeline ')}\n\n{summary}\n\n"
    text += "```\n" + " ".join([title, *(_usage(action) for action in given)]) + "\n```\n"
    if not given:
        return text
    rows = [f"| `{_name(action)}` | {_cell(about(action))} |" for action in given]
    return text + "\n| argument | what it does |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def _usage(action: argparse.Action) -> str:
    if not action.option_strings:
        word = _value(action)
        return {"?": f"[{word}]", "+": f"{word}..."}.get(str(action.nargs), word)
    text = " ".join(filter(None, [" | ".join(action.option_strings), _value(action)]))
    more = "..." if isinstance(action, argparse._AppendAction) else ""
    return text if action.required else f"[{text}]{more}"


def _name(action: argparse.Action) -> str:
    words = [", ".join(action.option_strings), _value(action)]
    return " ".join(filter(None, words)).replace("|", "\\|")


def _value(action: argparse.Action) -> str:
    """What stands for the value, empty for a switch."""
    if action.nargs == 0:
        return ""
    if action.metavar:
        return str(action.metavar)
    if action.choices:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _cell(text: str) -> str:
    """Text for a cell, with a capital where it starts with a word rather than with a value or a key."""
    text = text.replace("|", "\\|")
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+ ", text) else text


def _variables() -> list[tuple[str, str, str]]:
    """Name, default and meaning of each variable, from docstrings such as `(`NAME`, default 20)`."""
    named = re.compile(r"\s*\(`([A-Z_]+)`(?:, ([^()]*))?\)")
    rows: dict[str, tuple[str, str, str]] = {}
    for _, function in inspect.getmembers(settings, inspect.isfunction):
        text = " ".join((function.__doc__ or "").partition("Raises")[0].split())
        if found := named.search(text):
            default = (found[2] or "").removeprefix("default ")
            about = named.sub("", text, count=1).strip().removesuffix(".")
            rows.setdefault(found[1], (found[1], default, _cell(about)))
    return sorted(rows.values(), key=lambda row: (not row[0].startswith("OLIVE_LAB_"), row[0]))


def _query(route: APIRoute) -> str:
    return ", ".join(f"`{parameter.alias}`" for parameter in route.dependant.query_params)


def _first(function: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def _options(options: Iterable[Option]) -> str:
    rows = ["| key | default | allowed | what it does |", "| --- | --- | --- | --- |"]
    for option in options:
        default = f"`{option.default}`" if option.default != "" else ""
        rows.append(f"| `{option.name}` | {default} | {option.allowed()} | {option.help} |")
    text = "\n".join(rows) + "\n"
    return text.replace("True", "true").replace("False", "false").replace("`None`", "`null`")


def main(folder: Path = FOLDER) -> None:
    """Write every page."""
    for name, make in PAGES.items():
        (folder / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
