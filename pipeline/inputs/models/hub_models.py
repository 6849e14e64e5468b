"""What the hub says of a model, and its small files, which cannot be larger than any real one's.

`base_models` runs this in a process of its own: the hub's client takes seconds to import, and may hang on a
bad network.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import LabError, sentence
from pipeline.inputs.models import contents, hub_download, starter_package
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
from pipeline.inputs.prompts.model_template import LARGEST_CONFIG
from pipeline.system import files
from pipeline.system.files import to_json

CHAT = "chat_template.jinja"
LARGEST = {CONFIGS[0]: LARGEST_JSON, CONFIGS[1]: LARGEST_CONFIG, CHAT: LARGEST_JSON}
LARGEST_SMALL = 1 << 26  # bytes of all files together that have no weights; real ones have up to half of that
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


def without_weights(model: Model, home: Path, into: Path, report: Callable[[str], None]) -> Path:
    """A folder with the model's config and tokenizer; weights are in it where they are here already.

    Fetches a few megabytes of a hub model instead of gigabytes, `into` a folder of the home that the caller
    removes. Raises LabError.
    """
    if model.kind == "hub" and not model.folder(home).is_dir():
        with suppress(Exception):  # whatever fails here fails in `materialize` too, which says what to do
            files.make_room(home, LARGEST_SMALL)
            told = _told_by_hub(model.id, model.revision)
            _fetch_small(model.id, model.revision, told.siblings, SMALL_FILES, into)
            return into
    return materialize(model, home, report)


def _ask_hub(model: str) -> Model:
    """What a hub model's small files say: those in the hub's own cache when the hub cannot be reached."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    model, _, wanted = model.partition("@")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            info = _told_by_hub(model, wanted or None)
            revision, told = info.sha or "", _told(info)
            if wrong := contents.of_names({str(file.rfilename) for file in info.siblings or []}):
                raise LabError(wrong)
            _fetch_small(model, revision, info.siblings, (*CONFIGS, CHAT), folder)
        except GatedRepoError:
            raise _NotNow(
                "its license must be accepted on the hub first; then log in with `hf auth login`"
            ) from None
        except RepositoryNotFoundError:
            raise LabError(NOT_PUBLIC if settings.public_only() else NOT_THERE) from None
        except RevisionNotFoundError:
            raise LabError("has no such branch, tag or commit on the hub") from None
        except HFValidationError:
            raise LabError(
                "is not a hub id; one looks like org/name, in letters, digits, - _ and ."
            ) from None
        except LabError:
            raise
        except Exception as error:  # whatever the client of this release raises when it gets no answer
            if hub_download.of_this_machine(error):
                raise
            folder = _cached_instead(model, wanted or None, error)
            revision, told = folder.name, {}
        if not (folder / CONFIGS[0]).is_file():
            raise LabError("has no config.json, so it is not a Hugging Face model")
        return Model(model, "hub", revision, *read_config(folder), told)


def _cached_instead(model: str, revision: str | None, error: Exception) -> Path:
    """The model's folder in the hub's own cache, after the hub gave no answer. Raises LabError."""
    answer = getattr(error, "response", None)
    if answer is not None and answer.status_code in (401, 403, 404):
        raise LabError(NOT_PUBLIC if settings.public_only() else NOT_THERE) from None
    if settings.public_only():  # nobody says whether what is in the cache is public
        raise _NotNow(UNREACHABLE) from None
    if (cached := _cached(model, revision)) is None:
        raise _NotNow(
            "the hub cannot be reached and the model is not in its cache; check the network, or give a"
            " local folder"
        ) from None
    return cached


def _cached(model: str, revision: str | None) -> Path | None:
    """The model's folder in the hub's own cache, which is the user's: we only read it."""
    from huggingface_hub import snapshot_download

    with suppress(OSError):
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    return None


def _told_by_hub(model: str, revision: str | None) -> Any:
    """What the hub says of a model and its files. Raises LabError, and what the client raises.

    For the page nobody is logged in: what the hub then says is the same of private and of missing models,
    whatever is wrong with their revision; of a gated one it tells everybody.
    """
    from huggingface_hub import HfApi

    nobody = False if settings.public_only() else None
    info = HfApi().model_info(model, revision=revision, timeout=20, files_metadata=True, token=nobody)
    if settings.public_only() and info.private is not False:
        raise LabError(NOT_PUBLIC)
    return info


def _fetch_small(
    model: str, revision: str, siblings: Iterable[Any] | None, patterns: Iterable[str], folder: Path
) -> None:
    """Put small files, those right in a repository, into a folder of ours and nowhere else.

    Refuses what no model has so large before anything is fetched. Raises LabError, and what the client
    raises.
    """
    remotes = hub_download.listed(siblings, patterns)
    for remote in remotes:
        most = LARGEST.get(remote.name, LARGEST_SMALL)
        if remote.size > most:
            raise LabError(f"{display.line(remote.name)} is larger than any real one ({display.size(most)})")
    if sum(remote.size for remote in remotes) > LARGEST_SMALL:
        raise LabError(
            f"its small files are larger together than any real ones ({display.size(LARGEST_SMALL)})"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    hub_download.bring(model, revision, remotes, folder, lambda message, fraction, **facts: None)


def _told(info: Any) -> dict[str, Any]:
    """What the hub says of a model, as `Model.hub` has it; a card is anybody's text."""
    weights = [file for file in info.siblings or [] if str(file.rfilename).endswith(".safetensors")]
    size = sum(file.size for file in weights if type(file.size) is int and file.size > 0)
    card = info.card_data if hasattr(info.card_data, "get") else {}
    named = card.get("license_name") if card.get("license") in ("other", None) else card.get("license")
    licence = named or card.get("license")
    return {
        "licence": display.line(licence, LONGEST_LICENCE) if isinstance(licence, str) and licence else None,
        "gated": bool(info.gated),
        "bytes": size if 0 < size <= hub_download.LARGEST else None,
    }


def _put_tokenizer(model: str, folder: Path) -> None:
    """Put what makes the tokenizer of the starter or of a hub model into a folder. Raises LabError."""
    if model == "starter":
        from pipeline.inputs.models import starter

        starter.tokenizer(starter_package.file(), folder)
        return
    name, _, revision = model.partition("@")
    wanted = (TOKENIZER, CONFIGS[0], *MORE_TOKENIZER_FILES)
    try:
        _fetch_small(name, revision, _told_by_hub(name, revision).siblings, wanted, folder)
    except LabError:
        raise
    except Exception as error:  # whatever the client of this release raises when it gets no answer
        if hub_download.of_this_machine(error):
            raise
        cached = None if settings.public_only() else _cached(name, revision)
        if cached is None:
            heard = getattr(error, "response", None) is not None
            why = f"the tokenizer of {name} cannot be fetched" if heard else "the hub cannot be reached"
            raise LabError(f"{why}; check again after the model's first run.") from None
        for file in wanted:
            with suppress(FileNotFoundError):
                shutil.copyfile(cached / file, folder / file)
    if not all((folder / file).is_file() for file in (TOKENIZER, CONFIGS[0])):
        raise LabError(f"{name} has no {TOKENIZER}.")


def _main(model: str, *into: str) -> int:
    """Say what the hub knows of a model; after `--tokenizer`, put its tokenizer into a folder."""
    settings.quiet_this_process()
    try:
        if into:
            _put_tokenizer(into[0], Path(into[1]))
        else:
            print(to_json(dataclasses.asdict(_ask_hub(model))))
    except (LabError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return NOT_NOW if isinstance(error, _NotNow) else 2
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
