"""The adapters of a folder are few, whatever lies there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.exports import verify
from pipeline.exports.verifying import adapter_files
from tests.helpers import exports
from tests.helpers.verified import faults


def test_more_adapters_than_can_be_asked_are_refused(export: Path) -> None:
    for number in range(adapter_files.MOST_ADAPTERS - 1):
        os.link(export / exports.ADAPTER, export / f"{number}.onnx_adapter")
    assert len(adapter_files.adapters_of(export)) == adapter_files.MOST_ADAPTERS
    assert faults(export) == {}
    os.link(export / exports.ADAPTER, export / "more.onnx_adapter")
    with pytest.raises(InputError, match="has more than 64 adapters; move some elsewhere"):
        adapter_files.adapters_of(export)
    with pytest.raises(InputError, match="has more than 64 adapters"):
        adapter_files.usual_adapter(export)
    assert "has more than 64 adapters; move some elsewhere" in faults(export)["adapters"]
    assert len(verify.static(export)) < 10
