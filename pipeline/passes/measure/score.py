# mypy: disallow-subclassing-any=False
"""Perplexity of a checkpoint and of the graph exported from it, and that graph's decoding speed."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.train_utils import load_hf_base_model

from pipeline.evaluation import against
from pipeline.exports import generation
from pipeline.passes.finetune.quant_lora import training_dtype, unpack_where_it_fits
from pipeline.passes.measure.graph_logits import logits_of
from pipeline.passes.measure.perplexity import Exact, Text, judge, judge_logits, read
from pipeline.passes.quantize.calibration import cut, text_tokens
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit
from pipeline.system.files import finite

SCORE = "score.json"
BLOCK = 512  # tokens
EXPORTED_BLOCKS = 8  # of the general text, for the graph: 4,096 tokens are enough to compare export settings


class Score(Pass):
    """Write `score.json`: {data_perplexity, data_divergence, general_perplexity, …, tokens_per_second}, and
    with `exact` {against_float}: see `evaluation.against`.

    `data` is over the labelled tokens of the rows, `general` over a bundled text, `exported` over the start
    of that text with the graph in the folder `onnx`. Divergence is from the model `exact`, speed is the
    graph's; each is left out if there is none. Without `exact`, the graph's divergence is from this model.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(kind: Any, description: str, **more: Any) -> PassConfigParam:
            return PassConfigParam(type_=kind, description=description, **more)

        return {
            "data_config": param(DataConfig | dict, "Held-out rows.", required=True),
            "general_blocks": param(int, "Blocks of general text.", required=True),
            "decode_tokens": param(int, "Tokens to decode.", required=True),
            "exact": param(str, "The model that was quantized.", default_value=None),
            "onnx": param(str, "The exported folder.", default_value=None),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        rows = dataset_of(config.data_config)
        general = cut(text_tokens(rows.tokenizer, "scoring")[: config.general_blocks * BLOCK], BLOCK)
        texts = {
            "data": [(rows[i][0]["input_ids"], rows[i][1]) for i in range(len(rows))],
            "general": [(block, block) for block in general],
        }
        score, exact = _judged(model, texts, HfModelHandler(config.exact) if config.exact else None)
        if config.onnx:
            first = texts["general"][:EXPORTED_BLOCKS]
            tell = _teller("Perplexity of the exported graph", first, 0.82, 0.06)
            exported = judge_logits(logits_of(Path(config.onnx)), first, exact, tell)
            score["exported_perplexity"] = exported.perplexity
            score["exported_divergence"] = exported.divergence
            emit(message="Decoding with the exported graph", progress=0.9)
            score["tokens_per_second"] = generation.speed(
                generation.load(Path(config.onnx)), config.decode_tokens
            )
        folder = Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCORE).write_text(json.dumps(finite(score), allow_nan=False, indent=1) + "\n", "utf-8")
        # Olive wants a model from every pass and copies its folder, so this one has only a config.
        shutil.copyfile(Path(model.model_name_or_path) / "config.json", folder / "config.json")
        return HfModelHandler(str(folder), task=model.task)


def _judged(
    handler: HfModelHandler, texts: dict[str, list[Text]], exact: HfModelHandler | None
) -> tuple[dict[str, Any], Exact]:
    """Perplexity and divergence by name of the text, and what the exact model predicts for the general one.

    One model is in memory at a time, none afterwards.
    """
    known = {} if exact is None else _read(exact, texts)
    begin = 0.02 + 0.2 * len(known)
    found: dict[str, Any] = {}
    with _loaded(handler, "the model", begin) as model:
        for name, part in texts.items():
            judged = judge(model, part, _teller(f"Perplexity on {name} text", part, begin), known.get(name))
            found[f"{name}_perplexity"] = judged.perplexity
            if name == "data" and judged.exact_losses:
                found["against_float"] = against.of(judged.exact_losses, judged.losses)
            if judged.divergence is not None:
                found[f"{name}_divergence"] = judged.divergence
            begin += 0.2
        if exact is None:
            known["general"] = read(model, texts["general"][:EXPORTED_BLOCKS])
    return found, known["general"]


def _read(handler: HfModelHandler, texts: dict[str, list[Text]]) -> dict[str, Exact]:
    """What the exact model predicts for the texts. A function, so that no variable keeps the model alive."""
    known: dict[str, Exact] = {}
    begin = 0.02
    with _loaded(handler, "the exact model", begin) as model:
        for name, part in texts.items():
            tell = _teller(f"Predictions of the exact model for {name} text", part, begin)
            known[name] = read(model, part, tell)
            begin += 0.2
    return known


def _teller(message: str, texts: list[Text], begin: float, share: float = 0.2) -> Callable[[int], None]:
    return lambda done: emit(
        message=f"{message}: {done} of {len(texts)}", progress=begin + share * done / len(texts)
    )


@contextmanager
def _loaded(handler: HfModelHandler, name: str, progress: float) -> Iterator[Any]:
    emit(message=f"Loading {name}", progress=progress)
    dtype = training_dtype("auto")
    placed = {"": 0} if torch.cuda.is_available() else None
    model: Any = load_hf_base_model(handler, torch_dtype=dtype, device_map=placed)
    model.eval()
    unpack_where_it_fits(model, dtype)
    yield model
    del model
    gc.collect()
