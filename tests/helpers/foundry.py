"""Foundry Local's real packages: the environment that `make install` makes, and the one for JavaScript."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.publish.foundry import environment

JAVASCRIPT = Path(__file__).with_name("foundry_js") / "node_modules"  # `make chain` makes it
PACKAGE = "foundry-local-sdk"


def installed(config: pytest.Config) -> Path:
    """Its interpreter. Whoever asks for the tests that need it is told where it is missing; in a run of
    everything they are only left out."""
    where = environment.folder(Path("/nowhere"))
    if not environment.complete(where):
        why = "Foundry Local's package is not installed for the tests: make install"
        (pytest.fail if config.getoption("markexpr") == "chain" else pytest.skip)(why)
    return where / "bin" / "python"


def install_for_javascript(config: pytest.Config, folder: Path) -> None:
    """Put the npm package into a folder, with the libraries that its own install step would download."""
    python = installed(config)
    native = JAVASCRIPT / "native" / "foundry_local_core" / "bin"
    if not native.is_dir() or shutil.which("node") is None:
        why = "Foundry Local's package for JavaScript is not installed for the tests: make chain"
        (pytest.fail if config.getoption("markexpr") == "chain" else pytest.skip)(why)
    package = folder / "node_modules" / PACKAGE
    others = shutil.ignore_patterns("win32-*", "darwin-*", "linux-arm64")
    shutil.copytree(JAVASCRIPT / PACKAGE, package, ignore=others)
    (packages,) = (python.parent.parent / "lib").glob("python3*/site-packages")
    libraries = {
        "Microsoft.AI.Foundry.Local.Core.so": next(native.glob("*.so")),
        "libonnxruntime.so": next(packages.glob("onnxruntime/capi/libonnxruntime.so.*")),
        "libonnxruntime-genai.so": packages / "onnxruntime_genai_core" / "bin" / "libonnxruntime-genai.so",
    }
    beside = package / "foundry-local-core" / "linux-x64"
    beside.mkdir(parents=True)
    for name, library in libraries.items():
        (beside / name).symlink_to(library)


def know_the_catalogue(models: Path) -> None:
    """Have a cache of models know the public catalogue, an empty one, so that it is not asked."""
    models.mkdir(parents=True)
    known = {"version": 1, "savedAt": datetime.now(UTC).isoformat(), "models": [], "detectedRegion": "eastus"}
    (models / "foundry.modelinfo.json").write_text(json.dumps(known))
