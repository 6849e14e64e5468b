"""Weights set aside while the builder quantizes: the same graph to the bit, from less in the protobuf."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny
from tests.passes.optimize.test_export import apply, quantized

pytestmark = pytest.mark.chain


@pytest.mark.parametrize(
    ("architecture", "packed", "options"),
    [
        ("phi3", True, {"precision": "int4", "lm_head": "int8"}),
        ("llama", False, {"precision": "int4"}),
        ("gemma3", True, {"precision": "int4"}),
        ("llama3", True, {"precision": "int4", "embedding": "int4"}),
    ],
    ids=str,
)
def test_the_graph_is_the_same_to_the_bit(
    architecture: str, packed: bool, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir as ir
    from olive.model import HfModelHandler

    from pipeline.passes.optimize import genai_builder

    source = tiny.build(architecture, tmp_path / "model")
    handler = HfModelHandler(str(quantized(source, tmp_path / "packed", "rtn") if packed else source))
    written, to_proto = [], ir.to_proto

    def counted(model: Any) -> Any:
        made = to_proto(model)
        written.append(made.ByteSize())
        return made

    monkeypatch.setattr(ir, "to_proto", counted)
    files, sizes = [], []
    for name, aside in (("aside", genai_builder.set_aside), ("whole", lambda _: nullcontext())):
        monkeypatch.setattr(genai_builder, "set_aside", aside)
        written.clear()
        given = {"template": "chat", "extra_options": {"block_size": 32}, **options}
        apply(genai_builder.GenaiBuilder, given, handler, tmp_path / name)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("model.onnx*")})
        sizes.append(max(written))
    assert sorted(files[0]) == ["model.onnx", "model.onnx.data"]
    assert files[0] == files[1]
    assert sizes[0] < 0.9 * sizes[1]
