"""Files of a model or a dataset from the Hugging Face Hub, with progress; an interrupted one resumes within.

The hub's own `snapshot_download` restarts a file that another process had begun, and a file of weights has
gigabytes. So each is written beside its place as `.NAME.arriving`, which the next attempt appends to, and
gets its name once its size, and its SHA-256 where the hub tells it, are those that the hub names.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import display
from pipeline.errors import LabError
from pipeline.system.files import KEPT_FREE
from pipeline.system.transfer_progress import Meter, Report

ARRIVING = ".arriving"
NAME = re.compile(r"\w[\w.+ -]{0,199}", re.ASCII)
SPARE = KEPT_FREE  # bytes
PIECE = 1 << 20
MOST_FILES = 1000  # of a model, right in its repository
LARGEST = 1 << 50  # bytes that a model may have; what says more is no model
AGAIN = "what has arrived is kept, so start it again and it resumes"


@dataclass(frozen=True)
class Remote:
    """A file on the hub: its size in bytes, and its SHA-256 or "" where the hub does not tell it.

    `path` is where it lies in the repository, "" if that is its name here.
    """

    name: str
    size: int
    sha256: str
    path: str = ""


def listed(siblings: Iterable[Any] | None, patterns: Iterable[str]) -> list[Remote]:
    """The files of a model that are fetched, small ones first: those right in its repository.

    `siblings` is what the hub says of its files. Raises LabError for what no model has.
    """
    patterns, found = list(patterns), []
    for file in siblings or []:
        name = file.rfilename
        if type(name) is str and plain(name) and any(fnmatch(name, p) for p in patterns):
            found.append(remote(file))
    if len(found) > MOST_FILES:
        raise LabError(f"has {len(found):,} files; a model has {MOST_FILES:,} at most")
    return sorted(found, key=lambda remote: remote.size)


def remote(file: Any) -> Remote:
    """A file as the hub tells of it. Raises LabError where it gives no size."""
    name, size = str(file.rfilename), file.size
    if type(size) is not int or not 0 <= size <= LARGEST:
        raise LabError(f"the hub gives no size of {display.short(name)}; try again later")
    return Remote(name, size, str(getattr(file.lfs, "sha256", "") or ""))


def plain(name: str) -> bool:
    """Whether a name is one of a file of its own in a folder, that no other name hides behind."""
    return bool(NAME.fullmatch(name))


def download(model: str, revision: str, folder: Path, patterns: Iterable[str], report: Report) -> None:
    """Put a model's files into a folder, where an earlier attempt's are kept.

    Raises LabError with what to do where that fails; what has arrived stays. Raises OSError of the disk.
    """
    from huggingface_hub import HfApi

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=20)
        remotes = listed(info.siblings, patterns)
        if not any(remote.name.endswith(".safetensors") for remote in remotes):
            raise LabError(f"{model} has no .safetensors files; other weight formats can carry code.")
        _room(folder, remotes)
        bring(model, revision, remotes, folder, report)
    except LabError:
        raise
    except Exception as error:
        if of_this_machine(error):
            raise
        raise LabError(f"{model} cannot be downloaded: {why(error, model)}.") from None


def bring(
    name: str, revision: str, remotes: list[Remote], folder: Path, report: Report, kind: str = "model"
) -> None:
    """Put files of a repository, of a model or a dataset, into a folder that has room for them.

    Raises what the client raises.
    """
    from huggingface_hub.utils import logging

    # Its warnings have signed addresses in them.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    meter = Meter(report, sum(remote.size for remote in remotes))
    for remote in remotes:
        _fetch(name, revision, remote, folder, meter, kind)


def why(error: BaseException, model: str) -> str:
    """What stands against a download and what to do, for the end of a sentence. It has no address in it."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    answer = getattr(error, "response", None)
    status = answer.status_code if answer is not None else None
    if isinstance(error, GatedRepoError):
        return f"accept its license at https://huggingface.co/{model} first; then run `hf auth login` here"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return "it is not on the hub any more, or your login may not read it; check the name and the login"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it and start the lab again"
    if status == 429 or (status or 0) >= 500:
        return f"the hub is busy or in trouble ({status}); {AGAIN} in some minutes"
    if isinstance(error, OSError) or type(error).__module__.startswith("httpx"):
        return f"the connection to the hub was lost ({type(error).__name__}); {AGAIN}"
    return f"the hub gave an unexpected answer ({type(error).__name__}); {AGAIN}"


def of_this_machine(error: Exception) -> bool:
    """Whether the disk or the memory here is at fault, and not the way to the hub.

    The client raises an OSError of its own, with an address in it, where less came than the hub has named.
    """
    if isinstance(error, OSError):
        return error.errno is not None and not type(error).__module__.startswith(("huggingface_hub", "httpx"))
    return isinstance(error, MemoryError)


def _room(folder: Path, remotes: list[Remote]) -> None:
    """Raise LabError where the disk has no room for what is still to come."""
    needed = sum(remote.size - _there(folder, remote) for remote in remotes)
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise LabError(
            f"The model needs {display.size(needed)} more of disk, and {display.size(free)} are free; remove"
            " models that you no longer need, or free space another way, and try again."
        )


def _there(folder: Path, remote: Remote) -> int:
    """Bytes of a file that are here already."""
    for path in (folder / remote.name, _part(folder, remote)):
        if path.is_file() and path.stat().st_size <= remote.size:
            return path.stat().st_size
    return 0


def _part(folder: Path, remote: Remote) -> Path:
    return folder / f".{remote.name}{ARRIVING}"


def _fetch(model: str, revision: str, remote: Remote, folder: Path, meter: Meter, kind: str) -> None:
    target, part = folder / remote.name, _part(folder, remote)
    if target.is_file() and target.stat().st_size == remote.size:
        meter.add(remote.size, f"{remote.name} is here already", moved=False)
        return
    if part.is_file() and part.stat().st_size > remote.size:
        part.unlink()
    part.touch(mode=0o600)
    took = partial(meter.add, message=f"Downloading {remote.name}")
    with part.open("r+b", buffering=0) as raw:
        kept = raw.seek(0, io.SEEK_END)
        meter.add(kept, f"Downloading {remote.name}", moved=False)
        with _Counted(raw, took, remote.size) as file:
            _get(model, revision, remote, file, kept, kind)
    if remote.sha256 and _sha256(part) != remote.sha256:
        part.unlink()
        raise LabError(f"{remote.name} of {model} arrived with other content than the hub names; try again.")
    part.replace(target)


def _get(model: str, revision: str, remote: Remote, file: Any, kept: int, kind: str) -> None:
    """Ask the hub for what is missing of a file, and write it. Raises what the client raises."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(model, remote.path or remote.name, revision=revision, repo_type=kind)
    headers = build_hf_headers()
    address = get_hf_file_metadata(url).location
    if urlsplit(address).netloc != urlsplit(url).netloc:  # a storage, which the token is no business of
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    if kept < remote.size:
        http_get(address, file, resume_size=kept, headers=headers, expected_size=remote.size)


class _Counted(io.BufferedWriter):
    """A file that tells how many bytes are written to it, and grows to its size and no further.

    The client goes back to its beginning where a hub sends the whole instead of the rest.
    """

    def __init__(self, raw: io.FileIO, took: Any, size: int) -> None:
        super().__init__(raw, PIECE)
        self._took, self._size = took, size

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._size:
            raise LabError("the hub sends more than it named; try again later")
        written = super().write(data)
        self._took(written)
        return written


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
