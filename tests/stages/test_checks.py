"""What each stage refuses before anything starts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages import evaluate, finetune, optimize, quantize, score
from pipeline.system import hardware

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "max_position_embeddings": 2048,
}
CUDA, QNN, TRT = (f"{name}ExecutionProvider" for name in ("CUDA", "QNN", "NvTensorRTRTX"))
PHI3 = {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32}
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_attention_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
    },
}


def problems(stage: Any, config: dict[str, Any] = LLAMA, **options: Any) -> list[str]:
    found: list[str] = stage.check(stage.Options(**options), SimpleNamespace(config=config))
    return found


@pytest.mark.parametrize("stage", [quantize, finetune, optimize, evaluate, score])
@pytest.mark.parametrize("config", [LLAMA, PHI3, GEMMA3, {"model_type": "unknown"}])
def test_defaults_fit_every_model(stage: Any, config: dict[str, Any]) -> None:
    assert problems(stage, config) == []


def test_a_group_that_does_not_divide_names_the_layer() -> None:
    assert problems(quantize, group_size=128) == [
        "quantize.group_size: 128 does not divide model.layers.*.self_attn.q_proj (576 inputs);"
        " allowed: 16, 32, 64"
    ]
    assert problems(quantize, PHI3, group_size=48) == [
        "quantize.group_size: 48 does not divide model.layers.*.mlp.down_proj (8192 inputs);"
        " allowed: 16, 32, 64, 128"
    ]
    assert "is not a power of two from 16 to 128" in problems(quantize, PHI3, group_size=256)[0]
    assert problems(quantize, group_size=64) == []


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_more_gpus_than_there_are_and_more_than_a_step_has_rows(
    gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    assert problems(finetune, gpus=max(gpus, 1)) == []
    assert problems(finetune, gpus=3) == [
        f"finetune.gpus: 3 is more than the NVIDIA GPUs that runs may use here ({gpus}); allowed:"
        f" {'up to 2' if gpus == 2 else '1'}"
    ]
    if gpus == 2:
        assert problems(finetune, gpus=2, batch_size=1) == [
            "finetune.gpus: 2 is more than the rows of a step (1), so one would have none; use fewer, or a"
            " larger finetune.batch_size or finetune.gradient_accumulation"
        ]
        assert problems(finetune, gpus=2, batch_size=1, gradient_accumulation=2) == []


def test_how_many_gpus_compute_is_no_part_of_a_result() -> None:
    assert finetune.decided(finetune.Options(gpus=4, r=8)) == finetune.Options(r=8)
    assert finetune.needs_gpu(finetune.Options(gpus=4)) == "finetune.gpus: 4"
    assert finetune.needs_gpu(finetune.Options()) is None


@pytest.mark.parametrize(
    ("config", "size"), [(LLAMA, 64), (PHI3, 128), (GEMMA3, 128), ({"model_type": "x"}, 128)]
)
def test_auto_group_is_the_largest_valid(config: dict[str, Any], size: int) -> None:
    assert quantize.auto_group_size(config) == size


def test_a_model_no_group_fits_is_refused_with_auto_too() -> None:
    odd = {**LLAMA, "hidden_size": 1000, "intermediate_size": 3000}
    assert problems(quantize, odd) == [
        "quantize.group_size: 16 does not divide model.layers.*.self_attn.q_proj (1000 inputs);"
        " allowed: none, so this model cannot be quantized; set quantize to null"
    ]


def test_a_quantized_model_is_not_quantized_again() -> None:
    assert "quantized already" in problems(quantize, {**LLAMA, "quantization_config": {"bits": 4}})[0]


def test_text_longer_than_the_model_reads() -> None:
    assert problems(quantize, calibration_length=4096) == [
        "quantize.calibration_length: 4096 is more than the model reads; allowed: up to 2048"
    ]


def test_options_that_contradict_each_other() -> None:
    assert problems(quantize, bits=8, mixed_precision="k_quant_down") == [
        "quantize.mixed_precision: keeps some layers at 8 bit, and with bits 8 all are; set it to none"
    ]
    assert problems(quantize, algorithm="rtn", compensate=True) == [
        "quantize.compensate: goes with algorithm awq, not rtn; set it to auto or false"
    ]
    assert problems(quantize, algorithm="rtn") == []
    assert problems(score, {**LLAMA, "max_position_embeddings": 100}) == [
        "score.decode_tokens: 96 and a prompt are more than the model reads; allowed: up to 68"
    ]
    quantized = {**LLAMA, "quantization_config": {"bits": 4}}
    assert "this one is quantized; use 'lora'" in problems(finetune, quantized, method="qlora")[0]


@pytest.mark.parametrize(
    ("given", "follows"),
    [
        ({}, True), ({"bits": 8}, False), ({"algorithm": "gptq"}, False), ({"algorithm": "rtn"}, False),
        ({"engine": "autoawq"}, False), ({"compensate": False}, False),
        ({"bits": 8, "compensate": True}, True),
    ],
)  # fmt: skip
def test_gptq_follows_awq_at_4_bits_unless_a_recipe_says_otherwise(
    given: dict[str, Any], follows: bool
) -> None:
    options = quantize.Options(**given)
    assert quantize.compensates(options) == follows
    assert quantize.decided(options) == quantize.Options(**{**given, "compensate": follows})


def test_a_result_depends_on_rows_where_anything_reads_them() -> None:
    """Rounding to nearest reads none, but for its sensitive matrices."""
    plain = quantize.Options(algorithm="rtn")
    assert not quantize.uses_rows(plain)
    assert quantize.uses_rows(replace(plain, mixed_precision="sensitivity"))
    assert not quantize.uses_rows(replace(plain, mixed_precision="sensitivity", general_text=1.0))
    assert quantize.uses_rows(quantize.Options())


def test_autoawq_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    assert problems(quantize, engine="autoawq") == [
        "quantize.engine: 'autoawq' needs an NVIDIA GPU, and nvidia-smi found none; take quantize.engine:"
        " lab, which needs neither and is faster",
        "quantize.engine: 'autoawq' needs the package autoawq, which only the GPU set has; install"
        " requirements.txt, or take quantize.engine: lab, which needs neither and is faster",
    ]


def test_autoawq_is_refused_what_it_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 1)
    monkeypatch.setattr(quantize, "find_spec", lambda name: name)
    assert problems(quantize, engine="autoawq") == []
    assert problems(quantize, engine="autoawq", bits=8, algorithm="gptq") == [
        "quantize.algorithm: 'gptq' is not what engine 'autoawq' does; allowed: 'awq',"
        " or quantize.engine: lab",
        "quantize.bits: 8 is not what engine 'autoawq' does; allowed: 4, or quantize.engine: lab",
    ]
    assert problems(quantize, engine="autoawq", compensate=True) == [
        "quantize.compensate: True is not what engine 'autoawq' does; allowed: False,"
        " or quantize.engine: lab",
    ]
    assert "does not know 'gemma3' models" in problems(quantize, GEMMA3, engine="autoawq")[0]


def test_unknown_target_modules() -> None:
    assert problems(finetune, target_modules="q_proj, v_proj") == []
    assert problems(finetune, target_modules="q_proj,qkv_proj") == [
        "finetune.target_modules: 'qkv_proj' is not a linear layer of this model;"
        " allowed: all-linear or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    ]
    assert problems(finetune, PHI3, target_modules="qkv_proj") == []
    assert "does not name a layer" in problems(finetune, target_modules=" , ")[0]


def test_training_that_cannot_work() -> None:
    assert "allowed: up to 2048" in problems(finetune, max_length=4096)[0]


def test_looks_at_held_out_rows_that_would_never_happen() -> None:
    assert problems(finetune, eval_every=61) == [
        "finetune.eval_every: 61 is more than the 60 steps there are; allowed: up to 60"
    ]
    assert problems(finetune, eval_every=61, epochs=3.0) == []  # how many steps that is, the data decides
    assert "needs finetune.eval_every" in problems(finetune, early_stop=2)[0]
    assert problems(finetune, early_stop=2, eval_every=10) == []


@pytest.mark.parametrize("rope", ["rope_scaling", "rope_parameters"])
def test_packing_does_not_mix_short_and_long_factors(rope: str) -> None:
    config = PHI3 | {"original_max_position_embeddings": 4096, rope: {"type": "longrope"}}
    assert problems(finetune, config, packing=True, max_length=4096) == []
    assert problems(finetune, config, packing=False, max_length=4097) == []
    assert "finetune.max_length up to 4096" in problems(finetune, config, packing=True, max_length=4097)[0]
    assert problems(finetune, PHI3, packing=True, max_length=4097) == []


@pytest.mark.parametrize(
    ("gpus", "package", "expected"),
    [(0, True, "needs an NVIDIA GPU"), (1, False, "needs the package bitsandbytes"), (1, True, None)],
)
def test_qlora_needs_a_gpu_and_its_package(
    monkeypatch: pytest.MonkeyPatch, gpus: int, package: bool, expected: str | None
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if package else None)
    found = problems(finetune, method="qlora")
    assert (expected is None) == (found == [])
    assert expected is None or expected in found[0]
    assert problems(finetune, method="rslora") == []


def test_provider_and_device_go_together() -> None:
    assert problems(optimize, device="gpu") == [
        "optimize.provider: 'CPUExecutionProvider' does not run on device 'gpu'; allowed:"
        " 'CUDAExecutionProvider', 'DmlExecutionProvider', 'WebGpuExecutionProvider',"
        " 'NvTensorRTRTXExecutionProvider', 'OpenVINOExecutionProvider', 'QNNExecutionProvider'"
    ]
    assert problems(optimize, provider="CUDAExecutionProvider") == [
        "optimize.provider: 'CUDAExecutionProvider' does not run on device 'cpu'; allowed:"
        " 'CPUExecutionProvider', 'OpenVINOExecutionProvider'"
    ]
    for precision in ("int4", "int8", "fp16", "bf16"):
        assert problems(optimize, device="gpu", provider=CUDA, precision=precision) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"precision": "fp16"},
            "'fp16' has no graph for CPUExecutionProvider; allowed on cpu with CPUExecutionProvider:"
            " 'int4', 'int8', 'fp32'",
        ),
        (
            {"device": "gpu", "provider": CUDA, "precision": "fp32"},
            "'fp32' has no graph for CUDAExecutionProvider; allowed on gpu with CUDAExecutionProvider:"
            " 'int4', 'int8', 'fp16', 'bf16'",
        ),
        ({"precision": "bf16"}, "'bf16' is for device gpu with CUDA; allowed on cpu with"),
        ({"device": "npu", "provider": QNN, "precision": "fp16"}, "allowed on npu with QNN"),
    ],
)
def test_precisions_without_a_graph(options: dict[str, Any], said: str) -> None:
    found = problems(optimize, **options)
    assert len(found) == 1
    assert found[0].startswith("optimize.precision: ")
    assert said in found[0]


def test_other_devices_have_providers_of_their_own() -> None:
    assert problems(optimize, device="npu")[0].startswith(
        "optimize.provider: 'CPUExecutionProvider' does not run on device 'npu'; allowed: 'QNNExecution"
    )
    for device, providers in optimize.TARGETS.items():
        for provider, precisions in providers.items():
            for precision in precisions:
                given = {"device": device, "provider": provider, "precision": precision}
                assert problems(optimize, **given) == []


def among(stages: dict[str, Any], config: dict[str, Any] = LLAMA, **options: Any) -> list[str]:
    """What is wrong with options of optimize beside other stages."""
    chosen = optimize.Options(**options)
    return optimize.check_among(chosen, {"optimize": chosen, **stages}, SimpleNamespace(config=config))


ON_GPU = {"device": "gpu", "provider": CUDA}
QUANTIZED = {"quantize": quantize.Options()}
PACKED_HEAD = {"quantize": quantize.Options(lm_head=True)}
EIGHT, MIXED = ({"quantize": quantize.Options(**given)} for given in (
    {"bits": 8}, {"algorithm": "gptq", "mixed_precision": "k_quant_mixed"},
))  # fmt: skip
FLOAT_ACTIVATIONS = {"accuracy_level": 1}
TUNED = {**QUANTIZED, "finetune": finetune.Options()}


@pytest.mark.parametrize(
    ("stages", "options", "said"),
    [
        (QUANTIZED, {"precision": "fp32"}, None),
        ({}, {"precision": "fp32", "lm_head": "int8"}, "optimize.lm_head: 'int8' does not go with"),
        (QUANTIZED, {"precision": "fp32", "lm_head": "int8"}, None),
        ({}, {"precision": "fp32", "embedding": "int4"}, "optimize.embedding: 'int4' does not go with"),
        ({}, {"precision": "int8", "embedding": "int4"}, "optimize.embedding: 'int4' does not go with"),
        (QUANTIZED, {"precision": "int8", "embedding": "int4"}, None),
        (PACKED_HEAD, {"lm_head": "int4"}, "optimize.lm_head: 'int4' has no effect"),
        (PACKED_HEAD, {}, None),
        (QUANTIZED, FLOAT_ACTIVATIONS, None),
        (QUANTIZED, FLOAT_ACTIVATIONS | {"lm_head": "int8"}, "optimize.lm_head: weights in 8 bits take many"),
        (QUANTIZED, FLOAT_ACTIVATIONS | {"precision": "int8"}, None),
        ({}, FLOAT_ACTIVATIONS | {"precision": "int8"}, "optimize.precision: weights in 8 bits take many"),
        (EIGHT, FLOAT_ACTIVATIONS, "quantize.bits: weights in 8 bits take many"),
        (MIXED, FLOAT_ACTIVATIONS, "quantize.mixed_precision: weights in 8 bits take many"),
        (TUNED, FLOAT_ACTIVATIONS | {"adapter": "merged"}, "optimize.merged_bits: weights in 8 bits"),
        (TUNED, FLOAT_ACTIVATIONS | {"adapter": "merged", "merged_bits": 4}, None),
        (EIGHT, ON_GPU | FLOAT_ACTIVATIONS | {"lm_head": "int8"}, None),
        (QUANTIZED, {"adapter": "merged"}, "optimize.adapter: 'merged' needs the finetune stage"),
        (TUNED, {"adapter": "merged"}, None),
        (QUANTIZED, {"adapter": "bound"}, "optimize.adapter: 'bound' needs the finetune stage"),
        (TUNED, {"adapter": "bound"}, None),
        (TUNED, ON_GPU | {"adapter": "bound"}, None),
        (
            TUNED,
            {"device": "npu", "provider": "QNNExecutionProvider", "adapter": "bound"},
            "optimize.adapter: 'bound' is made of a graph, and optimize for npu with QNNExecutionProvider is",
        ),
        (TUNED, ON_GPU | {"precision": "bf16"}, "no place for a detachable adapter"),
        (TUNED, ON_GPU | {"precision": "bf16", "adapter": "bound"}, "no place for a bound adapter"),
        (QUANTIZED, ON_GPU | {"precision": "bf16"}, None),
        (TUNED, ON_GPU | {"precision": "bf16", "adapter": "merged"}, None),
        (TUNED, {"device": "gpu", "provider": TRT}, "optimize.adapter: 'detachable' has no place"),
        (TUNED, {"device": "gpu", "provider": TRT, "adapter": "merged"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_options_of_the_export_beside_other_stages(
    stages: dict[str, Any], options: dict[str, Any], said: str | None
) -> None:
    found = among(stages, **options)
    assert [said] * len(found) == ([said] if said else [])
    assert said is None or said in found[0]


def test_a_checkpoint_that_came_quantized_counts_as_quantized() -> None:
    packed = {**LLAMA, "quantization_config": {"quant_method": "olive", "bits": 4, "lm_head": True}}
    assert among({}, packed, precision="int8", embedding="int4") == []
    assert "has no effect" in among({}, packed, lm_head="float")[0]


@pytest.mark.parametrize("name", ["evaluate", "score"])
def test_what_needs_a_graph_is_refused_where_the_export_is_not_run(name: str) -> None:
    stages = {**TUNED, name: {"evaluate": evaluate, "score": score}[name].Options()}
    assert among(stages) == []
    assert among(stages, device="npu", provider=QNN) == [
        f"{name}: needs a graph, and optimize for npu with QNNExecutionProvider is not run here; set {name}"
        " to null, or take device cpu, or gpu with CUDAExecutionProvider"
    ]
    assert among(TUNED, device="npu", provider=QNN) == []


def test_answers_need_room() -> None:
    assert "leaves no room" in problems(evaluate, max_new_tokens=2048)[0]


MISMATCHED: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 4096,
}


def test_lengths_that_the_exporter_cannot_bring_together_are_refused() -> None:
    assert problems(optimize, MISMATCHED) == [
        "optimize: this model's config.json does not fit together: max_position_embeddings is 1024,"
        " original_max_position_embeddings 4096, and there is no longrope scaling to get from one to the"
        " other, so it cannot be exported; choose another base model, or correct its config.json"
    ]
    unsaid = {key: value for key, value in MISMATCHED.items() if not key.startswith("original")}
    assert len(problems(optimize, unsaid)) == 1, "transformers takes 4096"


@pytest.mark.parametrize(
    "more",
    [
        {"original_max_position_embeddings": 1024},
        {"rope_scaling": {"type": "longrope"}},
        {"rope_parameters": {"rope_type": "longrope"}},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": None},
    ],
)
def test_others_are_not(more: dict[str, Any]) -> None:
    assert problems(optimize, {**MISMATCHED, **more}) == []


def test_checks_of_answers_that_cannot_be_applied_are_named() -> None:
    assert problems(evaluate, checks="contains: Paris\nregex: (a\nPlain text")[0].startswith(
        "evaluate.checks: check 3: 'Plain text' is not allowed"
    )
    assert problems(evaluate, checks="json\nregex: (a")[0].startswith(
        "evaluate.checks: check 2: regex: '(a' is not a pattern"
    )
    assert problems(evaluate, checks="json\nregex: a") == []


def test_mixed_precision_is_for_plain_adapters() -> None:
    for method in ("lora", "rslora"):
        assert finetune.check_recipe(finetune.Options(method=method, precision="mixed"), {}) == []
    for method in ("dora", "qlora"):
        found = finetune.check_recipe(finetune.Options(method=method, precision="mixed"), {})
        assert found == [
            f"finetune.precision: 'mixed' is for methods 'lora' and 'rslora', not '{method}';"
            " use 'auto', 'bfloat16' or 'float32'"
        ]
