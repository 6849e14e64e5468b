"""Bind an adapter to an exported graph: any runtime that loads GenAI folders then has the adapted model.

The adapter's arrays become the graph's own constants, in a file beside the base's weights, which both folders
share where the disk can. Nothing is rounded again: on a CPU the bound model computes bit for bit what the
graph computes with the adapter active. The graph and the small files are copied, and only the weights are
shared, so that changing the new folder leaves the base as it was. A file that both have is never changed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, serving_ids, verify
from pipeline.exports.bound import constants
from pipeline.exports.contract import ADAPTER_DATA, BOUND, MERGED
from pipeline.exports.verifying import adapter_files, declarations, json_files
from pipeline.system import checksums, files
from pipeline.system.files import COPIED, to_json

NOTHING = "Nothing was written"
BRANCHES = ("If", "Loop", "Scan")  # nodes that no CUDA graph records
LEFT_OUT = ("artifact.json", checksums.NAME)  # they describe the other folder


@dataclass(frozen=True)
class Bound:
    """A bound folder: the adapter in it, how the base's weights came in, and bytes of both.

    `shared` is "link", "reflink" (a copy that shares its blocks until one is changed) or "copy".
    """

    folder: Path
    adapter: Path
    tensors: int
    shared: str
    base_bytes: int
    adapter_bytes: int

    def __str__(self) -> str:
        copied = "copied: this disk cannot share the base's files"
        how = copied if self.shared == COPIED else "shared with the base"
        return (
            f"{self.folder}: {display.plain(self.adapter.name)} bound, {self.tensors} tensors of"
            f" {display.size(self.adapter_bytes)}; {display.size(self.base_bytes)} of weights {how}"
        )


def bind(exported: Path, adapter: Path | str | None, to: Path) -> Bound:
    """Make the folder `to`: the exported model with an adapter as its graph's own constants.

    `exported` is a folder with a detachable adapter's places; `adapter` the name of an adapter in it, an
    .onnx_adapter file, or None for the one that the folder has. `to` is made whole or not at all. Raises
    InputError with the reason if the three do not go together or `to` exists, LabError if the disk is full.
    """
    to, real = to.absolute(), exported.resolve()
    _require_new(to)
    file = adapter_of(exported, adapter)
    config, graph = _checked(exported, file)
    part = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(mode=0o700)
        found = _write(exported, file, config, graph, part, real)
        _settle(part, to)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LabError(
            f"The disk of {to} is full; free some space there and bind again. {NOTHING}."
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bound(to, file, **found)


def adapter_of(exported: Path, given: Path | str | None) -> Path:
    """The adapter's file. Raises InputError if there is none, or the folder's graph has one in it already."""
    if not exported.is_dir():
        raise InputError(f"{exported}: no such folder")
    if (exported / BOUND).is_file():
        raise InputError(f"{exported} is bound already; bind the adapter to the folder that it was made from")
    if (exported / MERGED).is_file():
        raise InputError(
            f"{exported} has its adapter merged into the weights; bind one to a detachable export"
        )
    usual = adapter_files.usual_adapter(exported)
    file = usual if given is None else adapter_files.named_adapter(exported, str(given))
    if file is None:
        raise InputError(f"{exported} has no adapter; name the file of one with --adapter")
    _require_same_base(file, exported)
    return file


def _require_new(to: Path) -> None:
    if not to.parent.is_dir():
        raise InputError(f"{to.parent}: no such folder")
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise InputError(f"{to}: already exists; give another name with --to")


def _require_same_base(adapter: Path, exported: Path) -> None:
    """Compare the bases that two exports name. Sizes alone don't distinguish models of the same shape."""
    mine, others = (_lab(folder).get("base") for folder in (exported, adapter.parent))
    if mine and others and mine != others:
        raise InputError(
            f"{adapter.name} was trained on {display.value(others)}, and {exported.name} is"
            f" {display.value(mine)}; bind an adapter of the same base"
        )


def _lab(folder: Path) -> dict[str, Any]:
    return _facts(folder / serving_ids.LAB)


def _facts(file: Path) -> dict[str, Any]:
    """A small file of JSON with a mapping in it; {} if there is none that can be read."""
    try:
        with file.open("rb") as opened:
            content = opened.read(json_files.LARGEST_JSON + 1)
        found = json.loads(content) if len(content) <= json_files.LARGEST_JSON else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked(exported: Path, adapter: Path) -> tuple[declarations.Config, contract.Graph]:
    """What the folder declares. Raises InputError if it or the adapter is not good."""
    there = adapter_files.adapters_of(exported)
    others = {f"adapter {file.name}" for file in there} - {f"adapter {adapter.name}"}
    if os.path.lexists(exported / ADAPTER_DATA):
        raise InputError(
            f"{exported.name} has a file {ADAPTER_DATA}, as only bound folders have, for their adapter's"
            " values; export the model again"
        )
    try:
        config, graph = declarations.declared(exported)
        checksums.read(exported)  # of which those of the weights are kept
        if not set(graph.inputs) - set(config.inputs):
            raise InputError(
                f"{exported.name}: the graph has no places for an adapter; export it once with"
                " optimize.adapter: detachable"
            )
        found = verify.static(exported, adapter)
        verify.require([each for each in found if each.check not in others], NOTHING)
    except ValueError as error:
        raise InputError(f"{exported.name}: {error}") from None
    except LabError as error:
        raise InputError(str(error)) from None
    return config, graph


def _write(
    exported: Path, adapter: Path, config: declarations.Config, graph: contract.Graph, part: Path, real: Path
) -> dict[str, Any]:
    """Write the folder; what `Bound` has of it besides its place."""
    import onnx
    import onnxruntime

    model = onnx.load(exported / config.graph, load_external_data=False)
    read = onnxruntime.AdapterFormat.read_adapter(str(adapter)).get_parameters()
    arrays = {name: value.numpy() for name, value in read.items()}
    constants.fix(model, arrays, config.inputs, part / ADAPTER_DATA, stacked=_for_cpu(exported))
    onnx.save(model, part / config.graph)
    weights = sorted({PurePosixPath(piece.location).as_posix() for piece in graph.pieces})
    shared = _carry_over(real, part, config.graph, weights)
    if not any(node.op_type in BRANCHES for node in model.graph.node):
        _record_steps(part / json_files.CONFIG)
    facts = {
        "adapter": adapter.name,
        "sha256": checksums.of(adapter.parent, [adapter.name])[adapter.name],
        "tensors": len(arrays),
        "base": _lab(exported).get("base"),
        "base_graph": checksums.of(exported, [config.graph])[config.graph],
    }
    files.write_whole(part / BOUND, to_json(facts, indent=1) + "\n", shared=True)
    _write_sums(exported, part, weights)
    return {
        "tensors": len(arrays),
        "shared": shared,
        "base_bytes": files.size(*(part / name for name in weights)),
        "adapter_bytes": (part / ADAPTER_DATA).stat().st_size,
    }


def _for_cpu(exported: Path) -> bool:
    """Whether the export names no provider: it then runs on a CPU."""
    decoder = json.loads((exported / json_files.CONFIG).read_text("utf-8"))["model"]["decoder"]
    return not (decoder.get("session_options") or {}).get("provider_options")


def _record_steps(file: Path) -> None:
    """Have the steps of an export for CUDA recorded as a CUDA graph.

    Launching some 2,000 kernels one by one takes longer than they do. With a detachable adapter the graph's
    inputs would change beneath the record.
    """
    config = json.loads(file.read_text("utf-8"))
    options = config["model"]["decoder"].get("session_options") or {}
    for provider in options.get("provider_options") or []:
        if "cuda" in provider:
            provider["cuda"]["enable_cuda_graph"] = "1"
            files.write_whole(file, to_json(config, indent=4) + "\n", shared=True)


def _carry_over(exported: Path, part: Path, graph: str, weights: list[str]) -> str:
    """Share the weights and copy what else lies beside the graph; how they were shared.

    `exported` is a real path. Nothing is read through a link out of it: there was none, but one may have come
    since.
    """
    how, inside = set(), (exported,)
    for name in weights:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        how.add(files.share(exported / name, part / name, inside))
    for file in exported.iterdir():
        left_out = file.name in (graph, *weights, *LEFT_OUT) or file.suffix == contract.SUFFIX
        if file.is_file() and not left_out:
            with files.open_inside(file, inside) as source, (part / file.name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
    return COPIED if COPIED in how else min(how, default=COPIED)


def _write_sums(exported: Path, part: Path, weights: list[str]) -> None:
    """The folder's checksums; of shared weights the base's own, so that gigabytes are not read again."""
    known = checksums.read(exported)
    sums = {name: known[name] for name in weights if name in known}
    names = [path.name for path in part.iterdir() if path.name not in sums]
    found = checksums.text({**sums, **checksums.of(part, names)})
    files.write_whole(part / checksums.NAME, found, shared=True)


def _settle(part: Path, to: Path) -> None:
    """Rename a finished folder to its name, unless that was taken meanwhile."""
    try:
        part.rename(to)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise InputError(f"{to}: already exists; give another name with --to") from None


def facts_of(folder: Path) -> Mapping[str, Any]:
    """What a bound folder says of its adapter: {adapter, sha256, tensors, base, base_graph}; else {}."""
    return _facts(folder / BOUND)
