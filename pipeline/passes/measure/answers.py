# mypy: disallow-subclassing-any=False
"""Answers of the exported model to held-out prompts, without and with its adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam

from pipeline import display
from pipeline.evaluation import answer_metrics, overlap, secondary
from pipeline.exports import generation
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import scattered
from pipeline.inputs.data.splitting import Parts
from pipeline.inputs.prompts import conversations, templates
from pipeline.passes import new_rows
from pipeline.passes.measure import rows_compared, tax
from pipeline.passes.measure.asking import choice
from pipeline.passes.measure.asking.allowance import Allowance
from pipeline.passes.measure.asking.float_answers import FloatAnswers
from pipeline.passes.measure.asking.near import Near
from pipeline.passes.measure.kept_lines import KeptLines
from pipeline.passes.measure.known import known_rows
from pipeline.passes.measure.known.known_rows import Known, KnownSides
from pipeline.passes.measure.proof import files as proof
from pipeline.passes.measure.proof import probing
from pipeline.passes.measure.row_losses import FILE, Losses, Record
from pipeline.stages.events import emit
from pipeline.system.files import finite

ANSWERS, COMPARED = "answers.json", "comparison.json"
GIVEN = "given.jsonl"  # answers as they come
DECIDE = (
    "data",
    "asked",
    "eval_fraction",
    "seed",
    "adapter",
    "merged",
    "tokenizer",
)  # what row losses depend on, and answers, with their length
SIDE = "adapter"
LONGEST_EXPECTED = 20_000  # letters that are written of an expected answer,
LONGEST_ANSWER = 200_000  # and at which an answer ends: a token of somebody's tokenizer may have megabytes


class Answers(Pass):
    """Write `answers.json`: {"files": {"base": {...}, "adapter": {...}}, "rows": [{prompt, system, expected,
    base: {...} | null, adapter: {...} | null}], "left_out": prompts that are longer than the model's context,
    "not_asked": those that there was no time for, "why_none": why there is no row, or ""}. Files are those
    that answered (`proof.files`). No prompt is asked twice, and none of a row that nearly repeats one that is
    trained on. They are asked in an order that is spread over the rows at any time.

    Also `comparison.json`: how near the answers of both sides are to the expected ones, how many pass the
    checks, how much of them stands in training rows, and what the adapter costs; with `rows`, also metrics of
    their losses on held-out rows and the verdict, and the same of other adapters in the folder; with `probe`,
    whether the base is the same once the adapter was active (`proof.probing`). And `rows.jsonl`, the losses
    row by row. An interrupted attempt leaves these and the answers that it had in the folder `kept`, and
    another one resumes there; what earlier evaluations of the same files measured is in the folder `known`
    (`known_rows`).

    A side is {text, tokens, cut, ended, tokens_per_second, first_token_seconds, nearness: {exact_match, ...},
    checks: [true, false, "why nobody can tell"]}; where the adapter is merged into the weights there is no
    base. Decoding is greedy, so that the same files give the same answers. With `exact`, rows have a side
    "float" too, null where there was no time for it, and other adapters are sides by `answered_by.side`.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(kind: Any, description: str) -> PassConfigParam:
            return PassConfigParam(type_=kind, required=True, description=description)

        return {
            "data": param(str, "The dataset, JSON lines."),
            "eval_fraction": param(float, "Share of rows held out."),
            "seed": param(int, "Seed of the split."),
            "prompts": param(int, "How many different held-out prompts to answer."),
            "max_new_tokens": param(int, "Maximum number of tokens in an answer."),
            "minutes": param(int, "After which no further prompt is asked."),
            "adapter": PassConfigParam(type_=str, default_value=None, description="An .onnx_adapter file."),
            "merged": PassConfigParam(type_=bool, default_value=False, description="Adapter in the weights."),
            "rows": PassConfigParam(
                type_=int, default_value=0, description="Held-out rows to measure, 0 for none, -1 for all."
            ),
            "tokenizer": PassConfigParam(
                type_=str, default_value=None, description="What training read with."
            ),
            "kept": PassConfigParam(
                type_=str, default_value=None, description="Folder of an interrupted try."
            ),
            "asked": PassConfigParam(
                type_=str, default_value=None, description="Rows in place of the held-out ones, JSON lines."
            ),
            "exact": PassConfigParam(
                type_=str, default_value=None, description="The float model, to be measured too."
            ),
            "known": PassConfigParam(
                type_=str, default_value=None, description="Folder of what earlier evaluations measured."
            ),
            "checks": PassConfigParam(
                type_=str, default_value=None, description="Checks of answers, one a line, in JSON."
            ),
            "probe": PassConfigParam(
                type_=bool, default_value=False, description="Compare with a process without adapter."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        export = Path(model.model_path).parent
        adapters = {SIDE: Path(config.adapter)} if config.adapter else {}
        others, unfit = proof.others(export, adapters[SIDE]) if adapters and config.rows else ({}, {})
        adapters |= others
        root, exact = (Path(given) if given else None for given in (config.known, config.exact))
        emit(message="Reading the exported model", progress=0.03)
        with known_rows.opened(root, export, adapters, exact) as known:
            written = self._written(model, config, Path(output_model_path), adapters, unfit, known)
            if said := known.reused():
                emit(message=said)
        return _handler(Path(model.model_path), written)

    def _written(
        self,
        model: ONNXModelHandler,
        config: Any,
        folder: Path,
        adapters: dict[str, Path],
        unfit: dict[str, str],
        known: KnownSides,
    ) -> list[Path]:
        """The files that are written into the folder."""
        base_alone = _base_alone(config, Path(model.model_path).parent)
        emit(message="Loading the exported model", progress=0.05)
        others = {side: file for side, file in adapters.items() if side != SIDE}
        opened = proof.load(Path(model.model_path).parent, adapters.get(SIDE), config.merged, others)
        loaded = opened.model
        data = Path(config.data)
        parts, new = _rows(config, data, loaded.template)
        base: dict[str, str | None] = {} if config.merged else {"base": None}
        sides = base | ({SIDE: None} if config.merged else {name: name for name in adapters if name == SIDE})
        every = sides | {side: side for side in others}
        named = proof.named(opened, every)
        made_with = {"graph": model.model_path, "files": named}
        compared = None
        if config.rows:
            compared = _compared(loaded, config, made_with, parts, new, every, known)
        given, kept = _given(config, made_with)
        asked = Asked(loaded, config.max_new_tokens, every, known.sides)
        chosen = choice.choose(loaded, new, config.prompts, given)
        answered = _answered(asked, chosen, given, kept, config.minutes)
        why = choice.why_none(loaded, new, chosen, bool(config.asked))
        if config.exact:
            _answer_by_float(asked, config, chosen, given, known.exact)
        near = Near.of(answered, [*others], json.loads(config.checks)["checks"] if config.checks else "")
        told = compared.judged(near.claims) if compared is not None else secondary.judge(near.claims)
        shares = _overlap(answered, [*every], data, loaded.template, parts)
        near.put(told, shares)
        metrics = {"answers": near.own}
        costs = None
        if len(sides) > 1:
            emit(message="Speed with and without the adapter", progress=0.96)
            costs = metrics["tax"] = tax.measure(loaded, SIDE)
        metrics["files"] = named = proof.named(opened, every)  # again: somebody may have changed them
        if base_alone is not None:
            metrics["probe"] = probing.probed(opened, base_alone)
        folder.mkdir(parents=True, exist_ok=True)
        left = {"left_out": chosen.too_long, "not_asked": len(chosen.rows) - len(answered), "why_none": why}
        _write(folder / ANSWERS, {"files": named, "rows": answered, **left})
        written = [folder / ANSWERS, folder / COMPARED]
        metrics |= new.left_out()
        if compared is not None:
            metrics |= compared.metrics(answered, costs, overlap.by_heart(shares), told)
            if found := compared.others(told, unfit):
                metrics["adapters"] = near.beside(found)
            shutil.copyfile(Path(config.kept) / FILE, folder / FILE)
            written.append(folder / FILE)
        _write(folder / COMPARED, metrics)
        return written


def _rows(config: Any, data: Path, template: templates.Template) -> tuple[Parts, new_rows.NewRows]:
    """How the dataset is split, and the rows that may be asked; says so if there are few."""
    parts = datasets.split(data, template, config.eval_fraction, config.seed)
    offered = new_rows.of(data, parts, Path(config.asked) if config.asked else None, template)
    new = offered.without_copies(data, parts, template)
    if len(new.asked) < min(config.prompts, len(new.positions)):
        place = "there" if config.asked else "held out"
        emit(message=f"Only {len(new.asked)} different prompts are {place}; each is asked once")
    return parts, new


def _base_alone(config: Any, export: Path) -> probing.Fresh | None:
    """What a process without the adapter says of the export; None where there is nothing to probe."""
    if not config.probe or not config.adapter:
        return None
    emit(message="Asking the base in a process without the adapter", progress=0.04)
    return probing.fresh(export)


def _given(config: Any, made_with: Mapping[str, Any]) -> tuple[dict[int, dict[str, Any]], KeptLines]:
    """The answers of an interrupted attempt with the same files, by the position of their row, and where
    others are kept."""
    kept = Path(config.kept)
    kept.mkdir(parents=True, exist_ok=True)
    decide = {name: getattr(config, name) for name in (*DECIDE, "max_new_tokens")}
    given: dict[int, dict[str, Any]] = {}
    return given, KeptLines(
        kept / GIVEN, {**made_with, **decide}, lambda entry: given.update({entry["at"]: entry["row"]})
    )


@dataclass(frozen=True)
class Asked:
    """What is asked for answers of up to so many tokens: `sides` maps each side to its active adapter, or
    None, and `known` such an adapter to what earlier evaluations got."""

    loaded: generation.Model
    max_new_tokens: int
    sides: dict[str, str | None]
    known: Mapping[str | None, Known]


def _answered(
    asked: Asked,
    chosen: choice.Chosen,
    given: dict[int, dict[str, Any]],
    kept: KeptLines,
    minutes: float,
) -> list[dict[str, Any]]:
    """The rows of answers.json for the chosen prompts, as many as there is time for.

    Those that are `given` already are not asked; each other is kept as soon as it is there.
    """
    if given:
        emit(message=f"Prompts answered before this stage was interrupted: {len(given):,}")
    count, positions, allowed = len(chosen.rows), [*chosen.rows], Allowance(minutes)
    for number, place in enumerate(scattered(count)):
        at = positions[place]
        if at in given or allowed.is_over:
            continue
        left = allowed.seconds_left(count - number)
        progress = 0.65 + 0.3 * number / count
        emit(message=f"Prompt {number + 1} of {count}", progress=progress, eta_seconds=left)
        given[at] = _answer(asked, chosen.rows[at])
        kept.add({"at": at, "row": given[at]})
        allowed.answered()
        print(f"Answered prompt {number + 1} of {count}", flush=True)
    emit(eta_seconds=None)
    found = [given[at] for at in positions if at in given]
    if not_asked := count - len(found):
        emit(message=f"Not asked after {minutes} minutes: {not_asked:,} of {count:,} prompts")
        print(f"Not asked after {minutes} minutes: {not_asked:,} of {count:,} prompts", flush=True)
    return found


def _answer_by_float(
    asked: Asked, config: Any, chosen: choice.Chosen, given: dict[int, dict[str, Any]], known: Known
) -> None:
    """Put the float model's answers to the prompts that were asked into their rows: None for those that there
    is no time for, which is as long as that for the export's."""
    exact, allowed = FloatAnswers(Path(config.exact), asked.loaded), Allowance(config.minutes)
    positions = [at for at in chosen.rows if at in given]
    for number, place in enumerate(scattered(len(positions))):
        at = positions[place]
        given[at][answer_metrics.FLOAT] = None
        if allowed.is_over:
            continue
        left = allowed.seconds_left(len(positions) - number)
        said = f"Prompt {number + 1} of {len(positions)} on the float model"
        emit(message=said, progress=0.95, eta_seconds=left)
        prompt = asked.loaded.reader.text(chosen.rows[at])
        generate = partial(_float_answer, exact, prompt, asked.max_new_tokens)
        limits = asked.max_new_tokens, LONGEST_ANSWER
        given[at][answer_metrics.FLOAT] = known.answer(prompt, limits, generate)
        allowed.answered()
    emit(eta_seconds=None)


def _overlap(
    answered: list[dict[str, Any]],
    sides: Sequence[str],
    data: Path,
    template: templates.Template,
    parts: Parts,
) -> dict[str, float]:
    """How much of each side's answers, and of the expected ones, stands in rows that were trained on."""
    texts = {side: [row[side]["text"] for row in answered if row[side]] for side in sides} | {
        "expected": [row["expected"] for row in answered]
    }
    found = overlap.Overlap(texts)
    trained = iter(parts.train)
    wanted = next(trained, None)
    for position, (_, row) in enumerate(datasets.rows(data)):
        if position == wanted:
            found.read(_responses(row, template))
            wanted = next(trained, None)
    return found.shares()


def _responses(row: dict[str, Any], template: templates.Template) -> list[str]:
    """What is learned of a row: its response, or each answer of a conversation."""
    if templates.is_conversation(template, row):
        return [str(turn.answer.get("content") or "") for turn in conversations.turns(row)]
    return [templates.expected(template, row)]


def _compared(
    loaded: generation.Model,
    config: Any,
    made_with: Mapping[str, Any],
    parts: Parts,
    new: new_rows.NewRows,
    sides: dict[str, str | None],
    known: KnownSides,
) -> rows_compared.Compared:
    """Losses of both sides on held-out rows; each is kept as soon as it is measured."""
    kept = Path(config.kept)
    kept.mkdir(parents=True, exist_ok=True)
    record = Record(kept / FILE, {**made_with} | {name: getattr(config, name) for name in DECIDE})
    read, data = Path(config.tokenizer), Path(config.data)
    losses = Losses(loaded, read, data, loaded.template, sides, record, known=known.sides)
    limit, folder = None if config.rows < 0 else config.rows, Path(config.exact) if config.exact else None
    return rows_compared.compare(losses, parts, new, limit, folder, known.exact)


def _write(file: Path, content: Any) -> None:
    file.write_text(
        json.dumps(finite(content), allow_nan=False, ensure_ascii=False, indent=1) + "\n", "utf-8"
    )


def _answer(asked: Asked, row: dict[str, Any]) -> dict[str, Any]:
    """One row of answers.json."""
    model = asked.loaded
    prompt = model.reader.text(row)
    answers: dict[str, Any] = {"base": None, SIDE: None}
    limits = asked.max_new_tokens, LONGEST_ANSWER
    for side, adapter in asked.sides.items():
        generate = partial(_generated, model, prompt, adapter, asked.max_new_tokens)
        answers[side] = asked.known[adapter].answer(prompt, limits, generate)
    about = {
        "prompt": templates.question(model.template, row),
        "system": templates.system(model.template, row) if "system" in model.reader.optional else "",
    }
    expected = display.cut(templates.expected(model.template, row), LONGEST_EXPECTED)
    return {**about, "expected": expected, **answers}


def _generated(
    model: generation.Model, prompt: str, adapter: str | None, max_new_tokens: int
) -> dict[str, Any]:
    """The facts of one side's answer."""
    return _facts(generation.stream(model, prompt, adapter, max_new_tokens=max_new_tokens))


def _float_answer(exact: FloatAnswers, prompt: str, max_new_tokens: int) -> dict[str, Any]:
    """The facts of the float model's answer."""
    return _facts(exact.stream(prompt, max_new_tokens))


def _facts(answer: generation.Answer) -> dict[str, Any]:
    """The facts of an answer, which ends when it has too many letters."""
    letters = 0
    for piece in answer:
        letters += len(piece)
        if letters > LONGEST_ANSWER:
            answer.text, answer.cut = answer.text[:LONGEST_ANSWER], True
            break
    return answer.facts()


def _handler(graph: Path, written: list[Path]) -> ONNXModelHandler:
    """Olive wants a model from every pass: the graph's small file, without weights, beside the results."""
    folder = written[0].parent
    shutil.copyfile(graph, folder / graph.name)
    return ONNXModelHandler(
        folder,
        onnx_file_name=graph.name,
        model_attributes={"additional_files": [str(file) for file in written]},
    )
