"""Branches that an adapter has nothing for are taken out of a bound graph, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.exports.bound import constants

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
A, B = (np.arange(8, dtype=np.float32).reshape(shape) for shape in ((4, 2), (2, 4)))


def graph(last: str = "Neg") -> Any:
    """y = last(z + (z A2) B2) with z = x W + (x A1) B1."""
    kind = TensorProto.FLOAT
    steps = [
        ("MatMul", ["x", "w"], "p"),
        ("MatMul", ["x", "a1"], "l1"), ("MatMul", ["l1", "b1"], "d1"), ("Add", ["p", "d1"], "z"),
        ("MatMul", ["z", "a2"], "l2"), ("MatMul", ["l2", "b2"], "d2"), ("Add", ["z", "d2"], "s"),
        (last, ["s"], "y"),
    ]  # fmt: skip
    names = ("a1", "b1", "a2", "b2")
    sizes = {name: [4, f"r{name[1]}"] if name[0] == "a" else [f"r{name[1]}", 4] for name in names}
    empty = {name: [4, 0] if name[0] == "a" else [0, 4] for name in names}
    made = helper.make_graph(
        [helper.make_node(kind, given, [out]) for kind, given, out in steps],
        "two",
        [helper.make_tensor_value_info("x", kind, [2, 4])]
        + [helper.make_tensor_value_info(name, kind, sizes[name]) for name in names],
        [helper.make_tensor_value_info("y", kind, [2, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
        + [helper.make_tensor(name, kind, empty[name], b"", raw=True) for name in names],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def computed(model: Any, folder: Path, **given: Any) -> Any:
    onnx.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X, **given})[0]


@pytest.mark.parametrize(
    ("which", "nodes"), [((), 2), (("1",), 5), (("2",), 5), (("1", "2"), 8)]
)  # fmt: skip
def test_branches_without_an_adapter_are_taken_out(
    tmp_path: Path, which: tuple[str, ...], nodes: int
) -> None:
    given = {f"{side}{n}": value for n in which for side, value in (("a", A), ("b", B))}
    wanted = computed(graph(), tmp_path, **given)
    model = graph()
    constants.fix(model, given, ["x"], tmp_path / "values")
    assert len(model.graph.node) == nodes
    assert [value.name for value in model.graph.input] == ["x"]
    assert {tensor.name for tensor in model.graph.initializer} == {"w", *given}
    assert (computed(model, tmp_path) == wanted).all()


def test_products_and_sums_without_all_of_their_inputs_are_left_to_the_checks(tmp_path: Path) -> None:
    model = graph()
    model.graph.node.add(op_type="MatMul")
    model.graph.node.add(op_type="MatMul", input=["x"], output=["z2"])
    del model.graph.node[6].input[0]  # of the second sum
    nodes = len(model.graph.node)
    constants.fix(model, {}, ["x"], tmp_path / "values")
    assert len(model.graph.node) == nodes - len(("MatMul", "MatMul", "Add"))


def test_a_branch_of_another_form_stays(tmp_path: Path) -> None:
    wanted = computed(graph("Identity"), tmp_path)
    model = graph("Identity")
    model.graph.node[3].op_type = "Sub"  # z = x W - (x A1) B1
    model.graph.output[0].name = "s"  # the second sum is the graph's own output
    model.graph.node.pop()
    constants.fix(model, {}, ["x"], tmp_path / "values")
    assert len(model.graph.node) == 7
    assert (computed(model, tmp_path) == wanted).all()


@pytest.mark.parametrize("known", [True, False])
def test_right_sides_of_stacks_become_stacks_where_that_is_known(tmp_path: Path, known: bool) -> None:
    """Then nothing is packed ahead: bits are those of the inputs, however many cores and whatever kernels."""
    model = graph()
    kind = TensorProto.FLOAT
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, [1, 2, 4]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, [1, 2, 4]))
    given = {"a1": A, "b1": B, "a2": A, "b2": B}
    if known:  # else nothing says what the second branch reads
        model.graph.value_info.append(helper.make_tensor_value_info("z", kind, [1, 2, 4]))
    onnx.save(model, tmp_path / "before.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "before.onnx", providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": X[None], **given})[0]
    constants.fix(model, given, ["x"], tmp_path / "values")
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert shapes["w"] == [4, 4]
    assert shapes["a1"] == [1, 4, 2]
    assert shapes["b2"] == ([1, 2, 4] if known else [2, 4])
    onnx.save(model, tmp_path / "after.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "after.onnx", providers=["CPUExecutionProvider"])
    assert (session.run(None, {"x": X[None]})[0] == wanted).all()


def test_matrices_stay_matrices_for_other_devices_and_on_their_own(tmp_path: Path) -> None:
    for at, stacked in enumerate((True, False)):
        model = graph()
        if not stacked:
            model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4]))
        constants.fix(model, {"a1": A, "b1": B}, ["x"], tmp_path / str(at), stacked=stacked)
        assert {tuple(tensor.dims) for tensor in model.graph.initializer} == {(4, 4), (4, 2), (2, 4)}
