"""A dataset of the hub brought into the home, by a process of its own: `python -m` this, with id and folder.

It asks the hub for the commit, chooses the files, and fetches them as models are fetched: with progress, and
resuming where an earlier attempt was interrupted. A line of JSON a step; at last what was found, or why not.
A commit that was fetched before is found without the hub.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs.data.hub import choosing_files, dataset_id, places
from pipeline.inputs.data.hub.dataset_id import DatasetId
from pipeline.inputs.data.hub.places import Place
from pipeline.inputs.models import hub_download
from pipeline.inputs.models.hub_download import Remote
from pipeline.system import files, locks, own_process
from pipeline.system.files import to_json

FOLDER = "hub"  # in the home
RECORD = ".fetched.json"
MOST_FILES = 200
LONGEST_NAME = 200  # letters
SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Fetched:
    """The files of a dataset, and its id with the commit."""

    id: DatasetId
    files: tuple[Path, ...]


def fetching(text: str, home: Path, *, own_login: bool = True) -> Generator[str, None, Fetched]:
    """Fetch what an id names; yields how far that is. Raises InputError, LabError, Busy.

    Without `own_login` the hub is asked as anybody would: what only this machine's login may read stays so.
    """
    asked = dataset_id.parse(text)
    if asked.is_pinned and (found := _here(asked, home)):
        return found
    with closing((yield from places.taking(home / FOLDER))) as place:
        return (yield from _fetching(asked, home, place, own_login))


def _fetching(asked: DatasetId, home: Path, place: Place, own_login: bool) -> Generator[str, None, Fetched]:
    words = ["-m", "pipeline.inputs.data.hub.fetching_rows", str(asked), str(home)]
    login = {} if own_login else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    process = own_process.start_group(words, settings.child_environment(**login))
    try:
        assert process.stdout is not None
        step = f"Asking the hub for {asked}…"
        yield step
        for line in own_process.lines(process.stdout.fileno(), SECONDS):
            said = {} if line is None else json.loads(line)
            if "refused" in said:
                raise LabError(said["refused"])
            if "commit" in said:
                found = _here(asked.at(said["commit"]), home)
                if found is None:
                    raise LabError(f"{asked} was removed just now; fetch it again.")
                return found
            place.keep()
            step = said.get("step", step)
            yield step
    finally:
        code = own_process.end(process)
    raise LabError(f"The process that fetches {asked} has ended (code {code}); start it again: it resumes.")


def _here(pinned: DatasetId, home: Path) -> Fetched | None:
    """What was fetched before."""
    folder = _folder(pinned, home)
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if record["id"] != str(pinned):
            return None
        os.utime(folder)  # in use again: freeing space goes by this time
    except (OSError, ValueError, TypeError, KeyError):
        return None
    paths = tuple(folder / str(name) for name in record["files"])
    return Fetched(pinned, paths) if paths and all(path.is_file() for path in paths) else None


def _folder(pinned: DatasetId, home: Path) -> Path:
    chosen = hashlib.sha256(str(pinned).encode()).hexdigest()  # whole: whoever finds two alike swaps the rows
    return home / FOLDER / f"{pinned.name.replace('/', '--')[:100]}-{chosen}"


# -- the process ---------------------------------------------------------------------------------------


def fetch(asked: DatasetId, home: Path, tell: Any) -> str:
    """Fetch in this process; returns the commit. `tell` gets sentences. Raises LabError, OSError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = HfApi().dataset_info(
            asked.name, revision=asked.revision or None, files_metadata=True, timeout=20
        )
    except RevisionNotFoundError:
        raise LabError(f"{asked} is not there: the dataset has no such revision.") from None
    except Exception as error:  # whatever the client of this release raises when it gets no answer
        raise LabError(f"{asked} cannot be fetched: {_why(error, asked)}.") from None
    pinned = asked.at(str(info.sha))
    if not pinned.is_pinned:
        raise LabError(f"{asked} cannot be fetched: the hub names no commit of it; try again later.")
    siblings = {str(file.rfilename): file for file in info.siblings or []}
    card: Any = info.card_data
    configs = card.get("configs") if hasattr(card, "get") else None  # it may be anything
    remotes = _remotes(asked, siblings, choosing_files.chosen(siblings, configs, asked))
    folder = _folder(pinned, home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locks.locked(folder.with_name(f".{folder.name}.lock")):
        try:
            files.make_room(folder, sum(remote.size for remote in remotes))
            hub_download.bring(asked.name, pinned.revision, remotes, folder, tell, "dataset")
        except LabError:
            raise
        except Exception as error:
            if hub_download.of_this_machine(error):
                raise
            raise LabError(f"{asked} cannot be fetched: {_why(error, asked)}.") from None
        record = {"id": str(pinned), "files": [remote.name for remote in remotes]}
        files.write_whole(folder / RECORD, record)
    return pinned.revision


def _why(error: Exception, asked: DatasetId) -> str:
    return hub_download.why(error, f"datasets/{asked.name}")


def _remotes(asked: DatasetId, siblings: dict[str, Any], paths: list[str]) -> list[Remote]:
    """The files with their sizes and names here. Raises LabError where they are too many or too large."""
    if len(paths) > MOST_FILES:
        raise LabError(
            f"{asked} has {len(paths):,} such files; allowed: {MOST_FILES}. Choose some with file=."
        )
    names = [PurePosixPath(path).name for path in paths]
    own = asked.name.rpartition("/")[2]
    remotes = []
    for path, name in zip(paths, names, strict=True):
        here = name if names.count(name) == 1 else path.replace("/", "--")
        found = hub_download.remote(siblings[path])
        remotes.append(dataclasses.replace(found, name=f"{own}-{here}"[-LONGEST_NAME:], path=path))
    if len({remote.name for remote in remotes}) < len(remotes):
        raise LabError(f"{asked} has files whose names are alike; choose some with file=.")
    total, most = sum(remote.size for remote in remotes), settings.max_upload_bytes()
    if total > most:
        raise LabError(
            f"{asked} has {display.size(total)} of rows; allowed: {display.size(most)}, as for uploads"
            " (OLIVE_LAB_MAX_UPLOAD_MB). Choose some of its files with file=."
        )
    return remotes


def _main(text: str, home: str) -> int:
    settings.quiet_this_process()
    settings.keep_private()
    own_process.end_with_input()

    def tell(message: str, fraction: float, **facts: Any) -> None:
        of = display.size(facts.get("bytes_total"))
        own_process.answer(to_json({"step": f"{message}: {fraction:.0%} of {of}"}))

    try:
        own_process.answer(to_json({"commit": fetch(dataset_id.parse(text), Path(home), tell)}))
    except (InputError, LabError, OSError) as error:
        own_process.answer(to_json({"refused": sentence(error)}))
        return 2
    except Exception as error:  # nobody foresaw it; Python would abort: see below
        said = files.with_traceback(sentence(error), traceback.format_exc())
        own_process.answer(to_json({"refused": said}))
        return 1
    return 0


if __name__ == "__main__":
    code = _main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a library's thread would delay the exit, and somebody waits for it
