"""What proves which files an evaluation was made with, on a small export that really computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.exports.chat.loaded_files import CHANGED
from pipeline.stages import evaluate
from tests.helpers import exports
from tests.passes.measure.test_rows_compared import VARIED, evaluated

pytestmark = pytest.mark.chain

FEW: dict[str, Any] = {"rows": 3, "prompts": 2, "max_new_tokens": 3}


def test_the_base_is_that_of_a_process_that_never_loads_the_adapter(export: Path, tmp_path: Path) -> None:
    found = evaluated(export, tmp_path / "a", VARIED, probe=True, **FEW)["probe"]
    assert found["good"] is True, found
    assert found["off"] == found["fresh"] != found["on"]
    nothing = {
        "a": 0 * exports.random(exports.WIDTH, exports.RANK),
        "b": exports.random(exports.RANK, exports.WIDTH),
    }
    exports.write_adapter(export / exports.ADAPTER, nothing)
    (export / "SHA256SUMS").unlink()
    found = evaluated(export, tmp_path / "b", VARIED, probe=True, **FEW)["probe"]
    assert (found["good"], found["on"]) == (False, found["fresh"])
    assert "changes nothing" in found["text"]


def test_an_adapter_that_stays_on_is_caught(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.exports import generation

    logits = generation.logits
    monkeypatch.setattr(generation, "logits", lambda model, text, _: logits(model, text, "adapter"))
    found = evaluated(export, tmp_path, VARIED, probe=True, **FEW)["probe"]
    assert found["good"] is False
    assert "computes something else than one that never loaded it" in found["text"]


def test_an_evaluation_goes_on_without_a_probe(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import LabError
    from pipeline.passes.measure.proof import probing

    def late(_: str) -> dict[str, Any]:
        raise LabError("Memory ran out.")

    monkeypatch.setattr(probing, "_said", late)
    found = evaluated(export, tmp_path, VARIED, probe=True, **FEW)
    assert found["probe"] == {"good": None, "text": "There was no probe: Memory ran out."}
    assert found["rows"] == 3


def test_without_an_adapter_there_is_nothing_to_probe(export: Path, tmp_path: Path) -> None:
    found = evaluated(export, tmp_path, VARIED, probe=True, adapter=None, **FEW)
    assert "probe" not in found
    assert {side: told["adapter"] for side, told in found["files"].items()} == {"base": "none"}


def test_an_interrupted_evaluation_does_not_resume_with_another_adapter(
    export: Path, tmp_path: Path, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    """The file has the same name; what is recorded is what answered."""
    first = evaluated(export, tmp_path, VARIED, **FEW)
    again = evaluated(export, tmp_path, VARIED, **FEW)
    assert again["files"] == first["files"]
    resumed = [event for event in reported() if "before this stage" in event.get("message", "")]
    assert len(resumed) == 2  # rows, and prompts
    other = {
        "a": exports.random(exports.WIDTH, 2),
        "b": exports.random(2, exports.WIDTH),
    }
    exports.write_adapter(export / exports.ADAPTER, other)
    swapped = evaluated(export, tmp_path, VARIED, **FEW)
    assert swapped["files"]["base"] == first["files"]["base"]
    assert swapped["files"]["adapter"]["adapter"] != first["files"]["adapter"]["adapter"]
    assert swapped["adapter_loss"] != first["adapter_loss"]
    assert len([event for event in reported() if "before this stage" in event.get("message", "")]) == 2
    written = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert written["files"] == swapped["files"]


def test_a_graph_that_is_replaced_meanwhile_is_told(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What answered is what was loaded, and that is no longer there."""
    from pipeline.passes.measure import tax

    measure = tax.measure

    def swapped(*given: Any) -> dict[str, Any]:
        data = (export / "model.onnx.data").read_bytes()
        (export / "new").write_bytes(data[::-1])
        (export / "new").replace(export / "model.onnx.data")
        return measure(*given)

    monkeypatch.setattr(tax, "measure", swapped)
    found = evaluated(export, tmp_path, VARIED, probe=True, **FEW)
    assert found["files"]["base"]["graph"]["model.onnx.data"] == CHANGED
    assert len(found["files"]["base"]["graph"]["model.onnx"]) == 64
    assert found["probe"]["good"] is False
    assert "graph's files have changed" in found["probe"]["text"]


def test_other_adapters_in_the_folder_have_verdicts(export: Path, tmp_path: Path) -> None:
    """The run's own verdict is what it is without them; one of another graph is named and not measured."""
    alone = evaluated(export, tmp_path / "a", VARIED)
    assert "adapters" not in alone
    exports.write_adapter(
        export / "zeros.onnx_adapter",
        {"a": 0 * exports.random(exports.WIDTH, 2), "b": exports.random(2, exports.WIDTH)},
    )
    exports.write_adapter(export / "wide.onnx_adapter", {"c": exports.random(3, 3)})
    shutil.copy(export / exports.ADAPTER, export / "same.onnx_adapter")
    found = evaluated(export, tmp_path / "b", VARIED, known=str(tmp_path))
    numbers = ("outcome", "difference", "low", "high", "rows", "better", "worse")
    assert [found["verdict"][name] for name in numbers] == [alone["verdict"][name] for name in numbers]
    assert found["adapters"].keys() == {"same", "wide", "zeros"}
    same, zeros = found["adapters"]["same"], found["adapters"]["zeros"]
    assert same["loss"] == found["adapter_loss"]
    assert same["perplexity"] == found["adapter_perplexity"]
    assert same["verdict"]["difference"] == found["verdict"]["difference"]
    assert (same["verdict"]["outcome"], same["verdict"]["worse"]) == ("worse", found["verdict"]["worse"])
    assert (zeros["loss"], zeros["verdict"]["difference"]) == (found["base_loss"], 0)
    assert zeros["verdict"]["text"].startswith("Cannot tell from 20 rows")
    assert "does not fit the graph: wide.onnx_adapter" in found["adapters"]["wide"]["verdict"]["text"]
    assert found.keys() - alone.keys() == {"adapters"}, "no other figure is named by an adapter"
    files = found["files"]
    assert files.keys() == {"base", "adapter", "adapter same", "adapter zeros"}
    assert files["adapter same"] == files["adapter"] != files["adapter zeros"]
    written = json.loads((tmp_path / "b" / "out" / "answers.json").read_text())
    assert written["files"] == files
    for row in written["rows"]:
        assert row["adapter same"]["text"] == row["adapter"]["text"]
        assert row["adapter zeros"]["text"] == row["base"]["text"] != row["adapter"]["text"]
    assert same["answers"].keys() == found["answers"].keys()
    assert same["answers"]["tokens"] == found["answers"]["tokens"]
    assert (
        same["answers"]["chrf"]["verdict"]["difference"] == found["answers"]["chrf"]["verdict"]["difference"]
    )
    assert zeros["answers"]["chrf"]["adapter"] == zeros["answers"]["chrf"]["base"]
    assert "answers" not in found["adapters"]["wide"]
    assert evaluated(export, tmp_path / "c", VARIED, rows=0).keys() & {"adapters", "verdict"} == set()


def test_an_adapter_whose_name_is_no_text_is_named_and_not_measured(export: Path) -> None:
    from pipeline.passes.measure.proof import files

    shutil.copy(export / exports.ADAPTER, export / "fr\udcff.onnx_adapter")
    fit, unfit = files.others(export, export / exports.ADAPTER)
    assert fit == {}
    ((name, why),) = unfit.items()
    assert why == "its file's name is no Unicode text; rename it"
    json.dumps(unfit).encode()
    name.encode()


def test_another_adapter_in_the_folder_makes_another_result(export: Path) -> None:
    inputs = {"onnx": export, "onnx_adapter": export / exports.ADAPTER}
    assert evaluate.beside(inputs) == ""
    shutil.copy(export / exports.ADAPTER, export / "other.onnx_adapter")
    first = evaluate.beside(inputs)
    assert first.endswith("  other.onnx_adapter\n")
    assert evaluate.beside({"onnx": export}) == ""
    exports.write_adapter(export / "other.onnx_adapter", {"a": exports.random(exports.WIDTH, 2)})
    assert evaluate.beside(inputs) != first
