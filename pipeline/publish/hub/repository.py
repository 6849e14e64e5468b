"""A model's repository on the hub: its files, and how a version is added by one commit and a tag."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import LabError
from pipeline.publish import zip_file
from pipeline.publish.hub.client import Hub
from pipeline.publish.hub.faults import status_of
from pipeline.publish.items import Item
from pipeline.system import checksums
from pipeline.system.transfer_progress import Meter

TAG = re.compile(r"v([1-9][0-9]{0,8})")
# Files that the hub, or a user who creates a repository on its page, puts there.
ITS_OWN = {".gitattributes", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
OURS = {zip_file.RECIPE, checksums.NAME}
NOTHING_LEFT_OUT = "# nothing is left out\n"  # an empty file might count as missing


@dataclass(frozen=True)
class Stored:
    """A file of a commit: its bytes, git's name for them, and their SHA-256 if they are large."""

    size: int
    blob: str
    sha256: str | None

    def holds(self, item: Item) -> bool:
        """Whether it is the item, byte for byte."""
        if self.sha256 is not None:
            return (self.sha256, self.size) == (item.sha256, item.size)
        return self.size == item.size and self.blob == _blob(item)


def of_this_lab(found: Mapping[str, Stored]) -> bool:
    """Whether files of a commit can be an earlier version, whose checksums are fetched."""
    return found.keys() >= OURS and found[checksums.NAME].size <= checksums.LARGEST


class Repository:
    """One repository, which may not exist yet."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub, self.name = hub, name
        self._counted: set[str] = set()  # files already counted in the meter, if they are sent twice

    def private(self) -> bool | None:
        """Whether it is private; None if it does not exist or the login cannot see it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return bool(self.hub.do(lambda: self.hub.api.model_info(self.name)).private)
        except RepositoryNotFoundError:
            return None

    def create(self, private: bool) -> None:
        """Create it unless it exists."""
        self.hub.do(lambda: self.hub.api.create_repo(self.name, private=private, exist_ok=True))

    def refs(self) -> tuple[str, dict[str, str]]:
        """The newest commit, and the commit of each version by its number."""
        found = self.hub.do(lambda: self.hub.api.list_repo_refs(self.name))
        tags = {match[1]: tag.target_commit for tag in found.tags if (match := TAG.fullmatch(tag.name))}
        return next(branch.target_commit for branch in found.branches if branch.name == "main"), tags

    def files(self, commit: str) -> dict[str, Stored]:
        """The files of a commit by their paths."""
        api = self.hub.api
        tree: list[Any] = self.hub.do(
            lambda: list(api.list_repo_tree(self.name, recursive=True, revision=commit))
        )
        return {
            file.path: Stored(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
            for file in tree
            if hasattr(file, "blob_id")  # a folder has none
        }

    def former(self, commit: str, found: Mapping[str, Stored]) -> set[str]:
        """Files of a commit that are from an earlier version. Raises LabError for files not of a lab."""
        there = set(found)
        if not there - ITS_OWN:
            return set()
        if not of_this_lab(found):
            raise LabError(f"{self.name} has files that are not of this lab; choose another name.")
        with tempfile.TemporaryDirectory() as folder:
            self.fetch(commit, checksums.NAME, Path(folder))
            try:
                return there & checksums.read(Path(folder)).keys()
            except ValueError:  # somebody has edited it
                return set()

    def commit(
        self, items: list[Item], former: set[str], parent: str, message: str, meter: Meter
    ) -> str | None:
        """Upload files and commit them on top of `parent`; None if another commit came first.

        No file is visible before all are there. Raises LabError if a file changes while it is read.
        """
        from huggingface_hub import CommitOperationDelete

        with ExitStack() as opened:
            changes: list[Any] = [self._sent(item, opened, meter) for item in items]
            changes += [
                CommitOperationDelete(name) for name in sorted(former - {item.name for item in items})
            ]
            try:
                made = self.hub.do(
                    lambda: self.hub.api.create_commit(
                        self.name, changes, commit_message=message, parent_commit=parent
                    )
                )
            except Exception as error:
                if status_of(error) in (409, 412):
                    return None
                raise
        return str(made.oid)

    def _sent(self, item: Item, opened: ExitStack, meter: Meter) -> Any:
        """Upload a large file; small ones are sent with the commit. Returns the operation for the commit."""
        from huggingface_hub import CommitOperationAdd

        file: Any = Counted(opened.enter_context(item.open()), self._passed(meter, item.name))
        operation = CommitOperationAdd(item.name, file)  # which reads and hashes it
        if operation.upload_info.sha256.hex() != item.sha256:
            raise LabError(f"{item.name} changed while it was uploaded; publish again.")
        file.begin(item.size if item.name in self._counted else 0)

        def upload() -> None:
            file.seek(0)  # a failed attempt may have moved it
            # One file at a time, so that finished files stay finished. No .gitignore is applied: it would
            # silently leave files out.
            self.hub.api.preupload_lfs_files(
                self.name, [operation], num_threads=1, free_memory=False, gitignore_content=NOTHING_LEFT_OUT
            )

        self.hub.do(upload)
        if operation._is_uploaded and file.furthest < item.size:
            meter.add(item.size - file.furthest, f"{item.name} is there already", moved=False)
        self._counted.add(item.name)
        return operation

    def tag(self, version: str, commit: str) -> bool:
        """Tag a commit as a version; False if another commit has that tag."""
        try:
            self.hub.do(lambda: self.hub.api.create_tag(self.name, tag=f"v{version}", revision=commit))
        except Exception as error:
            if status_of(error) == 409:
                return False
            raise
        return True

    def fetch(
        self, commit: str, name: str, folder: Path, passed: Callable[[int], None] | None = None
    ) -> None:
        """Download a file of a commit into the folder."""
        bar: Any = _bar(passed) if passed else None
        self.hub.do(
            lambda: self.hub.api.hf_hub_download(
                self.name, name, revision=commit, local_dir=folder, tqdm_class=bar
            )
        )

    def page(self, version: str) -> str:
        """The address of a version's page."""
        return f"{self.hub.api.endpoint}/{self.name}/tree/v{version}"

    def _passed(self, meter: Meter, name: str) -> Callable[[int], None]:
        def passed(count: int) -> None:
            self.hub.alive()
            meter.add(count, f"Uploading {name}")

        return passed


class Counted(io.BufferedIOBase):
    """A file that reports newly read bytes, once sending has started.

    The client hashes it first, and reads failed parts again. It sends such a file as plain LFS: its own
    chunk protocol would share chunks between versions, but uses a library that reports no progress or reason
    for waiting, and servers that no proxy's list has.
    """

    def __init__(self, file: BinaryIO, passed: Callable[[int], None]) -> None:
        self._file, self._passed = file, passed
        self._begun = False
        self.furthest = 0

    def begin(self, furthest: int) -> None:
        """Start sending; `furthest` bytes were reported before."""
        self._begun, self.furthest = True, furthest

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        data = self._file.read(-1 if size is None else size)
        if self._begun and data:  # bytes that are sent again also show that the connection works
            more = max(self._file.tell() - self.furthest, 0)
            self.furthest += more
            self._passed(more)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _bar(passed: Callable[[int], None]) -> type:
    """A class that the client uses as a progress bar."""

    class Bar:
        def __init__(self, **about: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: float) -> None:
            passed(int(count))

    return Bar


def _blob(item: Item) -> str:
    """Git's name for the item's content."""
    digest = hashlib.sha1(b"blob %d\0" % item.size, usedforsecurity=False)
    with item.open() as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
