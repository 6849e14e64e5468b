"""Options as dataclass fields: the form, the flags, the recipe's schema and the docs come from them.

A stage declares its options once:

    @dataclass(frozen=True)
    class QuantizeOptions:
        bits: Literal[4, 8] = option(4, "Bits per weight")

and everything else (parsing, messages, the page) reads `describe(QuantizeOptions)`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline import display
from pipeline.errors import InputError

T = TypeVar("T")

LONGEST = 4000  # letters of a text: a sweep keeps it a hundred times, and every list reads it again
AUTO = "auto"
LARGEST = 2**63  # the largest whole number that the store, torch and readers of JSON take


def option(
    default: Any,
    help: str,
    *,
    label: str = "",
    advanced: bool = False,
    min: float | None = None,
    max: float | None = None,
    auto: bool = False,
    page: bool = True,
) -> Any:
    """A dataclass field with what a person needs to choose a value.

    `min` and `max` are inclusive bounds for numbers. `advanced` options are folded away on the page. `label`
    is the usual term, where the key alone is not. A recipe may say AUTO where `auto` is set: see
    `stages.recipe`, which keeps it out of the values here. Without `page` no form is generated for it: a
    path from a browser has to be one that the page offers.
    """
    meta = {"help": help, "label": label, "advanced": advanced, "min": min, "max": max, "auto": auto}
    return dataclasses.field(default=default, metadata={**meta, "page": page})


@dataclass(frozen=True)
class Option:
    """One option as data. `types` are the plain types allowed, `choices` the literal values allowed."""

    name: str
    default: Any
    help: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    advanced: bool
    min: float | None
    max: float | None
    label: str = ""
    auto: bool = False
    page: bool = True

    def titled(self) -> str:
        """Its label: "Learning rate" for `learning_rate`, "Rank (r)" for `r`."""
        words = self.name.replace("_", " ")
        return f"{self.label} ({self.name})" if self.label else words[0].upper() + words[1:]

    def allowed(self) -> str:
        """What a value may be, as words for an error message or a hint."""
        named = (AUTO, *self.choices) if self.auto else self.choices
        words = [repr(c) if isinstance(c, str) else str(c) for c in named]
        names = {int: "a whole number", float: "a number", str: "a text"}
        for kind in self.types:
            bounds = ""
            if kind in (int, float) and self.min is not None and self.max is not None:
                bounds = f" from {self.min} to {self.max}"
            elif kind in (int, float) and self.min is not None:
                bounds = f" of at least {self.min}"
            if kind is type(None):
                words.append("null")
            elif kind is bool:
                words += ["true", "false"]
            elif not (kind is int and float in self.types):
                words.append(names[kind] + bounds)
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def describe(cls: type) -> list[Option]:
    """The options of a dataclass, in the order declared."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        plain, choices = _alternatives(hints[field.name])
        found.append(
            Option(
                name=field.name,
                default=field.default,
                help=field.metadata["help"],
                types=plain,
                choices=choices,
                advanced=field.metadata["advanced"],
                min=field.metadata["min"],
                max=field.metadata["max"],
                label=field.metadata["label"],
                auto=field.metadata["auto"],
                page=field.metadata["page"],
            )
        )
    return found


def parse(cls: type[T], given: Any, where: str) -> T:
    """Build `cls` from a mapping a user wrote.

    `where` is the key of the mapping; messages put it before the name of the option.
    Raises InputError with one problem per unknown key or bad value.
    """
    if not isinstance(given, dict):
        raise InputError(f"{where}: {display.value(given)} is not allowed; allowed: a mapping of options")
    options = {o.name: o for o in describe(cls)}
    problems = unknown_keys(given, list(options), f"{where}.")
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in options:
            continue
        try:
            values[name] = coerce(options[name], value, f"{where}.{name}")
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return cls(**values)


def unknown_keys(given: dict[Any, Any], allowed: list[str], before: str = "") -> list[str]:
    """A problem for each key that is not allowed, for the first few if there are many."""
    unknown = [key for key in given if key not in allowed]
    problems = [
        f"{before}{display.short(key)}: unknown key; allowed: {', '.join(allowed)}"
        for key in unknown[: display.MOST_NAMED]
    ]
    more = len(unknown) - len(problems)
    return [*problems, f"{before}...: {more:,} more unknown keys"] if more else problems


def coerce(option: Option, value: Any, where: str) -> Any:
    """Return `value` as the option's type, or raise InputError naming key, value and what is allowed."""
    for choice in option.choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    if isinstance(value, str) and len(value) > LONGEST:
        raise InputError(f"{where}: has more than {LONGEST:,} letters; shorten it")
    for kind in option.types:
        meant = _as_float(value) if kind is float else value
        if type(meant) is kind and _in_bounds(option, meant) and _storable(meant):
            return meant
    raise InputError(f"{where}: {display.value(value)} is not allowed; allowed: {option.allowed()}")


def _as_float(value: Any) -> Any:
    """A float where the value plainly means one: `1`, and `5e-4`, which YAML 1.1 reads as text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _in_bounds(option: Option, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    # Written so that NaN, which compares false with everything, is out of bounds.
    return (option.min is None or value >= option.min) and (option.max is None or value <= option.max)


def _storable(value: Any) -> bool:
    """Whether the store, JSON and paths can hold it: no NUL, no half surrogate pairs."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < LARGEST
    return not (isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)))


def _alternatives(hint: Any) -> tuple[tuple[type, ...], tuple[Any, ...]]:
    """Split a type hint into plain types and literal values."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_alternatives(part) for part in typing.get_args(hint)]
        return tuple(t for p in parts for t in p[0]), tuple(c for p in parts for c in p[1])
    if typing.get_origin(hint) is typing.Literal:
        return (), typing.get_args(hint)
    return (hint,), ()
