"""Answers from an exported folder, with or without an adapter, token by token.

One loaded model serves every side: the base is simply the model with no adapter active.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.exports import serving_ids
from pipeline.inputs.prompts import templates
from pipeline.inputs.prompts.lab_prompt import Reader
from pipeline.system import hardware, peak_memory

# Tokens of a prompt that the model reads between two turns of other answers: with 128 a prompt of 2,000 takes
# a tenth longer than when it is read whole, with 192 a fiftieth.
AT_A_TIME = 192
NO_GUIDANCE = (
    "the installed onnxruntime-genai is built without guidance, which JSON-schema answers need; ask without"
    " response_format, or install a build that has it"
)


@dataclass(frozen=True)
class Model:
    """A loaded folder. `ends` are the tokens that end an answer, `names` the adapters that are loaded,
    `reader` makes token ids of rows."""

    model: Any
    tokenizer: Any
    adapters: Any
    names: frozenset[str]
    ends: frozenset[int]
    context_length: int
    token_bytes: int  # of memory that each token of prompt and answer takes
    vocabulary: int
    template: templates.Template
    reader: Reader
    adapter_sizes: Mapping[str, int] = field(default_factory=dict)  # by which memory grew with each adapter


@dataclass
class Answer:
    """An answer being generated: iterate to get its text piece by piece; its numbers grow with it.

    A piece is empty where nothing can be shown yet, as while the model reads the prompt: others' turn.
    """

    _pieces: Iterator[str] = field(repr=False, default_factory=lambda: iter(()))
    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    first_token_seconds: float = 0.0
    decode_seconds: float = 0.0  # for all tokens after the first, not counting the turns of other answers
    cut: bool = False  # whether it ended at the token limit

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding, without the time to the first token."""
        return (self.tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """{text, tokens, cut, tokens_per_second, first_token_seconds} of an answer read to its end."""
        return {
            "text": self.text.strip(),
            "tokens": self.tokens,
            "cut": self.cut,
            "tokens_per_second": round(self.tokens_per_second, 2),
            "first_token_seconds": round(self.first_token_seconds, 4),
        }


def load(folder: Path, adapters: Mapping[str, Path] | None = None) -> Model:
    """Load an exported folder and adapters by name. Raises what onnxruntime_genai raises for a bad folder."""
    import onnxruntime_genai as og

    config = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
    if config["decoder"].get("session_options", {}).get("provider_options"):
        # CUDA's libraries are in Python packages, where the system's loader does not look.
        import onnxruntime

        onnxruntime.preload_dlls()
    configured = og.Config(str(folder))
    # Left alone, ONNX Runtime sees one core on some virtual machines: 81 tokens/s where two give 127.
    session = {"intra_op_num_threads": hardware.cores()}
    configured.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = og.Model(configured)
    loaded = og.Adapters(model)
    sizes: dict[str, int] = {}
    before = peak_memory.memory_now()
    for name, path in (adapters or {}).items():
        loaded.load(str(path), name)
        now = peak_memory.memory_now()
        sizes[name], before = max(now - before, 0), now
    ends = config["eos_token_id"]
    prompts = serving_ids.load(folder)
    return Model(
        model=model,
        tokenizer=prompts.tokenizer,
        adapters=loaded,
        names=frozenset(adapters or {}),
        ends=frozenset(ends if isinstance(ends, list) else [ends]),
        context_length=int(config["context_length"]),
        token_bytes=_token_bytes(config["decoder"]),
        vocabulary=int(config["vocab_size"]),
        template=prompts.template,
        reader=prompts.reader,
        adapter_sizes=sizes,
    )


def _token_bytes(decoder: Mapping[str, Any]) -> int:
    """What keys and values of one token take, in float32."""
    sizes = (decoder.get(name, 0) for name in ("num_hidden_layers", "num_key_value_heads", "head_size"))
    return 2 * 4 * math.prod(map(int, sizes))


def stream(
    model: Model,
    prompt: str,
    adapter: str | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    schema: str = "",
) -> Answer:
    """Begin the answer to a rendered prompt; iterating the result generates it.

    `adapter` None is the base side. Temperature 0 always picks the most likely token. The answer ends at
    an end token, at the template's stop text or another one (which is not part of it), or after
    `max_new_tokens`. With a `schema`, as JSON, it is JSON of that schema.
    Raises ValueError if the prompt leaves no room for an answer, or the schema cannot be followed.
    """
    answer = Answer()
    tokens = _unstopped(model, prompt, adapter, answer, max_new_tokens, temperature, top_p, seed, schema)
    answer._pieces = until(tokens, [text for text in (model.template.stop, *stop) if text])
    return answer


def logits(model: Model, prompt: str, adapter: str | None = None) -> Any:
    """What the model computes for the token after a rendered prompt: numpy float32 [vocabulary].

    Raises what onnxruntime_genai raises where an adapter does not fit the graph.
    """
    import onnxruntime_genai as og

    ids = _encode(model, prompt)
    params = og.GeneratorParams(model.model)
    params.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(model.model, params)
    if adapter is not None:
        generator.set_active_adapter(model.adapters, adapter)
    generator.append_tokens(ids)
    return generator.get_logits().reshape(-1, generator.get_logits().shape[-1])[-1].astype("float32")


def speed(model: Model, tokens: int, repeats: int = 3) -> float:
    """Tokens a second of the base, decoding `tokens` tokens whatever they are: the median of `repeats`."""
    import onnxruntime_genai as og

    ids = model.tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    found = []
    for _ in range(repeats):
        params = og.GeneratorParams(model.model)
        length = len(ids) + tokens + 1
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(model.model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()  # reads the prompt
        began = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        found.append(tokens / (time.perf_counter() - began))
    return statistics.median(found)


def until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Yield text up to the first of `stops`; hold back what may be the beginning of one.

    Each piece gives one, which may be empty.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [at for at in (held.find(stop) for stop in stops) if at >= 0]
        if found:
            yield held[: min(found)]
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held


def room(model: Model, prompt: str) -> int:
    """How many tokens an answer to a rendered prompt may have; 0 or less if the model cannot read it all."""
    return model.context_length - len(_encode(model, prompt))


def memory(model: Model, prompt: str, max_new_tokens: int) -> int:
    """Bytes that an answer to a rendered prompt takes while it is generated."""
    left = room(model, prompt)
    return model.token_bytes * (model.context_length - left + max(min(left, max_new_tokens), 0))


def _encode(model: Model, prompt: str) -> list[int]:
    """Tokens of a rendered prompt."""
    return model.reader.encode(prompt)


def _unstopped(
    model: Model,
    prompt: str,
    adapter: str | None,
    answer: Answer,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    schema: str,
) -> Iterator[str]:
    """Decoded tokens as they come, until the model ends its answer; counts them in `answer`."""
    import onnxruntime_genai as og

    ids = _encode(model, prompt)
    room = min(max_new_tokens, model.context_length - len(ids))
    if room < 1:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; this model reads {model.context_length}, answer included"
        )
    params = og.GeneratorParams(model.model)
    options: dict[str, Any] = {
        "max_length": len(ids) + room,
        "do_sample": temperature > 0,
        "random_seed": seed,
    }
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    params.set_search_options(**options)
    began = time.perf_counter()
    generator = _guided(model, params, schema) if schema else og.Generator(model.model, params)
    if adapter is not None:
        generator.set_active_adapter(model.adapters, adapter)
    answer.prompt_tokens = len(ids)
    for at in range(0, len(ids), AT_A_TIME):
        generator.append_tokens(ids[at : at + AT_A_TIME])
        answer.first_token_seconds += time.perf_counter() - began
        yield ""
        began = time.perf_counter()
    decoder = model.tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        token = int(generator.get_next_tokens()[0])
        if answer.tokens == 0:
            answer.first_token_seconds += time.perf_counter() - began
        else:
            answer.decode_seconds += time.perf_counter() - began
        answer.tokens += 1
        if token in model.ends:
            return
        yield decoder.decode(token)
        began = time.perf_counter()
    answer.cut = True


def _guided(model: Model, params: Any, schema: str) -> Any:
    """A generator whose answer is JSON of a schema. Raises ValueError where that cannot be."""
    import onnxruntime_genai as og

    if not _has_guidance(model):
        raise ValueError(NO_GUIDANCE)
    try:
        params.set_guidance("json_schema", schema)
        return og.Generator(model.model, params)
    except RuntimeError as error:
        text = display.line(str(error))
        raise ValueError(f"this JSON schema cannot be followed ({text}); write a simpler one") from None


def _has_guidance(model: Model) -> bool:
    """Whether the runtime follows schemas: built without guidance it takes any, and ignores it."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(model.model)
    params.set_search_options(max_length=2)
    try:
        params.set_guidance("json_schema", '{"type": "none"}')
        og.Generator(model.model, params)
    except (AttributeError, RuntimeError) as error:
        return isinstance(error, RuntimeError) and "unavailable" not in str(error)
    return False
