"""Many adapters on one graph, and adapters from elsewhere: what fits is exact, what doesn't is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_export import EXACT, TOLERANCE, apply, quantized, random_adapter, run

pytestmark = pytest.mark.chain

ADAPTERS: dict[str, dict[str, Any]] = {
    "wide": {"r": 8},
    "narrow": {"r": 2, "use_rslora": True},
    "some": {
        "r": 4,
        "targets": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 32},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One export of a quantized base, with adapters of other ranks and targets in PEFT's form beside it."""
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    from pipeline.passes.genai_builder import GenaiBuilder
    from pipeline.passes.lora_inputs import LoraInputs

    home = tmp_path_factory.mktemp("adapters")
    checkpoint = quantized(tiny.build("llama", home / "model"), home / "quantized", "rtn")
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    ids = AutoTokenizer.from_pretrained(checkpoint)("What is the best thing to see in Chicago?")["input_ids"]
    logits = {"": run(handler.load_model(cache_model=False).eval(), ids)}
    for name, given in ADAPTERS.items():
        options = {key: value for key, value in given.items() if key != "targets"}
        model = handler.load_model(cache_model=False).eval()
        adapted = random_adapter(model, given.get("targets"), **options)
        adapted.save_pretrained(home / name)
        logits[name] = run(adapted, ids)
    plain = apply(GenaiBuilder, {"template": "chat", **EXACT}, handler, home / "plain")
    options = {"adapter_path": str(home / "wide"), "base": "org/Quantized@abc"}
    apply(LoraInputs, options, plain, home / "onnx")
    return {"home": home, "ids": ids, "logits": logits}


def test_adapters_of_any_rank_serve_side_by_side(made: dict[str, Any]) -> None:
    """Three adapters and the base in one process, in turns: each as PyTorch has it."""
    import torch

    from pipeline import conversion, generation
    from pipeline.passes.parity import graph_logits

    home = made["home"]
    files = {
        name: conversion.convert(home / name, home / "onnx", home / f"{name}.onnx_adapter")
        for name in ADAPTERS
    }
    loaded = generation.load(home / "onnx", files)
    import onnxruntime_genai as og

    def logits(name: str) -> Any:
        params = og.GeneratorParams(loaded.model)
        params.set_search_options(max_length=len(made["ids"]) + 1)
        generator = og.Generator(loaded.model, params)
        if name:
            generator.set_active_adapter(loaded.adapters, name)
        generator.append_tokens(made["ids"])
        return generator.get_output("logits")[0]

    for name in ["wide", "", "some", "narrow", "some", "", "wide"]:
        assert abs(logits(name) - made["logits"][name]).max() < TOLERANCE, name
        if name:
            assert abs(made["logits"][name] - made["logits"][""]).max() > 0.1
    base = graph_logits(loaded, torch.tensor(made["ids"]), "base")
    assert abs(base.numpy() - made["logits"][""]).max() < TOLERANCE


def copied(made: dict[str, Any], tmp_path: Path, name: str = "wide", **changes: Any) -> Path:
    """An adapter's folder with other words in its config."""
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(made["home"] / name, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "the adapter uses use_dora"),
        ({"peft_type": "IA3"}, "the adapter is of type IA3"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "began as pissa_niter_16, which changes the base"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is not a mapping"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "is not the name of a module"),
        (
            {"base_model_name_or_path": "/home/ann/llama-7b"},
            "trained on llama-7b, and the graph is of quantized",
        ),
    ],
    ids=str,
)
def test_what_cannot_fit_is_refused(
    made: dict[str, Any], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    from pipeline import conversion
    from pipeline.errors import InputError

    with pytest.raises(InputError, match=reason):
        conversion.convert(
            copied(made, tmp_path, **changes), made["home"] / "onnx", tmp_path / "x.onnx_adapter"
        )
    assert not list(tmp_path.glob("*x.onnx_adapter*"))


@pytest.mark.parametrize(
    ("base", "given", "same"),
    [
        ("starter", "/home/ann/data/models/starter-0.1.2", True),
        ("org/Llama-3B", "/x/models/org--Llama-3B-0123456789ab", True),
        ("org/Llama-3B", "/x/models/org--Llama-4B-0123456789ab", False),
        ("org/Llama", "/x/Llama-3B", False),
    ],
)
def test_the_labs_own_folder_of_a_base_is_that_base(
    tmp_path: Path, base: str, given: str, same: bool
) -> None:
    from pipeline import conversion

    (tmp_path / "lab.json").write_text(json.dumps({"base": base}))
    with nullcontext() if same else pytest.raises(ValueError, match="it was trained on"):
        conversion.check_base({"base_model_name_or_path": given}, tmp_path)


def test_a_base_by_another_name_is_the_users_word(made: dict[str, Any], tmp_path: Path) -> None:
    from pipeline import conversion

    mine = copied(made, tmp_path, base_model_name_or_path="mine/renamed")
    file = conversion.convert(mine, made["home"] / "onnx", tmp_path / "x.onnx_adapter", same_base=True)
    same = conversion.convert(
        copied(made, tmp_path / "2", base_model_name_or_path="elsewhere/quantized"),
        made["home"] / "onnx", tmp_path / "y.onnx_adapter",
    )  # fmt: skip
    assert file.read_bytes() == same.read_bytes()


def test_other_modules_sizes_and_formats_are_refused(made: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline import conversion
    from pipeline.errors import InputError

    folder = copied(made, tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)

    def refused(changed: dict[str, Any], reason: str) -> None:
        save_file(changed, file)
        with pytest.raises(InputError, match=reason):
            conversion.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")

    refused(
        {name.replace("layers.1.", "layers.9."): each for name, each in tensors.items()}, "no place for 7"
    )
    wider = {name: torch.cat([t, t], 1) if "lora_A" in name else t for name, t in tensors.items()}
    refused(wider, "it was trained on another base")
    halved = {name: t[: len(t) // 2].clone() if "lora_B" in name else t for name, t in tensors.items()}
    refused(halved, "it was trained on another base")
    refused(
        {name: t for name, t in tensors.items() if "lora_B" not in name}, "A and B do not belong together"
    )
    refused({name: t * float("nan") for name, t in tensors.items()}, "numbers that are not finite")
    refused({name: t.flatten() for name, t in tensors.items()}, "not two sizes from 1")
    refused({**tensors, "base_model.model.lm_head.lora_A.weight": torch.ones(2, 2)}, "lm_head")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read: SafetensorError"):
        conversion.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match="other formats can hold code"):
        conversion.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")


def test_a_graph_without_places_says_so(made: dict[str, Any], tmp_path: Path) -> None:
    from pipeline import conversion
    from pipeline.errors import InputError

    with pytest.raises(InputError, match="has no places for adapters"):
        conversion.convert(made["home"] / "wide", made["home"] / "plain", tmp_path / "x.onnx_adapter")


def test_a_graph_that_has_the_places_is_taken_as_it_is(made: dict[str, Any], tmp_path: Path) -> None:
    from olive.model import ONNXModelHandler

    from pipeline.passes.lora_inputs import LoraInputs

    graph = made["home"] / "onnx"
    model = ONNXModelHandler(graph, onnx_file_name="model.onnx")
    apply(LoraInputs, {"adapter_path": str(made["home"] / "some"), "base": "x"}, model, tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / name).read_bytes() == (graph / name).read_bytes()
    assert json.loads((tmp_path / "again" / "lab.json").read_text())["base"] == "x"
    assert json.loads((graph / "lab.json").read_text())["base"] == "org/Quantized@abc"
