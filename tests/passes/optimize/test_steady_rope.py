"""The graph without a branch computes what the model builder's computes, before and after the limit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from pipeline.exports import contract
from pipeline.passes.optimize import steady_rope
from tests.helpers import tiny

LIMIT = 64  # of tiny's model


def computed(folder: Path, length: int) -> Any:
    """Logits of so many tokens, from an empty cache."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    given: dict[str, Any] = {
        "input_ids": np.arange(length, dtype=np.int64)[None] % 90 + 5,
        "attention_mask": np.ones((1, length), np.int64),
    }
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    given |= {value.name: empty for value in session.get_inputs() if value.name not in given}
    return session.run(["logits"], given)[0]


@pytest.mark.chain
def test_it_computes_the_same_on_both_sides_of_the_limit(tmp_path: Path) -> None:
    from olive.model import HfModelHandler

    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from tests.passes.optimize.test_export import apply

    handler = HfModelHandler(str(tiny.build("phi3-long", tmp_path / "model")))
    apply(GenaiBuilder, {"template": "chat", "precision": "fp32"}, handler, tmp_path / "onnx")
    shutil.copytree(tmp_path / "onnx", tmp_path / "steady")
    assert steady_rope.straighten(tmp_path / "steady" / "model.onnx")
    graph = onnx.load(tmp_path / "steady" / "model.onnx", load_external_data=False).graph
    assert not [node for node in graph.node if node.op_type == "If"]
    read = contract.read_graph(tmp_path / "steady" / "model.onnx")
    contract.check_pieces(tmp_path / "steady", read.pieces)
    short, long = (computed(tmp_path / "onnx", length)[0, :LIMIT] for length in (LIMIT, LIMIT + 1))
    assert abs(short - long).max() > 0.01, "the two tables make no difference"
    for length in (1, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 40):
        assert (computed(tmp_path / "onnx", length) == computed(tmp_path / "steady", length)).all(), length


def branching(folder: Path, condition: str = "Greater", made: str = "Constant") -> Path:
    """A graph with a branch of the same form, or of another one."""
    table = numpy_helper.from_array(np.ones((4, 2), np.float32))

    def side(name: str) -> Any:
        inner = helper.make_node(made, [], [name], value=table) if made == "Constant" else None
        inner = inner or helper.make_node(made, ["limit"], [name])
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 2])
        return helper.make_graph([inner], name, [], [value])

    nodes = [
        helper.make_node("Constant", [], ["limit"], value=numpy_helper.from_array(np.array(2))),
        helper.make_node("Identity", ["x"], ["lengths"]),
        helper.make_node(condition, ["total", "limit"], ["is_long"]),
        helper.make_node("If", ["is_long"], ["cos"], "if", then_branch=side("a"), else_branch=side("b")),
        helper.make_node(
            "GroupQueryAttention", ["q", "", "", "", "", "lengths", "total", "cos"], ["y"], domain="x"
        ),
    ]
    file = folder / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "branching", [], [])), file)
    file.with_name("model.onnx.data").write_bytes(b"weights")
    return file


def test_tables_go_to_the_file_of_weights_behind_what_is_there(tmp_path: Path) -> None:
    file = branching(tmp_path)
    assert steady_rope.straighten(file)
    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.index("Where") < kinds.index("GroupQueryAttention")
    assert "If" not in kinds
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert (values["cos/long"] == 1).all()
    assert (values["if/last"], values["if/last"].dtype) == (1, np.int32)
    assert file.with_name("model.onnx.data").read_bytes().startswith(b"weights")
    before = file.read_bytes()
    assert not steady_rope.straighten(file), "there is no branch any more"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("form", "why"),
    [({"made": "Cast"}, "no choice between two tables"), ({"condition": "Less"}, "another condition")],
)
def test_a_branch_of_another_form_is_refused(tmp_path: Path, form: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        steady_rope.straighten(branching(tmp_path, **form))
