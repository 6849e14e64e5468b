"""What an exported folder declares: which graph it has, and what the runtime feeds it and reads of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.exports import contract
from pipeline.exports.findings import some
from pipeline.exports.verifying import json_files
from pipeline.exports.verifying.json_files import CONFIG

MOST_LAYERS = 10_000
# What exporters write of a language model: its parts, and where texts are. The runtime knows many more, which
# name further graphs, libraries and folders that nobody has looked at.
PARTS = {
    "model", "model.decoder", "model.decoder.inputs", "model.decoder.outputs", "model.decoder.sliding_window",
    "search", "engine", "engine.dynamic_batching", "speculative",
}  # fmt: skip
TEXTS = {"model.type", "model.decoder.filename"}
LISTS_OF_TEXTS = {"model.decoder.layer_types"}  # of LFM2
NAMES, SESSION = ("model.decoder.inputs.", "model.decoder.outputs."), "model.decoder.session_options"
# What exporters write into session_options. Others have the runtime write files wherever their value says.
SESSION_KEYS = {
    "log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern",
    "enable_cpu_mem_arena", "graph_optimization_level", "use_env_allocators", "session.use_env_allocators",
    "session.disable_cpu_ep_fallback", "session.disable_prepacking", "ep.cuda.fpa_intb_gemm",
    "optimization.disable_specified_optimizers", "session.use_device_allocator_for_initializers",
}  # fmt: skip
# Others read libraries and files that their options name; one loads a library from the current folder.
PROVIDERS = {"cpu", "cuda", "dml", "webgpu"}
# What exporters write of these, by themselves or as they are asked (`RUNTIME_TUNABLE_PROVIDER_OPTIONS` of the
# runtime's builder). Others are addresses in memory that the runtime calls.
PROVIDER_KEYS = {
    "enable_cuda_graph", "enable_skip_layer_norm_strict_mode", "enable_graph_capture", "enableGraphCapture",
    "validationMode", "multiRotaryCacheConcatOffset", "arena_extend_strategy", "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search", "cudnn_conv_use_max_workspace", "device_id", "do_copy_in_default_stream",
    "gpu_mem_limit", "prefer_nhwc", "tunable_op_enable", "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable", "use_ep_level_unified_stream", "use_tf32",
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Of genai_config.json: the graph's file, and the names the runtime feeds and reads."""

    graph: str
    inputs: list[str]
    outputs: list[str]


def declared(folder: Path) -> tuple[Config, contract.Graph]:
    """What an exported folder's config and graph declare. Raises ValueError or OSError if that is wrong."""
    config, _ = read_config(folder)
    return config, read_graph(folder, config)[0]


def read_config(folder: Path) -> tuple[Config, str]:
    given = json_files.small_json(folder, CONFIG)
    _refuse_others(given)
    model = json_files.part(given, "model", dict)
    decoder = json_files.part(model, "decoder", dict)
    graph = json_files.part(decoder, "filename", str)
    if Path(graph).name != graph:  # weights are looked for beside the graph
        wrong = display.value(graph)
        raise ValueError(f"{CONFIG}: {wrong} is not the name of a file beside it; export the model again")
    if not graph.endswith(".onnx"):  # the runtime reads others in another format than we do
        raise ValueError(f"{CONFIG}: {display.value(graph)} is no .onnx file; export the model again")
    contract.inside(folder, graph)
    length, words = json_files.count(model, "context_length"), json_files.count(model, "vocab_size")
    ends = model.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if not ends or not all(type(end) is int and 0 <= end < words for end in ends):
        raise ValueError(
            f"{CONFIG}: eos_token_id must name tokens below {words}, or answers do not end;"
            " export the model again"
        )
    layers = json_files.count(decoder, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ValueError(f"{CONFIG}: {layers} layers are no language model's; export the model again")
    inputs = _names(json_files.part(decoder, "inputs", dict), layers)
    outputs = _names(json_files.part(decoder, "outputs", dict), layers)
    return Config(graph, inputs, outputs), f"{graph}, {length} tokens of context, {len(ends)} end tokens"


def read_graph(folder: Path, config: Config) -> tuple[contract.Graph, str]:
    graph = contract.read_graph(contract.inside(folder, config.graph))
    for kind, names, there in (
        ("input", config.inputs, graph.inputs), ("output", config.outputs, graph.outputs),
    ):  # fmt: skip
        missing = some(f"{name} is no {kind} of {config.graph}" for name in names if name not in there)
        if missing:
            raise ValueError(f"{CONFIG} is another graph's: {missing}; export the model again")
    fed = frozenset(config.inputs)
    places = [name for name in graph.inputs if name not in fed]
    unfed = some(f"{name} has no default" for name in places if name not in graph.defaults)
    if unfed:
        raise ValueError(f"the model cannot run without an adapter: {unfed}; export the model again")
    return graph, f"all {len(config.inputs)} inputs of the runtime and {len(places)} of adapters are there"


def _names(given: dict[str, Any], layers: int) -> list[str]:
    """Names as the config gives them; those with %d once for each layer. Raises ValueError if they are more
    or longer than a real model's.
    """
    patterns = [str(name) for name in given.values()]
    if any(len(name) > contract.LONGEST_NAME for name in patterns):
        raise ValueError(
            f"{CONFIG} has a name of more than {contract.LONGEST_NAME} characters; export the model again"
        )
    count = sum(layers if "%d" in name else 1 for name in patterns)
    if count > contract.MOST_INPUTS:
        raise ValueError(f"{CONFIG} names {count:,} inputs or outputs; export the model again")
    found = []
    for name in patterns:
        found += [name.replace("%d", str(layer)) for layer in range(layers)] if "%d" in name else [name]
    return found


def _refuse_others(given: dict[str, Any], within: str = "") -> None:
    """Raises ValueError for what no exporter writes: the runtime may load that, or write there."""
    for key, value in given.items():
        place = f"{within}{key}"
        if place == SESSION:
            _refuse_options(value)
        elif isinstance(value, dict):
            if place not in PARTS:
                raise _unknown(place)
            _refuse_others(value, f"{place}.")
        elif isinstance(value, list):
            kinds = (int, float, str) if place in LISTS_OF_TEXTS else (int, float)
            if not all(isinstance(one, kinds) for one in value):
                raise _unknown(place)
            for one in value:
                _refuse_path(one)
        elif isinstance(value, str):
            if place not in TEXTS and within not in NAMES:
                raise _unknown(f"a text as {place}")
            _refuse_path(value)


def _unknown(place: str) -> ValueError:
    named = display.line(place, 100)
    return ValueError(f"{CONFIG} has {named}, which no language model's has; remove it")


def _refuse_path(value: Any) -> None:
    """Raises ValueError for a text that leads to another folder."""
    if isinstance(value, str) and ("/" in value or value == ".."):
        named = display.value(value)
        raise ValueError(f"{CONFIG} names {named}, and a model has no files but those beside it; remove it")


def _refuse_options(given: Any) -> None:
    """Refuse options of a session that no exporter writes. Raises ValueError."""
    if not isinstance(given, dict):
        raise _unknown(f"{SESSION} {display.value(given)}")
    other = sorted(given.keys() - SESSION_KEYS)
    if other:
        raise ValueError(
            f"{CONFIG} has {display.line(other[0], 100)} in session_options, which may write files; remove it"
        )
    providers = given.get("provider_options", [])
    if not isinstance(providers, list) or not all(isinstance(one, dict) for one in providers):
        raise _unknown(f"{SESSION}.provider_options {display.value(providers)}")
    for name, options in (pair for one in providers for pair in one.items()):
        if name.lower() not in PROVIDERS:
            named = display.line(name, 100)
            raise ValueError(f"{CONFIG} names the provider {named}, which may load code; remove it")
        other = sorted(options.keys() - PROVIDER_KEYS) if isinstance(options, dict) else []
        if other:
            named = display.line(other[0], 100)
            raise ValueError(f"{CONFIG} has {named} among the options of {name}; remove it")
        _refuse_values(f"{SESSION}.provider_options.{name}", options)
    _refuse_values(SESSION, {key: value for key, value in given.items() if key != "provider_options"})


def _refuse_values(place: str, given: Any) -> None:
    """Refuse options that are no numbers, switches or short texts. Raises ValueError."""
    for key, value in given.items() if isinstance(given, dict) else [("", given)]:
        if isinstance(value, dict | list):
            raise _unknown(f"{place}.{key}")
        _refuse_path(value)
