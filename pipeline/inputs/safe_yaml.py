"""YAML from anybody, read safely: no code, no endless aliases, and one sentence for every fault."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline import display

# As written, and with every alias expanded: a file of a few lines can stand for billions of values.
MOST_CHARACTERS = 200_000
SPECIAL = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # `<<` and `=`, which are not plain values


def load(text: str) -> Any:
    """The content of the text, as plain types. Raises ValueError with what is wrong, on one line."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {})
            _no_repeats(loader, node, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(display.line(" ".join(str(error).split()))) from None
    except _Unreasonable as error:
        raise ValueError(str(error)) from None
    except ValueError as error:  # an impossible date, or more digits than Python reads
        raise ValueError(display.line(str(error).partition(";")[0])) from None
    except (LookupError, TypeError, AttributeError, ArithmeticError):  # a tag such as !!int before other text
        raise ValueError("a value in it is not of the type that its tag names") from None


class _Unreasonable(Exception):
    """It is valid YAML, but would use up all memory or lose a value."""


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Characters and values of a node, aliases expanded. Raises _Unreasonable."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise _Unreasonable("an alias (*) in it refers to something that contains it")
        return known[id(node)]
    known[id(node)] = -1  # in progress
    size = 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(inner, known) for inner in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_size(key, known) + _size(value, known) for key, value in node.value)
    if size > 2 * MOST_CHARACTERS:  # twice, for each value counts as well
        raise _Unreasonable(
            f"its aliases (*) stand for more than {MOST_CHARACTERS:,} characters; write out what you mean"
        )
    known[id(node)] = size
    return size


def _no_repeats(loader: yaml.SafeLoader, node: yaml.Node, seen: set[int]) -> None:
    """Raise _Unreasonable for a repeated key in a mapping: one of its values would be lost."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _no_repeats(loader, inner, seen)
        return
    lines: dict[Any, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            meant, line = _meaning(loader, key), key.start_mark.line + 1
            if meant in lines:
                first = lines[meant]
                where = f"on line {line:,}" if first == line else f"on lines {first:,} and {line:,}"
                raise _Unreasonable(f"the key {display.quoted(key.value)} occurs twice, {where}; keep one")
            lines[meant] = line
        _no_repeats(loader, key, seen)
        _no_repeats(loader, value, seen)


def _meaning(loader: yaml.SafeLoader, key: yaml.ScalarNode) -> Any:
    """What Python makes of a key: `yes`, `true` and 1 are the same."""
    return (key.tag,) if key.tag in SPECIAL else loader.construct_object(key)
