"""What a graph takes and what an adapter brings, read from files that may be wrong on purpose."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from pipeline.exports import contract
from pipeline.exports.contract import Graph, Tensor
from tests.helpers import exports

FLOAT = onnx.TensorProto.FLOAT
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
    assert list(contract.misfits(adapter(a=(16, rank), b=(rank, 8)), GRAPH, ["ids"])) == []


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
    assert list(contract.misfits(tensors, GRAPH, ["ids"])) == [fault]


def test_what_an_adapter_leaves_out_keeps_its_default() -> None:
    more = {"c": Tensor("float32", (16, "s")), "d": Tensor("float16", None)}
    whole = Graph(GRAPH.inputs | more, {}, GRAPH.defaults | {"c": Tensor("float32", (16, 0))}, [])
    given = adapter(a=(16, 4), b=(4, 8))
    fault = "d is missing, and the graph has no default for it"
    assert list(contract.misfits(given, whole, ["ids"])) == [fault]
    assert list(contract.misfits(given | {"d": Tensor("float16", (3, 3, 3))}, whole, ["ids"])) == []


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
    assert list(contract.misfits(tensors, graph, ["input_ids"])) == []


def grown(export: Path, edit: Callable[[Any], None]) -> Path:
    """The graph with something added by somebody."""
    model = onnx.load(export / "model.onnx", load_external_data=False)
    edit(model.graph)
    (export / "model.onnx").write_bytes(model.SerializeToString())
    return export / "model.onnx"


def with_input(name: str, shape: list[Any]) -> Callable[[Any], None]:
    return lambda graph: graph.input.append(helper.make_tensor_value_info(name, FLOAT, shape))


def with_node(**names: Any) -> Callable[[Any], None]:
    return lambda graph: graph.node.add(**names)


def within(edit: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same in a branch of a node."""

    def change(graph: Any) -> None:
        branch = onnx.GraphProto()
        edit(branch)
        graph.node[0].attribute.append(helper.make_attribute("then_branch", branch))

    return change


def with_weight(name: str, dims: list[int]) -> Callable[[Any], None]:
    return lambda graph: graph.initializer.add(name=name, data_type=FLOAT, dims=dims)


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (with_input("z" * 301, [1]), "has a name of more than 300 characters"),
        (with_input("z", ["s" * 301]), "has a name of more than 300 characters"),
        (with_input("z", ["s"] * 17), "z has 17 dimensions; allowed: 16"),
        (with_node(name="z" * 301), "has a name of more than 300 characters"),
        (with_node(op_type="z" * 301), "has a name of more than 300 characters"),
        (with_node(domain="z" * 301), "has a name of more than 300 characters"),
        (with_node(output=["z" * 301]), "has a name of more than 300 characters"),
        (within(with_node(input=["z" * 301])), "has a name of more than 300 characters"),
        (with_weight("z" * 301, [0]), "has a name of more than 300 characters"),
        (with_weight("z", [0] * 17), "z has 17 dimensions; allowed: 16"),
        (lambda graph: [with_input(f"z{n}", [1])(graph) for n in range(4)], "more than 6 inputs"),
        (lambda graph: [with_weight(f"z{n}", [1])(graph) for n in range(6)], "more than 9 tensors"),
    ],
)
def test_a_graph_of_more_than_a_real_one_is_refused(
    export: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Any], None], fault: str
) -> None:
    monkeypatch.setattr(contract, "MOST_INPUTS", 6)
    monkeypatch.setattr(contract, "MOST_WEIGHTS", 9)
    contract.read_graph(export / "model.onnx")
    with pytest.raises(ValueError, match=fault) as raised:
        contract.read_graph(grown(export, edit))
    assert len(str(raised.value)) < 500


def test_of_a_graph_of_very_many_empty_nodes_not_all_are_looked_at(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contract, "MOST_PARTS", 1000)
    contract.read_graph(export / "model.onnx")
    with pytest.raises(ValueError, match="has more than 1,000 parts, as no language model has"):
        contract.read_graph(grown(export, lambda graph: [graph.node.add() for _ in range(1000)]))


def test_the_tables_of_a_long_rope_may_be_in_the_graph(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the model builder leaves them for Phi-3.5: 26 MB on a GPU, 52 MB on a CPU."""
    size = (export / "model.onnx").stat().st_size
    table = {"data_type": FLOAT, "dims": [1 << 15], "raw_data": bytes(1 << 17)}
    file = grown(export, lambda graph: graph.initializer.add(name="cosines", **table))
    with_values = file.stat().st_size
    assert with_values > size + contract.BULK
    monkeypatch.setattr(contract, "LARGEST_GRAPH", with_values - 1)
    contract.read_graph(file)
    monkeypatch.setattr(contract, "LARGEST_FILE", with_values - 1)
    with pytest.raises(ValueError, match="with its weights in a file of their own"):
        contract.read_graph(file)


def test_a_graph_with_all_of_its_weights_is_not_read(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "LARGEST_GRAPH", (export / "model.onnx").stat().st_size)
    contract.read_graph(export / "model.onnx")
    monkeypatch.setattr(contract, "LARGEST_GRAPH", (export / "model.onnx").stat().st_size - 1)
    monkeypatch.setattr(onnx, "load", None)
    with pytest.raises(ValueError, match="with its weights in a file of their own"):
        contract.read_graph(export / "model.onnx")


@pytest.mark.parametrize(
    "tensors",
    [
        {"z" * 1201: np.zeros(1, np.float32)},
        {"z": np.zeros((1,) * 17, np.float32)},
        {f"z{number}": np.zeros(1, np.float32) for number in range(4)},
    ],
    ids=["name", "dimensions", "tensors"],
)
def test_an_adapter_that_declares_more_than_a_real_one_makes_no_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Any]
) -> None:
    monkeypatch.setattr(contract, "MOST_INPUTS", 3)
    exports.write_adapter(tmp_path / "x.onnx_adapter", tensors)
    monkeypatch.setattr("onnxruntime.AdapterFormat.read_adapter", None)
    with pytest.raises(ValueError, match=r"export the (model|adapter) again"):
        contract.read_adapter(tmp_path / "x.onnx_adapter")


def test_an_adapter_that_declares_one_tensor_again_and_again_is_refused(tmp_path: Path) -> None:
    """Its list of tensors names the same place twice, so that its bytes count twice."""
    file = tmp_path / "x.onnx_adapter"
    exports.write_adapter(file, {"x": np.zeros(1000, np.float32), "y": np.zeros(1, np.float32)})
    assert contract.read_adapter(file).keys() == {"x", "y"}
    content = bytearray(file.read_bytes())
    (root,) = struct.unpack_from("<I", content)
    known = root - struct.unpack_from("<i", content, root)[0]
    place = root + struct.unpack_from("<H", content, known + 4 + 2 * 3)[0]
    tensors = place + struct.unpack_from("<I", content, place)[0]
    count, first, second = struct.unpack_from("<III", content, tensors)
    assert count == 2
    struct.pack_into("<II", content, tensors + 4, first, first - 4)
    other = bytearray(content)
    struct.pack_into("<II", other, tensors + 4, second + 4, second)
    faults = []
    for each in (content, other):  # one of them names the large tensor twice
        file.write_bytes(each)
        with suppress(ValueError):
            contract.read_adapter(file)
            faults.append("")
            continue
        faults.append("refused")
    assert sorted(faults) == ["", "refused"]
    file.write_bytes(content if faults[0] else other)
    with pytest.raises(ValueError, match="declares more than any real adapter in its"):
        contract.read_adapter(file)


def test_faults_are_made_as_they_are_read() -> None:
    """Of symbols that differ everywhere there would be as many sentences as dimensions of all inputs."""
    count = 5_000
    places = {f"{'z' * 250}{number}": Tensor("float32", ("s",) * 16) for number in range(count)}
    graph = Graph(places, {}, {}, [])
    tensors = {name: Tensor("float32", (number,) * 16) for number, name in enumerate(places)}
    tracemalloc.start()
    try:
        found = contract.misfits(tensors, graph, [])
        assert len(list(islice(found, 3))) == 3
        assert sum(1 for _ in found) == (count - 1) * 16 - 3
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_what_the_runtime_feeds_is_looked_up_and_not_searched() -> None:
    class Fed(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("each search reads all of it")

    assert list(contract.misfits(adapter(a=(16, 4), b=(4, 8)), GRAPH, Fed(["ids"]))) == []


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


def test_where_a_weight_lies_has_to_be_text(export: Path) -> None:
    """Protocol buffers read what is no UTF-8 as bytes."""
    file = export / "model.onnx"
    change(export, lambda facts: setattr(facts["offset"], "value", "OFFSET"))
    file.write_bytes(file.read_bytes().replace(b"OFFSET", b"OFF\xffET"))
    with pytest.raises(ValueError, match="in no text"):
        look(export)


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


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "genai_config.json", "SHA256SUMS", "sha256sums", "lab.json", "Tokenizer.JSON", "link"],
)
def test_weights_lie_in_no_file_that_is_something_else(export: Path, name: str) -> None:
    data = export / "model.onnx.data"
    if name == "link":
        (export / name).symlink_to("chat_template.jinja")
        shutil.copyfile(data, export / "chat_template.jinja")
    elif name != "model.onnx":
        shutil.copyfile(data, export / name)
    for location in (name, f"./{name}"):
        change(export, lambda facts, to=location: setattr(facts["location"], "value", to))
        with pytest.raises(
            ValueError, match=f"the graph's weights lie in '{location}', which is no file of w"
        ):
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
