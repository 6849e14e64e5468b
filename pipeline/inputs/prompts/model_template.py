"""The chat template that comes with a model, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import InputError
from pipeline.inputs.prompts.templates import Chat
from pipeline.system import files

TOKENIZER_CONFIG = "tokenizer_config.json"
LONGEST_CHAT = 1 << 18  # characters of a template; real ones have up to 40,000
LONGEST_TOKEN = 1000
LARGEST_FILE = 1 << 22  # bytes
LARGEST_CONFIG = (
    1 << 24
)  # of a tokenizer's config; one that adds 65,000 tokens, as for speech, has 12 million,
SNAPSHOTS = "snapshots"  # a folder of the hub's cache
MOST_VALUES = 2_000_000  # and about 600,000 values


def tops(real: Path) -> tuple[Path, ...]:
    """Where a model's files lie, given its folder's real path: a cache of the hub has links to `blobs`."""
    return (real, real.parent.parent / "blobs") if real.parent.name == SNAPSHOTS else (real,)


def chat_template(folder: Path, *, real: bool = False) -> Chat | None:
    """The chat template that ships in a Hugging Face model folder, or None if there is none.

    It is in `chat_template.jinja` or, in older folders, in `tokenizer_config.json`, which may have several
    named ones; the one named "default" is used then. `real` says that the folder's path has no link, and
    may have none when files are opened. Raises InputError naming a file that cannot be read.
    """
    inside = tops(folder if real else folder.resolve())
    config = _settings(folder / TOKENIZER_CONFIG, inside)
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict)]
        source = {str(entry.get("name")): entry.get("template") for entry in named}.get("default")
    if (folder / "chat_template.jinja").is_file():
        source = _read(folder / "chat_template.jinja", inside)
    if not source:
        return None
    if not isinstance(source, str):
        raise InputError("its chat template in tokenizer_config.json cannot be read (it is not a text)")
    if len(source) > LONGEST_CHAT:
        raise InputError(
            f"its chat template is longer than {LONGEST_CHAT:,} characters; choose another model"
        )
    return Chat(source, _special_tokens(folder, inside, config))


def _read(file: Path, inside: tuple[Path, ...]) -> str:
    """A file of a model's folder as text. Raises InputError."""
    try:
        if file.stat().st_size > (LARGEST_CONFIG if file.name == TOKENIZER_CONFIG else LARGEST_FILE):
            raise InputError(f"its {file.name} is larger than any real one; choose another model")
        return files.read_inside(file, inside).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"its {file.name} cannot be read ({reason})") from None


def _settings(file: Path, inside: tuple[Path, ...]) -> dict[str, Any]:
    """A file of JSON with a mapping in it, {} if there is none. Raises InputError."""
    if not file.is_file():
        return {}
    try:
        text = _read(file, inside)
        # A list of empty lists takes thirty times the memory of its text.
        if sum(map(text.count, ",[{")) > MOST_VALUES:
            raise InputError(f"its {file.name} is larger than any real one; choose another model")
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"its {file.name} cannot be read ({error})") from None
    except RecursionError:
        raise InputError(f"its {file.name} cannot be read (it is nested too deeply)") from None
    if not isinstance(found, dict):
        raise InputError(f"its {file.name} cannot be read (it is not a mapping)")
    return found


def _special_tokens(folder: Path, inside: tuple[Path, ...], config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like as texts, wherever the folder keeps them."""
    tokens = {}
    for name, value in {**_settings(folder / "special_tokens_map.json", inside), **config}.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            if len(text) > LONGEST_TOKEN:
                short = display.short(name)
                raise InputError(f"its {short} is longer than any real one; choose another model")
            tokens[name] = text
    return tokens
