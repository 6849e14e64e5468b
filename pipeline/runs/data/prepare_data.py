"""A dataset of any format: made into the lab's JSON lines, checked as these, and kept with its original."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import Busy, InputError, LabError
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.data.formats import columns, convert
from pipeline.inputs.data.formats.columns import Columns
from pipeline.inputs.data.formats.convert import Made
from pipeline.inputs.data.hub import dataset_id, fetching_rows
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.runs import check_pool
from pipeline.runs.data import data_card, data_check
from pipeline.stages import finetune
from pipeline.store import scratch
from pipeline.system import files

ORIGINAL = "original"  # the folder with that
LARGEST_RECORD = 1 << 20
MOST_NAMED = 200  # columns that a list on the page offers
LONGEST_NAME = 100  # letters of a name of ours
OTHER_FORM = "one of this file and the dataset is plain text, and the other is not; give one of the same kind"


@dataclass(frozen=True)
class Checked:
    """A dataset as it was made, and what the check says of it, with lines or rows of what was given.

    used      the JSON lines that were checked: those made, or what is left without some rows
    unknown   why a model that was named is none
    has_chat  whether it has a chat template
    source    where it is from, if that is the hub: its id with the commit
    is_alike  whether it is read with the template that the dataset it was compared with is
    left_out  by which choice rows were left out, "" if none were: see `data_card.Question.choice`
    """

    made: Made
    report: datasets.Report
    used: Path
    left_out: str = ""
    unknown: str = ""
    has_chat: bool = True
    source: str = ""
    is_alike: bool = True

    def listed(self) -> list[tuple[int, str]]:
        """The problems as (line or row, sentence); of several files the sentence names which."""
        found = []
        for problem in self.report.problems:
            for source in self.made.sources:
                begins = f"{display.plain(str(source))}:"
                number, _, rest = problem.removeprefix(begins).removeprefix(" row ").partition(": ")
                if problem.startswith(begins) and number.isdecimal():
                    several = len(self.made.sources) > 1
                    found.append((int(number), f"{display.line(source.name)}: {rest}" if several else rest))
                    break
            else:
                found.append((1, problem))
        return found

    def messages(self) -> list[str]:
        """The problems with `Line 7` in place of the path, and at the end how many were not listed."""
        unit = self.made.units[0].capitalize()
        listed = [f"{unit} {number}: {problem}" for number, problem in self.listed()]
        return listed + self.report.messages()[len(listed) :]


def checking(
    given: Sequence[Path],
    work: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
    chosen: Columns | None = None,
    leave_out: Sequence[str] = (),
) -> Generator[str, None, Checked]:
    """`data_check.checking` of files of any format, which are made into one in the folder `work`.

    Rows that have one of the findings `leave_out` are left out before the check.

    The app has it done by a process: see `check_pool`. Raises what `data_check.checking` does, and what
    `convert.preparing` does.
    """
    asked = {
        "given": [os.fspath(path) for path in given],
        "work": os.fspath(work),
        "template": template,
        "model": dataclasses.asdict(model) if model is not None else None,
        "eval_fraction": eval_fraction,
        "seed": seed,
        "max_length": max_length,
        "chosen": chosen.to_dict() if chosen else None,
        "leave_out": list(leave_out),
    }
    found = yield from check_pool.ask(f"{__name__}:answer", asked)
    return _checked(found)


def looking(
    given: Sequence[Path], work: Path, template: str, model: str, max_length: int, chosen: Columns | None,
    like: Path | None = None,
) -> Generator[str, None, Checked]:  # fmt: skip
    """`checking` for the page, with a model by its name, "" for none: see `data_check.look`.

    Where no columns are chosen, the files are read with those of the home's dataset `like`, if they have all.
    What is plain text where that is not, or the reverse, is not `is_alike`.
    """
    asked = {
        "given": [os.fspath(path) for path in given],
        "work": os.fspath(work),
        "template": template,
        "model": model,
        "max_length": max_length,
        "chosen": chosen.to_dict() if chosen else None,
        "like": os.fspath(like) if like is not None else "",
    }
    return _checked((yield from check_pool.ask(f"{__name__}:look", asked)))


def look(
    given: list[str], work: str, template: str, model: str, max_length: int, chosen: Any, like: str = ""
) -> Generator[str, None, dict[str, Any]]:
    """`looking` as a process is asked for it."""
    paths, choice = list(map(Path, given)), columns.parse(chosen) if chosen else None
    if choice is None and like and (known := record(Path(like))):
        choice = yield from shared(known.columns, paths, Path(work), template)
    made = yield from preparing(paths, Path(work), template, choice)
    report, rest = _of_making(made), {"unknown": "", "has_chat": True}
    if made.rows or not made.problems:
        found = yield from data_check.look(str(made.path), made.template(template), model, max_length)
        report, rest = _joined(made, _report(found.pop("report"))), found
    rest["is_alike"] = not like or made.template(template) == template_of(Path(like), template)
    named = [name for name in made.fields if len(name) <= columns.LONGEST_NAME]
    made = replace(made, fields=tuple(named[:MOST_NAMED]))
    facts = {"made": convert.facts(made), "report": dataclasses.asdict(report), "used": str(made.path)}
    return {**facts, **rest}


def _checked(found: dict[str, Any]) -> Checked:
    rest = {name: value for name, value in found.items() if name not in ("made", "report", "used")}
    return Checked(convert.from_facts(found["made"]), _report(found["report"]), Path(found["used"]), **rest)


def _report(facts: dict[str, Any]) -> datasets.Report:
    return datasets.Report(**{**facts, "fields": tuple(facts["fields"])})


def answer(
    given: list[str], work: str, model: dict[str, Any] | None, chosen: Any, **rest: Any
) -> Generator[str, None, dict[str, Any]]:
    """`checking` as a process is asked for it: what was found as a mapping."""
    known = base_models.from_facts(model) if model is not None else None
    choice = columns.parse(chosen) if chosen else None
    found = yield from _checking(list(map(Path, given)), Path(work), model=known, chosen=choice, **rest)
    return {
        "made": convert.facts(found.made),
        "report": dataclasses.asdict(found.report),
        "used": str(found.used),
        "left_out": found.left_out,
    }


def _checking(
    given: Sequence[Path],
    work: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float,
    seed: int,
    max_length: int | None,
    chosen: Columns | None,
    leave_out: Sequence[str],
) -> Generator[str, None, Checked]:
    """`checking` in this process."""
    made = yield from preparing(given, work, template, chosen)
    if made.problems and not made.rows:
        return Checked(made, _of_making(made), made.path)
    template = made.template(template)
    path, went, choice = made.path, 0, ""
    if leave_out and path.is_file():
        most = max_length or finetune.Options.max_length
        asked = data_card.Question(path, template, model, most, eval_fraction, seed, tuple(leave_out))
        copy, went = yield from data_card.without(asked, work)
        if went:
            path, choice = copy, asked.choice()
    report = yield from data_check.checking(path, template, model, eval_fraction, seed, max_length)
    report = _joined(made, _named(report, path, made.path))
    if went and report.good:
        rows = f"{went:,} row{'s' * (went > 1)} {'are' if went > 1 else 'is'}"
        note = f"{rows} left out (leave_out: {','.join(leave_out)})."
        report = replace(report, notes=[note, *report.notes])
    return Checked(made, report, path, choice)


def _named(report: datasets.Report, path: Path, other: Path) -> datasets.Report:
    """A report on one file with the name of another that has the same lines."""
    begins, instead = (f"{display.plain(str(one))}:" for one in (path, other))
    problems = [
        f"{instead}{problem.removeprefix(begins)}" if problem.startswith(begins) else problem
        for problem in report.problems
    ]
    return replace(report, problems=problems)


def preparing(
    given: Sequence[Path], work: Path, template: str, chosen: Columns | None = None
) -> Generator[str, None, Made]:
    """`convert.preparing`, which knows what was made here before: it stays, or its original is read again."""
    target = work / made_name(given)
    if len(given) == 1 and (known := record(given[0])):
        originals = [given[0].parent / ORIGINAL / name for name in known.originals]
        if _still_fits(known, template, chosen) or not all(path.is_file() for path in originals):
            plain = Made(given[0], tuple(given), known.container, known.shape, known.fields)
            return replace(plain, columns=known.columns, proposed=known.columns)
        given = originals
    return (yield from convert.preparing(given, target, template, chosen))


def shared(
    wanted: Columns | None, given: Sequence[Path], work: Path, template: str
) -> Generator[str, None, Columns | None]:
    """The wanted columns, if these files have all of them; so they are read as another dataset is.

    Raises what `preparing` does.
    """
    if wanted is None:
        return None
    apart = work / "fields"
    apart.mkdir()
    made = yield from preparing(given, apart, template)
    return wanted if set(wanted.names) <= set(made.fields) else None


def made_name(given: Sequence[Path]) -> str:
    """What the JSON lines made of these files are called."""
    stem = display.file_name(given[0].name)
    for ending in (".gz", ".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".parquet"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) and stem[: -len(ending)] else stem
    more = f" and {len(given) - 1:,} more" if len(given) > 1 else ""
    return f"{stem[:LONGEST_NAME]}{more}.jsonl"


def _of_making(made: Made) -> datasets.Report:
    """The report on files of which no row could be made."""
    problems = [f"{made.named(number)}: {problem}" for number, problem in sorted(made.problems)]
    return datasets.Report(
        made.read, made.fields, [], problems, made.more, made.stopped, broken=len(problems)
    )


def _joined(made: Made, report: datasets.Report) -> datasets.Report:
    """The check's report with the names of what was given, and the problems of making."""
    if not made.is_made:
        return report
    begins = f"{display.plain(str(made.path))}:"
    found = list(made.problems)
    for problem in report.problems:
        number, _, rest = problem.removeprefix(begins).partition(": ")
        found.append((int(number), rest) if number.isdecimal() else (1, problem))
    found.sort()
    listed = found[: datasets.MOST_PROBLEMS]
    return replace(
        report,
        rows=made.read,
        problems=[f"{made.named(number)}: {problem}" for number, problem in listed],
        more=made.more + report.more + len(found) - len(listed),
        stopped=made.stopped or report.stopped,
        notes=[] if found else report.notes,
        broken=report.broken + len(made.problems),
    )


def bringing(given: Path, *, own_login: bool = True) -> Generator[str, None, tuple[tuple[Path, ...], str]]:
    """The files that a recipe's `data` names, fetched if they are on the hub; and where they are from.

    That is "" but for what is, or was, on the hub. Yields how far a download is. `own_login` is as for
    `fetching_rows.fetching`. Raises InputError, LabError.
    """
    if dataset_id.is_id(str(given)):
        found = yield from fetching_rows.fetching(str(given), settings.home(), own_login=own_login)
        return found.files, str(found.id)
    return convert.sources(given), source_of(given)


def source_of(path: Path) -> str:
    """The id of the hub's dataset that a dataset in the home is from; "" if from none."""
    if path.resolve().parent.parent != settings.home() / "datasets":
        return ""
    with suppress(OSError, ValueError, InputError):
        found = dataset_id.parse((path.parent / datasets.SOURCE).read_text("utf-8"))
        return str(found) if found.is_pinned else ""
    return ""


def keep_source(kept: Path, source: str) -> None:
    """Note beside a dataset in the home where it is from, if that is known."""
    if source and not (kept.parent / datasets.SOURCE).is_file():
        files.write_whole(kept.parent / datasets.SOURCE, source, shared=True)


def check(
    given: Path, work: Path, template: str, model: base_models.Model | None, eval_fraction: float, seed: int,
    max_length: int | None, chosen: Columns | None, leave_out: Sequence[str] = (), least: int = 2,
) -> Checked:  # fmt: skip
    """`checking` to its end; `least` rows are needed. Raises InputError with all faults, LabError as that."""
    split = eval_fraction, seed, max_length
    try:
        sources, source = telling.ended(bringing(given))
    except (InputError, Busy):
        raise
    except LabError as error:
        raise InputError(f"data: {error}") from None
    steps = checking(sources, work, template, model, *split, chosen, leave_out)
    found = replace(ended(steps, sources[0]), source=source)
    data_check.require_chat(found.made.template(template), model)
    if problem := unusable(found, least):
        raise InputError(problem)
    return found


def unusable(found: Checked, least: int = 2) -> list[str]:
    """Why a dataset cannot be used, a sentence each; none if it can."""
    if not found.report.good:
        return found.report.messages()
    if found.report.rows < least:
        return [datasets.too_few(found.made.sources[0], found.report.rows)]
    return []


def ended(
    steps: Generator[str, None, Checked], given: Path, tell: Callable[[str], None] = lambda _: None
) -> Checked:
    """What `checking` returns in the end; `tell` gets what it says. Raises InputError, OSError as that."""
    try:
        return telling.ended(steps, tell)
    except OSError as error:
        name = display.valid(str(error.filename or given))
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None


@contextmanager
def work_folder(home: Path) -> Iterator[Path]:
    """A folder for what is made, which goes afterwards; one of a killed process with its `scratch`, or else
    it is freed with datasets."""
    above = scratch.room(home / "datasets")
    was_there = above.is_dir()
    above.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(suffix=".part", dir=above))
    try:
        inside = folder / "work"  # what lies right in such a folder is a dataset, which pages offer
        inside.mkdir()
        yield inside
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not was_there:
            with suppress(OSError):  # something was kept meanwhile
                above.rmdir()


@dataclass(frozen=True)
class Record:
    """What a dataset in the home was made of, and how."""

    originals: tuple[str, ...]
    container: str
    shape: str
    fields: tuple[str, ...]
    columns: Columns | None


def described(made: Made) -> str:
    """What rows were read as, such as `csv, question/answer: prompt = Q, response = A`."""
    said = f"{made.container}, {made.shape}"
    if made.columns is None:
        return said
    parts = [
        f"{part} = {' + '.join(map(display.short, names))}"
        for part, names in made.columns.to_dict().items()
        if names
    ]
    whole = f"; each is learned as a whole, with the template {templates.CONTINUED} in place of chat"
    return f"{said}: {', '.join(parts)}{whole * made.columns.is_text}"


def record(path: Path) -> Record | None:
    """What a dataset was made of here, None if it was not."""
    try:
        with (path.parent / datasets.MADE).open("rb") as file:
            found = json.loads(file.read(LARGEST_RECORD))
        if found["made"] != path.name:
            return None
        names = tuple(str(name) for name in found["originals"])
        if not names or any(Path(name).name != name for name in names):
            return None
        chosen = columns.parse(found["columns"]) if found["columns"] else None
        fields = tuple(map(str, found["fields"]))
        return Record(names, str(found["container"]), str(found["shape"]), fields, chosen)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, InputError):
        return None


def template_of(path: Path, template: str) -> str:
    """The template that a dataset is read with: see `Made.template`."""
    known = record(path) if template.strip() == templates.CHAT else None
    if known is None or known.columns is None or not known.columns.is_text:
        return template
    return templates.CONTINUED


def answer_template(path: str, template: str) -> Generator[str, None, str]:
    """`template_of` as a process is asked for it."""
    yield "Reading…"
    return template_of(Path(path), template)


def _still_fits(known: Record, template: str, chosen: Columns | None) -> bool:
    """Whether what was made is what would be made again."""
    if chosen is not None and chosen != known.columns:
        return False
    if template.strip() == templates.CHAT:
        return True
    wanted = set(templates.parse(template).fields)
    return wanted <= {"prompt", "response", "system"} or known.columns is None


def digest(made: Made) -> str:
    """Tells apart datasets made of other files, or of other columns, though their rows are equal."""
    facts = [made.container, made.columns.to_dict() if made.columns else None]
    originals = [[source.name, datasets.sha256(source)] for source in made.sources]
    return hashlib.sha256(json.dumps([facts, originals], allow_nan=False).encode()).hexdigest()


def keep_originals(kept: Path, made: Made) -> None:
    """Put what a kept dataset was made of beside it, if it is not there yet. Raises OSError, LabError."""
    if (kept.parent / datasets.MADE).is_file():
        return
    arriving = scratch.room(kept.parent) / f".{secrets.token_hex(4)}.part"
    arriving.mkdir(mode=0o700)
    try:
        names: dict[str, None] = {}
        for source in made.sources:
            name = _free_name(display.file_name(source.name), names)
            names[name] = None
            files.make_room(arriving, source.stat().st_size)
            shutil.copyfile(source, arriving / name)
            (arriving / name).chmod(0o600)
        facts: dict[str, Any] = {
            "made": kept.name,
            "originals": list(names),
            "container": made.container,
            "shape": made.shape,
            "fields": made.fields,
            "columns": made.columns.to_dict() if made.columns else None,
        }
        with suppress(OSError):  # another has just kept the same
            arriving.replace(kept.parent / ORIGINAL)
        files.write_whole(kept.parent / datasets.MADE, facts, shared=True)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _free_name(name: str, taken: Container[str]) -> str:
    """A name that no other file of the folder has."""
    others = (f"{number} {name}" for number in count(2))
    return next(new for new in chain([name], others) if new not in taken)
