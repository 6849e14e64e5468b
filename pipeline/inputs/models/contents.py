"""What the files of a model's folder say to the libraries that open it, looked at before any of them does.

Anybody can publish a model, and libraries take values in its files for paths: a vocabulary that is a text,
the name of a part of the weights. Such a value would bring files of this machine into a run. So every
tokenizer and config of a folder is loaded here, and only after its files were looked at.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import display
from pipeline.errors import LabError
from pipeline.inputs.models.config_faults import WAY_OUT
from pipeline.inputs.prompts.model_template import LARGEST_CONFIG, TOKENIZER_CONFIG, tops
from pipeline.system import files

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WORDS = "vocab.json"  # of older tokenizers
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
MLFLOW = "MLmodel"
TEMPLATES = "additional_chat_templates"  # by name; one called default is used instead of chat_template.jinja
LINKED = "{} is a link out of its folder; put what it leads to in there"
DEEPEST = 64  # mappings and lists in each other; real files have about ten
LARGEST = {  # bytes; real ones have up to half of that
    TOKENIZER: 1 << 26,
    WORDS: 1 << 26,
    INDEX: 1 << 24,
    TOKENIZER_CONFIG: LARGEST_CONFIG,
}
LARGEST_OTHER = 1 << 22
MOST_VALUES = 5_000_000  # in a file: an empty list takes thirty times the memory of its text
SHARD = re.compile(r"\w[\w.+ -]{0,199}\.safetensors", re.ASCII)
# Parameters of tokenizer, processor and model classes that are paths, or lead to one.
PATHS = re.compile(
    r"vocab|merges|spm|init_inputs|transformers_weights|audio_tokenizer_name_or_path"
    r"|tokenizer_path|\w*_files?|\w*_spm|(mecab|sudachi|jumanpp)_kwargs"
)
# What old tokenizers carry of their maker's machine; transformers puts its own in its place, or reads none.
UNREAD = {"tokenizer_file", "full_tokenizer_file", "special_tokens_map_file", "added_tokens_file"}

# What tokenizers made at home name of their own folder; beside a tokenizer.json nothing opens them by these.
OWN, NAME = {"vocab_file", "merges_file"}, re.compile(r"\w[\w.+ -]{0,199}", re.ASCII)

CLASS = "tokenizer_class"
# By that name transformers takes any class it has: a model's, which loads weights wherever they are said to
# be, or one that asks whether to run code. These are tokenizers, but for those that load others.
TOKENIZERS = re.compile(
    r"(?!(Auto|Rag|Basic|Character|Mecab|Wordpiece)Tokenizer)\w+Tokenizer(Fast)?"
    r"|(Tokenizers|Python|SentencePiece)Backend",
    re.ASCII,
)
# The name of a repository whose config transformers fetches, for models that see.
BACKBONE = "backbone"
# Where transformers fetches what computes, if a value of these is a repository's name.
KERNELS = re.compile(r"\w*_implementation(_internal)?")


def tokenizer_of(folder: Path | str) -> Any:
    """The tokenizer of a model's folder, by transformers. Raises LabError, and whatever transformers does."""
    from transformers import AutoTokenizer, dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # nothing it loads asks for a yes, on whatever input
    require(Path(folder))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def config_of(folder: Path | str) -> Any:
    """The config of a model's folder, by transformers. Raises LabError, and whatever transformers does."""
    from transformers import AutoConfig

    require(Path(folder))
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def require(folder: Path) -> None:
    """Raise LabError with the first fault of a model's folder."""
    if wrong := of_small_files(folder) or _of_file(folder / TOKENIZER) or _of_own_files(folder):
        raise LabError(f"This model cannot be loaded: {wrong}.")


def require_whole(folder: Path) -> None:
    """`require`, of a folder that has its weights."""
    require(folder)
    if wrong := of_weights(folder):
        raise LabError(f"This model cannot be loaded: {wrong}.")


def of_small_files(folder: Path) -> str:
    """The first fault of all but the tokenizer.json, as a sentence without its full stop; "" if none."""
    if (folder / MLFLOW).exists():
        return f"has {MLFLOW}, so Olive would load another folder in it; give the one with config.json alone"
    if (folder / TEMPLATES / "default.jinja").exists():
        return f"has {TEMPLATES}/default.jinja; move it to chat_template.jinja, which is shown and checked"
    if wrong := of_links(folder) or of_names(
        {name for name in (ADAPTER, WEIGHTS, INDEX) if (folder / name).is_file()}
    ):
        return wrong
    return next(filter(None, (_of_file(folder / name) for name in (*CHECKS, INDEX))), "")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path leads to something in the folder; a cache of the hub has links to its `blobs`."""
    try:
        return any(path.resolve().is_relative_to(top) for top in tops(folder.resolve()))
    except RuntimeError:  # it leads to itself
        return False


def of_tokenizer_config(given: Mapping[str, Any]) -> str:
    """The first fault of a tokenizer_config.json that was read, as `of_small_files`; "" if none."""
    found = _mappings(given)
    return _of_tokenizer_config(found) if found else f"is nested deeper than any real one; {WAY_OUT}"


def of_links(folder: Path) -> str:
    """A link shows a file of this machine as one of the model's: archives and repositories bring them."""
    for path in itertools.chain(folder.glob("*"), folder.glob("*/*")):
        if path.is_symlink() and not is_inside(path, folder):
            return LINKED.format(display.short(path.name))
    return ""


def of_names(names: Set[str]) -> str:
    """What the names of a model's files tell of faults; "" if nothing."""
    if ADAPTER not in names:
        return ""
    if names.isdisjoint((WEIGHTS, INDEX)):
        return f"has {ADAPTER}, so it is an adapter; choose the model that it was trained on"
    return (
        f"has {ADAPTER}, so an adapter would be added to its weights; if it is merged into them already, give"
        f" a copy of the folder without {ADAPTER}, else choose the model that it was trained on"
    )


def of_weights(folder: Path) -> str:
    """Why transformers would not find the weights, and would look for pickles instead; "" if it does.

    Of a folder whose small files have no fault.
    """
    there = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    if WEIGHTS in there:
        return ""
    if not (folder / INDEX).is_file():
        return f"has neither {WEIGHTS} nor {INDEX}; {WAY_OUT}"
    index = _read(folder / INDEX)
    if not isinstance(index.get("metadata"), dict):
        return f"{INDEX}: metadata is not a mapping; {WAY_OUT}"
    named = set(index["weight_map"].values())
    return f"{INDEX}: {min(named - there)} is not there; {WAY_OUT}" if named - there else ""


def _of_own_files(folder: Path) -> str:
    """Without a tokenizer.json, files are opened by name wherever the process happens to work."""
    if (folder / TOKENIZER).is_file() or not (folder / TOKENIZER_CONFIG).is_file():
        return ""
    wrong = _of_settings([_read(folder / TOKENIZER_CONFIG)], UNREAD)
    return f"{TOKENIZER_CONFIG}: {wrong}" if wrong else ""


def _of_file(file: Path) -> str:
    if not file.is_file():
        return ""
    stat = file.stat()
    return _looked_at(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=256)
def _looked_at(file: Path, size: int, *_changed: int) -> str:
    """The fault of a file; it is read again only once it has changed."""
    most = LARGEST.get(file.name, LARGEST_OTHER)
    if size > most:
        return f"{file.name} is larger than any real one ({display.size(most)}); {WAY_OUT}"
    content, found, fault = None, [], "is nested deeper"
    try:
        content = _read(file)
        found = _mappings(content)
    except (OSError, ValueError, MemoryError) as error:
        why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is not valid JSON"
        return f"{file.name} {why}; {WAY_OUT}"
    except OverflowError:
        fault = "has more values"
    except RecursionError:
        pass
    if not found:
        return f"{file.name} {fault} than any real one; {WAY_OUT}"
    if not isinstance(content, dict):
        return f"{file.name} is not a mapping; {WAY_OUT}"
    if wrong := {**CHECKS, INDEX: _of_index, TOKENIZER: _of_tokenizer}[file.name](found):
        return f"{file.name}: {wrong}"
    return ""


def _read(file: Path) -> Any:
    """What a file has. Raises ValueError, RecursionError, and OverflowError if it has too many values."""
    text = files.read_inside(file, tops(file.parent.resolve())).decode("utf-8")
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise OverflowError
    return json.loads(text)


def _mappings(content: Any) -> list[Any]:
    """The mappings in a file, itself first whatever it is; [] if they are nested too deeply."""
    found, level = [content], [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        inner = (one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer))
        level = [one for one in inner if isinstance(one, dict | list)] if level else []
        found += [one for one in level if isinstance(one, dict)]
    return [] if level else found


def _of_settings(found: list[dict[str, Any]], unread: Set[str] = frozenset()) -> str:
    for settings in found:
        for key, value in settings.items():
            if key == CLASS and value is not None and not TOKENIZERS.fullmatch(str(value)):
                return f"{key} {display.value(value)} is not the name of a tokenizer; {WAY_OUT}"
            if key == BACKBONE and isinstance(value, str):
                return f"{key} names another model, which is not fetched; {WAY_OUT}"
            if KERNELS.fullmatch(key) and "/" in str(value):
                return f"{display.short(key)} names code of the hub; {WAY_OUT}"
            # Numbers too: to whatever opens a path, they are files that are open already.
            nothing = value is None or isinstance(value, bool) or value in ("", [], {})
            if not nothing and key not in unread and PATHS.fullmatch(key):
                return (
                    f"{display.short(key)} names a file, which is not opened; make it null in a copy of the"
                    " folder, or choose another base model"
                )
    return ""


def _of_tokenizer_config(found: list[dict[str, Any]]) -> str:
    own = {key for key in OWN if NAME.fullmatch(str(found[0].get(key)))}
    return _of_settings(found[:1], UNREAD | own) or _of_settings(found[1:])


def _of_special_tokens(found: list[dict[str, Any]]) -> str:
    """transformers passes on every entry, even over what it has put there itself."""
    for key in found[0]:
        if not key.endswith(("_token", "_tokens")):
            return f"{display.short(key)} is not the name of a token; {WAY_OUT}"
    return ""


def _of_words(found: list[dict[str, Any]]) -> str:
    for token, number in found[0].items():
        if type(number) is not int:
            return f"{display.short(token)} is not given a number; {WAY_OUT}"
    return ""


def _of_tokenizer(found: list[Mapping[str, Any]]) -> str:
    model = found[0].get("model", {})
    if not isinstance(model, dict):
        return f"model is not a mapping; {WAY_OUT}"
    if not isinstance(model.get("vocab"), dict | list | None):
        return f"model.vocab is neither a mapping nor a list; {WAY_OUT}"
    if not isinstance(model.get("merges"), list | None):
        return f"model.merges is not a list; {WAY_OUT}"
    return ""


def _of_index(found: list[Mapping[str, Any]]) -> str:
    names = found[0].get("weight_map")
    if not isinstance(names, dict) or not names:
        return f"weight_map is not a mapping; {WAY_OUT}"
    for name in names.values():
        if not (isinstance(name, str) and SHARD.fullmatch(name)):
            return f"weight_map names {display.value(name)}, not a .safetensors file of the folder; {WAY_OUT}"
    return ""


CHECKS: dict[str, Callable[[list[Any]], str]] = {
    CONFIG: _of_settings,
    TOKENIZER_CONFIG: _of_tokenizer_config,
    "special_tokens_map.json": _of_special_tokens,
    "added_tokens.json": _of_words,
    WORDS: _of_words,
    "generation_config.json": _of_settings,
    "processor_config.json": _of_settings,
    "preprocessor_config.json": _of_settings,
    "video_preprocessor_config.json": _of_settings,
}
