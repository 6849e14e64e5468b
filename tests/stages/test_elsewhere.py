"""Workflows for devices that are not here: Olive's own check, and what the stage gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import optimize
from pipeline.stages.context import Context
from pipeline.stages.execute import execute
from tests.helpers.carry import context_of

pytestmark = pytest.mark.chain
PAIRS = [(device, provider) for device, providers in optimize.TARGETS.items() for provider in providers]


def context(folder: Path) -> Context:
    """Inputs that exist, though nothing reads them."""
    inputs = {"checkpoint": folder / "checkpoint", "adapter": folder / "adapter"}
    return context_of(folder, folder, inputs=inputs, data=folder / "rows.jsonl", config={})


@pytest.mark.parametrize(("device", "provider"), PAIRS)
def test_olive_knows_the_device_the_provider_and_every_precision(
    device: str, provider: str, tmp_path: Path
) -> None:
    from olive.hardware.constants import DEVICE_TO_EXECUTION_PROVIDERS

    assert provider in DEVICE_TO_EXECUTION_PROVIDERS[device]
    for precision in optimize.TARGETS[device][provider]:
        for adapter in ("detachable", "merged"):
            chosen: Any = {"device": device, "provider": provider, "precision": precision, "adapter": adapter}
            options = optimize.Options(**chosen)
            if not optimize.not_run_here(options):
                continue
            made = execute(optimize, options, context(tmp_path / precision / adapter))
            assert made.metrics == {"not_run_here": f"optimize for {device} with {provider} is not run here"}
            assert [artifact.kind for artifact in made.artifacts] == ["workflow"]
            workflow = json.loads(made.artifacts[0].path.read_text())
            accelerator = {"device": device, "execution_providers": [provider]}
            assert workflow["systems"]["local"]["accelerators"] == [accelerator]
            assert list(workflow["passes"]) == (
                ["merge", "export"] if adapter == "merged" else ["export", "adapter"]
            )
            assert (made.artifacts[0].path.parent / "package.json").is_file()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precision": "fp16"}, "Olive refuses the pass export"),
        ({"precision": "int3"}, "precision"),
        ({"type": "NoSuchPass"}, "NoSuchPass|nosuchpass"),
        ({"template": None}, "template"),
    ],
    ids=str,
)
def test_olive_refuses_what_it_would_not_run(
    changed: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = optimize.Options(device="npu", provider="QNNExecutionProvider")
    workflow = optimize.workflow(options, context(tmp_path))
    workflow["passes"]["export"] |= changed
    if changed.get("template", "") is None:
        del workflow["passes"]["export"]["template"]
    monkeypatch.setattr(optimize, "workflow", lambda *_: workflow)
    with pytest.raises(ValueError, match=said):
        execute(optimize, options, context(tmp_path))
