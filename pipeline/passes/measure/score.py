# mypy: disallow-subclassing-any=False
"""Perplexity of a model, how far it is from its float version, the same of its exported graph, its speed; and
what quantizing and exporting cost on the user's rows."""

from __future__ import annotations

import gc
import json
import math
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
from pipeline.inputs.models import architectures
from pipeline.passes import new_rows
from pipeline.passes.finetune.quant_lora import training_dtype, unpack_where_it_fits
from pipeline.passes.measure import float_losses
from pipeline.passes.measure.graph_logits import logits_of
from pipeline.passes.measure.perplexity import Exact, Text, judge, judge_logits, read
from pipeline.passes.measure.row_losses import EXACT, FILE, HELD_OUT, Losses, Record
from pipeline.passes.pace import Pace, Part
from pipeline.passes.quantize.calibration import cut, text_tokens
from pipeline.passes.rows import Rows, dataset_of
from pipeline.stages.events import emit
from pipeline.system.files import finite

SCORE = "score.json"
BLOCK = 512  # tokens
EXPORTED_BLOCKS = 8  # of the general text, for the graph: 4,096 tokens are enough to compare export settings
SHARE = 0.15  # of the stage, to read a text with a model
MOST_LOSS = 700.0  # nats, beyond which there is no perplexity that a number could hold
SIDE = "base"  # the graph's, as in an evaluation
NO_GRAPH = "there is no exported graph to compare with float; leave optimize in the recipe"
NO_ROWS = "each held-out row is longer than what the exported graph reads, so none can be compared with float"
ALL_COPIES = f"each held-out row {new_rows.ALL_COPIES}, so none tells what quantizing costs on new rows"


class Score(Pass):
    """Write `score.json`: {data_perplexity, data_divergence, general_perplexity, …, tokens_per_second}.

    `data` is over the labelled tokens of the rows, without near copies of training rows, which calibration
    may have read: {copies_left_out}. `general` is over a bundled text, both of the checkpoint;
    `exported` is over the start of that text with the graph in the folder `onnx`. Divergence is from the
    model `exact`, speed is the graph's; each is left out if there is none. Without `exact`, the graph's
    divergence is from this model.

    Of the graph, on the same rows and by the code of an evaluation: {rows, long_rows_left_out,
    exported_loss, exported_data_perplexity}, and with `exact` {float_loss, against_float}: see
    `evaluation.against`. Losses are means over rows, as those of the verdict, and perplexity is over all
    tokens. Where that cannot be, {not_compared} is why. `rows.jsonl` has these losses row by row; an
    interrupted attempt leaves them in the folder `kept`.
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
            "data": param(str, "The dataset, JSON lines.", required=True),
            "eval_fraction": param(float, "Share of rows held out.", required=True),
            "seed": param(int, "Seed of the split.", required=True),
            "rows": param(int, "Held-out rows to measure.", required=True),
            "tokenizer": param(str, "Folder of what the rows are read with.", required=True),
            "kept": param(str, "Folder of an interrupted try.", required=True),
        }

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        rows = dataset_of(config.data_config)
        length = _block(Path(model.model_name_or_path))
        general = cut(text_tokens(rows.tokenizer, "scoring")[: config.general_blocks * length], length)
        texts = {
            "data": [(rows[i][0]["input_ids"], rows[i][1]) for i in range(len(rows))],
            "general": [(block, block) for block in general],
        }
        if not texts["data"]:
            del texts["data"]
        score, exact = _judged(model, texts, HfModelHandler(config.exact) if config.exact else None)
        folder = Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        score |= rows.left_out
        if config.onnx:
            score |= _exported(config, rows, texts["general"][:EXPORTED_BLOCKS], exact)
        if config.exact and not config.onnx:
            score["not_compared"] = NO_GRAPH
        if config.onnx:
            shutil.copyfile(Path(config.kept) / FILE, folder / FILE)
        (folder / SCORE).write_text(json.dumps(finite(score), allow_nan=False, indent=1) + "\n", "utf-8")
        # Olive wants a model from every pass and copies its folder, so this one has only a config.
        shutil.copyfile(Path(model.model_name_or_path) / "config.json", folder / "config.json")
        return HfModelHandler(str(folder), task=model.task)


def _block(folder: Path) -> int:
    """Tokens of a block of general text: no more than the model reads."""
    longest = architectures.positions(json.loads((folder / "config.json").read_text("utf-8")))
    return min(BLOCK, longest or BLOCK)


def _exported(config: Any, rows: Rows, general: list[Text], exact: Exact) -> dict[str, Any]:
    """What is measured of the graph: on general text, on the rows, and its speed."""
    tell = _teller("Perplexity of the exported graph", general, 0.64, 0.06)
    found = judge_logits(logits_of(Path(config.onnx)), general, exact, tell)
    exact.batches.clear()  # others need the memory
    loaded = generation.load(Path(config.onnx))
    on_rows = _on_rows(loaded, config, rows)
    emit(message="Decoding with the exported graph", progress=0.95)
    return {
        "exported_perplexity": found.perplexity,
        "exported_divergence": found.divergence,
        **on_rows,
        "tokens_per_second": generation.speed(loaded, config.decode_tokens),
    }


def _on_rows(loaded: generation.Model, config: Any, given: Rows) -> dict[str, Any]:
    """The graph on held-out rows, and the float model on the same; each row is kept as it is measured."""
    kept, data, chosen = Path(config.kept), Path(config.data), given.positions
    kept.mkdir(parents=True, exist_ok=True)
    inputs = {name: getattr(config, name) for name in ("onnx", "data", "eval_fraction", "seed", "tokenizer")}
    record = Record(kept / FILE, inputs | given.left_out)  # an attempt that measured copies is none
    work = {
        HELD_OUT: Part("Your rows on the exported graph", len(chosen)),
        EXACT: Part("Your rows on the float model", len(chosen) if config.exact else 0, 2.0),
    }
    pace = Pace(work, 0.7, 0.25)
    losses = Losses(loaded, Path(config.tokenizer), data, loaded.template, {SIDE: None}, record, pace)
    rows = losses.rows(HELD_OUT, chosen)
    found: dict[str, Any] = {"rows": len(rows), "long_rows_left_out": losses.too_long}
    if not rows:
        return {**found, "not_compared": NO_ROWS if chosen else ALL_COPIES}
    found["exported_loss"] = rows.row_mean(SIDE)
    found["exported_data_perplexity"] = math.exp(min(rows.token_mean(SIDE), MOST_LOSS))
    if config.exact:
        with float_losses.loaded(Path(config.exact)) as measure:
            floats = losses.rows(EXACT, chosen, {EXACT: None}, measure=measure)
        found["float_loss"] = floats.row_mean(EXACT)
        found["against_float"] = against.of(floats.means(EXACT), rows.means(SIDE))
    pace.end()
    return found


def _judged(
    handler: HfModelHandler, texts: dict[str, list[Text]], exact: HfModelHandler | None
) -> tuple[dict[str, Any], Exact]:
    """Perplexity and divergence by name of the text, and what the exact model predicts for the general one.

    One model is in memory at a time, none afterwards.
    """
    known = {} if exact is None else _read(exact, texts)
    begin = 0.02 + SHARE * len(known)
    found: dict[str, Any] = {}
    with _loaded(handler, "the model", begin) as model:
        for name, part in texts.items():
            judged = judge(model, part, _teller(f"Perplexity on {name} text", part, begin), known.get(name))
            found[f"{name}_perplexity"] = judged.perplexity
            if judged.divergence is not None:
                found[f"{name}_divergence"] = judged.divergence
            begin += SHARE
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
            begin += SHARE
    return known


def _teller(message: str, texts: list[Text], begin: float, share: float = SHARE) -> Callable[[int], None]:
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
