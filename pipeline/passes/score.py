# mypy: disallow-subclassing-any=False
"""Perplexity of a checkpoint and decoding speed of the graph exported from it."""

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

from pipeline import generation
from pipeline.events import emit
from pipeline.passes.calibration import cut, text_tokens
from pipeline.passes.perplexity import Exact, Text, judge, read
from pipeline.passes.quant_lora import training_dtype, unpack_where_it_fits
from pipeline.passes.rows import dataset_of

SCORE = "score.json"
BLOCK = 512  # tokens


class Score(Pass):
    """Write `score.json`: {data_perplexity, data_divergence, general_perplexity, …, tokens_per_second}.

    `data` is what the rows' labels count, `general` a bundled text. Divergence is from the model `exact`, the
    speed that of the graph in the folder `onnx`; each is left out without it.
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
        score = _judged(model, texts, HfModelHandler(config.exact) if config.exact else None)
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


def _judged(
    handler: HfModelHandler, texts: dict[str, list[Text]], exact: HfModelHandler | None
) -> dict[str, float]:
    """Perplexity and divergence by name of the text, with one model in memory at a time, none afterwards."""
    known: dict[str, Exact] = {}
    begin = 0.02
    if exact is not None:
        with _loaded(exact, "the exact model", begin) as model:
            for name, part in texts.items():
                known[name] = read(
                    model, part, _teller(f"What the exact model makes of {name} text", part, begin)
                )
                begin += 0.2
    found = {}
    with _loaded(handler, "the model", begin) as model:
        for name, part in texts.items():
            judged = judge(model, part, _teller(f"Perplexity on {name} text", part, begin), known.get(name))
            found[f"{name}_perplexity"] = judged.perplexity
            if judged.divergence is not None:
                found[f"{name}_divergence"] = judged.divergence
            begin += 0.2
    return found


def _teller(message: str, texts: list[Text], begin: float) -> Callable[[int], None]:
    return lambda done: emit(
        message=f"{message}: {done} of {len(texts)}", progress=begin + 0.2 * done / len(texts)
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
