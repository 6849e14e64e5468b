# ruff: noqa: I001 - the order of the last imports matters
# mypy: disallow-subclassing-any=False
"""The ONNX graph that ONNX Runtime GenAI runs, made by its own model builder.

Olive 0.13's ModelBuilder pass was written for an older onnxruntime-genai: it skips the builder's option
check, which newer ones need, and patches classes that no longer exist. This pass calls the builder as
0.18 wants to be called, and gives it a reader that gets fused matrices right.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from olive.constants import Precision
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes.olive_pass import PassConfigParam
from olive.passes.onnx.model_builder import ModelBuilder
from onnxruntime_genai.models import builder

# Importing the builder puts its folder on sys.path, where it finds its own readers by these bare names.
# By their full names the same files would be other modules, which it never looks at.
from builders import base as builders_base  # type: ignore[import-not-found]
from loaders import base as loader  # type: ignore[import-not-found]
from loaders import quant_model
from loaders.olive import OliveModel  # type: ignore[import-not-found]

from pipeline.exports import serving_ids
from pipeline.inputs.models import contents
from pipeline.inputs.prompts import model_template, templates
from pipeline.stages.events import emit
from pipeline.passes.optimize import same_ids
from pipeline.passes.optimize.exported_types import INT8_ACTIVATIONS, Types, types
from pipeline.passes.optimize.set_aside import set_aside
from pipeline.passes.optimize.steady_rope import straighten
from pipeline.exports.serving_ids import LAB
from pipeline.inputs.prompts.training_ids import before, end_tokens
from pipeline.system import checksums

GRAPH = "model.onnx"
# A cache of window size rejects generations shorter than the window (4,096 tokens for Gemma 2).
WHOLE_CACHE = {"windowed_kv_cache": False}


class GenaiBuilder(ModelBuilder):
    """Export a Hugging Face folder, quantized by Olive or float, for ONNX Runtime GenAI.

    The folder written can be used as it stands: `python app.py` in it talks to the model.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(description: str, **more: Any) -> PassConfigParam:
            return PassConfigParam(type_=str, description=description, **more)

        return {
            **super()._default_config(accelerator_spec),
            "template": param("The prompt template, or `chat`.", required=True),
            "lm_head": param("Type of the output layer: auto, int4, int8, float.", default_value="auto"),
            "embedding": param("Type of the embedding: auto, int4, float.", default_value="auto"),
            "judged": PassConfigParam(
                type_=bool, default_value=False, description="Whether this process loads the graph next."
            ),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        emit(message="Building the ONNX graph", progress=0.05)
        # The builder prints a line for each of hundreds of nodes that it does not touch.
        logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
        folder, source = Path(output_model_path), str(model.model_name_or_path)
        provider = self.EP_MAP.get(self.accelerator_spec.execution_provider, "cpu")
        if config.judged and provider == "cuda":
            from pipeline.passes.measure.graph_logits import start_cuda  # only what measures imports that

            start_cuda()
        wanted = asked_for(config, Path(source), provider)
        options = {
            "filename": GRAPH,
            "hf_token": "false",
            "hf_remote": "false",
            **WHOLE_CACHE,
            **wanted.options,
            **(config.extra_options or {}),
        }
        precision = wanted.precision
        with tempfile.TemporaryDirectory() as scratch, _right_reader(), set_aside(builders_base.Model):
            builder.check_extra_options(source, source, str(folder), precision, provider, scratch, options)
            flatten_rope(options["hf_details"]["hf_config"])
            builder.create_model(source, source, str(folder), precision, provider, scratch, **options)
        if provider == "cuda":
            straighten(folder / GRAPH)
        checksums.begin(folder / f"{GRAPH}.data")  # no pass after this one changes it
        emit(message="ONNX graph written", progress=0.7)
        template = templates.parse(config.template, model_template.chat_template(Path(source)))
        tokenizer = contents.tokenizer_of(source)
        _end_answers(folder, Path(source), template, tokenizer)
        add_app(folder, Path(source), config.template, template, tokenizer)
        others = [str(file) for file in folder.iterdir() if file.name not in (GRAPH, f"{GRAPH}.data")]
        return ONNXModelHandler(
            folder, onnx_file_name=GRAPH, model_attributes={"additional_files": sorted(others)}
        )


def asked_for(config: Any, folder: Path, provider: str) -> Types:
    """`types` for the pass's options and the checkpoint in a folder. Raises ValueError as it does."""
    model = contents.config_of(folder)
    quantization = getattr(model, "quantization_config", None) or None
    precision = Precision(config.precision).value
    tied = bool(getattr(model, "tie_word_embeddings", False))
    level = int((config.extra_options or {}).get("accuracy_level", INT8_ACTIVATIONS))
    return types(precision, config.lm_head, config.embedding, quantization, tied, provider, level)


def flatten_rope(config: Any) -> None:
    """Write rotary settings as the builder reads them: it has no dictionary by layer type (Gemma 3)."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    elif "rope_type" in rope:
        rope.setdefault("type", rope["rope_type"])  # the older name, which the builder reads for long RoPE


class SplitReader(OliveModel):
    """onnxruntime-genai's reader of Olive checkpoints, with fused matrices split beforehand.

    The reader also cannot export symmetric weights when it packs q, k and v, so those get explicit zero
    points.

    0.18.0 cuts the packed zero points of `gate_up_proj` and `qkv_proj` at half the rows that belong to
    the first part: Olive packs two to a byte along a row, not down a column. Here all tensors of a
    matrix are cut at the same row.
    """

    def __init__(
        self,
        quant_type: str,
        input_path: str,
        quant_attrs: dict[str, Any],
        q_size: int,
        kv_size: int,
        intermediate_size: int,
        num_layers: int,
    ) -> None:
        parts = {
            "self_attn.qkv_proj": {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            "mlp.gate_up_proj": {"gate_proj": intermediate_size, "up_proj": intermediate_size},
        }
        config = dict(quant_attrs["config"])
        overrides = config.get("overrides") or {}
        config["overrides"] = {**overrides, **dict(_renamed(overrides, parts))}
        attrs = {**quant_attrs, "config": config}
        original = loader.load_file
        loader.load_file = lambda file: split_fused(with_zero_points(original(file), config), parts)
        try:
            super().__init__(quant_type, input_path, attrs, q_size, kv_size, intermediate_size, num_layers)
        finally:
            loader.load_file = original


def with_zero_points(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Add `qzeros` where a packed matrix has none: the middle code, as many to a byte as codes are."""
    found = dict(tensors)
    for name, scales in tensors.items():
        module, _, attribute = name.rpartition(".")
        if attribute != "scales" or f"{module}.qzeros" in tensors:
            continue
        bits = {**config, **config["overrides"].get(module, {})}["bits"]
        middle = sum(1 << (bits - 1 + shift) for shift in range(0, 8, bits))
        packed = -(-scales.shape[1] * bits // 8)
        found[f"{module}.qzeros"] = torch.full((scales.shape[0], packed), middle, dtype=torch.uint8)
    return found


def split_fused(
    tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Mapping[str, int]]
) -> dict[str, torch.Tensor]:
    """Cut fused matrices along their first axis, the outputs, and name the parts as unfused models do.

    `parts` gives, for the end of a module's path, the names and numbers of outputs of its parts.
    """
    found = {}
    for name, tensor in tensors.items():
        module, _, attribute = name.rpartition(".")
        fused = next((path for path in parts if module.endswith(path)), None)
        if fused is None:
            found[name] = tensor
            continue
        parent = module.rpartition(".")[0]
        pieces = torch.split(tensor, list(parts[fused].values()))
        for part, piece in zip(parts[fused], pieces, strict=True):
            found[f"{parent}.{part}.{attribute}"] = piece
    return found


def _renamed(
    overrides: Mapping[str, Any], parts: Mapping[str, Mapping[str, int]]
) -> Iterator[tuple[str, Any]]:
    """Settings by module, with those of a fused module copied to each of its parts."""
    for module, setting in overrides.items():
        fused = next((path for path in parts if module.endswith(path)), None)
        if fused is None:
            yield module, setting
        else:
            yield from ((f"{module.rpartition('.')[0]}.{part}", setting) for part in parts[fused])


@contextmanager
def _right_reader() -> Iterator[None]:
    """Put our reader where the builder looks for its own."""
    original = quant_model.OliveModel
    quant_model.OliveModel = SplitReader
    try:
        yield
    finally:
        quant_model.OliveModel = original


def _end_answers(folder: Path, source: Path, template: templates.Template, tokenizer: Any) -> None:
    """Make every end token stop the generation: chat models have more than one."""
    file = folder / "genai_config.json"
    config = json.loads(file.read_text("utf-8"))
    listed = config["model"].get("eos_token_id")
    known = listed if isinstance(listed, list) else [listed]
    ends = list(dict.fromkeys([*known, *end_tokens(tokenizer, source, template.stop)]))
    config["model"]["eos_token_id"] = [end for end in ends if end is not None]
    file.write_text(json.dumps(config, indent=4) + "\n", "utf-8")


def add_app(
    folder: Path, source: Path, text: str, template: templates.Template, tokenizer: Any = None
) -> None:
    """Put app.py into the folder, with what it needs to load the model and read rows as training does.

    `tokenizer` is that of `source`, if it is loaded already. Raises LabError if GenAI's tokenizer cannot be
    made to read them so.
    """
    tokenizer = tokenizer or contents.tokenizer_of(source)
    lab = {
        "template": text,
        **serving_ids.describe(folder, template, before(tokenizer)),
        "stop": template.stop,
    }
    serving_ids.prepare(folder, lab["reading"])
    (folder / LAB).write_text(json.dumps(lab, allow_nan=False, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for name, own in serving_ids.APP.items():
        shutil.copyfile(own, folder / name)
    same_ids.require(source, folder, text, tokenizer=tokenizer)
