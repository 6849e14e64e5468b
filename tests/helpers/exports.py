"""A model that ONNX Runtime GenAI loads and answers with, in 50 kB: each token predicts the next.

    logits = (embed[input_ids] + embed[input_ids] A B) head

It has what an export of the lab has: weights in a file of their own, an optional adapter of any rank, a
byte-level tokenizer, a chat template, and checksums.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.exports import serving_ids
from pipeline.inputs.prompts import model_template, templates
from pipeline.system import checksums

ADAPTER, MERGED = "adapter_weights.onnx_adapter", "merged.json"
WIDTH, RANK = 16, 4
SPECIALS = ["<pad>", "<|im_start|>", "<|im_end|>"]
WORDS = len(SPECIALS) + 256
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "model": {
        "bos_token_id": 1,
        "eos_token_id": [2],
        "pad_token_id": 0,
        "context_length": 256,
        "vocab_size": WORDS,
        "type": "llama",
        "decoder": {
            "filename": "model.onnx",
            "session_options": {"provider_options": []},
            "head_size": 8,
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "inputs": {"input_ids": "input_ids"},
            "outputs": {"logits": "logits"},
        },
    },
    "search": {"max_length": 256, "past_present_share_buffer": False},
}


def write(folder: Path, *, merged: bool = False) -> Path:
    """Write the whole export, its adapter as a file of its own, or in the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    outside = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(graph(merged), folder / "model.onnx", **outside)
    if merged:
        (folder / MERGED).write_text("{}", "utf-8")
    else:
        write_adapter(folder / ADAPTER, {"a": random(WIDTH, RANK), "b": random(RANK, WIDTH)})
    for name, value in {
        "genai_config.json": CONFIG,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[2]},
        "lab.json": {"template": "chat", "fields": ["prompt"], "prompt": None, "stop": SPECIALS[2]},
    }.items():
        (folder / name).write_text(json.dumps(value), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT, "utf-8")
    checksums.write(folder)
    return folder


def add_app(folder: Path) -> None:
    """Put app.py into an export, and into its lab.json how it reads prompts."""
    lab = json.loads((folder / "lab.json").read_text("utf-8"))
    template = templates.parse("chat", model_template.chat_template(folder))
    lab |= serving_ids.describe(folder, template, serving_ids.before_of(folder))
    serving_ids.prepare(folder, lab["reading"])
    (folder / "lab.json").write_text(json.dumps(lab), "utf-8")
    for name, own in serving_ids.APP.items():
        shutil.copyfile(own, folder / name)
    checksums.write(folder)


def graph(merged: bool = False) -> onnx.ModelProto:
    """The model, its weights still in it. The special tokens are never the likeliest, so answers go on."""
    head = random(WIDTH, WORDS)
    head[:, : len(SPECIALS)] = 0
    kind = TensorProto.FLOAT
    given = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])]
    adapter = [
        numpy_helper.from_array(random(WIDTH, RANK), "a"), numpy_helper.from_array(random(RANK, WIDTH), "b"),
    ]  # fmt: skip
    if not merged:
        given += [
            helper.make_tensor_value_info("a", kind, [WIDTH, "rank"]),
            helper.make_tensor_value_info("b", kind, ["rank", WIDTH]),
        ]
        adapter = [
            helper.make_tensor("a", kind, [WIDTH, 0], b"", raw=True),
            helper.make_tensor("b", kind, [0, WIDTH], b"", raw=True),
        ]
    steps = [
        ("Gather", ["embed", "input_ids"], "words"),
        ("MatMul", ["words", "a"], "low"),
        ("MatMul", ["low", "b"], "delta"),
        ("Add", ["words", "delta"], "changed"),
        ("MatMul", ["changed", "head"], "logits"),
    ]
    made = helper.make_graph(
        [helper.make_node(step, names, [out]) for step, names, out in steps],
        "small",
        given,
        [helper.make_tensor_value_info("logits", kind, ["batch", "length", WORDS])],
        [
            numpy_helper.from_array(random(WORDS, WIDTH), "embed"),
            numpy_helper.from_array(head, "head"),
            *adapter,
        ],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def make_slow(folder: Path, numbers: int = 3_000_000, times: int = 10) -> None:
    """Have an export compute, for each token and to no effect, so many times the sines of so many numbers:
    a tenth of a second and more."""
    model = onnx.load(folder / "model.onnx")
    made = model.graph
    made.node[-1].output[0] = "quick"
    for name, value in {"numbers": np.array([numbers]), "nothing": np.array(0, np.float32)}.items():
        made.node.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
    steps = [("Expand", ["mean", "numbers"], "sine0")]
    steps += [("Sin", [f"sine{n}"], f"sine{n + 1}") for n in range(times)]
    made.node.append(helper.make_node("ReduceMean", ["words"], ["mean"], keepdims=0))
    made.node.extend(helper.make_node(step, names, [out]) for step, names, out in steps)
    made.node.append(helper.make_node("ReduceMean", [f"sine{times}"], ["sum"], keepdims=0))
    steps = [("Mul", ["sum", "nothing"], "zero"), ("Add", ["quick", "zero"], "logits")]
    made.node.extend(helper.make_node(step, names, [out]) for step, names, out in steps)
    (folder / "model.onnx.data").unlink()
    outside = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(model, folder / "model.onnx", **outside)
    checksums.write(folder)


def random(*shape: int) -> Any:
    """Numbers that are the same in every run."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def write_adapter(file: Path, tensors: Mapping[str, Any]) -> None:
    """Write numpy arrays as an adapter."""
    made = onnxruntime.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()}
    )
    made.export_adapter(str(file))


def tokenizer() -> dict[str, Any]:
    """tokenizer.json of byte-level BPE without merges: every byte is a token."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    bytes_ = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, **special} for i, text in enumerate(SPECIALS)],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {text: i for i, text in enumerate([*SPECIALS, *sorted(bytes_)])},
            "merges": [],
        },
    }
