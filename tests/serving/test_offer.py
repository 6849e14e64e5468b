"""What of a run or a folder is offered, by which names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.serving import offer
from pipeline.store.run import Run
from tests.helpers import exports


def test_a_run_and_a_folder_offer_base_and_adapters(home: Path, finished: Run, export: Path) -> None:
    shutil.copyfile(export / exports.ADAPTER, export / "town.onnx_adapter")
    found = offer.of(home, str(export))
    assert found.names == ("base", "adapter_weights", "town")
    assert (found.source.adapter, found.on_gpu) == (None, False)
    found = offer.of(home, finished.id, [str(export / "town.onnx_adapter")])
    assert found.names == ("base", "adapter_weights", "town")
    assert found.source.name == f"run {finished.id}"


def test_a_merged_model_offers_itself(home: Path, export: Path) -> None:
    (export / "merged.json").write_text("{}")
    assert offer.of(home, str(export)).names == ("merged",)


@pytest.mark.parametrize("name", ["base", "two\nlines", "x" * 101])
def test_an_adapter_that_cannot_be_named_is_refused(home: Path, export: Path, name: str) -> None:
    shutil.copyfile(export / exports.ADAPTER, export / f"{name}.onnx_adapter")
    with pytest.raises(InputError, match="rename"):
        offer.of(home, str(export))


def test_two_of_one_name_are_refused(home: Path, export: Path, tmp_path: Path) -> None:
    other = shutil.copyfile(export / exports.ADAPTER, tmp_path / exports.ADAPTER)
    assert offer.of(home, str(export), ["adapter_weights"]).names == ("base", "adapter_weights")
    with pytest.raises(
        InputError, match="a model named 'adapter_weights' is already served; rename the file"
    ):
        offer.of(home, str(export), [str(other)])


def test_too_many_adapters_are_refused(home: Path, export: Path) -> None:
    for number in range(offer.MOST_ADAPTERS - 1):
        (export / f"{number}.onnx_adapter").touch()
    more = shutil.copyfile(export / exports.ADAPTER, export.parent / "more.onnx_adapter")
    assert len(offer.of(home, str(export)).names) == offer.MOST_ADAPTERS + 1
    with pytest.raises(InputError, match="There are 65 adapters; allowed: 64"):
        offer.of(home, str(export), [str(more)])
    for number in range(5000):
        os.link(more, export / f"more{number}.onnx_adapter")
    with pytest.raises(InputError, match="has more than 64 adapters; move some elsewhere") as raised:
        offer.of(home, str(export))
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("target", ["no/such", "./none"])
def test_no_folder_and_no_run_is_a_sentence(home: Path, target: str) -> None:
    with pytest.raises(InputError, match=f"{target}: no such folder"):
        offer.of(home, target)


@pytest.mark.parametrize(
    ("providers", "on_gpu"), [([{"cuda": {}}], True), ([], False), (None, False), (7, False)]
)
def test_what_is_exported_for_a_gpu_is_known(
    home: Path, export: Path, providers: object, on_gpu: bool
) -> None:
    config = json.loads((export / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = providers
    (export / "genai_config.json").write_text(json.dumps(config))
    assert offer.of(home, str(export)).on_gpu is on_gpu
    (export / "genai_config.json").write_text("[")
    assert offer.of(home, str(export)).on_gpu is False
