"""Miniature tokenizers in the style of well-known models', each trained from a few lines in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

CORPUS = [
    "Hello there, what is the best thing to see in Chicago? See the old town of Rome, and the sea.",
    "What is the capital of France? The capital of France is Paris. It's 2024, isn't it? 12345 people.",
    "  indented code\n\tdef f(x):\n\t\treturn x + 1\n\n\nand more   spaces",
    "naïve café déjà vu, Größe, 数据 数据库 你好 🙂 🙂",
    "Tell me about the town. The town is in a valley. user assistant system model one two three",
] * 8
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTENCEPIECE = ("<unk>", "<s>", "</s>")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role']=='user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role']=='assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('only user and assistant') }}"
    "{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role']=='system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ '<start_of_turn>'"
    " + ('model' if m['role']=='assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """A tokenizer with its config and chat template. `needs` are the repairs it is not read right without."""

    make: Callable[[], Tokenizer]
    config: dict[str, Any]
    template: str
    needs: tuple[str, ...] = ()


def special(*names: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def byte_level(
    specials: Sequence[AddedToken],
    *before: Any,
    normalizer: Any = None,
    bos: str | None = None,
    ignore_merges: bool = False,
    **level: bool,
) -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have it; `before` cut the text first."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        made.normalizer = normalizer
    bytes_ = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **level})
    made.pre_tokenizer = pre_tokenizers.Sequence([*before, bytes_])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    if bos:
        made.post_processor = starts_with(bos, made)
    return made


def sentencepiece(
    scheme: str,
    more: Sequence[AddedToken] = (),
    bos: str | None = "<s>",
    specials: Sequence[str] = SENTENCEPIECE,
) -> Tokenizer:
    """BPE with byte fallback over text whose spaces are ▁, as Llama 2, Phi-3, Mistral and Gemma have it.

    `scheme` says who marks spaces: "legacy" a normalizer that puts one before every piece, "gemma" one that
    puts none, or a Metaspace that does it "first", "always" or "never".
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=900, special_tokens=[*specials, *bytes_], show_progress=False)
    made.train_from_iterator([line.replace(" ", "▁") for line in CORPUS], trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    state["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(state))  # bytes are ordinary tokens
    marks = normalizers.Replace(" ", "▁")
    if scheme == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks])
    elif scheme == "gemma":
        made.normalizer = marks
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.add_special_tokens(list(more))
    if bos:
        made.post_processor = starts_with(bos, made)
    strip = [] if scheme == "gemma" else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    made.decoder = decoders.Sequence(steps)
    return made


def unigram() -> Tokenizer:
    """What ONNX Runtime GenAI has no reader for."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = UnigramTrainer(vocab_size=200, special_tokens=names, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


def starts_with(bos: str, tokenizer: Tokenizer) -> Any:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _config(bos: str | None, eos: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"bos_token": bos, "eos_token": eos, "tokenizer_class": kind, **more}


_QWEN = special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA3 = special(
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
)
_PHI3 = special("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", rstrip=True)
_INST = special("[INST]", "[/INST]")
_CHATML = special("<|im_start|>", "<|im_end|>")
_TURNS = special("<start_of_turn>", "<end_of_turn>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>")
_LLAMA = _config("<s>", "</s>", "LlamaTokenizer", unk_token="<unk>", add_bos_token=True)
_PLAIN = _config("<s>", "</s>", "PreTrainedTokenizerFast", unk_token="<unk>")
_GEMMA_CONFIG = _config("<bos>", "<end_of_turn>", "GemmaTokenizer", unk_token="<unk>", pad_token="<pad>")
_words = pre_tokenizers.Split(Regex(WORDS), "isolated")
_FOLD = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
_digits = pre_tokenizers.Digits(individual_digits=True)

KINDS: dict[str, Kind] = {
    "llama3": Kind(
        lambda: byte_level(_LLAMA3, _words, bos="<|begin_of_text|>", ignore_merges=True, use_regex=False),
        _config("<|begin_of_text|>", "<|eot_id|>", "PreTrainedTokenizerFast"),
        LLAMA3,
        ("before",),
    ),
    "qwen2.5": Kind(
        lambda: byte_level(_QWEN, _words, normalizer=normalizers.NFC(), use_regex=False),
        _config(None, "<|im_end|>", "Qwen2Tokenizer", pad_token="<|endoftext|>"),
        CHATML,
        ("normalize",),
    ),
    "smollm": Kind(
        lambda: byte_level(_QWEN, _digits), _config("<|im_start|>", "<|im_end|>", "GPT2Tokenizer"), CHATML
    ),
    "gpt2-prefix": Kind(
        lambda: byte_level(_QWEN, add_prefix_space=True),
        _config(None, "<|im_end|>", "PreTrainedTokenizerFast", add_prefix_space=True),
        CHATML,
        ("space",),
    ),
    "lowercase": Kind(
        lambda: byte_level(_QWEN, normalizer=_FOLD),
        _config(None, "<|im_end|>", "PreTrainedTokenizerFast"),
        CHATML,
        ("normalize",),
    ),
    "llama2": Kind(lambda: sentencepiece("legacy"), {**_LLAMA, "legacy": False}, LLAMA2, ("before", "class")),
    "llama2-legacy": Kind(
        lambda: sentencepiece("legacy"), {**_LLAMA, "legacy": True}, LLAMA2, ("before", "space", "class")
    ),
    "llama2-own-bos": Kind(
        lambda: sentencepiece("legacy"), _LLAMA, LLAMA2.removeprefix("{{ bos_token }}"), ("before", "space")
    ),
    "prepend": Kind(lambda: sentencepiece("legacy"), _PLAIN, LLAMA2, ("before", "space", "decoder")),
    "mistral": Kind(lambda: sentencepiece("first", _INST), _LLAMA, LLAMA2, ("before", "decoder")),
    "metaspace-first": Kind(lambda: sentencepiece("first", _CHATML), _LLAMA, CHATML, ("before", "decoder")),
    "metaspace-always": Kind(lambda: sentencepiece("always"), _PLAIN, LLAMA2, ("before", "space", "class")),
    "metaspace-never": Kind(lambda: sentencepiece("never", _CHATML), _PLAIN, CHATML, ("before", "class")),
    "phi3.5": Kind(
        lambda: sentencepiece("legacy", _PHI3, bos=None),
        {**_LLAMA, "eos_token": "<|endoftext|>", "add_bos_token": False, "legacy": False},
        PHI3,
        ("decoder", "special"),
    ),
    "gemma2": Kind(
        lambda: sentencepiece("gemma", _TURNS, "<bos>", _GEMMA), _GEMMA_CONFIG, GEMMA, ("before",)
    ),
    "gemma3": Kind(
        lambda: sentencepiece(
            "gemma",
            [*_TURNS, *(AddedToken(text * n, normalized=False) for text in ("\n", "▁") for n in (2, 3))],
            "<bos>",
            _GEMMA,
        ),
        _GEMMA_CONFIG,
        GEMMA,
        ("before",),
    ),
    "lstrip": Kind(
        lambda: byte_level([*_QWEN, *special("<sep>", lstrip=True)]),
        _config(None, "<|im_end|>", "PreTrainedTokenizerFast"),
        CHATML,
        ("special",),
    ),
}


def write(kind: Kind, folder: Path) -> Path:
    """Write tokenizer files as a model's folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    kind.make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(kind.config), "utf-8")
    (folder / "chat_template.jinja").write_text(kind.template, "utf-8")
    return folder


def exported(source: Path, folder: Path) -> Path:
    """What an export writes of a tokenizer, without a graph: GenAI's tokenizer needs none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    facts = {
        "type": "llama",
        "bos_token_id": tokenizer.bos_token_id or 0,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "context_length": 2048,
        "vocab_size": len(tokenizer),
        "decoder": {"filename": "model.onnx", "session_options": {}, "inputs": {}, "outputs": {}},
    }
    (folder / "genai_config.json").write_text(json.dumps({"model": facts, "search": {}}), "utf-8")
    return folder
