"""Small random models of real architectures, with a small tokenizer: seconds where real ones take minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Head sizes are multiples of 8, as the attention kernel wants them.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 16}),
    "phi3": ("Phi3", {"original_max_position_embeddings": 256}),
    "phi3-long": (
        "Phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + i / 10 for i in range(8)],
                "long_factor": [2.0 + i / 5 for i in range(8)],
            },
        },
    ),
    "llama3": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 128}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 128}),
    "mistral": ("Mistral", {"head_dim": 16}),
}


def build(architecture: str, folder: Path) -> Path:
    """Write a random model of an architecture and a tokenizer to `folder`, as Hugging Face does."""
    import torch
    import transformers

    name, more = MODELS[architecture]
    text = "Text" if architecture == "gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**COMMON, **more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual start, so that differences between layers show in the logits.
            parameter.normal_(0.0, 0.1) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """A byte-level BPE tokenizer without merges beyond bytes, with ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(specials + alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def dataset(file: Path, rows: int = 12) -> Path:
    """A few rows of travel advice."""
    cities = ["Rome", "Oslo", "Lima", "Cairo", "Perth", "Delhi"]
    lines = [
        {
            "prompt": f"What to see in {cities[i % 6]}?",
            "response": f"See the old town of {cities[i % 6]} ({i}).",
        }
        for i in range(rows)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file
