"""Results of stages, stored under a hash of all that went into them, so that they can be reused.

`artifacts/<stage>-<key>/` holds what the stage wrote and `artifact.json`, which says how it was made.
A result is written under a temporary name and renamed, so a folder under its final name is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.stages.context import Artifact, Results
from pipeline.system import files, locks
from pipeline.system.files import to_json

MANIFEST = "artifact.json"
PACKAGES = (
    "olive-ai", "torch", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-gpu",
    "onnxruntime-genai", "onnxruntime-genai-cuda",
)  # fmt: skip
SOURCES = (
    "passes",
    "stages",
    "evaluation",
    "exports",
    "inputs",
    "system",
)  # packages of ours that decide what a stage makes
NEUTRAL = frozenset({"__pycache__", "costs"})  # folders in them that don't: costs only predict


@dataclass(frozen=True)
class Stored:
    """A stored result. Paths of `artifacts` are absolute."""

    key: str
    folder: Path
    seconds: float
    metrics: dict[str, Any]
    artifacts: list[Artifact]

    def rows(self) -> list[dict[str, Any]]:
        """The artifacts as the store keeps them: name, kind, path and bytes on disk."""
        return [
            {"name": a.name, "kind": a.kind, "path": str(a.path), "bytes": files.size(a.path)}
            for a in self.artifacts
        ]


def key(stage: str, options: Any, inputs: dict[str, str]) -> str:
    """Name a stage's result by content: its options, the keys of what goes in, packages and our own code.

    `inputs` maps a word to the key or fingerprint of an input. Returns 16 hexadecimal digits.
    """
    facts = {
        "stage": stage,
        "options": dataclasses.asdict(options),
        "inputs": inputs,
        "packages": versions(),
        "code": code(),
    }
    return hashlib.sha256(to_json(facts, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    import importlib.metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the CPU and the GPU set have different ones of these
    return found


def find(home: Path, stage: str, key: str) -> Stored | None:
    """The stored result of that key, or None."""
    folder = home / "artifacts" / f"{stage}-{key}"
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a power cut can leave an empty file
        return None
    artifacts = [Artifact(a["name"], a["kind"], folder / a["path"]) for a in facts["artifacts"]]
    if not all(artifact.path.exists() for artifact in artifacts):
        return None
    return Stored(key, folder, facts["seconds"], facts["metrics"], artifacts)


def packages(path: Path) -> dict[str, str]:
    """Versions of the packages that made the artifact at `path`; {} where its manifest does not say."""
    for folder in (path, path.parent):
        try:
            made: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["packages"]
        except (OSError, ValueError, KeyError):
            continue
        return made
    return {}


def name(path: str | Path) -> str | None:
    """`<stage>-<key>` of an artifact's path, wherever the home is; None for any other path."""
    parts = Path(path).parts
    last = len(parts) - 1 - parts[::-1].index("artifacts") if "artifacts" in parts else len(parts)
    return parts[last + 1] if last + 1 < len(parts) else None


def lock(home: Path, stage: str, key: str) -> Path:
    """The lock to hold while a result is made, so that two runs don't make the same one twice."""
    return home / "artifacts" / ".locks" / f"{stage}-{key}"


def sweep(home: Path) -> None:
    """Delete the partial results of stages that were killed."""
    for unfinished in (home / "artifacts").glob("*.part"):
        held = locks.take(home / "artifacts" / ".locks" / unfinished.stem)
        if held is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
            os.close(held)


def part(home: Path, stage: str, key: str) -> Path:
    """An empty folder to write a result into, beside its final place."""
    path = home / "artifacts" / f"{stage}-{key}.part"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    return path


def alike(home: Path, stage: str, likeness: str) -> list[Stored]:
    """Stored results of a stage that were kept with that likeness, newest first."""
    found = []
    for manifest in sorted((home / "artifacts").glob(f"{stage}-*/{MANIFEST}"), key=_age, reverse=True):
        if manifest.parent.suffix == ".part":
            continue
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # deleted meanwhile, or emptied by a power cut
            continue
        if (
            isinstance(facts, dict)
            and facts.get("likeness") == likeness
            and (stored := find(home, stage, manifest.parent.name.removeprefix(f"{stage}-")))
        ):
            found.append(stored)
    return found


def _age(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def keep(
    home: Path,
    stage: str,
    key: str,
    written: Path,
    results: Results,
    seconds: float,
    likeness: str = "",
) -> Stored:
    """Move a finished result from `written` to its final place.

    `likeness` is a hash of what it shares with similar results: see `alike`.
    """
    facts = {
        "stage": stage,
        "key": key,
        "seconds": seconds,
        "metrics": results.metrics,
        "likeness": likeness,
        "packages": versions(),
        "artifacts": [
            {"name": a.name, "kind": a.kind, "path": str(a.path.relative_to(written))}
            for a in results.artifacts
        ],
    }
    (written / MANIFEST).write_text(to_json(facts, indent=2), encoding="utf-8")
    target = home / "artifacts" / f"{stage}-{key}"
    shutil.rmtree(target, ignore_errors=True)
    written.replace(target)
    stored = find(home, stage, key)
    assert stored is not None
    return stored


@lru_cache(maxsize=1)
def code() -> str:
    """A digest of our own code that makes results, so that a changed pass is run again."""
    digest = hashlib.sha256()
    for name in SOURCES:
        source = settings.ROOT / "pipeline" / name
        for path in sorted(source.rglob("*.*")):
            if path.is_file() and not NEUTRAL.intersection(path.relative_to(source).parts):
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
