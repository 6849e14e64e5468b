"""A bound export for CUDA, whose steps are recorded: the same answers, whoever else is answered meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.exports import generation
from pipeline.exports.bound.binding import bind
from tests.gpu.test_cuda_export import apply
from tests.helpers import tiny
from tests.passes.optimize.test_export import quantized, random_adapter

pytestmark = pytest.mark.gpu

LIMIT = 64  # of phi3-long
CLOSE = 1e-4  # KL a token; float16 sums in another order


def exported(architecture: str, folder: Path) -> Path:
    from olive.model import HfModelHandler

    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.lora_inputs import LoraInputs

    checkpoint = quantized(tiny.build(architecture, folder / "model"), folder / "quantized", "rtn")
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    random_adapter(handler.load_model(cache_model=False), None).save_pretrained(folder / "adapter")
    plain = apply(GenaiBuilder, {"template": "chat", "precision": "int4"}, handler, folder / "plain")
    apply(LoraInputs, {"adapter_path": str(folder / "adapter")}, plain, folder / "onnx")
    return folder / "onnx"


def generator(loaded: Any, prompt: list[int], adapter: bool, most: int = 160) -> Any:
    import onnxruntime_genai as og

    params = og.GeneratorParams(loaded.model)
    params.set_search_options(max_length=most, min_length=most, do_sample=False)
    made = og.Generator(loaded.model, params)
    if adapter:
        made.set_active_adapter(loaded.adapters, "it")
    made.append_tokens(prompt)
    return made


def logits(one: Any) -> Any:
    return np.array(one.get_output("logits"))[0, -1].astype(np.float64)


def divergence(one: Any, other: Any) -> float:
    first, second = (each - each.max() - np.log(np.exp(each - each.max()).sum()) for each in (one, other))
    return float((np.exp(first) * (first - second)).sum())


@pytest.mark.parametrize("architecture", ["llama", "phi3-long"])
def test_it_answers_as_the_detachable_side_before_and_after_the_limit(
    architecture: str, tmp_path: Path
) -> None:
    folder = exported(architecture, tmp_path)
    bound = bind(folder, None, tmp_path / "bound").folder
    assert '"enable_cuda_graph": "1"' in (bound / "genai_config.json").read_text()
    assert '"enable_cuda_graph": "1"' not in (folder / "genai_config.json").read_text()
    one = generation.load(folder, {"it": folder / "adapter_weights.onnx_adapter"})
    other = generation.load(bound, {})
    found = []
    for length in (10, LIMIT - 8):
        prompt = [5 + i % 90 for i in range(length)]
        with_adapter, whole = generator(one, prompt, True), generator(other, prompt, False)
        for _ in range(20):
            found.append(divergence(logits(with_adapter), logits(whole)))
            token = int(logits(whole).argmax())
            with_adapter.append_tokens([token])
            whole.append_tokens([token])
    print(architecture, "KL a token", max(found))
    assert max(found) < CLOSE


@pytest.mark.parametrize("architecture", ["llama", "phi3-long"])
def test_two_who_are_answered_in_turns_get_what_each_gets_alone(architecture: str, tmp_path: Path) -> None:
    loaded = generation.load(bind(exported(architecture, tmp_path), None, tmp_path / "bound").folder, {})
    prompts = [[5 + i % 90 for i in range(12)], [90 - i % 70 for i in range(50)], [7, 8, 9]]
    alone = [answer([generator(loaded, prompt, False)])[0] for prompt in prompts]
    assert answer([generator(loaded, prompt, False) for prompt in prompts]) == alone
    assert answer([generator(loaded, prompt, False, 200) for prompt in reversed(prompts)]) == alone[::-1]
    assert len(set(map(tuple, alone))) == len(alone)


def answer(generators: list[Any], tokens: int = 40) -> list[list[int]]:
    """Tokens of each, one after the other in turns."""
    for _ in range(tokens):
        for one in generators:
            one.generate_next_token()
    return [list(map(int, each.get_sequence(0)))[-tokens:] for each in generators]
