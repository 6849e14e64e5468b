"""Whatever genai_config.json says wrongly is found, and costs little to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.exports import verify
from pipeline.exports.verifying import declarations
from tests.helpers.verified import edit, faults, peak


def test_what_exporters_write_for_other_devices_is_taken(export: Path) -> None:
    def cuda(config: Any) -> None:
        config["model"]["decoder"]["session_options"] |= {
            "log_id": "onnxruntime-genai",
            "provider_options": [{"cuda": {"enable_cuda_graph": "1", "device_id": "0", "use_tf32": "0"}}],
            "ep.cuda.fpa_intb_gemm": "1",
            "optimization.disable_specified_optimizers": "MatMulNBitsFusion",
            "session.use_device_allocator_for_initializers": "1",
        }

    edit(export / "genai_config.json", cuda)
    assert faults(export) == {}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c.pop("model"), "has no model"),
        (lambda c: c["model"]["decoder"].pop("filename"), "has no filename"),
        (lambda c: c["model"]["decoder"].update(filename="other.onnx"), "other.onnx is missing"),
        (lambda c: c["model"]["decoder"].update(filename="sub/model.onnx"), "no files but those beside it"),
        (lambda c: c["model"]["decoder"].update(filename=".."), "no files but those beside it"),
        (lambda c: c["model"]["decoder"].update(filename="."), "'.' is not the name of a file beside it"),
        (lambda c: c["model"]["decoder"].update(filename="model.ort"), "'model.ort' is no .onnx file"),
        (lambda c: c["model"].update(context_length=0), "context_length is 0"),
        (lambda c: c["model"].update(context_length="256"), "has a text as model.context_length, which"),
        (lambda c: c["model"].pop("eos_token_id"), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"].update(eos_token_id=[]), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"].update(eos_token_id=[2, 259]), "eos_token_id must name tokens below 259"),
        (lambda c: c["model"]["decoder"].update(num_hidden_layers=10**12), "are no language model's"),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="evil.so"),
            "has custom_ops_library in session_options, which may write files",
        ),
        (
            lambda c: c["model"].update(tokenizer_dir="sub"),
            "has a text as model.tokenizer_dir, which no language model's has; remove it",
        ),
        (
            lambda c: c["search"].update(anything=["/etc/x"]),
            "has search.anything, which no language model's has",
        ),
        (
            lambda c: c["model"]["decoder"].update(layer_types=["root/etc/x"]),
            "names 'root/etc/x', and a model",
        ),
        (
            lambda c: c["model"]["decoder"].update(layer_types=[["x"]]),
            "has model.decoder.layer_types, which no",
        ),
        # The processes that load a model work in /proc/self, where root is all of the machine.
        (lambda c: c["model"].update(type="root/etc/x"), "names 'root/etc/x', and a model has no files but"),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(
                provider_options=[{"cuda": {"enable_cuda_graph": "root/etc/x"}}]
            ),
            "names 'root/etc/x', and a model has no files but",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(
                provider_options=[{"cuda": {"gpu_external_alloc": "4702111234474983745"}}]
            ),
            "has gpu_external_alloc among the options of cuda; remove it",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(log_id={"any": "x"}),
            "has model.decoder.session_options.log_id, which no language model's has",
        ),
        (
            lambda c: c["model"]["decoder"].update(pipeline=[{"a": {"filename": "b"}}]),
            "has model.decoder.pipeline",
        ),
        (
            lambda c: c["model"]["decoder"].update(shared_initializers={"data_file": "x"}),
            "has model.decoder.shared_initializers",
        ),
        (
            lambda c: c["model"].update(speech={"config_filename": "x.json"}),
            "has model.speech, which no language",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(provider_options=[{"RyzenAI": {}}]),
            "names the provider RyzenAI, which may load code",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(provider_options=[{"QNN": {}}]),
            "names the provider QNN, which may load code",
        ),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(enable_profiling="x"),
            "has enable_profiling in session_options, which may write files",
        ),
        (
            lambda c: c["model"]["decoder"].update(run_options={"enable_profiling": "x"}),
            "has model.decoder.run_options, which no language model's has",
        ),
        (
            lambda c: c["model"]["decoder"].update(session_options=["x"]),
            "has model.decoder.session_options ['x'], which no language model's has",
        ),
    ],
)
def test_a_config_that_is_wrong(export: Path, change: Callable[[Any], None], fault: str) -> None:
    edit(export / "genai_config.json", change)
    found = faults(export)
    assert list(found) == ["config"]
    assert fault in found["config"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"model": []}', "\x00", '{"model": {"a": 1, "a": 2}}']
)
def test_a_config_that_is_none(export: Path, content: str) -> None:
    (export / "genai_config.json").write_text(content)
    assert list(faults(export)) == ["config"]


@pytest.mark.parametrize(
    ("kind", "name", "fault"),
    [
        ("inputs", "past.%d.key", "past.0.key is no input of model.onnx"),
        ("outputs", "present.%d.key", "present.0.key is no output of model.onnx"),
    ],
)
def test_a_config_of_another_graph(export: Path, kind: str, name: str, fault: str) -> None:
    edit(export / "genai_config.json", lambda c: c["model"]["decoder"][kind].update(more=name))
    assert fault in faults(export)["graph"]


def test_an_input_that_nothing_feeds(export: Path) -> None:
    """Without a default under its name, the base could not run."""
    import onnx

    model = onnx.load(export / "model.onnx", load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "b"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, export / "model.onnx")
    assert "cannot run without an adapter: b has no default" in faults(export)["graph"]


@pytest.mark.parametrize(
    ("length", "layers", "fault"),
    [
        (20_000, 1000, "config: genai_config.json has a name of more than 300 characters"),
        (250, 10_000, "graph: genai_config.json is another graph's: "),
    ],
)
def test_a_small_config_takes_little_memory(export: Path, length: int, layers: int, fault: str) -> None:
    def edit_(config: Any) -> None:
        config["model"]["decoder"]["num_hidden_layers"] = layers
        config["model"]["decoder"]["inputs"]["past"] = "n" * length + "%d"

    edit(export / "genai_config.json", edit_)
    ((check, message),) = faults(export).items()
    assert f"{check}: {message}".startswith(fault)
    assert peak(lambda: verify.static(export)) < 6_000_000


def test_names_are_counted_before_they_are_made(export: Path) -> None:
    def edit_(config: Any) -> None:
        config["model"]["decoder"]["num_hidden_layers"] = 10_000
        config["model"]["decoder"]["inputs"] |= {f"past{number}": f"{number}.%d" for number in range(50)}

    edit(export / "genai_config.json", edit_)
    assert "names 500,001 inputs or outputs" in faults(export)["config"]
    assert peak(lambda: verify.static(export)) < 2_000_000


def test_what_the_runtime_feeds_is_looked_up_and_not_searched(export: Path) -> None:
    class Names(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("each search reads all of it")

    config, _ = declarations.declared(export)
    whole = declarations.Config(config.graph, Names(config.inputs), Names(config.outputs))
    assert declarations.read_graph(export, whole)[1].startswith(
        "all 1 inputs of the runtime and 2 of adapters"
    )
