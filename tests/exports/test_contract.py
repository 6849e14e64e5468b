"""What a graph takes and what an adapter brings, read from files that may be wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.exports import contract
from pipeline.exports.contract import Graph, Tensor
from tests.helpers import exports

A, B = Tensor("float32", (16, "r")), Tensor("float32", ("r", 8))
GRAPH = Graph(
    inputs={"ids": Tensor("int64", ("batch", "length")), "a": A, "b": B},
    outputs={},
    defaults={"a": Tensor("float32", (16, 0)), "b": Tensor("float32", (0, 8))},
    pieces=[],
)


def adapter(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: Tensor("float32", shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_any_rank_fits(rank: int) -> None:
    assert contract.misfits(adapter(a=(16, rank), b=(rank, 8)), GRAPH, ["ids"]) == []


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        (adapter(a=(16, 4), b=(4, 8), c=(1,)), "c is not an input of the graph"),
        (adapter(a=(16, 4), b=(4, 8), ids=(1, 1)), "ids is not an input of the graph"),
        (adapter(a=(15, 4), b=(4, 8)), "a has shape [15, 4] where the graph takes [16, r]"),
        (adapter(a=(16, 4, 1), b=(4, 8)), "a has shape [16, 4, 1] where the graph takes [16, r]"),
        (adapter(a=(16, 4), b=(2, 8)), "b has 2 for r where a has 4"),
        (adapter(a=(16, 4)), "b has 0 for r where a has 4"),
        (adapter(a=(16, 4)) | {"b": Tensor("float16", (4, 8))}, "b is float16 where the graph takes float32"),
    ],
)
def test_what_does_not_fit_is_named(tensors: dict[str, Tensor], fault: str) -> None:
    assert contract.misfits(tensors, GRAPH, ["ids"]) == [fault]


def test_what_an_adapter_leaves_out_keeps_its_default() -> None:
    more = {"c": Tensor("float32", (16, "s")), "d": Tensor("float16", None)}
    whole = Graph(GRAPH.inputs | more, {}, GRAPH.defaults | {"c": Tensor("float32", (16, 0))}, [])
    given = adapter(a=(16, 4), b=(4, 8))
    fault = "d is missing, and the graph has no default for it"
    assert contract.misfits(given, whole, ["ids"]) == [fault]
    assert contract.misfits(given | {"d": Tensor("float16", (3, 3, 3))}, whole, ["ids"]) == []


def test_a_real_graph_and_its_adapter(export: Path) -> None:
    graph = contract.read_graph(export / "model.onnx")
    assert graph.inputs["input_ids"] == Tensor("int64", ("batch", "length"))
    assert graph.inputs["a"] == Tensor("float32", (exports.WIDTH, "rank"))
    assert graph.defaults == {"a": Tensor("float32", (16, 0)), "b": Tensor("float32", (0, 16))}
    assert graph.outputs == {"logits": Tensor("float32", ("batch", "length", exports.WORDS))}
    # Two weights; where empty defaults lie, the writer decides.
    assert {piece.name for piece in graph.pieces} >= {"embed", "head"}
    assert contract.check_pieces(export, graph.pieces) == (export / "model.onnx.data").stat().st_size
    tensors = contract.read_adapter(export / exports.ADAPTER)
    assert tensors == adapter(a=(16, 4), b=(4, 16))
    assert contract.misfits(tensors, graph, ["input_ids"]) == []


def test_types_of_adapters_are_named_alike(tmp_path: Path) -> None:
    file = tmp_path / "half.onnx_adapter"
    exports.write_adapter(file, {"x": np.zeros((2, 3), np.float16), "y": np.zeros(1, np.int8)})
    assert contract.read_adapter(file) == {"x": Tensor("float16", (2, 3)), "y": Tensor("int8", (1,))}


@pytest.mark.parametrize("keep", [0, 10, 200, -20])
def test_an_adapter_that_was_cut_short_is_refused(export: Path, keep: int) -> None:
    file = export / exports.ADAPTER
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is not an ONNX adapter, or only part of one"):
        contract.read_adapter(file)


@pytest.mark.parametrize("content", [b"", b"\0" * 2048, b"graph" * 1000])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="export the model again"):
        contract.read_graph(tmp_path / "model.onnx")


def change(export: Path, edit: Callable[[Any], None]) -> None:
    """Edit where the first weight lies."""
    model = onnx.load(export / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "embed")
    facts = {entry.key: entry for entry in tensor.external_data}
    edit(facts)
    onnx.save(model, export / "model.onnx")


def look(export: Path) -> None:
    contract.check_pieces(export, contract.read_graph(export / "model.onnx").pieces)


@pytest.mark.parametrize(
    "location", ["../secret", "sub/../../secret", "..\\secret", "C:\\secret", "", "a\0b"]
)
def test_weights_stay_in_the_folder(export: Path, location: str) -> None:
    (export.parent / "secret").write_bytes(b"\0" * 100_000)
    change(export, lambda facts: setattr(facts["location"], "value", location))
    with pytest.raises(ValueError, match="is not the name of a file in the folder"):
        look(export)


def test_an_absolute_path_is_refused_even_to_the_right_file(export: Path) -> None:
    change(export, lambda facts: setattr(facts["location"], "value", str(export / "model.onnx.data")))
    with pytest.raises(ValueError, match="is not the name of a file in the folder"):
        look(export)


def test_links_stay_in_the_folder(export: Path) -> None:
    data = export / "model.onnx.data"
    data.rename(export / "weights")
    data.symlink_to("weights")
    look(export)
    (export / "weights").rename(export.parent / "weights")
    data.unlink()
    data.symlink_to(export.parent / "weights")
    with pytest.raises(ValueError, match="is a link that leads out of the folder"):
        look(export)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("offset", "x"), ("length", "12"), ("length", "-5"), ("length", "²")]
)
def test_places_that_make_no_sense_are_refused(export: Path, key: str, value: str) -> None:
    change(export, lambda facts: setattr(facts[key], "value", value))
    with pytest.raises(ValueError, match="embed takes 16,576 bytes and lies at"):
        look(export)


def test_weights_beyond_the_end_are_refused(export: Path) -> None:
    change(export, lambda facts: setattr(facts["offset"], "value", "10000000"))
    with pytest.raises(ValueError, match=r"and embed ends at 10,016,576: it was cut short"):
        look(export)


def test_weights_inside_nodes_and_their_subgraphs_are_seen(tmp_path: Path) -> None:
    hidden = onnx.helper.make_tensor("hidden", onnx.TensorProto.INT4, [3], b"\0\0", raw=True)
    hidden.ClearField("raw_data")
    hidden.data_location = onnx.TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/passwd")
    constant = onnx.helper.make_node("Constant", [], ["x"], value=hidden)
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    onnx.save(model, tmp_path / "model.onnx")
    pieces = contract.read_graph(tmp_path / "model.onnx").pieces
    assert [(piece.name, piece.length) for piece in pieces] == [("hidden", 2)] * 2
    with pytest.raises(ValueError, match="'/etc/passwd' is not the name of a file in the folder"):
        contract.check_pieces(tmp_path, pieces)
