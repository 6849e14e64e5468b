"""Whether an exported folder is whole, fits together, and answers.

`static` reads the files in a moment: Compare does so before it loads a model. `whole` also compares
checksums and has the model answer, as `python -m pipeline verify` and publishing do. The answers come from
a separate process, `python -m pipeline.exports.verify FOLDER`, which may crash on a bad file without harm.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline import display, settings
from pipeline.errors import InputError, LabError, reason
from pipeline.exports import contract, generation, serving_ids
from pipeline.exports.findings import Finding, Status, failed
from pipeline.inputs.prompts import model_template, templates
from pipeline.system import checksums, hardware, own_process
from pipeline.system.files import to_json

CONFIG, TOKENIZER = "genai_config.json", "tokenizer.json"
PROMPTS = ("Hello!", "What is the capital of France?", "Tell me about the sea.")
TOKENS = 24
LIVE_SECONDS = 900.0
LARGEST_JSON = 1 << 20  # bytes; real ones have some kilobytes,
LARGEST = {  # but for these
    "tokenizer_config.json": model_template.LARGEST_FILE,
    TOKENIZER: 1 << 26,  # one of 260,000 words and all their merges has 33 MB
}
MOST_VALUES = 5_000_000  # of a file of JSON: such a tokenizer has two million
MOST_LAYERS = 10_000
MOST_FILES = 1000  # of a folder, and folders in it; an export has about a dozen, and one for each adapter
MOST_ADAPTERS = 64  # of a folder
NAMED_FAULTS = 3
COUNTED_FAULTS = 1000
MOST_REASONS = 10  # in one error
LONGEST_MESSAGE = 500  # characters
# A library or folder named here would be loaded with the model, whatever it holds.
CODE_KEYS = ("custom_ops_library", "library_path", "session.model_external_initializers_file_folder_path")
# What exporters write into session_options. Others have the runtime write files wherever their value says.
SESSION_KEYS = {
    "log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern",
    "enable_cpu_mem_arena", "graph_optimization_level", "use_env_allocators", "session.use_env_allocators",
    "session.disable_cpu_ep_fallback", "session.disable_prepacking", "ep.cuda.fpa_intb_gemm",
    "optimization.disable_specified_optimizers", "session.use_device_allocator_for_initializers",
}  # fmt: skip
# Of the others one has the runtime load a library from the current folder.
PROVIDERS = {"cpu", "cuda", "dml", "nvtensorrtrtx", "openvino", "qnn", "vitisai", "webgpu"}
Found = TypeVar("Found")


@dataclass(frozen=True)
class Config:
    """Of genai_config.json: the graph's file, and the names the runtime feeds and reads."""

    graph: str
    inputs: list[str]
    outputs: list[str]


def whole(folder: Path) -> list[Finding]:
    """Every check: the files, their checksums, and real answers without and with each adapter.

    Reads all bytes of the folder. Raises InputError if there is no such folder.
    """
    found = static(folder)
    report = _Report(found)
    if (folder / checksums.NAME).exists():
        report.check("checksums", partial(_checksums, folder))
    else:
        report.skip("checksums", f"the folder has no {checksums.NAME}; an export of this release has one")
    if failed(found):
        report.skip("answers", "a model is loaded once the checks above are good")
        return found
    return found + live(folder)


def static(folder: Path, adapter: Path | None = None) -> list[Finding]:
    """The checks that need neither the weights nor a runtime: a fraction of a second.

    `adapter` is one that may lie elsewhere and is checked too. Nothing else is looked at in a folder whose
    files are no export's. Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    report = _Report([])
    if report.check("files", partial(_files, folder)) is None:
        return report.findings
    config = report.check("config", partial(_config, folder))
    graph = None
    if config is None:
        report.skip("graph", f"needs a good {CONFIG}")
    else:
        graph = report.check("graph", partial(_graph, folder, config))
    if graph is not None:
        report.check("weights", partial(_weights, folder, graph))
    adapters = report.check("adapters", lambda: (adapters_of(folder), ""), quiet=True)
    if adapters is None:
        return report.findings
    if adapter is not None and adapter.resolve() not in [file.resolve() for file in adapters]:
        adapters.append(adapter.resolve())
    for file in adapters:
        name = f"adapter {file.name}"
        if graph is None or config is None:
            report.skip(name, "needs a good graph to be compared with")
        else:
            report.check(name, partial(_adapter, file, graph, config))
    if (folder / contract.BOUND).is_file():
        report.check("bound adapter", partial(_bound, folder, graph))
    elif not adapters:
        report.skip("adapters", "the folder has none; its base answers alone")
    report.check("tokenizer", partial(_tokenizer, folder))
    report.check("template", partial(_template, folder))
    return report.findings


def declared(folder: Path) -> tuple[Config, contract.Graph]:
    """What an exported folder's config and graph declare. Raises ValueError or OSError if that is wrong."""
    config, _ = _config(folder)
    return config, _graph(folder, config)[0]


def live(folder: Path) -> list[Finding]:
    """Have the model answer without and with each adapter, in a process that is started for it.

    Give it only a folder that `static` found good.
    """
    words = ["-m", "pipeline.exports.verify", str(folder.resolve())]
    try:
        done = own_process.run(words, LIVE_SECONDS, settings.local_environment())
    except subprocess.TimeoutExpired:
        late = f"the model did not answer within {LIVE_SECONDS:.0f} seconds; use a smaller one"
        return [Finding("answers", Status.FAILED, late)]
    with suppress(ValueError, TypeError):
        return [Finding(**facts) for facts in json.loads(done.stdout)]
    said = done.stderr.strip().splitlines()
    last = f"; it said: {_plain(said[-1])}" if said else ""
    ended = f"the process that loaded the model ended with code {done.returncode}{last}"
    return [Finding("answers", Status.FAILED, f"{ended}; export the model again, or free some memory")]


def require(findings: list[Finding], otherwise: str) -> None:
    """Raise LabError with `otherwise` and all that failed, as one sentence; do nothing if all is good."""
    if bad := failed(findings):
        reasons = [f"{finding.check}: {finding.message}" for finding in bad[:MOST_REASONS]]
        more = [f"and {len(bad) - MOST_REASONS:,} more"] if len(bad) > MOST_REASONS else []
        raise LabError(f"{otherwise}: {'; '.join([*reasons, *more])}.")


def adapters_of(folder: Path) -> list[Path]:
    """The adapters that lie beside the graph, by name. Raises InputError for more than MOST_ADAPTERS."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.endswith(contract.SUFFIX))
        found = list(islice(names, MOST_ADAPTERS + 1))
    if len(found) > MOST_ADAPTERS:
        raise InputError(
            f"{display.line(folder.name) or 'the folder'} has more than {MOST_ADAPTERS} adapters; move some"
            " elsewhere"
        )
    return [folder / name for name in sorted(found)]


def other_adapters(folder: Path, own: Path) -> list[Path]:
    """The adapters beside the graph but for one, by name. Raises as `adapters_of` does."""
    return [file for file in adapters_of(folder) if file.name != own.name]


def why_unfit(folder: Path, adapter: Path) -> str:
    """Why an adapter in an exported folder does not fit its graph; "" if it does.

    Raises ValueError, OSError for a faulty graph.
    """
    config, graph = declared(folder)
    report = _Report([])
    report.check(adapter.name, partial(_adapter, adapter, graph, config))
    return "; ".join(finding.message for finding in failed(report.findings))


def usual_adapter(folder: Path) -> Path | None:
    """Of several adapters, the one with the name that our exports use, else the first; None without any.

    Raises InputError for more than MOST_ADAPTERS.
    """
    adapters = adapters_of(folder)
    usual = next((file for file in adapters if file.name == contract.ADAPTER), None)
    return usual or next(iter(adapters), None)


def named_adapter(folder: Path, given: str) -> Path:
    """The adapter of a name in the folder, suffix optional, or at a path.

    Raises InputError, listing the folder's adapters, if there is none.
    """
    found = [folder / given, folder / f"{given}{contract.SUFFIX}", Path(given)]
    file = next((file for file in found if file.name.endswith(contract.SUFFIX) and file.is_file()), None)
    if file is None:
        there = [display.plain(each.name) for each in adapters_of(folder)]
        listed = f"in the folder there are {display.names(there)}" if there else "the folder has none"
        raise InputError(f"adapter: {display.quoted(given)} is no {contract.SUFFIX} file; {listed}")
    return file


class _Report:
    """Findings as they come."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    def skip(self, check: str, message: str) -> None:
        self._add(check, Status.SKIPPED, message)

    def check(
        self, check: str, look: Callable[[], tuple[Found, str]], *, quiet: bool = False
    ) -> Found | None:
        """What `look` found, noted with its sentence; None where it raised, whatever that was.

        `quiet` notes only that.
        """
        try:
            found, message = look()
        except ValueError as error:  # ours, which say what to do
            self._add(check, Status.FAILED, str(error))
        except Exception as error:  # a hostile file may raise anything
            self._add(check, Status.FAILED, reason(error))
        else:
            if not quiet:
                self._add(check, Status.OK, message)
            return found
        return None

    def _add(self, check: str, status: Status, message: str) -> None:
        self.findings.append(Finding(_plain(check), status, _plain(message)))


# -- one function a check: what it found and a sentence, or ValueError ----------------------------------


def _files(folder: Path) -> tuple[int, str]:
    """Only files and folders, and no links out of it: publishing copies everything here."""
    count = folders = 0
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_dir():
            contract.inside(folder, name)
            count += 1
        else:
            folders += 1
        if max(count, folders) > MOST_FILES:
            what = "files" if count > folders else "folders"
            raise ValueError(f"it has more than {MOST_FILES:,} {what}; take out what is no part of the model")
    return count, f"{count} files, none of them a link out of the folder"


def _config(folder: Path) -> tuple[Config, str]:
    given = small_json(folder, CONFIG)
    _refuse_paths(given)
    model = _part(given, "model", dict)
    decoder = _part(model, "decoder", dict)
    graph = _part(decoder, "filename", str)
    if Path(graph).name != graph:  # weights are looked for beside the graph
        wrong = display.value(graph)
        raise ValueError(f"{CONFIG}: {wrong} is not the name of a file beside it; export the model again")
    contract.inside(folder, graph)
    length, words = _count(model, "context_length"), _count(model, "vocab_size")
    ends = model.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if not ends or not all(type(end) is int and 0 <= end < words for end in ends):
        raise ValueError(
            f"{CONFIG}: eos_token_id must name tokens below {words}, or answers do not end;"
            " export the model again"
        )
    layers = _count(decoder, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ValueError(f"{CONFIG}: {layers} layers are no language model's; export the model again")
    inputs = _names(_part(decoder, "inputs", dict), layers)
    outputs = _names(_part(decoder, "outputs", dict), layers)
    return Config(graph, inputs, outputs), f"{graph}, {length} tokens of context, {len(ends)} end tokens"


def _graph(folder: Path, config: Config) -> tuple[contract.Graph, str]:
    graph = contract.read_graph(contract.inside(folder, config.graph))
    for kind, names, there in (
        ("input", config.inputs, graph.inputs), ("output", config.outputs, graph.outputs),
    ):  # fmt: skip
        missing = _some(f"{name} is no {kind} of {config.graph}" for name in names if name not in there)
        if missing:
            raise ValueError(f"{CONFIG} is another graph's: {missing}; export the model again")
    fed = frozenset(config.inputs)
    places = [name for name in graph.inputs if name not in fed]
    unfed = _some(f"{name} has no default" for name in places if name not in graph.defaults)
    if unfed:
        raise ValueError(f"the model cannot run without an adapter: {unfed}; export the model again")
    return graph, f"all {len(config.inputs)} inputs of the runtime and {len(places)} of adapters are there"


def _weights(folder: Path, graph: contract.Graph) -> tuple[int, str]:
    size = contract.check_pieces(folder, graph.pieces)
    return size, f"{len(graph.pieces)} tensors lie within {size:,} bytes"


def _adapter(file: Path, graph: contract.Graph, config: Config) -> tuple[int, str]:
    tensors = contract.read_adapter(contract.inside(file.parent, file.name))
    if not tensors:
        raise ValueError(f"{file.name} has no tensors; export the adapter again")
    faults = _some(contract.misfits(tensors, graph, config.inputs))
    if faults:
        raise ValueError(
            f"{file.name} belongs to another graph: {faults}; use the adapter exported with this model"
        )
    places = len(graph.inputs) - len(config.inputs)
    return len(tensors), f"fits: {len(tensors)} of the graph's {places} adapter inputs"


def _bound(folder: Path, graph: contract.Graph | None) -> tuple[int, str]:
    """Whether the graph has as many of the adapter's tensors as the folder says."""
    facts = small_json(folder, contract.BOUND)
    count = _count(facts, "tensors", contract.BOUND)
    there = sum(piece.location == contract.ADAPTER_DATA for piece in graph.pieces) if graph else count
    if there != count:
        raise ValueError(
            f"the graph has {there:,} tensors of the bound adapter, and {contract.BOUND} says {count:,};"
            " bind the adapter again"
        )
    named = display.quoted(str(facts.get("adapter")))
    return count, f"{named} is a part of the graph: {count:,} tensors"


def _tokenizer(folder: Path) -> tuple[int, str]:
    tokenizer = small_json(folder, TOKENIZER)
    model = _part(tokenizer, "model", dict, TOKENIZER)
    words = model.get("vocab")
    if not isinstance(words, dict | list) or not words:
        raise ValueError(f"{TOKENIZER} has no vocabulary; export the model again")
    small_json(folder, "tokenizer_config.json")
    return len(words), f"{len(words):,} words"


def _template(folder: Path) -> tuple[int, str]:
    lab = small_json(folder, serving_ids.LAB)
    text = _part(lab, "template", str, serving_ids.LAB)
    serving_ids.check(lab)
    # The model's own template needs its file: without it the first prompt would fail.
    template = templates.parse(text, model_template.chat_template(folder))
    prompt = template.prompt(dict.fromkeys(template.fields, PROMPTS[0]))
    if not prompt.strip():
        raise ValueError("the template writes no prompt; export the model again")
    return len(prompt), f"renders a prompt of {', '.join(template.fields[:-1])}"


def _checksums(folder: Path) -> tuple[int, str]:
    told = checksums.read(folder)
    for name in told:
        contract.inside(folder, name)
    sums = checksums.of(folder, told)
    changed = _some(f"{name} is not what was written" for name in sorted(told) if sums[name] != told[name])
    if changed:
        raise ValueError(f"{changed}; copy it again, or export the model again")
    return len(told), f"{len(told)} files are as they were written"


def small_json(folder: Path, name: str) -> dict[str, Any]:
    """A file of JSON with a mapping in it. Raises ValueError."""
    most = LARGEST.get(name, LARGEST_JSON)
    with contract.inside(folder, name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size) if size <= most else b""
    # A list of empty lists takes thirty times the memory of its text.
    if size > most or sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"{name} is larger than any real one; export the model again")
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is not valid JSON, or is incomplete; export the model again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is not a mapping; export the model again")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping without repeated keys: another reader may use the value that we don't see."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _part(given: dict[str, Any], key: str, kind: type[Found], file: str = CONFIG) -> Found:
    found = given.get(key)
    if not isinstance(found, kind) or not found:
        raise ValueError(f"{file} has no {key}; export the model again")
    return found


def _count(given: dict[str, Any], key: str, file: str = CONFIG) -> int:
    found = given.get(key)
    if type(found) is not int or found < 1:
        wrong = display.value(found)
        raise ValueError(f"{file}: {key} is {wrong}, not a number from 1; export the model again")
    return found


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


def _refuse_paths(given: Any) -> None:
    """Refuse a config that has the runtime load something from elsewhere, or write. Raises ValueError."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key in CODE_KEYS:
                raise ValueError(f"{CONFIG} has {key}, which loads something other than a model; remove it")
            _refuse_paths(value)
            _refuse_writing(key, value)
    elif isinstance(given, list):
        for value in given:
            _refuse_paths(value)
    elif isinstance(given, str) and (Path(given).is_absolute() or ".." in Path(given).parts):
        raise ValueError(f"{CONFIG} names {display.value(given)}, which lies outside the folder; remove it")


def _refuse_writing(key: str, value: Any) -> None:
    """Refuse options of a session or a run that no exporter writes. Raises ValueError."""
    if key == "run_options":
        raise ValueError(f"{CONFIG} has {key}, which may write files; remove it")
    if key != "session_options":
        return
    _refuse_providers(value.get("provider_options") if isinstance(value, dict) else None)
    other = sorted(map(str, value.keys() - SESSION_KEYS)) if isinstance(value, dict) else ["no options"]
    if other:
        raise ValueError(
            f"{CONFIG} has {display.line(other[0], 100)} in {key}, which may write files; remove it"
        )


def _refuse_providers(given: Any) -> None:
    """Refuse execution providers that no exporter names. Raises ValueError."""
    for options in given if isinstance(given, list) else []:
        for name in options if isinstance(options, dict) else []:
            if name.lower() not in PROVIDERS:
                named = display.line(name, 100)
                raise ValueError(f"{CONFIG} names the provider {named}, which may load code; remove it")


def _plain(text: str) -> str:
    """Text on one line, without what would move a terminal's cursor: names in it come from the files."""
    return display.line(" ".join(text.split()), LONGEST_MESSAGE)


def _some(faults: Iterable[str]) -> str:
    """The first of them, and how many more there are; "" of none. No more are made than are counted."""
    faults = iter(faults)
    named = ", ".join(islice(faults, NAMED_FAULTS))
    more = sum(1 for _ in islice(faults, COUNTED_FAULTS + 1))
    if more > COUNTED_FAULTS:
        return f"{named}, and more than {COUNTED_FAULTS:,} more"
    return f"{named}, and {more:,} more" if more else named


# -- the process that answers ----------------------------------------------------------------------------


def _answers(folder: Path) -> list[Finding]:
    """Load the model with all its adapters and ask it."""
    report = _Report([])
    options = json.loads((folder / CONFIG).read_text("utf-8"))["model"]["decoder"].get("session_options", {})
    if "cuda" in to_json(options.get("provider_options", [])).lower() and not hardware.gpus():
        report.skip(
            "answers", "the model was exported for an NVIDIA GPU; verify it on a machine that has one"
        )
        return report.findings
    adapters = {file.name: file for file in adapters_of(folder)}
    model = generation.load(folder, adapters)
    report.check("prompts", partial(_reads, folder, model))
    prompts = [model.template.prompt(dict.fromkeys(model.template.fields, text)) for text in PROMPTS]
    base = _Side(model, None, prompts)
    report.check("answers", partial(_speaks, base))
    for name in adapters:
        report.check(f"answers with {name}", partial(_differs, base, _Side(model, name, prompts)))
    return report.findings


def _reads(folder: Path, model: generation.Model) -> tuple[int, str]:
    """Whether prompts become the tokens that training made of them: here, and in the folder's app.py."""
    trained = serving_ids.trained_ids(folder)
    rows, again = serving_ids.hard_rows(model.reader, model.template), serving_ids.EXPORT_AGAIN
    serving_ids.require_same(model.template, rows, trained, model.reader.ids, "chat and Compare", again)
    said = f"{len(rows)} prompts are the tokens that training makes of them"
    files = ("lab_prompt.py", "lab_model.py", "app.py")
    if not all((folder / name).is_file() for name in files):
        if not (folder / "app.py").is_file():
            return len(rows), f"{said}; the folder has no app.py"
        plain = [row for row in rows if "system" not in row]  # that app had none
        serving_ids.require_same(
            model.template, plain, trained, serving_ids.former_app(folder), "app.py", again
        )
        return len(rows), f"{said}, in its app.py too, which an earlier release wrote"
    ours = all(
        (folder / name).read_bytes() == source.read_bytes() for name, source in serving_ids.APP.items()
    )
    return len(rows), f"{said}, in its app.py too" if ours else f"{said}; its app.py is another, and not run"


class _Side:
    """Answers to the prompts without or with one adapter, each given once and only when asked for."""

    def __init__(self, model: generation.Model, adapter: str | None, prompts: list[str]) -> None:
        self.model, self.adapter, self.prompts = model, adapter, prompts
        self._texts: dict[int, str] = {}

    def text(self, number: int) -> str:
        if number not in self._texts:
            prompt = self.prompts[number]
            answer = generation.stream(self.model, prompt, self.adapter, max_new_tokens=TOKENS)
            self._texts[number] = "".join(answer).strip()
        return self._texts[number]

    def logits(self) -> Any:
        """Logits [vocabulary] of the token after the first prompt. Raises ValueError for NaN and infinity."""
        import numpy as np

        found = generation.logits(self.model, self.prompts[0], self.adapter)
        if not np.isfinite(found).all():
            raise ValueError("it computes NaN or infinity instead of numbers; train or export it again")
        return found

    def spoken(self) -> str:
        """The first answer that is not empty. Raises ValueError if all are."""
        for number in range(len(self.prompts)):
            if text := self.text(number):
                return text
        raise ValueError(f"{len(self.prompts)} answers in a row are empty; train or export the model again")


def _speaks(side: _Side) -> tuple[str, str]:
    side.logits()
    text = side.spoken()
    return text, f"answers: {text[:60]!r}"


def _differs(base: _Side, side: _Side) -> tuple[str, str]:
    """An adapter whose answers are the base's own is ineffective, unless it at least moves the logits."""
    moved = abs(side.logits() - base.logits()).max()
    text = side.spoken()
    if any(side.text(number) != base.text(number) for number in range(len(side.prompts))):
        return text, f"answers differently from the base: {text[:60]!r}"
    if moved == 0:
        raise ValueError(
            "its answers do not differ from the base's in anything: the adapter is empty; train it again"
        )
    return text, f"changes logits by up to {moved:.2g} but none of the answers; it may need more training"


def _main(folder: str) -> int:
    settings.quiet_this_process()
    own_process.expendable()
    # What libraries print must not mix with the findings, so it goes to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = _answers(Path(folder))
    except Exception as error:  # whatever the runtime raises for this folder is a finding
        found = [Finding("answers", Status.FAILED, _plain(f"the model does not load: {reason(error)}"))]
    print(to_json([dataclasses.asdict(finding) for finding in found]), file=out, flush=True)
    return 0


if __name__ == "__main__":
    os._exit(_main(sys.argv[1]))  # a library's thread would delay the exit, and the caller waits for it
