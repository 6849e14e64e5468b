"""The models and recipes that `benchmarks.preflight` measures: to fit constants with, or to judge by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Shapes: kind, type of the weights, and what differs from COMMON.
COMMON: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
Shape = tuple[str, str, dict[str, Any]]


def shape(
    kind: str, hidden: int, layers: int, heads: int, shared: int, inner: int, vocabulary: int,
    dtype: str = "bfloat16", tied: bool = False, **more: Any,
) -> Shape:  # fmt: skip
    """A model's shape as config.json names it."""
    sizes = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": shared, "intermediate_size": inner, "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    return kind, dtype, {**COMMON, **sizes, **more}


SHAPES: dict[str, Shape] = {
    # for fitting
    "fit-small": shape("Llama", 384, 6, 6, 2, 1024, 32000, "float32", tied=True),
    "fit-wide": shape("Llama", 1024, 8, 16, 16, 2816, 32000),
    "fit-vocabulary": shape("Qwen2", 640, 4, 10, 2, 1728, 120000, tied=True),
    "fit-float": shape("Llama", 1280, 4, 20, 4, 3456, 50000, "float32"),
    # to be judged by
    "deep": shape("Llama", 512, 14, 8, 8, 1408, 16000, "float32"),
    "vocabulary": shape("Qwen2", 512, 8, 8, 2, 2048, 151936, tied=True),
    "fused": shape("Phi3", 1536, 4, 24, 24, 4096, 32064, original_max_position_embeddings=4096),
    "gated": shape("Qwen3", 768, 6, 12, 4, 2304, 80000, "float32", tied=True, head_dim=64),
    "grouped": shape("Llama", 1152, 6, 18, 6, 3072, 48000),
    "narrow": shape("Qwen2", 448, 10, 7, 1, 1216, 64000, tied=True),
    "middle": shape("Llama", 896, 7, 14, 7, 2432, 24000, "float32"),
    # on a GPU
    "gpu-fit-half": shape("Llama", 2048, 8, 16, 8, 5632, 32000),
    "gpu-fit-billion": shape("Llama", 2048, 20, 32, 4, 5632, 64000, tied=True),
    "gpu-fit-wide": shape("Llama", 4096, 6, 32, 8, 11008, 32000),
    "gpu-small": shape("Qwen2", 1024, 16, 16, 4, 2816, 151936, tied=True),
    "gpu-billion": shape("Qwen3", 2048, 16, 16, 8, 6144, 100000, tied=True, head_dim=128),
    "gpu-phi": shape("Phi3", 3072, 16, 32, 32, 8192, 32064, original_max_position_embeddings=4096),
    "gpu-deep": shape("Llama", 1536, 32, 24, 8, 4096, 50000),
    "gpu-tall": shape("Llama", 1280, 24, 20, 4, 3456, 128000, tied=True),
    "gpu-broad": shape("Qwen3", 2560, 12, 20, 5, 9216, 40000, head_dim=128),
}


@dataclass(frozen=True)
class Configuration:
    """A model of a shape, rows of so many tokens, and the stages' options; None leaves a stage out."""

    name: str
    shape: str
    rows: int = 40
    prompt: int = 60
    response: int = 60
    quantize: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    optimize: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    tried: bool = False  # with the trial of a small layer before

    def stages(self) -> dict[str, Any]:
        """The part of the recipe that is about stages."""
        return {name: getattr(self, name) for name in ("quantize", "finetune", "optimize", "evaluate")}


C = Configuration
RTN: dict[str, Any] = {"algorithm": "rtn"}


def awq(blocks: int, length: int, **more: Any) -> dict[str, Any]:
    """Options of quantize that calibrate."""
    return {"algorithm": "awq", "calibration_blocks": blocks, "calibration_length": length, **more}


def tune(batch: int, steps: int, length: int = 512, **more: Any) -> dict[str, Any]:
    """Options of finetune."""
    return {"batch_size": batch, "max_steps": steps, "max_length": length, **more}


SHORT = {"prompts": 2, "max_new_tokens": 16}
CPU_FIT = [
    C("f1", "fit-small", 40, 60, 60, RTN, tune(4, 4), {}, SHORT, tried=True),
    C("f2", "fit-small", 40, 100, 300, awq(8, 256), tune(8, 3), {}, SHORT),
    C("f3", "fit-wide", 30, 60, 60, awq(16, 256), tune(2, 3), {}, SHORT),
    C("f4", "fit-wide", 30, 100, 380, RTN, tune(4, 2), None, None),
    C("f5", "fit-vocabulary", 40, 60, 160, RTN, tune(8, 2), {}, SHORT),
    C(
        "f6",
        "fit-vocabulary",
        40,
        60,
        160,
        awq(8, 512, algorithm="gptq"),
        tune(2, 3, gradient_checkpointing=True),
        None,
        None,
    ),
    C("f7", "fit-float", 30, 60, 100, awq(4, 512), tune(2, 2, r=64), {}, SHORT),
    C("f8", "fit-float", 30, 200, 200, None, tune(4, 2, gradient_checkpointing=True), {}, None),
    C(
        "f9",
        "fit-small",
        30,
        100,
        300,
        awq(32, 512, compensate=False),
        tune(16, 2, precision="float32"),
        None,
        None,
    ),
    C(
        "f10",
        "fit-wide",
        30,
        60,
        60,
        {"algorithm": "rtn", "bits": 8, "lm_head": True},
        tune(2, 2, target_modules="q_proj,v_proj"),
        {},
        SHORT,
    ),
]
CPU = [
    C("deep, awq", "deep", 40, 60, 100, awq(8, 256), tune(4, 2), {}, SHORT),
    C("deep, long rows", "deep", 20, 200, 300, None, tune(4, 1), None, None),
    C("deep, batch 12", "deep", 20, 60, 80, RTN, tune(12, 2, r=8), None, None),
    C("vocabulary, awq", "vocabulary", 20, 60, 60, awq(4, 256), tune(4, 2), {}, SHORT),
    C(
        "vocabulary, checkpointing",
        "vocabulary",
        20,
        80,
        240,
        None,
        tune(4, 1, gradient_checkpointing=True),
        None,
        None,
    ),
    C("fused, awq", "fused", 20, 60, 80, awq(4, 256), tune(2, 2), None, None),
    C("fused, r 48", "fused", 20, 100, 200, RTN, tune(2, 2, r=48), {}, None),
    C("gated, gptq", "gated", 20, 60, 80, awq(4, 256, algorithm="gptq"), tune(4, 2), None, None),
    C("gated, float base", "gated", 20, 100, 200, None, tune(2, 1), {}, SHORT),
    C(
        "gated, 8 bit",
        "gated",
        20,
        60,
        120,
        {"algorithm": "rtn", "bits": 8},
        tune(6, 1, precision="float32"),
        None,
        None,
    ),
    C("grouped, accumulated", "grouped", 20, 60, 200, RTN, tune(2, 1, gradient_accumulation=2), None, None),
    C(
        "grouped, q and v",
        "grouped",
        20,
        100,
        300,
        awq(4, 512, compensate=False),
        tune(2, 1, target_modules="q_proj,v_proj"),
        None,
        None,
    ),
]
# Added after the others had been looked at, and a model of costs was changed: nobody had seen these before.
CPU_NEW = [
    C("narrow, awq", "narrow", 20, 60, 110, awq(6, 384), tune(3, 3), {}, SHORT),
    C("narrow, batch 8", "narrow", 24, 90, 260, RTN, tune(8, 2), None, None),
    C("middle, gptq", "middle", 20, 60, 120, awq(6, 256, algorithm="gptq"), tune(4, 2), {}, SHORT),
    C(
        "middle, r 32",
        "middle",
        20,
        80,
        200,
        None,
        tune(6, 1, r=32, gradient_checkpointing=True),
        {},
        None,
    ),
]
GPU_FIT = [
    C("g1", "gpu-fit-half", 200, 100, 100, RTN, tune(4, 20), {}, SHORT),
    C("g2", "gpu-fit-half", 200, 200, 600, awq(32, 512), tune(8, 30, 1024), None, None),
    C("g3", "gpu-fit-billion", 200, 200, 300, awq(64, 512), tune(8, 30), {}, SHORT),
    C(
        "g4",
        "gpu-fit-billion",
        200,
        300,
        1200,
        None,
        tune(4, 20, 2048, gradient_checkpointing=True),
        None,
        None,
    ),
    C("g5", "gpu-fit-wide", 200, 100, 300, awq(32, 512, algorithm="gptq"), tune(16, 20, r=64), None, None),
    C("g6", "gpu-fit-wide", 200, 200, 700, RTN, tune(4, 8, 1024), {}, SHORT),
    C("g7", "gpu-fit-half", 300, 100, 200, None, tune(32, 30, precision="float32"), None, None),
]
GPU = [
    C("small, awq", "gpu-small", 300, 100, 200, awq(32, 512), tune(8, 40), {}, SHORT),
    C("small, long rows", "gpu-small", 200, 200, 1400, RTN, tune(4, 20, 2048), None, None),
    C("billion, awq", "gpu-billion", 200, 100, 300, awq(64, 512), tune(8, 30), {}, SHORT),
    C(
        "billion, checkpointing",
        "gpu-billion",
        200,
        200,
        700,
        None,
        tune(16, 12, 1024, gradient_checkpointing=True),
        None,
        None,
    ),
    C("phi, awq", "gpu-phi", 200, 100, 150, awq(32, 512), tune(4, 40), {}, SHORT),
    C("phi, r 64", "gpu-phi", 200, 200, 400, RTN, tune(8, 12, 1024, r=64), None, None),
    C("deep, gptq", "gpu-deep", 200, 100, 200, awq(16, 512, algorithm="gptq"), tune(16, 20), None, None),
    C("deep, batch 32", "gpu-deep", 300, 60, 100, RTN, tune(32, 20), {}, SHORT),
]
GPU_NEW = [
    C("tall, awq", "gpu-tall", 200, 120, 240, awq(24, 512), tune(12, 24), {}, SHORT),
    C("tall, q and v", "gpu-tall", 200, 300, 700, None, tune(6, 12, 1024, target_modules="q_proj,v_proj")),
    C("broad, gptq", "gpu-broad", 200, 100, 300, awq(24, 512, algorithm="gptq"), tune(8, 16, r=32)),
    C("broad, packed", "gpu-broad", 200, 100, 200, RTN, tune(4, 12, 1024, packing=True), {}, SHORT),
]
SETS = {
    ("cpu", True): CPU_FIT,
    ("cpu", False): [*CPU, *CPU_NEW],
    ("gpu", True): GPU_FIT,
    ("gpu", False): [*GPU, *GPU_NEW],
}
