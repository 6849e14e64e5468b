"""A model's sizes, from its config.json: all that memory and time follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.inputs.models import architectures
from pipeline.inputs.models.about import EXPERTS, TIED

LARGEST = 1 << 40  # of any one size: a config.json may say anything, and more fits no machine either
BYTES = {"float32": 4, "float": 4}  # of a weight, by its type; all others take 2


@dataclass(frozen=True)
class Packed:
    """How matrices are stored in few bits."""

    bits: int
    group: int
    symmetric: bool = False
    head: bool = False  # the output layer too

    def size(self, count: float, scale_bytes: int) -> float:
        """Bytes of a matrix of so many weights."""
        zero = 0.0 if self.symmetric else self.bits / 8
        return count * (self.bits / 8 + (scale_bytes + zero) / self.group)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. `matrices` are (name, outputs, inputs) of one layer; `weight` is bytes of a weight.

    `packed` says how the layers' matrices are stored, None: as they are.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    shared: int  # key and value heads
    head: int  # size of a head
    vocabulary: int
    tied: bool
    weight: int
    matrices: tuple[tuple[str, int, int], ...]
    packed: Packed | None = None

    @property
    def layer(self) -> int:
        """Weights of the matrices of one layer."""
        return sum(outputs * inputs for _, outputs, inputs in self.matrices)

    @property
    def body(self) -> int:
        """Weights of the matrices of all layers."""
        return self.layers * self.layer

    @property
    def embedding(self) -> int:
        """Weights of the token embedding; the output layer has as many."""
        return self.vocabulary * self.hidden

    @property
    def ends(self) -> int:
        """Weights of embedding and output layer, which may be one."""
        return self.embedding * (1 if self.tied else 2)

    @property
    def largest(self) -> int:
        """Weights of the largest matrix of a layer."""
        return max(outputs * inputs for _, outputs, inputs in self.matrices)

    @property
    def float_bytes(self) -> float:
        """Bytes of all weights unpacked, in their own type."""
        return float(self.weight * (self.body + self.ends))

    @property
    def stored(self) -> float:
        """Bytes of all weights as they are stored."""
        if self.packed is None:
            return self.float_bytes
        head = self.packed.size(self.embedding, self.weight) if self.packed.head else 0.0
        # A packed output layer is a matrix of its own, even if it was the embedding.
        whole = self.embedding if self.packed.head else self.ends
        return self.packed.size(self.body, self.weight) + head + self.weight * whole

    def with_packed(self, packed: Packed | None) -> Shape:
        """The same model with its matrices stored so."""
        return replace(self, packed=packed)


def of(config: Mapping[str, Any]) -> Shape | None:
    """The sizes that a config.json gives. None if it lacks some, or the model is no plain decoder."""
    outer, config = config, config.get("text_config") or config
    if not isinstance(config, Mapping) or any(config.get(key) for key in EXPERTS):
        return None
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = [_size(config.get(name)) for name in names]
    heads = sizes[3]
    if not all(sizes) or not heads:
        return None
    hidden, inner, layers, heads, vocabulary = (size for size in sizes if size)
    shared = _size(config.get("num_key_value_heads")) or heads
    head = _size(config.get("head_dim")) or hidden // heads
    if not head:
        return None
    tied = config.get("tie_word_embeddings", outer.get("tie_word_embeddings"))
    kind = config.get("model_type")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or outer.get("torch_dtype") or "bfloat16")
    return Shape(
        hidden, inner, layers, heads, shared, head, vocabulary,
        tied if isinstance(tied, bool) else kind in TIED,
        BYTES.get(dtype, 2),
        _matrices(kind, hidden, inner, heads * head, shared * head),
        _packed(outer.get("quantization_config")),
    )  # fmt: skip


def _matrices(kind: Any, hidden: int, inner: int, query: int, keys: int) -> tuple[tuple[str, int, int], ...]:
    """The matrices of a layer, named as in `architectures.linears`."""
    if kind in architectures.FUSED:
        return (
            ("qkv_proj", query + 2 * keys, hidden), ("o_proj", hidden, query),
            ("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner),
        )  # fmt: skip
    attention = (("q_proj", query, hidden), ("k_proj", keys, hidden), ("v_proj", keys, hidden))
    if kind == "phi":
        return (*attention, ("dense", hidden, query), ("fc1", inner, hidden), ("fc2", hidden, inner))
    return (
        *attention, ("o_proj", hidden, query),
        ("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner),
    )  # fmt: skip


def _packed(given: Any) -> Packed | None:
    """How a checkpoint that is quantized already is stored."""
    if not isinstance(given, Mapping):
        return None
    bits, group = given.get("bits"), given.get("group_size")
    group = group if isinstance(group, int) and group > 0 else 128
    known = bits in (2, 4, 8)
    return Packed(
        int(bits) if known and bits else 4, group, bool(given.get("symmetric")), bool(given.get("lm_head"))
    )


def _size(value: Any) -> int:
    """A size, 0 for what is none."""
    return min(value, LARGEST) if type(value) is int and value > 0 else 0
