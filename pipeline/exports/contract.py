"""What an exported folder declares: the inputs and weights of its graph, the tensors of an adapter.

The files may come from anywhere, whole or not. Nothing here runs them, follows a path out of the folder, or
reads weights; whatever is wrong is a ValueError or OSError. Names carry no meaning: an input that
genai_config.json does not name is an adapter's, whatever it is called.

A small file may declare a great deal: sentences are made one by one, as somebody reads them, and whatever is
longer or more than any real model's is refused. A model of 70 B has 80 layers: about 500 inputs without an
adapter, 1,300 with one on every matrix, and as many weights a few times.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from pipeline import display
from pipeline.system import checksums

SUFFIX = ".onnx_adapter"
ADAPTER = f"adapter_weights{SUFFIX}"  # as exports of the lab name theirs
MERGED = "merged.json"  # lies beside a graph whose weights have the adapter in them
BOUND = "bound.json"  # lies beside a graph that has an adapter as constants of its own,
ADAPTER_DATA = "adapter.onnx.data"  # whose values are in this file
# What other files of an export end in, in small letters: weights never lie there.
NO_WEIGHTS = (
    ".json",
    ".jinja",
    ".onnx",
    SUFFIX,
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    checksums.NAME.lower(),
)
BITS = {"float": 32, "double": 64, "bool": 8}  # of types whose name has no number in it
READABLE = {"float": "float32", "double": "float64"}
MOST_INPUTS = 20_000  # or outputs, or tensors of an adapter
MOST_WEIGHTS = 100_000  # constants of nodes among them
MOST_DIMENSIONS = 16
LONGEST_NAME = 300  # characters of an input, a weight or a symbol; real ones have up to 150
MOST_PARTS = 300_000  # nodes, attributes, shapes; a graph of 30 layers has 11,000
LARGEST_GRAPH = 16 << 20  # bytes without values; real ones have some megabytes, and take forty times that
LARGEST_FILE = 256 << 20  # with values: a long RoPE's two tables of cosines and sines have 26 to 140 MB
BULK = 1 << 16  # bytes of values that count as such
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field of a protobuf message is written
# Where values lie: by number of a field, the fields inside it, or None for the values themselves.
Fields: TypeAlias = "Mapping[int, Fields | None]"
# Fields of onnx.proto that lead to a tensor's raw_data, by message: a node's attributes have graphs.
_TENSOR: Fields = {9: None}
_GRAPH: dict[int, Fields] = {5: _TENSOR}
_GRAPH[1] = {5: {5: _TENSOR, 6: _GRAPH}}
VALUES: Fields = {7: _GRAPH}
Dimension = int | str | None  # a size, a symbol that stands for one, or anything


@dataclass(frozen=True)
class Tensor:
    """Type as in "float16", and shape; None is any shape."""

    type: str
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        return "any shape" if self.shape is None else f"[{', '.join(str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Piece:
    """Where one tensor's bytes lie outside the graph's file; `length` is what its shape and type take."""

    name: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class Graph:
    """Inputs, outputs, and the initializers that are the inputs' defaults."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    defaults: dict[str, Tensor]
    pieces: list[Piece]


def inside(folder: Path, name: str) -> Path:
    """The regular file of that name in the folder. Raises ValueError if it leads out of it or is none."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    leads_out = ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive
    if not name or "\0" in name or leads_out:
        raise ValueError(f"{display.value(name)} is not the name of a file in the folder; use another export")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        wrong = display.value(name)
        raise ValueError(f"{wrong} is a link that leads out of the folder; put the file itself there")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is not a regular file; remove it")
    if not path.is_file():
        raise ValueError(f"{name} is missing; export the model again")
    return path


def read_graph(file: Path) -> Graph:
    """The graph's contract, without its weights. Raises ValueError, for more than a real model has too."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        _require_small(file)
        model = onnx.load(file, load_external_data=False)
    except DecodeError:
        raise ValueError(
            f"{file.name} is not an ONNX graph, or only part of one; export the model again"
        ) from None
    graph = model.graph
    if not graph.node:
        raise ValueError(f"{file.name} has no nodes; export the model again")
    for what, values in (("inputs", graph.input), ("outputs", graph.output)):
        _require_few(file, what, len(values), MOST_INPUTS)
    weights = list(islice(_tensors(model, _Left(file, MOST_PARTS)), MOST_WEIGHTS + 1))
    _require_few(file, "tensors", len(weights), MOST_WEIGHTS)
    for tensor in weights:
        _require_short(tensor.name, len(tensor.dims))
    kind = onnx.TensorProto.DataType.Name
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {value.name: _tensor(value, kind) for value in graph.input}
    defaults = {
        name: Tensor(_type(kind(stored[name].data_type)), tuple(stored[name].dims))
        for name in inputs
        if name in stored
    }
    pieces = [
        _piece(tensor, kind(tensor.data_type))
        for tensor in weights
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    return Graph(inputs, {value.name: _tensor(value, kind) for value in graph.output}, defaults, pieces)


def _require_small(file: Path) -> None:
    """Refuse a graph that would take gigabytes to read: values are one block, all else forty times its size.

    Raises ValueError, DecodeError where the file is no protobuf.
    """
    size = file.stat().st_size
    if size > LARGEST_GRAPH:
        size -= _bulk(file, VALUES, BULK, MOST_PARTS) if size <= LARGEST_FILE else 0
    if size > LARGEST_GRAPH:
        raise ValueError(
            f"{file.name} has more than {LARGEST_GRAPH >> 20} MB; export the model with its weights in a file"
            " of their own"
        )


def _bulk(file: Path, values: Fields, least: int, most: int) -> int:
    """Bytes of those fields of a protobuf file that `values` leads to and that have at least `least` bytes.

    Read from the fields themselves (https://protobuf.dev/programming-guides/encoding), without building
    objects: a message of many small ones takes forty times its size in memory once it is built.

    Fields shorter than that are not looked into. Raises ValueError if more than `most` fields were read,
    google.protobuf's DecodeError if the file is no message.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found, read = 0, 0
        left = [(0, len(data), values)]
        while left:
            begin, end, inside = left.pop()
            for number, first, length in _fields(data, begin, end):
                read += 1
                if read > most:
                    raise ValueError(f"{file.name} has more than {most:,} parts; export the model again")
                if length < least or number not in inside:
                    continue
                within = inside[number]
                if within is None:
                    found += length
                else:
                    left.append((first, first + length, within))
        return found


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, place and length of each field of a message; the length is 0 of what is no block of bytes."""
    while at < end:
        key, at = _varint(data, at, end)
        kind = key & 7
        if kind == VARINT:
            _, at = _varint(data, at, end)
            yield key >> 3, at, 0
            continue
        if kind == BYTES:
            length, at = _varint(data, at, end)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
        if length < 0 or length > end - at:
            raise _broken()
        yield key >> 3, at, length if kind == BYTES else 0
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise _broken()


def _broken() -> Exception:
    from google.protobuf.message import DecodeError

    error: Exception = DecodeError("cut short, or no message")
    return error


def _require_few(file: Path, what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(
            f"{file.name} has more than {most:,} {what}, as no language model has; export the model again"
        )


def _require_short(name: str, dimensions: int = 0) -> None:
    """Refuse a name or a shape that is longer than any real one. Raises ValueError."""
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"{display.short(name)} has a name of more than {LONGEST_NAME} characters; export the model again"
        )
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(
            f"{display.line(name)} has {dimensions:,} dimensions; allowed: {MOST_DIMENSIONS}; export the"
            " model again"
        )


def check_pieces(folder: Path, pieces: Collection[Piece]) -> int:
    """Check that all weights lie within files of the folder; return the size of those files in bytes.

    Raises ValueError.
    """
    sizes = {piece.location: 0 for piece in pieces}
    for location in sizes:
        file = inside(folder, location)  # the file itself, where the name is a link's
        if file.name.lower().endswith(NO_WEIGHTS):
            raise ValueError(
                f"the graph's weights lie in {display.value(location)}, which is no file of weights; export"
                " the model again"
            )
        sizes[location] = file.stat().st_size
    for piece in pieces:
        end, size = piece.offset + piece.length, sizes[piece.location]
        if end > size:
            raise ValueError(
                f"{piece.location} has {size:,} bytes and {piece.name} ends at {end:,}: it was cut short or"
                " belongs to another graph; copy or export the model again"
            )
    return sum(sizes.values())


def read_adapter(file: Path) -> dict[str, Tensor]:
    """Tensors of an adapter's file by name. Raises ValueError.

    ONNX Runtime's reader checks the whole file first, sizes of the tensors included, but makes objects of all
    that it declares, and a few bytes may declare the same tensor again and again.
    """
    import onnx
    import onnxruntime

    with suppress(struct.error, OSError):  # a place outside the file, which the reader refuses
        _require_real(file)
    try:
        parameters = onnxruntime.AdapterFormat.read_adapter(str(file)).get_parameters()
    except RuntimeError:
        raise ValueError(
            f"{file.name} is not an ONNX adapter, or only part of one; copy it or export the model again"
        ) from None
    kind = onnx.TensorProto.DataType.Name
    return {
        name: Tensor(_type(kind(value.element_type())), tuple(value.shape()))
        for name, value in parameters.items()
    }


def _require_real(file: Path) -> None:
    """Read how much an adapter's file declares: a table of FlatBuffers whose fourth field is a list of tables
    {name, dimensions, type, bytes}. Raises ValueError for more than a real one has, struct.error or OSError
    for a place outside the file.
    """
    with file.open("rb") as opened:
        number = opened.fileno()
        size = os.fstat(number).st_size

        def read(form: str, at: int) -> int:
            found: int = struct.unpack(form, os.pread(number, struct.calcsize(form), at))[0]
            return found

        def field(table: int, which: int) -> int | None:
            """The place of a list or a text in a table: its length, then its content; None if left out."""
            known = table - read("<i", table)
            slot = 4 + 2 * which
            inside = read("<H", known + slot) if slot < read("<H", known) else 0
            return table + inside + read("<I", table + inside) if inside else None

        tensors = field(read("<I", 0), 3)
        count = read("<I", tensors) if tensors is not None else 0
        _require_few(file, "tensors", count, MOST_INPUTS)
        bytes_ = 0
        for at in range(count):
            item = (tensors or 0) + 4 * (at + 1)
            table = item + read("<I", item)
            name, dimensions, values = (
                read("<I", place) if (place := field(table, which)) is not None else 0 for which in (0, 1, 3)
            )
            bytes_ += values
            if name > 4 * LONGEST_NAME or dimensions > MOST_DIMENSIONS or bytes_ > size:
                raise ValueError(
                    f"{file.name} declares more than any real adapter in its {display.size(size)}; export the"
                    " adapter again"
                )


def misfits(tensors: Mapping[str, Tensor], graph: Graph, fed: Collection[str]) -> Iterator[str]:
    """Why an adapter does not fit the graph, clearest first; `fed` are inputs that the runtime fills itself.

    An input that the adapter leaves out keeps its default, so the default is compared instead. A symbol must
    have the same size in all inputs that share it.
    """
    fed = frozenset(fed)
    places = {name: place for name, place in graph.inputs.items() if name not in fed}
    yield from (f"{name} is not an input of the graph" for name in sorted(tensors) if name not in places)
    sizes: dict[str, tuple[int, str]] = {}
    for name, place in places.items():
        tensor = tensors.get(name, graph.defaults.get(name))
        if tensor is None:
            yield f"{name} is missing, and the graph has no default for it"
        elif tensor.type != place.type:
            yield f"{name} is {tensor.type} where the graph takes {place.type}"
        elif not _fits(tensor, place):
            yield f"{name} has shape {tensor} where the graph takes {place}"
        else:
            yield from _conflicts(name, tensor, place, sizes)


def _fits(tensor: Tensor, place: Tensor) -> bool:
    """Whether ranks and fixed sizes agree."""
    if place.shape is None or tensor.shape is None:
        return True
    if len(tensor.shape) != len(place.shape):
        return False
    pairs = zip(tensor.shape, place.shape, strict=True)
    return all(size == wanted for size, wanted in pairs if isinstance(wanted, int))


def _conflicts(name: str, tensor: Tensor, place: Tensor, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Symbols that have a different size elsewhere; new ones go into `sizes` with the input that set them."""
    for size, symbol in zip(tensor.shape or (), place.shape or (), strict=False):
        if isinstance(symbol, str) and isinstance(size, int):
            known, first = sizes.setdefault(symbol, (size, name))
            if known != size:
                yield f"{name} has {size} for {symbol} where {first} has {known}"


def _tensor(value: Any, kind: Any) -> Tensor:
    """An input or output as the graph declares it."""
    declared = value.type.tensor_type
    _require_short(value.name, len(declared.shape.dim))
    for size in declared.shape.dim:
        _require_short(size.dim_param)
    if not declared.HasField("shape"):
        return Tensor(_type(kind(declared.elem_type)), None)
    sizes = (
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in declared.shape.dim
    )
    return Tensor(_type(kind(declared.elem_type)), tuple(sizes))


def _type(name: str) -> str:
    """A type of ONNX by the name numpy gives it."""
    return READABLE.get(name.lower(), name.lower())


class _Left:
    """How many more parts a graph may have."""

    def __init__(self, file: Path, most: int) -> None:
        self.file, self.most, self.count = file, most, 0

    def take(self) -> None:
        """Count one. Raises ValueError for one too many."""
        self.count += 1
        _require_few(self.file, "parts", self.count, self.most)


def _tensors(message: Any, left: _Left) -> Iterator[Any]:
    """Every tensor in a model: initializers and attributes, of subgraphs and functions too.

    Raises ValueError for a node with a name that is longer than any real one.
    """
    from google.protobuf.message import Message

    if message.DESCRIPTOR.name == "NodeProto":  # the runtime's messages have them whole
        for name in (message.name, message.op_type, message.domain, *message.input, *message.output):
            _require_short(name)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in [value] if isinstance(value, Message) else value:
            left.take()
            if field.message_type.name == "TensorProto":
                yield item
            elif isinstance(item, Message):
                yield from _tensors(item, left)


def _piece(tensor: Any, kind: str) -> Piece:
    """Where a tensor's bytes lie. Raises ValueError if what it declares is wrong."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(told, str) for told in (*facts, *facts.values())):  # protobuf gives bytes then
        raise ValueError(f"{tensor.name} says in no text where it lies; export the model again")
    number = re.search(r"\d+", kind)
    bits = int(number[0]) if number else BITS.get(kind.lower())
    if bits is None or any(size < 0 for size in tensor.dims):
        raise ValueError(f"{tensor.name} cannot lie outside the graph's file; export the model again")
    length = -(-math.prod(tensor.dims) * bits // 8)
    offset, told = facts.get("offset", "0"), facts.get("length", str(length))
    if not offset.isdecimal() or not told.isdecimal() or int(told) != length:
        raise ValueError(
            f"{tensor.name} takes {length:,} bytes and lies at {offset} with {told}; export the model again"
        )
    return Piece(tensor.name, facts.get("location", ""), int(offset), length)
