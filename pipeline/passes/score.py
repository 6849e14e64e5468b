# mypy: disallow-subclassing-any=False
"""Perplexity of a checkpoint and decoding speed of the graph exported from it."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.train_utils import load_hf_base_model

from pipeline import generation
from pipeline.events import emit
from pipeline.passes.calibration import cut, text_tokens
from pipeline.passes.perplexity import perplexity
from pipeline.passes.quant_lora import training_dtype, unpack_where_it_fits
from pipeline.passes.rows import dataset_of

SCORE = "score.json"
BLOCK = 512  # tokens


class Score(Pass):
    """Write `score.json`: {data_perplexity, general_perplexity, tokens_per_second}.

    The first is over whole held-out rows as the template renders them, the second over a bundled text. The
    speed is of the graph in the folder `onnx`; without one it is left out.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(kind: Any, description: str, **more: Any) -> PassConfigParam:
            return PassConfigParam(type_=kind, description=description, **more)

        return {
            "data_config": param(DataConfig | dict, "Held-out rows.", required=True),
            "general_blocks": param(int, "Blocks of general text.", required=True),
            "decode_tokens": param(int, "Tokens to decode.", required=True),
            "onnx": param(str, "The exported folder.", default_value=None),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model", progress=0.02)
        rows = dataset_of(config.data_config)
        score = _perplexities(model, rows, config.general_blocks)
        if config.onnx:
            emit(message="Decoding with the exported graph", progress=0.85)
            score["tokens_per_second"] = generation.speed(
                generation.load(Path(config.onnx)), config.decode_tokens
            )
        folder = Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCORE).write_text(json.dumps(score, indent=1) + "\n", "utf-8")
        # Olive wants a model from every pass, and copies its folder: so a folder with a config alone.
        shutil.copyfile(Path(model.model_name_or_path) / "config.json", folder / "config.json")
        return HfModelHandler(str(folder), task=model.task)


def _perplexities(handler: HfModelHandler, rows: Any, blocks: int) -> dict[str, float]:
    """Perplexity on the rows and on the general text; the model is gone from memory afterwards."""
    dtype = training_dtype("auto")
    placed = {"": 0} if torch.cuda.is_available() else None
    model: Any = load_hf_base_model(handler, torch_dtype=dtype, device_map=placed)
    model.eval()
    unpack_where_it_fits(model, dtype)
    texts = [rows[i][0]["input_ids"] for i in range(len(rows))]
    general = list(cut(text_tokens(rows.tokenizer, "scoring")[: blocks * BLOCK], BLOCK))
    found = {}
    for name, part, begin in (("data", texts, 0.1), ("general", general, 0.4)):

        def tell(done: int, name: str = name, total: int = len(part), begin: float = begin) -> None:
            emit(message=f"Perplexity on {name} text: {done} of {total}", progress=begin + 0.3 * done / total)

        found[f"{name}_perplexity"] = perplexity(model, part, tell)
    del model
    gc.collect()
    return found
