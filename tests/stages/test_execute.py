"""A stage's workflow in Olive's hands."""

from __future__ import annotations

import json
import os
import shutil
import threading
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import finetune, optimize, quantize
from pipeline.stages.execute import linked_from, without_callers, without_code
from pipeline.system import checksums
from tests.helpers import tiny
from tests.helpers.carry import OPTIONS, context_of, stage

pytestmark = pytest.mark.chain


def test_olive_reads_no_file_to_name_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is for a cache that nobody finds again; a model has gigabytes. Another model has another."""
    from olive.model.config import ModelConfig, model_config

    def read(*_: Any, **__: Any) -> str:
        raise AssertionError("Olive hashed a file")

    monkeypatch.setattr(model_config, "hash_file", read)
    names: list[str] = []
    named = ModelConfig.get_model_id
    monkeypatch.setattr(ModelConfig, "get_model_id", lambda self: names.append(named(self)) or names[-1])
    model = tiny.build("llama", tmp_path / "model")
    options = quantize.Options(algorithm="rtn", group_size=16)
    context = context_of(tmp_path, model)
    for attempt in ("first", "second"):
        made = stage(context, attempt, quantize, options)
        assert made.artifacts[0].path.exists()
        (model / "config.json").touch()
    assert len(names) == len({*names}) == 2
    with pytest.raises(AssertionError, match="hashed a file"):
        ModelConfig(type="HfModel", config={"model_path": str(model)}).get_model_id()


def test_olive_links_what_it_saves_and_saves_no_input(tmp_path: Path) -> None:
    """What only its cache has is linked, what an earlier result has too is copied, inputs stay there."""
    from olive.resource_path import create_resource_path

    work, other, output = tmp_path / "work", tmp_path / "artifact", tmp_path / "output"
    made = work / "olive-cache" / "model"
    for folder in (made, other, output):
        folder.mkdir(parents=True)
    for name in ("weights", "adapter"):
        (made / name).write_text(name)
    os.link(made / "weights", work / "weights")  # as passes carry them over
    (other / "shared").write_text("of an earlier result")
    os.link(other / "shared", made / "shared")
    with linked_from(work):
        path = create_resource_path(made).save_to_dir(output, "model", True)
        assert create_resource_path(other).save_to_dir(output, "base") == str(other)
    assert [file.name for file in output.iterdir()] == ["model"]
    saved = Path(path)
    assert {file.name for file in saved.iterdir()} == {"weights", "adapter", "shared"}
    assert all((saved / name).samefile(made / name) for name in ("weights", "adapter"))
    assert not (saved / "shared").samefile(other / "shared")
    assert (saved / "shared").read_text() == "of an earlier result"
    create_resource_path(other).save_to_dir(output, "base")
    assert (output / "artifact").is_dir() or (output / "base").is_dir(), "afterwards Olive is as it was"


def test_olive_keeps_no_code_that_a_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would copy a module of any folder, or fetch one from the hub, and the log says which is there."""
    from olive.model import HfModelHandler
    from transformers import dynamic_module_utils

    model, private, modules = (
        tiny.build("llama", tmp_path / "model"),
        tmp_path / "private",
        tmp_path / "cache",
    )
    private.mkdir()
    (private / "secret.py").write_text("class Config: pass\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": f"{private}--secret.Config"}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))

    with without_code():
        HfModelHandler(str(model)).save_metadata(str(tmp_path / "made"))
    assert not list(tmp_path.glob("made/*.py")) + list(modules.rglob("secret.py"))
    assert "auto_map" not in json.loads((tmp_path / "made" / "config.json").read_text())
    HfModelHandler(str(model)).save_metadata(str(tmp_path / "usual"))
    assert list(modules.rglob("secret.py")), "Olive does so no more: without_code has no use"


def test_a_chain_copies_no_weights_and_reads_each_once_for_its_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[tuple[int, str]] = []
    copied: list[str] = []
    taken, copy2 = checksums._digest, shutil.copy2

    def noted(file: BufferedReader) -> str:
        hashed.append((os.fstat(file.fileno()).st_size, threading.current_thread().name))
        return taken(file)

    monkeypatch.setattr(checksums, "_digest", noted)
    monkeypatch.setattr(
        shutil, "copy2", lambda *given, **how: copied.append(given[0]) or copy2(*given, **how)
    )
    model = tiny.build("llama", tmp_path / "model")
    context = context_of(tmp_path, model)
    packed = stage(context, "quantize", quantize, quantize.Options(algorithm="rtn", group_size=16))
    given = {"checkpoint": packed.artifacts[0].path}
    tuned = stage(context, "finetune", finetune, OPTIONS, **given)
    (adapter,) = tuned.artifacts
    assert [folder.name for folder in adapter.path.parent.iterdir()] == ["adapter"], "the base is not saved"
    exported = stage(context, "optimize", optimize, optimize.Options(), **given, adapter=adapter.path)
    folder = exported.artifacts[0].path
    weights = folder / f"{optimize.GRAPH}.data"
    by = [thread for size, thread in hashed if size == weights.stat().st_size]
    assert by == ["checksum"], "once, while the graph is finished and judged"
    assert checksums.intact(folder)
    assert not [file for file in copied if Path(file).suffix in (".data", ".safetensors")]
    assert exported.metrics["eval_loss_graph"] > 0


def test_olive_does_not_look_for_its_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    from olive.telemetry import telemetry_extensions

    looked: list[int] = []
    monkeypatch.setattr(inspect, "stack", lambda: looked.append(1) or [])
    with without_callers():
        assert telemetry_extensions.ActionContext("run").invoked_from == "Script"
    assert not looked
    telemetry_extensions.ActionContext("run")
    assert looked, "Olive does so no more: without_callers has no use"
