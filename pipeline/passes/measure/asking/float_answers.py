"""Answers of the float model, by PyTorch: what the exported graph's answers are compared with.

It reads the same token ids, always takes the likeliest token, and ends where the exported model ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.exports import generation
from pipeline.passes.measure import float_losses
from pipeline.passes.output_layer import head_of
from pipeline.stages.events import emit


class FloatAnswers:
    """The model in a Hugging Face folder, loaded for the first answer; `loaded` is its export."""

    def __init__(self, folder: Path, loaded: generation.Model) -> None:
        self._folder, self._loaded = folder, loaded
        self._model: Any = None

    def stream(self, prompt: str, max_new_tokens: int) -> generation.Answer:
        """The answer to a rendered prompt, as `generation.stream` gives the export's.

        Raises what transformers raises for a folder it cannot load.
        """
        if self._model is None:
            emit(message="Loading the float model")
            self._model = float_losses.load(self._folder)
        answer = generation.Answer()
        pieces = self._pieces(answer, self._loaded.reader.encode(prompt), max_new_tokens)
        stop = self._loaded.template.stop
        answer._pieces = generation.until(pieces, [stop] if stop else [])
        return answer

    def _pieces(self, answer: generation.Answer, ids: list[int], most: int) -> Iterator[str]:
        decoder = self._loaded.tokenizer.create_stream()
        began = time.perf_counter()
        tokens = self._tokens(ids)
        for _ in range(min(most, self._loaded.context_length - len(ids))):
            token = next(tokens)
            taken = time.perf_counter() - began
            if answer.tokens:
                answer.decode_seconds += taken
            else:
                answer.first_token_seconds = taken
            answer.tokens += 1
            if token in self._loaded.ends:
                return
            yield decoder.decode(token)
            began = time.perf_counter()
        answer.cut = True

    def _tokens(self, ids: list[int]) -> Iterator[int]:
        """The likeliest tokens after these ids, without end."""
        device, head = next(self._model.parameters()).device, head_of(self._model)
        read, cache = torch.tensor([ids], device=device), None
        while True:
            with torch.no_grad():
                found = self._model.base_model(input_ids=read, past_key_values=cache, use_cache=True)
                token = int(head(found.last_hidden_state[0, -1:]).argmax())
            cache = found.past_key_values
            read = torch.tensor([[token]], device=device)
            yield token
