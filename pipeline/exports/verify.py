"""Whether an exported folder is whole, fits together, and answers.

`static` reads the files in a moment: Compare does so before it loads a model. `whole` also compares
checksums and has the model answer, as `python -m pipeline verify` and publishing do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipeline import display
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, serving_ids
from pipeline.exports.findings import Finding, Report, failed, some
from pipeline.exports.verifying import answering, json_files
from pipeline.exports.verifying.adapter_files import adapters_of
from pipeline.exports.verifying.declarations import Config, declared, read_config, read_graph
from pipeline.inputs.models import contents
from pipeline.inputs.prompts import model_template, templates
from pipeline.system import checksums

MOST_FILES = 1000  # of a folder, and folders in it; an export has about a dozen, and one for each adapter
MOST_REASONS = 10  # in one error


def whole(folder: Path) -> list[Finding]:
    """Every check: the files, their checksums, and real answers without and with each adapter.

    Reads all bytes of the folder. Raises InputError if there is no such folder.
    """
    found = static(folder)
    report = Report(found)
    if (folder / checksums.NAME).exists():
        report.check("checksums", partial(_checksums, folder))
    else:
        report.skip("checksums", f"the folder has no {checksums.NAME}; an export of this release has one")
    if failed(found):
        report.skip("answers", "a model is loaded once the checks above are good")
        return found
    return found + answering.live(folder)


def static(folder: Path, adapter: Path | None = None) -> list[Finding]:
    """The checks that need neither the weights nor a runtime: a fraction of a second.

    `adapter` is one that may lie elsewhere and is checked too. Nothing else is looked at in a folder whose
    files are no export's. Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    report = Report([])
    if report.check("files", partial(_files, folder)) is None:
        return report.findings
    config = report.check("config", partial(read_config, folder))
    graph = None
    if config is None:
        report.skip("graph", f"needs a good {json_files.CONFIG}")
    else:
        graph = report.check("graph", partial(read_graph, folder, config))
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


def require(findings: list[Finding], otherwise: str) -> None:
    """Raise LabError with `otherwise` and all that failed, as one sentence; do nothing if all is good."""
    if bad := failed(findings):
        reasons = [f"{finding.check}: {finding.message}" for finding in bad[:MOST_REASONS]]
        more = [f"and {len(bad) - MOST_REASONS:,} more"] if len(bad) > MOST_REASONS else []
        raise LabError(f"{otherwise}: {'; '.join([*reasons, *more])}.")


def why_unfit(folder: Path, adapter: Path) -> str:
    """Why an adapter in an exported folder does not fit its graph; "" if it does.

    Raises ValueError, OSError for a faulty graph.
    """
    config, graph = declared(folder)
    report = Report([])
    report.check(adapter.name, partial(_adapter, adapter, graph, config))
    return "; ".join(finding.message for finding in failed(report.findings))


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


def _weights(folder: Path, graph: contract.Graph) -> tuple[int, str]:
    size = contract.check_pieces(folder, graph.pieces)
    return size, f"{len(graph.pieces)} tensors lie within {size:,} bytes"


def _adapter(file: Path, graph: contract.Graph, config: Config) -> tuple[int, str]:
    tensors = contract.read_adapter(contract.inside(file.parent, file.name))
    if not tensors:
        raise ValueError(f"{file.name} has no tensors; export the adapter again")
    faults = some(contract.misfits(tensors, graph, config.inputs))
    if faults:
        raise ValueError(
            f"{file.name} belongs to another graph: {faults}; use the adapter exported with this model"
        )
    places = len(graph.inputs) - len(config.inputs)
    return len(tensors), f"fits: {len(tensors)} of the graph's {places} adapter inputs"


def _bound(folder: Path, graph: contract.Graph | None) -> tuple[int, str]:
    """Whether the graph has as many of the adapter's tensors as the folder says."""
    facts = json_files.small_json(folder, contract.BOUND)
    count = json_files.count(facts, "tensors", contract.BOUND)
    there = sum(piece.location == contract.ADAPTER_DATA for piece in graph.pieces) if graph else count
    if there != count:
        raise ValueError(
            f"the graph has {there:,} tensors of the bound adapter, and {contract.BOUND} says {count:,};"
            " bind the adapter again"
        )
    named = display.quoted(str(facts.get("adapter")))
    return count, f"{named} is a part of the graph: {count:,} tensors"


def _tokenizer(folder: Path) -> tuple[int, str]:
    if (folder / json_files.MODULE).exists():  # the runtime reads it as well, and opens what it names
        raise ValueError(f"it has {json_files.MODULE}, which no exporter writes; remove it")
    tokenizer = json_files.small_json(folder, json_files.TOKENIZER)
    model = json_files.part(tokenizer, "model", dict, json_files.TOKENIZER)
    words = model.get("vocab")
    if not isinstance(words, dict | list) or not words:
        raise ValueError(f"{json_files.TOKENIZER} has no vocabulary; export the model again")
    name = model_template.TOKENIZER_CONFIG
    # The runtime opens what it names, wherever that is, and its error tells whether it exists.
    if wrong := contents.of_tokenizer_config(json_files.small_json(folder, name)):
        raise ValueError(f"{name}: {wrong}")
    return len(words), f"{len(words):,} words"


def _template(folder: Path) -> tuple[int, str]:
    lab = json_files.small_json(folder, serving_ids.LAB)
    text = json_files.part(lab, "template", str, serving_ids.LAB)
    serving_ids.check(lab)
    # The model's own template needs its file: without it the first prompt would fail.
    template = templates.parse(text, model_template.chat_template(folder))
    prompt = template.prompt(dict.fromkeys(template.fields, answering.PROMPTS[0]))
    if not prompt.strip():
        raise ValueError("the template writes no prompt; export the model again")
    return len(prompt), f"renders a prompt of {', '.join(template.fields[:-1])}"


def _checksums(folder: Path) -> tuple[int, str]:
    told = checksums.read(folder)
    for name in told:
        contract.inside(folder, name)
    sums = checksums.of(folder, told)
    changed = some(f"{name} is not what was written" for name in sorted(told) if sums[name] != told[name])
    if changed:
        raise ValueError(f"{changed}; copy it again, or export the model again")
    return len(told), f"{len(told)} files are as they were written"
