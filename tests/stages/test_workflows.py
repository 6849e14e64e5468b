"""The Olive workflow of each stage, as JSON, against `golden/`.

After a change that is meant: `python tests/stages/test_workflows.py` writes the files again; read the diff.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.stages import evaluate, finetune, optimize, quantize, score
from pipeline.stages.context import Context
from tests.helpers.carry import context_of

GOLDEN = Path(__file__).resolve().parent / "golden"
SMOLLM = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
}
CHECKPOINT = {"checkpoint": Path("/home/artifacts/quantize/model")}
ADAPTER = {"adapter": Path("/home/artifacts/finetune/adapter")}
EXPORT = {
    "onnx": Path("/home/artifacts/optimize"),
    "onnx_adapter": Path("/home/artifacts/optimize/adapter_weights.onnx_adapter"),
}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "quantize-awq": (quantize, quantize.Options(), {"inputs": {}}),
    "quantize-autoawq": (quantize, quantize.Options(engine="autoawq"), {"inputs": {}, "device": "cuda"}),
    "quantize-rtn": (
        quantize,
        quantize.Options(algorithm="rtn", mixed_precision="k_quant_mixed"),
        {"inputs": {}},
    ),
    "quantize-sensitivity": (
        quantize,
        quantize.Options(algorithm="rtn", mixed_precision="sensitivity", eight_bit_share=0.1),
        {"inputs": {}},
    ),
    "quantize-gptq": (
        quantize,
        quantize.Options(algorithm="gptq", bits=8, group_size=32, symmetric=True, lm_head=True),
        {"inputs": {}, "device": "cuda"},
    ),
    "finetune": (finetune, finetune.Options(), {"inputs": CHECKPOINT}),
    "finetune-float": (
        finetune,
        finetune.Options(
            target_modules="q_proj, v_proj",
            loss_on="all",
            gradient_checkpointing=True,
            packing=True,
            epochs=1.5,
            scheduler="cosine_with_min_lr",
        ),
        {"inputs": {}, "device": "cuda", "template": "{prompt}\\n{response}"},
    ),
    "finetune-qlora": (
        finetune,
        finetune.Options(
            method="qlora", gradient_accumulation=4, eval_every=10, early_stop=3, scheduler="constant"
        ),
        {"inputs": {}, "device": "cuda"},
    ),
    "optimize": (optimize, optimize.Options(), {"inputs": CHECKPOINT | ADAPTER}),
    "optimize-float": (
        optimize,
        optimize.Options(device="gpu", provider="CUDAExecutionProvider", precision="fp16"),
        {"inputs": {}},
    ),
    "optimize-cuda": (
        optimize,
        optimize.Options(device="gpu", provider="CUDAExecutionProvider"),
        {"inputs": CHECKPOINT | ADAPTER, "device": "cuda"},
    ),
    "optimize-merged": (
        optimize,
        optimize.Options(precision="int8", adapter="merged", lm_head="float", embedding="int4"),
        {"inputs": CHECKPOINT | ADAPTER},
    ),
    "optimize-npu": (
        optimize,
        optimize.Options(device="npu", provider="QNNExecutionProvider"),
        {"inputs": CHECKPOINT | ADAPTER},
    ),
    "score": (score, score.Options(), {"inputs": CHECKPOINT | EXPORT}),
    "evaluate": (evaluate, evaluate.Options(), {"inputs": CHECKPOINT | ADAPTER | EXPORT}),
    "evaluate-merged": (
        evaluate,
        evaluate.Options(),
        {"inputs": {"onnx": EXPORT["onnx"], "merged": Path("/home/artifacts/optimize/merged.json")}},
    ),
    "evaluate-base": (evaluate, evaluate.Options(prompts=5), {"inputs": {"onnx": EXPORT["onnx"]}}),
}


def context(**changes: Any) -> Context:
    """Paths that nothing reads, and the starter model's config."""
    given = {"data": Path("/home/data/travel.jsonl"), "eval_fraction": 0.1, "config": SMOLLM}
    return context_of(Path("/home/stage"), Path("/home/models/starter"), **given | changes)


def workflow(name: str) -> str:
    stage, options, changes = CASES[name]
    made = stage.workflow(options, context(**changes))
    return json.dumps(made, indent=2).replace(str(settings.ROOT), "/repo") + "\n"


@pytest.mark.parametrize("name", CASES)
def test_workflow_is_as_written(name: str) -> None:
    assert workflow(name) == (GOLDEN / f"{name}.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("places", "reused"),
    [
        (["q_proj", "v_proj"], True),
        (["q_proj", "k_proj", "v_proj"], True),
        (["q_proj"], False),
        ([], True),  # a scorecard's, which the pass gives places
    ],
)
def test_an_earlier_graph_is_taken_if_it_has_the_places_or_none(
    places: list[str], reused: bool, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": ["v_proj", "q_proj"]}))
    graph = tmp_path / "optimize-1"
    given = context(inputs={**CHECKPOINT, "adapter": tmp_path}, graphs={graph: places})
    made = optimize.workflow(optimize.Options(), given)
    if reused:
        assert list(made["passes"]) == ["adapter"]
        assert made["input_model"]["model_path"] == str(graph)
    else:
        assert list(made["passes"]) == ["export", "fewer", "adapter"]
    merged = optimize.workflow(optimize.Options(adapter="merged"), given)
    assert list(merged["passes"]) == ["merge", "export", "fewer"]


def test_every_pass_is_in_the_package() -> None:
    package = json.loads((settings.ROOT / "pipeline" / "passes" / "package.json").read_text("utf-8"))
    used = {step["type"] for name in CASES for step in json.loads(workflow(name))["passes"].values()}
    assert used == set(package["passes"])


if __name__ == "__main__":
    for case in CASES:
        (GOLDEN / f"{case}.json").write_text(workflow(case), "utf-8")
