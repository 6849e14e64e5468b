"""The data of recipes that are checked together: looked at once, counted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.data.card import findings
from pipeline.inputs.data.formats import columns
from pipeline.inputs.models import base_models
from pipeline.runs import kept_datasets
from pipeline.runs.data import prepare_data, row_lengths
from pipeline.runs.data.prepare_data import Checked
from pipeline.runs.data.row_lengths import RowLengths
from pipeline.runs.preflight import report as preflight
from pipeline.runs.preflight import row_facts
from pipeline.stages.all_stages import ask
from pipeline.stages.costs.cost import Rows
from pipeline.stages.recipe import Recipe


class Prepared:
    """The data of recipes, checked, and made in the folder `work` where it is not the lab's JSON lines.

    What was seen once is not read again.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._seen: dict[Any, Checked | InputError] = {}
        self._told: set[Any] = set()
        self._counted: dict[Any, Rows] = {}
        self._lengths: dict[Any, RowLengths] = {}

    def check(self, recipe: Recipe, model: base_models.Model | None) -> datasets.Report:
        """The report of a recipe's data; without notes if they were given before. Raises InputError."""
        report, key = self.checked(recipe, model).report, self._key(recipe)
        if key in self._told:
            return dataclasses.replace(report, notes=[])
        self._told.add(key)
        return report

    def checked(self, recipe: Recipe, model: base_models.Model | None) -> Checked:
        """A recipe's data. Raises InputError."""
        key = self._key(recipe)
        seen = self._seen.get(key)
        if isinstance(seen, Checked):
            return seen
        if seen is not None:
            raise seen
        folder = self._work / str(len(self._seen))
        folder.mkdir()
        chosen = columns.parse(recipe.columns) if recipe.columns else None
        given = Path(recipe.data), folder, recipe.template, model, recipe.eval_fraction, recipe.seed
        names = findings.parse(recipe.leave_out)
        try:
            self._seen[key] = found = prepare_data.check(*given, _longest(recipe), chosen, names)
            template = found.made.template(recipe.template)
            self._seen[self._key(dataclasses.replace(recipe, template=template))] = found
        except InputError as error:
            self._seen[key] = error
            raise
        return found

    def template(self, recipe: Recipe) -> str:
        """The template that the data of a recipe is read with, after `checked`."""
        found = self._seen.get(self._key(recipe))
        return found.made.template(recipe.template) if isinstance(found, Checked) else recipe.template

    def files(self, recipe: Recipe, model: base_models.Model | None) -> dict[str, Checked]:
        """By stage, the rows that it reads besides the data. Raises InputError naming the option."""
        found = {}
        for name, options in recipe.stages().items():
            if not (file := ask(name, "file", options)):
                continue
            template = self.template(recipe)
            like = dataclasses.replace(recipe, template=template)
            key = name, file, template, recipe.model, self._key(like)
            if key not in self._seen:
                folder = self._work / str(len(self._seen))
                folder.mkdir()
                self._seen[key] = self._file(f"{name}.data", Path(file), folder, recipe, model)
            seen = self._seen[key]
            if isinstance(seen, InputError):
                raise seen
            found[name] = seen
        return found

    def _file(
        self, where: str, file: Path, folder: Path, recipe: Recipe, model: base_models.Model | None
    ) -> Checked | InputError:
        if not file.is_file():
            return InputError(f"{where}: {display.line(str(file))}: there is no such file")
        split = recipe.eval_fraction, recipe.seed, None
        data = self._seen.get(self._key(recipe))
        columns_of_data = data.made.columns if isinstance(data, Checked) and data.made.has_chosen else None
        try:
            alike = telling.ended(prepare_data.shared(columns_of_data, [file], folder, recipe.template))
            found = prepare_data.check(file, folder, recipe.template, model, *split, alike, least=1)
        except InputError as error:
            return InputError([f"{where}: {problem}" for problem in error.problems])
        if found.made.template(recipe.template) != self.template(recipe):
            return InputError(f"{where}: {display.line(file.name)}: {prepare_data.OTHER_FORM}")
        return found

    def preflight(self, recipe: Recipe, model: base_models.Model) -> dict[str, Any]:
        """What a recipe that was checked takes. Raises InputError with what does not fit this machine."""
        found = self._seen[self._key(recipe)]
        assert isinstance(found, Checked)
        brought = {
            name: self._rows(one, recipe, model, 1.0) for name, one in self.files(recipe, model).items()
        }
        rows = self._rows(found, recipe, model, recipe.eval_fraction)
        takes = preflight.make(recipe, model, rows, brought)
        if takes.problems:
            raise InputError(takes.problems)
        return takes.to_dict()

    def _rows(self, data: Checked, recipe: Recipe, model: base_models.Model, held_out: float) -> Rows:
        """What was counted of rows, once for all recipes: it takes a process with the model's tokenizer."""
        key = data.used, recipe.template, recipe.model, data.report.rows, held_out
        if key not in self._counted:
            self._counted[key] = row_facts.of(data.used, recipe.template, model, data.report.rows, held_out)
        return self._counted[key]

    def lengths(self, recipe: Recipe, model: base_models.Model) -> Generator[str, None, RowLengths]:
        """How long the rows of a recipe's data are, counted once as in `_rows`. Raises InputError, Busy."""
        data = self.checked(recipe, model)
        template = data.made.template(recipe.template)
        key = data.used, template, recipe.model
        if key not in self._lengths:
            self._lengths[key] = yield from row_lengths.counting(data.used, template, model)
        return self._lengths[key]

    def result(self, recipe: Recipe) -> dict[str, Any]:
        """What `Passed` has of the data of a recipe that was checked."""
        found = self._seen[self._key(recipe)]
        assert isinstance(found, Checked)
        made = found.made
        chosen = made.columns.to_dict() if made.columns is not None and made.has_chosen else None
        files = {name: str(one.used) for name, one in self.files(recipe, None).items()}
        return {"data": str(found.used), "columns": chosen, "source": found.source, "files": files}

    def keep(self, home: Path, results: list[dict[str, Any]]) -> None:
        """Put what was made into the home, before it goes with the folder; the results name it there."""
        checked = [seen for seen in self._seen.values() if isinstance(seen, Checked)]
        kept = {
            str(one.used): str(kept_datasets.keep_made(home, one.made, one.used, one.source, one.left_out))
            for one in checked
            if one.made.is_made or one.used != one.made.path or one.source
        }
        for one in results:
            one["data"] = kept.get(one["data"], one["data"])
            one["files"] = {name: kept.get(file, file) for name, file in one["files"].items()}

    def _key(self, recipe: Recipe) -> Any:
        chosen = str(columns.parse(recipe.columns).to_dict()) if recipe.columns else ""
        return (
            recipe.data, recipe.template, recipe.eval_fraction, recipe.seed, _longest(recipe), recipe.model,
            chosen, findings.parse(recipe.leave_out),
        )  # fmt: skip


def _longest(recipe: Recipe) -> int | None:
    """The shortest of the stages' `max_length`."""
    lengths = [ask(name, "max_length", options) for name, options in recipe.stages().items()]
    return min((length for length in lengths if length is not None), default=None)
