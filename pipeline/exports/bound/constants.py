"""A graph whose adapter inputs become constants, with their values in a file of external data.

Names carry no meaning: what the runtime does not feed is an adapter's, see `contract`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PAGE = 4096  # bytes: ONNX Runtime maps what begins on a page, and copies the rest


def fix(model: Any, arrays: Mapping[str, Any], fed: Collection[str], data: Path) -> None:
    """Change an onnx.ModelProto: inputs that are not `fed` are dropped, and `arrays` are their values.

    `arrays` are numpy by the input's name, of its type and shape; they are written to the file `data`, which
    the graph then names. Where the adapter has nothing, the branch that would add zero is taken out.
    """
    graph = model.graph
    adapted = {value.name for value in graph.input} - set(fed)
    kept = [value for value in graph.input if value.name not in adapted]
    del graph.input[:]
    graph.input.extend(kept)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    with data.open("xb") as file:
        for name, array in arrays.items():
            file.write(b"\0" * (-file.tell() % PAGE))
            begin = file.tell()
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            _put_outside(stored[name], array, data.name, begin, file.tell() - begin)
    _cut_idle(graph, adapted - set(arrays))


def _put_outside(tensor: Any, array: Any, location: str, offset: int, length: int) -> None:
    """Make a tensor's value a part of a file."""
    import onnx

    name, kind = tensor.name, tensor.data_type
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
    tensor.dims.extend(array.shape)
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
        if len(read) != 1 or read[0].op_type != kind:
            return None
        steps.append(read[0])
        name = read[0].output[0]
    first, second, total = steps
    b = second.input[1]
    if first.input[1] != a or second.input[0] != first.output[0] or b not in empty or len(readers[b]) != 1:
        return None
    return first, second, total
