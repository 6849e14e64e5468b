"""How much of a graph's file is values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from pipeline.exports import contract

MOST = 1000


def graph(initializers: int = 0, branch: int = 0, constant: int = 0) -> bytes:
    """A model with so many bytes of values: as an initializer, in a branch of an If, and in a Constant."""

    def tensor(name: str, size: int) -> TensorProto:
        return numpy_helper.from_array(np.zeros(size, np.uint8), name)

    nodes = [helper.make_node("Constant", [], ["c"], value=tensor("c", constant))]
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=tensor("b", branch))], "branch", [], []
    )
    nodes.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))
    made = helper.make_graph(nodes, "main", [], [], initializer=[tensor("i", initializers)])
    data: bytes = helper.make_model(made).SerializeToString()
    return data


def found(data: bytes, folder: Path, least: int = 100, most: int = MOST) -> int:
    file = folder / "model.onnx"
    file.write_bytes(data)
    return contract._bulk(file, contract.VALUES, least, most)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"initializers": 500}, 500),
        ({"branch": 700}, 700),
        ({"constant": 900}, 900),
        ({"initializers": 500, "branch": 700, "constant": 900}, 2100),
        ({"initializers": 99, "branch": 700}, 700),
        ({}, 0),
    ],
)
def test_values_are_counted_wherever_a_graph_has_them(
    sizes: dict[str, int], wanted: int, tmp_path: Path
) -> None:
    assert found(graph(**sizes), tmp_path) == wanted


def test_what_a_reader_makes_objects_of_is_not_counted(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.graph.initializer.add().float_data.extend([1.0] * 1000)
    model.graph.node.add().attribute.add().floats.extend([1.0] * 500)
    model.graph.doc_string = "x" * 1000
    assert found(model.SerializeToString(), tmp_path) == 0


def test_of_very_many_fields_only_so_many_are_read(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    for _ in range(MOST):
        model.graph.node.add()
    with pytest.raises(ValueError, match="more than 1,000 parts"):
        found(model.SerializeToString(), tmp_path)


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_message_that_was_cut_short_is_none(kept: int, tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        found(graph(initializers=500)[:kept], tmp_path)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x3b\x01", b"\x3f\x01"], ids=["number", "group", "kind"])
def test_what_is_no_message_is_none(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        found(data, tmp_path)
