"""Well-known small models, with what their publishers say of them: written down here, never fetched."""

from __future__ import annotations

from dataclasses import dataclass

KNOWN = "2026-11-28"  # the day on which the lines below were written down


@dataclass(frozen=True)
class Entry:
    """A model of an architecture that the whole lab can work on.

    parameters   weights in all, an output layer that is the embedding counted once
    context      tokens it reads, prompt and answer together
    gated        its licence must be accepted on the hub before it can be fetched
    stored       weights in its files where these keep the embedding twice, else 0
    """

    id: str
    title: str
    licence: str
    parameters: int
    context: int
    gated: bool = False
    stored: int = 0

    @property
    def bytes(self) -> int:
        """Of its weights: two for each."""
        return 2 * (self.stored or self.parameters)


LLAMA_3_1, LLAMA_3_2 = "Llama 3.1", "Llama 3.2"
CATALOGUE = [
    Entry("starter", "SmolLM2 135M, comes with the lab, works offline", "Apache-2.0", 134_515_008, 8_192),
    Entry("microsoft/Phi-3.5-mini-instruct", "Phi-3.5 mini, the lab's own", "MIT", 3_821_079_552, 131_072),
    Entry("microsoft/Phi-3-mini-4k-instruct", "Phi-3 mini 4k", "MIT", 3_821_079_552, 4_096),
    Entry("HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M", "Apache-2.0", 361_821_120, 8_192),
    Entry("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B", "Apache-2.0", 1_711_376_384, 8_192),
    Entry("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5 0.5B", "Apache-2.0", 494_032_768, 32_768),
    Entry("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5 1.5B", "Apache-2.0", 1_543_714_304, 32_768),
    Entry("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5 7B", "Apache-2.0", 7_615_616_512, 32_768),
    Entry("Qwen/Qwen3-0.6B", "Qwen3 0.6B", "Apache-2.0", 596_049_920, 40_960, stored=751_632_384),
    Entry("Qwen/Qwen3-1.7B", "Qwen3 1.7B", "Apache-2.0", 1_720_574_976, 40_960, stored=2_031_739_904),
    Entry("Qwen/Qwen3-4B", "Qwen3 4B", "Apache-2.0", 4_022_468_096, 40_960),
    Entry("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 1B", LLAMA_3_2, 1_235_814_400, 131_072, True),
    Entry("meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 3B", LLAMA_3_2, 3_212_749_824, 131_072, True),
    Entry("meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1 8B", LLAMA_3_1, 8_030_261_248, 131_072, True),
    Entry("google/gemma-2-2b-it", "Gemma 2 2B", "Gemma", 2_614_341_888, 8_192, True),
]  # fmt: skip


def entry(model: str) -> Entry | None:
    """The line of a model, which may be pinned as `org/name@commit`; None if there is none."""
    name = model.partition("@")[0]
    return next((known for known in CATALOGUE if known.id == name), None)
