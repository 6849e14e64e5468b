"""What the hub says of a model, and its small files, which cannot be larger than any real one's.

`base_models` runs this in a process of its own: the hub's client takes seconds to import, and may hang on a
bad network.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError
from pipeline.inputs.models import starter_package
from pipeline.inputs.models.base_models import (
    CONFIGS,
    LARGEST_JSON,
    LONGEST_LICENCE,
    MORE_TOKENIZER_FILES,
    NOT_NOW,
    SMALL_FILES,
    TOKENIZER,
    Model,
    materialize,
    read_config,
)
from pipeline.system.files import to_json

LARGEST_FILE = 1 << 26  # bytes of any other file that has no weights; tokenizers have up to half of that
NOT_THERE = "does not exist on the hub, or is private and you are not logged in"
NOT_PUBLIC = (  # one sentence for both: the page does not reveal what there is
    "does not exist on the hub, or is private; the page offers private models if it is started with"
    " --hub-login"
)
UNREACHABLE = (
    "the hub cannot be reached; try again later, or choose a model that is here (the hub's cache is for the"
    " command line, or for a page that is started with --hub-login)"
)


class _NotNow(LabError):
    """There may be such a model, and it cannot be had."""


def without_weights(model: Model, home: Path, report: Callable[[str], None]) -> Path:
    """A folder with the model's config and tokenizer; weights are in it where they are here already.

    Fetches a few megabytes of a hub model instead of gigabytes. Raises LabError.
    """
    if model.kind == "hub" and not model.folder(home).is_dir():
        from huggingface_hub import snapshot_download

        with suppress(Exception):  # whatever fails here fails in `materialize` too, which says what to do
            _require_small_on_hub(model.id, model.revision, SMALL_FILES)
            return Path(snapshot_download(model.id, revision=model.revision, allow_patterns=SMALL_FILES))
    return materialize(model, home, report)


def _ask_hub(model: str) -> Model:
    """Fetch a hub model's small files: from the local cache when the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    small = ["config.json", "tokenizer_config.json", "chat_template.jinja"]
    model, _, wanted = model.partition("@")
    try:
        info = _told_by_hub(model, wanted or None)
        _require_small(info.siblings, small)
        revision, told = info.sha or "", _told(info)
        folder = snapshot_download(model, revision=revision, allow_patterns=small)
    except GatedRepoError:
        raise _NotNow(
            "its license must be accepted on the hub first; then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise LabError(NOT_PUBLIC if settings.public_only() else NOT_THERE) from None
    except RevisionNotFoundError:
        raise LabError("has no such branch, tag or commit on the hub") from None
    except HFValidationError:
        raise LabError("is not a hub id; one looks like org/name, in letters, digits, - _ and .") from None
    except LabError:
        raise
    except Exception as error:  # whatever the client of this release raises when it gets no answer
        answer = getattr(error, "response", None)
        if answer is not None and answer.status_code in (401, 403, 404):
            raise LabError(NOT_PUBLIC if settings.public_only() else NOT_THERE) from None
        if settings.public_only():  # nobody says whether what is in the cache is public
            raise _NotNow(UNREACHABLE) from None
        try:
            folder = snapshot_download(
                model, revision=wanted or None, allow_patterns=small, local_files_only=True
            )
        except OSError:
            raise _NotNow(
                "the hub cannot be reached and the model is not in its cache; check the network, or give a"
                " local folder"
            ) from None
        revision, told = Path(folder).name, {}
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise LabError("has no config.json, so it is not a Hugging Face model")
    config, chat = read_config(path)
    return Model(model, "hub", revision, config, chat, told)


def _told_by_hub(model: str, revision: str | None) -> Any:
    """What the hub says of a model and its files. Raises LabError, and what the client raises.

    For the page nobody is logged in: what the hub then says is the same of private and of missing models,
    whatever is wrong with their revision; of a gated one it tells everybody.
    """
    from huggingface_hub import model_info

    nobody = False if settings.public_only() else None
    info = model_info(model, revision=revision, timeout=20, files_metadata=True, token=nobody)
    if settings.public_only() and info.private is not False:
        raise LabError(NOT_PUBLIC)
    return info


def _require_small_on_hub(model: str, revision: str, patterns: Iterable[str]) -> None:
    """`_require_small` of what the hub says; where it does not answer, only its cache can be read anyway."""
    try:
        siblings = _told_by_hub(model, revision).siblings
    except LabError:
        raise
    except Exception:  # whatever the client of this release raises when it gets no answer
        return
    _require_small(siblings, patterns)


def _require_small(siblings: Iterable[Any] | None, patterns: Iterable[str]) -> None:
    """Refuse files that no model has so large, before anything is fetched. Raises LabError."""
    patterns = list(patterns)
    for file in siblings or []:
        name = str(file.rfilename)
        if not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        most = LARGEST_JSON if name in CONFIGS else LARGEST_FILE
        if type(file.size) is not int or not 0 <= file.size <= most:
            raise LabError(f"{display.line(name)} is larger than any real one ({display.size(most)})")


def _told(info: Any) -> dict[str, Any]:
    """What the hub says of a model, as `Model.hub` has it; a card is anybody's text."""
    files = [file for file in info.siblings or [] if str(file.rfilename).endswith(".safetensors")]
    card = info.card_data or {}
    named = card.get("license_name") if card.get("license") in ("other", None) else card.get("license")
    licence = named or card.get("license")
    return {
        "licence": display.line(licence, LONGEST_LICENCE) if isinstance(licence, str) and licence else None,
        "gated": bool(info.gated),
        "bytes": sum(file.size for file in files if type(file.size) is int and file.size > 0) or None,
    }


def _put_tokenizer(model: str, folder: Path) -> None:
    """Put what makes the tokenizer of the starter or of a hub model into a folder. Raises LabError."""
    if model == "starter":
        from pipeline.inputs.models import starter

        starter.tokenizer(starter_package.file(), folder)
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    wanted = (TOKENIZER, CONFIGS[0], *MORE_TOKENIZER_FILES)

    def fetch(file: str) -> None:
        shutil.copyfile(hf_hub_download(name, file, revision=revision), folder / file)

    try:
        _require_small_on_hub(name, revision, wanted)
        for file in (TOKENIZER, CONFIGS[0]):
            fetch(file)
        for file in MORE_TOKENIZER_FILES:
            with suppress(EntryNotFoundError):
                fetch(file)
    except LabError:
        raise
    except LocalEntryNotFoundError:
        raise LabError("the hub cannot be reached; check again after the model's first run.") from None
    except EntryNotFoundError:
        raise LabError(f"{name} has no {TOKENIZER}.") from None
    except Exception:  # whatever the client of this release raises when it gets no answer
        raise LabError(f"the tokenizer of {name} cannot be fetched; check again later.") from None


def _main(model: str, *into: str) -> int:
    """Say what the hub knows of a model; after `--tokenizer`, put its tokenizer into a folder."""
    settings.quiet_this_process()
    try:
        if into:
            _put_tokenizer(into[0], Path(into[1]))
        else:
            print(to_json(dataclasses.asdict(_ask_hub(model))))
    except LabError as error:
        print(error, file=sys.stderr)
        return NOT_NOW if isinstance(error, _NotNow) else 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
