"""A merged adapter against the same adapter beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from tests.helpers import tiny
from tests.passes.optimize.test_export import PROMPTS, quantized, random_adapter, run

pytestmark = pytest.mark.chain


def adapted(folder: Path, architecture: str, algorithm: str, **options: Any) -> tuple[Any, Path]:
    """A checkpoint's handler and the folder of a random adapter to it."""
    from olive.model import HfModelHandler

    source = tiny.build(architecture, folder / "model")
    checkpoint = quantized(source, folder / "quantized", algorithm, **options)
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    random_adapter(handler.load_model(cache_model=False), None).save_pretrained(folder / "adapter")
    return handler, folder / "adapter"


def logits(model: Any) -> list[Any]:
    tokenizer = tiny.tokenizer()
    return [run(model, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def error(found: list[Any], exact: list[Any]) -> float:
    """Root mean square difference, relative to the logits."""
    import numpy as np

    difference = np.concatenate([(f - e).ravel() for f, e in zip(found, exact, strict=True)])
    return float(
        np.sqrt((difference**2).mean()) / np.sqrt(np.concatenate([e.ravel() for e in exact]) ** 2).mean()
    )


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize(
    ("algorithm", "options", "most"),
    [("float", {}, 1e-5), ("rtn", {"bits": 8}, 0.05), ("rtn", {"bits": 4}, 0.5), ("rtn", {"sym": True}, 0.5)],
    ids=str,
)
def test_it_is_the_adapter_up_to_rounding(
    architecture: str, algorithm: str, options: dict[str, Any], most: float, tmp_path: Path
) -> None:
    from pipeline.passes.optimize.merge import merge, with_adapter

    handler, adapter = adapted(tmp_path, architecture, algorithm, **options)
    base = logits(handler.load_model(cache_model=False).eval())
    model = with_adapter(handler.load_model(cache_model=False).eval(), adapter)
    beside = logits(model)
    assert merge(model, options.get("bits", 4)) == 2 * (7 if architecture == "llama" else 4)
    found = error(logits(model), beside)
    assert found < most
    assert error(base, beside) > 2 * found  # the adapter is in the weights, not lost


@pytest.mark.parametrize(("algorithm", "bits"), [("rtn", 4), ("rtn", 8), ("float", 8)])
def test_the_pass_gives_a_checkpoint_that_is_exported_as_it_is(
    algorithm: str, bits: int, tmp_path: Path
) -> None:
    import json

    import torch
    from olive.model import HfModelHandler

    from pipeline.passes.measure.graph_logits import logits_of
    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.merge import MergeAdapter, merge, with_adapter
    from tests.passes.optimize.test_export import EXACT, apply

    handler, adapter = adapted(tmp_path, "llama", algorithm)
    data = {
        "name": "held_out",
        "user_script": str(settings.ROOT / "pipeline" / "passes" / "rows.py"),
        "load_dataset_config": {
            "type": "lab_rows",
            "params": {
                "path": str(tiny.dataset(tmp_path / "rows.jsonl")),
                "template": "chat",
                "model": str(tmp_path / "model"),
                "part": "eval",
                "eval_fraction": 0.2,
                "seed": 0,
                "max_length": 256,
                "loss_on": "response",
                "limit": 8,
            },
        },
    }
    config = {
        "adapter_path": str(adapter),
        "data_config": data,
        "bits": bits,
        "report": str(tmp_path / "report.json"),
    }
    merged = apply(MergeAdapter, config, handler, tmp_path / "merged")
    wanted = with_adapter(handler.load_model(cache_model=False).eval(), adapter)
    merge(wanted, bits)
    expected = logits(wanted)
    loaded = HfModelHandler(str(tmp_path / "merged"), load_kwargs={"torch_dtype": "float32"})
    assert error(logits(loaded.load_model(cache_model=False).eval()), expected) < 1e-5
    apply(GenaiBuilder, {"template": "chat", **EXACT}, merged, tmp_path / "onnx")
    graph = logits_of(tmp_path / "onnx")
    tokenizer = tiny.tokenizer()
    found = [graph(torch.tensor(tokenizer(prompt)["input_ids"])).numpy() for prompt in PROMPTS]
    assert error(found, expected) < 1e-5
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["merged_matrices"] == 14
    assert report["held_out_perplexity_detachable"] > 1
    assert report["held_out_perplexity_merged"] > 1
    lost = report["held_out_divergence_merged"]
    assert lost < 1e-6 if algorithm == "float" else (lost > 1e-2) == (bits == 4)


def test_dora_is_refused(tmp_path: Path) -> None:
    import json

    from pipeline.passes.optimize.merge import with_adapter

    handler, adapter = adapted(tmp_path, "llama", "float")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora"):
        with_adapter(handler.load_model(cache_model=False), adapter)
