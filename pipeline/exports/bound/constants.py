"""A graph whose adapter inputs become constants, with their values in a file of external data.

Names carry no meaning: what the runtime does not feed is an adapter's, see `contract`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

MATRIX = 2  # dimensions
PAGE = 4096  # bytes: ONNX Runtime maps what begins on a page, and copies the rest


def fix(
    model: Any, arrays: Mapping[str, Any], fed: Collection[str], data: Path, stacked: bool = True
) -> None:
    """Change an onnx.ModelProto: inputs that are not `fed` are dropped, and `arrays` are their values.

    `arrays` are numpy by the input's name, of its type and shape; they are written to the file `data`, which
    the graph then names. Where the adapter has nothing, the branch that would add zero is taken out.

    `stacked`: right sides of products become stacks of one matrix, [1, inputs, outputs], which is the same
    product. On a CPU, ONNX Runtime packs a constant matrix ahead, but not a stack, and the packed kernel adds
    up in another order. Through thirty layers of activations that are rounded to 8 bits that difference grows
    to a divergence of 1e-3 a token; of a stack all bits are those of the adapter's input.
    """
    graph = model.graph
    adapted = {value.name for value in graph.input} - set(fed)
    kept = [value for value in graph.input if value.name not in adapted]
    del graph.input[:]
    graph.input.extend(kept)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    matrices = _right_sides(graph) if stacked else set()
    with data.open("xb") as file:
        for name, array in arrays.items():
            file.write(b"\0" * (-file.tell() % PAGE))
            begin = file.tell()
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            shape = (1, *array.shape) if name in matrices and array.ndim == MATRIX else array.shape
            _put_outside(stored[name], shape, data.name, begin, file.tell() - begin)
    _cut_idle(graph, adapted - set(arrays))


def _right_sides(graph: Any) -> set[str]:
    """Names that are read only as the right side of products whose left side is known to be a stack."""
    dims = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    right: set[str] = set()
    other: set[str] = set()
    for node in graph.node:
        whole = node.op_type == "MatMul" and len(node.input) == len("AB") and len(node.output) == 1
        stack = whole and dims.get(node.input[0], 0) > MATRIX
        if stack:
            dims[node.output[0]] = dims[node.input[0]]
        for at, name in enumerate(node.input):
            (right if stack and at == 1 else other).add(name)
    return right - other


def _put_outside(tensor: Any, shape: tuple[int, ...], location: str, offset: int, length: int) -> None:
    """Make a tensor's value a part of a file."""
    import onnx

    name, kind = tensor.name, tensor.data_type
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
    tensor.dims.extend(shape)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _cut_idle(graph: Any, idle: Collection[str]) -> None:
    """Take out branches y + (x A) B whose A and B are empty: what read the sum reads y. Others stay."""
    empty = {tensor.name for tensor in graph.initializer if tensor.name in idle and 0 in tensor.dims}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = {value.name for value in graph.output}
    unused: set[str] = set()  # names of tensors: the empty ones, and what the branches make
    for name in sorted(empty):
        branch = _branch(name, empty, readers)
        if branch is None or branch[-1].output[0] in results:
            continue
        first, second, total = branch
        plain = next(each for each in total.input if each != second.output[0])
        for node in readers.pop(total.output[0], []):
            node.input[:] = [plain if each == total.output[0] else each for each in node.input]
            readers[plain].append(node)
        unused |= {name, second.input[1], *(node.output[0] for node in (first, second, total))}
    for at in reversed(range(len(graph.node))):
        if unused.intersection(graph.node[at].output):
            del graph.node[at]
    for at in reversed(range(len(graph.initializer))):
        if graph.initializer[at].name in unused:
            del graph.initializer[at]


def _branch(a: str, empty: Collection[str], readers: Mapping[str, list[Any]]) -> tuple[Any, Any, Any] | None:
    """The nodes of the branch that begins with the empty A: two products, a sum; None for anything else."""
    steps: list[Any] = []
    name = a
    for kind in ("MatMul", "MatMul", "Add"):
        read = readers.get(name, [])
        if len(read) != 1 or read[0].op_type != kind or len(read[0].output) != 1:
            return None
        steps.append(read[0])
        name = read[0].output[0]
    first, second, total = steps
    if any(len(each.input) != len("AB") for each in steps):
        return None
    b = second.input[1]
    if first.input[1] != a or second.input[0] != first.output[0] or b not in empty or len(readers[b]) != 1:
        return None
    return first, second, total
