"""Models in Azure as a base for runs: which of their files make a Hugging Face folder, and fetching those.

Models of the catalogue are plain folders, or in MLflow's layout: weights in one folder, the tokenizer in
another. `python -m pipeline.publish.azure.catalogue URI` describes a model from its small files; with
`--into FOLDER` it fetches the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_address import parse
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.models import base_models
from pipeline.publish.azure.faults import explained
from pipeline.publish.azure.pull import opened
from pipeline.publish.azure.transfer import download
from pipeline.system.files import to_json
from pipeline.system.transfer_progress import Meter

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
SMALL = (CONFIG, TOKENIZER, "chat_template.jinja")
LARGEST_SMALL = 1 << 26  # bytes


def layout(names: Iterable[str]) -> dict[str, str]:
    """The files of a Hugging Face folder by their plain names, each with its name in the model.

    Raises LabError if the model has no such folder, or no weights that can be loaded safely.
    """
    there = [PurePosixPath(name) for name in sorted(names)]
    folders = {path.parent for path in there if path.name == CONFIG}
    weights = {path.parent for path in there if path.suffix == ".safetensors"}
    found = sorted(folders & weights, key=lambda folder: (len(folder.parts), str(folder)))
    if not found:
        if any(path.name == "genai_config.json" for path in there):
            raise LabError(
                "is an exported ONNX model, which cannot be trained further; take its run's recipe instead"
            )
        if folders:
            raise LabError("has no .safetensors file; other weight formats can carry code")
        raise LabError("has no config.json beside its weights, so it is not a Hugging Face model")
    main = found[0]
    chosen = _of(there, main)
    if TOKENIZER not in chosen:
        # MLflow's places for it: components/tokenizer next to model, or data/tokenizer.
        beside = sorted(
            {path.parent for path in there if path.name == TOKENIZER}, key=lambda p: (len(p.parts), str(p))
        )
        if not beside:
            raise LabError("has no tokenizer")
        chosen = {**_of(there, beside[0]), **chosen}
    return chosen


def _of(there: list[PurePosixPath], folder: PurePosixPath) -> dict[str, str]:
    """The files directly in a folder that are fetched: no code, no other weights."""
    inside = (path for path in there if path.parent == folder)
    return {
        path.name: str(path)
        for path in inside
        if any(fnmatch(path.name, want) for want in base_models.HUB_FILES)
    }


def describe(home: Path, uri: str) -> base_models.Model:
    """The model, described from only its config and tokenizer. Raises LabError."""
    where = azure_workspace.find(home, Place(""))
    reference = parse(uri, where)
    with explained(reference.where), tempfile.TemporaryDirectory() as folder:
        container, files, _ = opened(reference)
        wanted = {name: files[path] for name, path in layout(files).items() if name in SMALL}
        if any(remote.size > LARGEST_SMALL for remote in wanted.values()):
            raise LabError("has a config too large to be one")
        download.fetch(container, wanted, Path(folder), Meter(_quiet, sum(r.size for r in wanted.values())))
        config, chat = base_models.read_config(Path(folder))
    return base_models.Model(reference.uri, "azureml", reference.version, config, chat)


def fetch(home: Path, uri: str, part: Path, report: Callable[[str], None]) -> None:
    """Download the model into `part`, where an earlier attempt's files are kept. Raises LabError."""
    where = azure_workspace.find(home, Place(""))
    reference = parse(uri, where)
    part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def tell(message: str, fraction: float, **facts: Any) -> None:
        left = facts.get("eta_seconds")
        report(
            f"{message}: {fraction:.0%} of the model" + (f", {left / 60:.0f} minutes left" if left else "")
        )

    with explained(reference.where):
        container, files, _ = opened(reference)
        wanted = {name: files[path] for name, path in layout(files).items()}
        download.fetch(container, wanted, part, Meter(tell, sum(remote.size for remote in wanted.values())))


def _quiet(message: str, fraction: float, **facts: Any) -> None:
    """Small files need no progress."""


def _main(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--into", type=Path)
    args = parser.parse_args(words)
    settings.quiet_this_process()
    settings.keep_private()
    return _fetched(args.uri, args.into) if args.into else _described(args.uri)


def _fetched(uri: str, part: Path) -> int:
    """Prints one line of JSON per message; an error, if any, comes last."""
    try:
        fetch(settings.home(), uri, part, lambda message: print(to_json({"message": message}), flush=True))
    except (LabError, OSError) as error:
        print(to_json({"error": sentence(error)}), flush=True)
        return 2
    return 0


def _described(uri: str) -> int:
    try:
        print(to_json(dataclasses.asdict(describe(settings.home(), uri))))
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    except RecursionError:  # it could be read, but is nested too deeply to write
        print("config.json is nested deeper than any real one", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
