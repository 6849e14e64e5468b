"""Many adapters on one graph, and adapters from elsewhere: what fits is exact, what doesn't is refused."""

from __future__ import annotations

import json
import string
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny
from tests.helpers.lab import cli
from tests.passes.optimize.test_export import EXACT, TOLERANCE, apply, quantized, random_adapter, run

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

    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.lora_inputs import LoraInputs

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

    from pipeline.exports import generation
    from pipeline.passes.measure.parity import graph_logits
    from pipeline.runs import convert_adapter

    home = made["home"]
    files = {
        name: convert_adapter.convert(home / name, home / "onnx", home / f"{name}.onnx_adapter")
        for name in ADAPTERS
    }
    loaded = generation.load(home / "onnx", files)
    for name in ["wide", "", "some", "narrow", "some", "", "wide"]:
        assert abs(graph(loaded, made["ids"], name) - made["logits"][name]).max() < TOLERANCE, name
        if name:
            assert abs(made["logits"][name] - made["logits"][""]).max() > 0.1
    base = graph_logits(loaded, torch.tensor(made["ids"]), "base")
    assert abs(base.numpy() - made["logits"][""]).max() < TOLERANCE


def graph(loaded: Any, ids: list[int], name: str) -> Any:
    """Logits of the loaded graph with the adapter of that name, "" for none."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(loaded.model)
    params.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(loaded.model, params)
    if name:
        generator.set_active_adapter(loaded.adapters, name)
    generator.append_tokens(ids)
    return generator.get_output("logits")[0]


def copied(made: dict[str, Any], tmp_path: Path, name: str = "wide", **changes: Any) -> Path:
    """An adapter's folder with other words in its config."""
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(made["home"] / name, folder)
    rename(folder, **changes)
    return folder


def rename(adapter: Path, **changes: Any) -> None:
    """Change words of an adapter's config."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **changes}))


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
    from pipeline.errors import InputError
    from pipeline.runs import convert_adapter

    with pytest.raises(InputError, match=reason):
        convert_adapter.convert(
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
    from pipeline.runs import convert_adapter

    (tmp_path / "lab.json").write_text(json.dumps({"base": base}))
    with nullcontext() if same else pytest.raises(ValueError, match="it was trained on"):
        convert_adapter.check_base({"base_model_name_or_path": given}, tmp_path)


def test_a_base_by_another_name_is_the_users_word(made: dict[str, Any], tmp_path: Path) -> None:
    from pipeline.runs import convert_adapter

    mine = copied(made, tmp_path, base_model_name_or_path="mine/renamed")
    file = convert_adapter.convert(mine, made["home"] / "onnx", tmp_path / "x.onnx_adapter", same_base=True)
    same = convert_adapter.convert(
        copied(made, tmp_path / "2", base_model_name_or_path="elsewhere/quantized"),
        made["home"] / "onnx", tmp_path / "y.onnx_adapter",
    )  # fmt: skip
    assert file.read_bytes() == same.read_bytes()


def test_other_modules_sizes_and_formats_are_refused(made: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from pipeline.errors import InputError
    from pipeline.runs import convert_adapter

    folder = copied(made, tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)

    def refused(changed: dict[str, Any], reason: str) -> None:
        save_file(changed, file)
        with pytest.raises(InputError, match=reason):
            convert_adapter.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")

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
        convert_adapter.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match="other formats can hold code"):
        convert_adapter.convert(folder, made["home"] / "onnx", tmp_path / "x.onnx_adapter")


def test_a_graph_without_places_says_so(made: dict[str, Any], tmp_path: Path) -> None:
    from pipeline.errors import InputError
    from pipeline.runs import convert_adapter

    with pytest.raises(InputError, match="has no places for adapters"):
        convert_adapter.convert(made["home"] / "wide", made["home"] / "plain", tmp_path / "x.onnx_adapter")


def test_a_graph_that_has_the_places_is_taken_as_it_is(made: dict[str, Any], tmp_path: Path) -> None:
    from olive.model import ONNXModelHandler

    from pipeline.passes.optimize.lora_inputs import LoraInputs

    graph = made["home"] / "onnx"
    model = ONNXModelHandler(graph, onnx_file_name="model.onnx")
    apply(LoraInputs, {"adapter_path": str(made["home"] / "some"), "base": "x"}, model, tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "again" / name).read_bytes() == (graph / name).read_bytes()
    assert json.loads((tmp_path / "again" / "lab.json").read_text())["base"] == "x"
    assert json.loads((graph / "lab.json").read_text())["base"] == "org/Quantized@abc"


# -- models whose matrices are packed ---------------------------------------------------------------------

PACKED = {
    "qkv_proj": {"q_proj": 64, "k_proj": 32, "v_proj": 32},
    "gate_up_proj": {"gate_proj": 192, "up_proj": 192},
}
APART = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj", "down_proj"]
ASKED = "What is the best thing to see in Chicago?"
PHI3: dict[str, tuple[bool, list[str] | None, dict[str, Any]]] = {  # is it packed, targets, options of PEFT
    "packed": (True, None, {"r": 4}),
    "apart": (False, APART, {"r": 4, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 32}}),
    "some": (False, ["q_proj", "v_proj", "up_proj"], {"r": 8, "use_rslora": True}),
    "attention": (True, ["qkv_proj"], {"r": 6}),
}


def in_letters(source: Path) -> Path:
    """Have a random model answer in letters: two tokenizers may show broken characters in two ways."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    letters = AutoTokenizer.from_pretrained(source)(string.ascii_letters)["input_ids"]
    others = [token for token in range(model.config.vocab_size) if token not in letters]
    with torch.no_grad():
        model.lm_head.weight[others] = 0
    model.save_pretrained(source)
    return source


def unpacked(source: Path) -> Any:
    """A phi3 with the parts of its packed matrices apart, which is a llama: many train on such copies."""
    import transformers

    config = json.loads((source / "config.json").read_text())
    same = {name: config[name] for name in [*tiny.COMMON, "rms_norm_eps"]}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**same))
    tensors = {}
    for name, tensor in transformers.AutoModelForCausalLM.from_pretrained(source).state_dict().items():
        module = name.split(".")[-2]
        parts = PACKED.get(module, {module: len(tensor)})
        for part, piece in zip(parts, tensor.split(list(parts.values())), strict=True):
            tensors[name.replace(module, part)] = piece
    model.load_state_dict(tensors)
    return model.float().eval()


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Adapters of a phi3 and of its unpacked copy, and one export with an adapter of either kind."""
    import torch
    from olive.model import HfModelHandler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.passes.optimize.fewer_nodes import FewerNodes
    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.lora_inputs import LoraInputs
    from pipeline.system import checksums

    home = tmp_path_factory.mktemp("phi3")
    source = in_letters(tiny.build("phi3", home / "model"))
    prompt = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    ids = AutoTokenizer.from_pretrained(source)(prompt)
    logits, answers = {}, {}
    for name, (is_packed, targets, options) in PHI3.items():
        model = AutoModelForCausalLM.from_pretrained(source).float().eval() if is_packed else unpacked(source)
        logits[""] = run(model, ids["input_ids"])
        adapted = random_adapter(model, targets, **options)
        adapted.save_pretrained(home / name)
        rename(home / name, base_model_name_or_path="org/Phi")
        logits[name] = run(adapted, ids["input_ids"])
        given = {key: torch.tensor([value]) for key, value in ids.items()}
        made = adapted.generate(**given, max_new_tokens=8, do_sample=False)[0]
        answers[name] = made[len(ids["input_ids"]) :].tolist()
    handler = HfModelHandler(str(source), load_kwargs={"torch_dtype": "float32"})
    plain = apply(GenaiBuilder, {"template": "chat", **EXACT}, handler, home / "plain")
    plain = apply(FewerNodes, {}, plain, home / "fewer")
    for name in ("packed", "apart"):
        options = {"adapter_path": str(home / name), "base": "org/Phi"}
        apply(LoraInputs, options, plain, home / "onnx" / name)
        checksums.write(home / "onnx" / name)
    return {"home": home, "ids": ids["input_ids"], "logits": logits, "answers": answers}


@pytest.mark.parametrize("exported", ["packed", "apart"])
def test_adapters_of_a_packed_model_and_of_its_parts_fit_one_graph(
    phi3: dict[str, Any], tmp_path: Path, exported: str
) -> None:
    """Each adapter on the exported graph has the logits that PyTorch and PEFT have with it."""
    from pipeline.exports import generation
    from pipeline.runs import convert_adapter

    folder = phi3["home"] / "onnx" / exported
    files = {
        name: convert_adapter.convert(phi3["home"] / name, folder, tmp_path / f"{name}.onnx_adapter")
        for name in PHI3
    }
    loaded = generation.load(folder, files)
    for name in ["", *PHI3]:
        assert abs(graph(loaded, phi3["ids"], name) - phi3["logits"][name]).max() < TOLERANCE, name
        assert not name or abs(phi3["logits"][name] - phi3["logits"][""]).max() > 1


@pytest.mark.parametrize("name", ["packed", "apart"])
def test_a_converted_adapter_of_a_packed_model_is_asked(
    phi3: dict[str, Any], home: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the verbs, on the graph that was exported with an adapter of the other kind."""
    from tokenizers import Tokenizer

    folder = phi3["home"] / "onnx" / ("apart" if name == "packed" else "packed")
    file = tmp_path / "mine.onnx_adapter"
    assert cli(capsys, "convert", phi3["home"] / name, folder, "--to", file)[0] == 0
    asked = (
        "chat",
        folder,
        ASKED,
        "--adapter",
        file,
        "--json",
        "--max-new-tokens",
        len(phi3["answers"][name]),
    )
    code, out, _ = cli(capsys, *asked)
    assert code == 0
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert json.loads(out)["adapter"]["text"] == words.decode(phi3["answers"][name])
    assert json.loads(out)["base"]["text"] != json.loads(out)["adapter"]["text"]


def with_places(**outputs: int) -> Any:
    """A graph that has nothing but places beside products of layer 0, by the products' outputs."""
    from onnx import TensorProto, helper

    inputs = []
    for name, count in outputs.items():
        for side, sizes in (("A", [4, "rank"]), ("B", ["rank", count])):
            given = f"model.layers.0.mlp.{name}.lora_{side}"
            inputs.append(helper.make_tensor_value_info(given, TensorProto.FLOAT, sizes))
    return helper.make_graph([], "places", inputs, [])


@pytest.mark.parametrize("more", [-2, 1, 6])
@pytest.mark.parametrize("whole", ["qkv_proj", "gate_up_proj"])
def test_a_packed_adapter_of_another_size_is_not_cut_to_fit(whole: str, more: int) -> None:
    """Its first outputs would fit the parts of the graph, and answer nonsense."""
    import numpy as np

    from pipeline.passes.optimize.lora_inputs import weights_for
    from pipeline.passes.optimize.peft_lora import Lora

    sizes = {
        "qkv_proj": {"q_proj": 8, "k_proj": 4, "v_proj": 4},
        "gate_up_proj": {"gate_proj": 8, "up_proj": 8},
    }
    adapter = Lora(np.ones((2, 4), np.float32), np.ones((16 + more, 2), np.float32))
    reason = (
        f"layer 0 {whole}: the adapter has {16 + more} outputs, and .* have 16 together; it was trained on"
    )
    with pytest.raises(ValueError, match=reason):
        weights_for({(0, whole): adapter}, with_places(**sizes[whole]), sizes["qkv_proj"])


def test_parts_have_their_share_of_a_packed_product() -> None:
    import numpy as np

    from pipeline.passes.optimize.lora_inputs import weights_for
    from pipeline.passes.optimize.peft_lora import Lora

    adapters = {
        (0, name): Lora(np.full((1, 4), number, np.float32), np.full((3, 1), number, np.float32))
        for name, number in (("gate_proj", 1), ("up_proj", 2))
    }
    made = weights_for(adapters, with_places(gate_up_proj=6), {})
    a, b = (made[f"model.layers.0.mlp.gate_up_proj.lora_{side}"] for side in "AB")
    assert (np.ones(4, np.float32) @ a @ b).tolist() == [4, 4, 4, 16, 16, 16]
