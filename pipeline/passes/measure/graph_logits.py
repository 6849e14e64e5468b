"""Logits of an exported graph by ONNX Runtime itself, without the generation around it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from pipeline.system import hardware

# Types of the cache, by the session's names for them.
CACHES = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
}


def load(folder: Path, *, prepacked: bool = True) -> onnxruntime.InferenceSession:
    """The session of an exported folder's graph; other threads go on meanwhile.

    Unless `prepacked`, kernels do not pack constants ahead, which makes some of them add up in another
    order. Raises what onnxruntime raises for files that it cannot load.
    """
    decoder = _decoder(folder)
    cuda = any("cuda" in given for given in decoder["session_options"].get("provider_options", []))
    return _session(folder / decoder["filename"], cuda, prepacked)


def _session(graph: Path | bytes, cuda: bool, prepacked: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = hardware.cores()
    options.log_severity_level = 3  # errors only: each optional input of an adapter would be a warning
    if not prepacked:
        options.add_session_config_entry("session.disable_prepacking", "1")
    providers = ["CPUExecutionProvider"]
    if cuda:
        onnxruntime.preload_dlls()
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(graph, options, providers)


def start_cuda() -> threading.Thread:
    """Have ONNX Runtime start CUDA and multiply once, from a thread, while this process does other work.

    Its first session has to load CUDA's libraries. What fails here fails in `load`, which says so.
    """
    thread = threading.Thread(target=multiply, args=(True,), name="start-cuda", daemon=True)
    thread.start()
    return thread


def multiply(cuda: bool) -> bool:
    """Multiply two small matrices by ONNX Runtime; return whether it could."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [8, 8]) for name in "abc"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "start", values[:2], values[2:]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ones = np.ones((8, 8), np.float16)
    try:
        (found,) = _session(made.SerializeToString(), cuda).run(None, {"a": ones, "b": ones})
    except Exception:  # onnxruntime has a class for each of its codes
        return False
    return bool((found == 8).all())


def _decoder(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "genai_config.json").read_text("utf-8"))
    decoder: dict[str, Any] = config["model"]["decoder"]
    return decoder


def logits_of(
    folder: Path,
    adapter: Path | None = None,
    *,
    prepacked: bool = True,
    session: onnxruntime.InferenceSession | None = None,
) -> Callable[[Tensor], Tensor]:
    """A function from token ids, int64 [tokens], to float32 logits [tokens, vocabulary] on the host.

    Each call reads a whole text with an empty cache, and with the adapter of an .onnx_adapter file if one is
    given. `session` is what `load` returned for the folder; without it, it is loaded as there.
    """
    decoder = _decoder(folder)
    session = session or load(folder, prepacked=prepacked)
    # An adapter's inputs have defaults, and are not among these.
    caches = {node.name: node for node in session.get_inputs() if node.name.startswith("past_key_values")}
    names = {node.name for node in session.get_inputs()} - set(caches)
    run = onnxruntime.RunOptions()
    loaded = onnxruntime.LoraAdapter()
    if adapter is not None:
        loaded.Load(str(adapter))
        run.add_active_adapter(loaded)
    heads, width = decoder["num_key_value_heads"], decoder["head_size"]
    empty = {
        name: onnxruntime.OrtValue.ortvalue_from_shape_and_type([1, heads, 0, width], CACHES[node.type])
        for name, node in caches.items()
    }

    def logits(ids: Tensor) -> Tensor:
        read = ids.cpu().numpy()[None].astype(np.int64)
        given = {
            "input_ids": read,
            "attention_mask": np.ones_like(read),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        }
        fed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(given[name]) for name in names}
        _ = loaded  # keeps it alive: the options hold only its address
        found = session.run_with_ort_values(["logits"], {**fed, **empty}, run)[0].numpy()
        return torch.from_numpy(found[0].astype(np.float32, copy=False))

    return logits
