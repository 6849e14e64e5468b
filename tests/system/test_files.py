"""Files that are whole or not there."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.system import files


def test_a_link_is_shared_as_what_it_leads_to_if_that_lies_inside(tmp_path: Path) -> None:
    (own := tmp_path / "own").mkdir()
    (own / "weights").write_bytes(b"weights")
    (own / "linked").symlink_to("weights")
    (own / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(b"secret")
    assert files.share(own / "linked", tmp_path / "one", [own]) == files.LINKED
    assert files.share(own / "linked", tmp_path / "two") == files.LINKED
    for made in (tmp_path / "one", tmp_path / "two"):
        assert not made.is_symlink()
        assert made.samefile(own / "weights")
    with pytest.raises(OSError, match="it is no file of its folder"):
        files.share(own / "out", tmp_path / "three", [own])
    assert not (tmp_path / "three").exists()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "result.json", {"a": 1})
    files.write_whole(tmp_path / "result.json", {"a": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "result.json", {"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write_whole(tmp_path / "result.json", {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_visible_files_are_those_of_a_folder_that_is_there(tmp_path: Path) -> None:
    for name in ("rows", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    assert files.visible(tmp_path) == [tmp_path / "rows"]
    assert files.visible(tmp_path / "gone") == []


def test_a_file_is_read_only_where_it_is(tmp_path: Path) -> None:
    """As it is when it is open: a look before would not say."""
    own, secret = tmp_path / "own", tmp_path / "secret"
    own.mkdir()
    secret.write_text("secret")
    (own / "rows").write_text("rows")
    (own / "inside").symlink_to(own / "rows")
    (own / "outside").symlink_to(secret)
    (own / "deep").symlink_to(tmp_path)
    os.mkfifo(own / "pipe")
    assert files.read_inside(own / "rows", [own]) == files.read_inside(own / "inside", [own]) == b"rows"
    assert files.read_inside(own / "rows", [own], 2) == b"ro"
    assert files.read_inside(own / "outside", [own, secret]) == b"secret"
    for name in ("outside", "deep/secret", "pipe"):
        with pytest.raises(OSError, match="no file of its folder"):
            files.read_inside(own / name, [own])


def test_a_file_is_linked(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("rows")
    files.link_or_copy(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one").samefile(tmp_path / "two")
    with pytest.raises(FileExistsError):
        files.link_or_copy(tmp_path / "one", tmp_path / "two")
    with pytest.raises(FileNotFoundError):
        files.link_or_copy(tmp_path / "none", tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_without_links_a_file_is_cloned_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: str, target: Path, *, src_dir_fd: int) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def cloned(source: Path, target: Path) -> None:
        target.write_text("rows")

    (tmp_path / "one").write_text("rows")
    assert files.share(tmp_path / "one", tmp_path / "two") == files.LINKED
    monkeypatch.setattr(os, "link", no_links)
    assert files.share(tmp_path / "one", tmp_path / "three") in (files.CLONED, files.COPIED)
    monkeypatch.setattr(files, "_clone", cloned)  # as on Btrfs and XFS
    assert files.share(tmp_path / "one", tmp_path / "four") == files.CLONED
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ["one", "two", "three", "four"], "rows"
    )


def test_what_is_no_number_becomes_null(tmp_path: Path) -> None:
    given = {"a": float("nan"), "b": [float("inf")], "c": 1.5}
    assert json.loads(files.to_json(given)) == {"a": None, "b": [None], "c": 1.5}
    files.write_whole(tmp_path / "result.json", {**given, "d": np.float32("inf")})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": None, "b": [None], "c": 1.5, "d": None}


# They write what a library's own configuration holds, as it is, or do as a library does.
OTHERS = {
    "pipeline/runs/check_pool.py",  # for its own processes, which read infinities back
    "pipeline/runs/data/data_check.py",  # as above
    "pipeline/inputs/data/formats/convert.py",  # as above
    "pipeline/inputs/data/formats/make.py",  # as above
    "pipeline/exports/row_tokens.py",
    "pipeline/inputs/prompts/conversations.py",  # counts letters, and writes what an answer calls
    "pipeline/inputs/prompts/rendering.py",  # counts letters
    "pipeline/inputs/data/paging.py",  # for people to read
    "pipeline/cli/terminal.py",  # for people to read
    "pipeline/exports/generation.py",
    "pipeline/inputs/prompts/lab_prompt.py",
    "pipeline/passes/quantize/autoawq.py",
    "pipeline/passes/optimize/genai_builder.py",
    "pipeline/worker/probe.py",
    "pipeline/worker/trial.py",
    "pipeline/exports/serving_ids.py",
    "webapp/ui/views.py",  # for people to read
}


def _careless(path: Path) -> Iterator[int]:
    """Lines of a module that write JSON and let NaN through."""
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    for call in calls:
        writes = ast.unparse(call.func) in ("json.dumps", "json.dump")
        if writes and "allow_nan=False" not in map(ast.unparse, call.keywords):
            yield call.lineno


def test_no_json_of_ours_holds_what_json_does_not_have() -> None:
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix(): lines
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        if (lines := list(_careless(path)))
    }
    assert {path: lines for path, lines in found.items() if path not in OTHERS} == {}
    assert found.keys() == OTHERS


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "text", "é\n")
    files.write_whole(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\xff"


def test_what_is_written_is_its_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_whole(tmp_path / "place.json", {"workspace": "w"}, shared=True)
    finally:
        os.umask(before)
    assert (tmp_path / "place.json").stat().st_mode & 0o777 == 0o600


def test_two_who_write_a_shared_file_at_the_same_time_write_apart(tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    with files.whole(target, shared=True) as one, files.whole(target, shared=True) as other:
        one.write_text("one", "utf-8")
        other.write_text("other", "utf-8")
        assert one.read_text("utf-8") == "one"
    assert target.read_text("utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_link_where_the_unfinished_file_goes_is_not_written_through(tmp_path: Path, shared: bool) -> None:
    """A folder that somebody else has packed may have one there, and libraries follow it."""
    (theirs := tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".adapter.part").symlink_to(theirs)
    with files.whole(tmp_path / "adapter", shared=shared) as part:
        part.write_text("ours")
    assert (theirs.read_text(), (tmp_path / "adapter").read_text()) == ("theirs", "ours")
    assert not (tmp_path / "adapter").is_symlink()


def test_a_block_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    def write() -> None:
        with files.whole(tmp_path / "model.zip") as part:
            part.write_bytes(b"half")
            raise LabError("no")

    with pytest.raises(LabError, match="no"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_folder_is_as_large_as_what_it_takes_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 100)
    (folder / "deep/config").write_bytes(b"c" * 10)
    os.link(folder / "weights", folder / "deep/weights")
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    link = (folder / "away").lstat().st_size
    assert files.size(folder) == 110 + link
    assert files.size(folder, folder / "weights") == 110 + link
    assert files.size(folder / "weights") == 100
    assert files.size(tmp_path / "missing") == 0


# What gives a file or folder its final name itself, and why `whole` is not for it.
MOVERS = {
    "pipeline/exports/bound/binding.py": "a folder, which must not replace another",
    "pipeline/home_check.py": "tries whether a disk can",
    "pipeline/inputs/models/base_models.py": "a folder, kept half-filled so that a download resumes",
    "pipeline/inputs/models/starter_package.py": "a large file, already whole",
    "pipeline/inputs/models/hub_download.py": "a file kept half-read so that a download resumes",
    "pipeline/passes/finetune/training.py": "a folder",
    "pipeline/passes/measure/kept_lines.py": "a file that grows, once what was torn off it is gone",
    "pipeline/publish/azure/pull.py": "a folder, kept half-filled so that a download resumes",
    "pipeline/publish/azure/transfer/download.py": "a file kept half-read so that a download resumes",
    "pipeline/publish/foundry/environment.py": "a folder",
    "pipeline/publish/foundry/publisher.py": "a folder",
    "pipeline/publish/local.py": "a folder, which must not replace another",
    "pipeline/runs/cached_models.py": "what is to be deleted",
    "pipeline/runs/data/data_card.py": "a folder",
    "pipeline/runs/data/prepare_data.py": "a folder",
    "pipeline/runs/disk.py": "what is to be deleted",
    "pipeline/runs/kept_datasets.py": "a file named by its content, once that is read",
    "pipeline/stages/artifacts.py": "a folder",
    "pipeline/store/backup.py": "a database",
    "pipeline/store/repair.py": "a database",
    "pipeline/system/files.py": "whole",
    "pipeline/worker/ahead/graph.py": "a folder",
    "pipeline/worker/probe.py": "a folder",
}


def _moves(path: Path) -> bool:
    """Whether a module moves files: `a.replace(b)` of texts has two arguments, of dataclasses keywords."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return any(
        isinstance(call.func, ast.Attribute)
        and (
            (call.func.attr in ("replace", "rename") and len(call.args) == 1 and not call.keywords)
            or ast.unparse(call.func) in ("os.replace", "os.rename", "shutil.move", "tempfile.mkstemp")
        )
        for call in calls
    )


def _walks(path: Path) -> bool:
    """Whether a module adds up sizes of files."""
    sums = (
        node
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) == "sum")
        or (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add))
    )
    return any("stat().st_size" in ast.unparse(node) for node in sums)


def _modules(found: Callable[[Path], bool]) -> set[str]:
    root = settings.ROOT
    every = (path for folder in ("pipeline", "webapp") for path in (root / folder).rglob("*.py"))
    return {path.relative_to(root).as_posix() for path in every if found(path)}


def test_files_are_written_whole_in_one_place() -> None:
    assert _modules(_moves) == MOVERS.keys()


def test_sizes_are_added_up_in_one_place() -> None:
    assert _modules(_walks) == set()


def test_kept_tracebacks_do_not_grow_without_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGEST_LOG", 10)
    for letter in "abc":
        file = files.keep_traceback(letter * 20 + "\udcff")
    assert file == home / "errors.log"
    assert file.read_text() == "c" * 9 + "\\udcff"


def test_nothing_is_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write to a folder of this user could have any file of this user emptied."""
    monkeypatch.setattr(files, "_LARGEST_LOG", 1)
    precious = tmp_path / "precious"
    precious.write_text("long")
    (tmp_path / "a.log").symlink_to(precious)
    with pytest.raises(LabError, match=r"a\.log must be a file, and no link; remove it"):
        files.log(tmp_path / "a.log")
    assert precious.read_text() == "long"


def test_logs_of_the_home_have_an_end() -> None:
    opened = re.compile(r"\bhome(\(\))? / [^)\n]+\)\.open\([\"']a")
    sources = [*(settings.ROOT / "pipeline").rglob("*.py"), *(settings.ROOT / "webapp").rglob("*.py")]
    assert [path.name for path in sources if opened.search(path.read_text("utf-8"))] == []


def test_a_traceback_that_cannot_be_kept_is_not_promised(home: Path) -> None:
    (home / "errors.log").mkdir()
    assert files.with_traceback("It failed.", "Traceback") == "It failed."


def test_files_with_a_name_elsewhere_are_told_from_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("alone", "twice", "outside"):
        (folder / name).write_text(name)
    os.link(folder / "twice", folder / "below" / "twice")
    os.link(folder / "outside", tmp_path / "outside")
    inodes = {name: (folder / name).stat().st_ino for name in ("alone", "twice", "outside")}
    found = {inode for _, inode in files.linked_only_in(folder)}
    assert found == {inodes["alone"], inodes["twice"]}
