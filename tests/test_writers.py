"""Who else could change a file."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import writers
from tests.helpers import reachable

ME, BOB = 4001, 4002


@pytest.fixture
def tree() -> Iterator[Path]:
    with reachable.folder() as folder:
        (folder / "above" / "model").mkdir(parents=True)
        (folder / "above" / "model" / "config.json").write_text("{}")
        for each in folder.rglob("*"):
            each.chmod(0o755 if each.is_dir() else 0o644)
        yield folder


def test_what_only_its_user_may_write_to_is_nobody_elses(tree: Path) -> None:
    model = tree / "above" / "model"
    assert writers.other([model, model / "config.json"]) == ""


@pytest.mark.parametrize("opened", ["above", "above/model", "above/model/config.json"])
def test_whatever_leads_there_must_be_closed(tree: Path, opened: str) -> None:
    (tree / opened).chmod(0o777)
    model = tree / "above" / "model"
    assert writers.other([model, model / "config.json"]) == f"every user may write to {tree / opened}"


def test_below_a_closed_folder_one_may_be_open_elsewhere(tree: Path) -> None:
    """As a folder of the machine that is mounted into a container's closed home, or the other way round."""
    model = tree / "above" / "model"
    model.chmod(0o777)
    (tree / "above").chmod(0o700)
    assert writers.other([model]) == f"every user may write to {model}"


def test_a_sticky_folder_is_open_to_new_files_only(tree: Path) -> None:
    above = tree / "above"
    above.chmod(0o1777)
    assert writers.other([above / "model"]) == ""
    assert writers.other([above]) == f"every user may write to {above}"
    assert writers.other([above / "model", above]) == f"every user may write to {above}"


def test_every_link_on_the_way_counts(tree: Path) -> None:
    """`first` leads by a relative link through an open folder, to what is closed."""
    (tree / "open").mkdir()
    (tree / "open").chmod(0o777)
    (tree / "open" / "link").symlink_to("../above/model")
    (tree / "first").symlink_to("open/link")
    assert writers.other([tree / "first" / "config.json"]) == f"every user may write to {tree / 'open'}"
    (tree / "open").chmod(0o755)
    assert writers.other([tree / "first" / "config.json"]) == ""
    (tree / "second").symlink_to(tree / "above")
    assert writers.other([tree / "second" / ".." / "first"]) == ""


def test_a_link_to_itself_ends_in_an_error(tree: Path) -> None:
    (tree / "turn").symlink_to("turn")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        writers.other([tree / "turn"])
    with pytest.raises(FileNotFoundError):
        writers.other([tree / "nothing"])


def test_what_belongs_to_another_is_the_others(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tree.stat().st_uid
    if owner == writers.ROOT:  # whose files count for everybody
        os.chown(tree / "above", 54321, -1)
        assert writers.other([tree / "above" / "model"]) == f"{tree / 'above'} belongs to user 54321"
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
        assert f"{tree} belongs to user " in writers.other([tree / "above" / "model"])


def test_a_group_of_others_may_not_write(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own group may: many systems give each user one, and let it write."""
    model = tree / "above" / "model"
    model.chmod(0o775)
    for private, said in (
        (True, ""),
        (False, f"group {grp.getgrgid(model.stat().st_gid).gr_name} may write"),
    ):
        monkeypatch.setattr(writers, "_is_private", lambda *_, private=private: private)
        assert writers.other([model]).startswith(said)
        assert bool(writers.other([model])) is not private


@pytest.mark.parametrize(
    ("members", "primary", "private"),
    [
        ([], [ME], True),
        (["me"], [], True),
        (["me", "root"], [], True),
        (["me", "bob"], [], False),
        (["me", "gone"], [], False),
        ([], [], False),
        (["root"], [], False),
        ([], [ME, BOB], False),
    ],
)
def test_a_private_group_has_nobody_else(
    monkeypatch: pytest.MonkeyPatch, members: list[str], primary: list[int], private: bool
) -> None:
    numbers = {"root": 0, "me": ME, "bob": BOB}
    users = [
        pwd.struct_passwd((name, "x", uid, 77 if uid in primary else 1, "", "/", ""))
        for name, uid in numbers.items()
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("team", "x", number, members)))
    assert writers._is_private.__wrapped__(77, ME, 0) is private


def test_the_group_of_root_is_nobodys_own() -> None:
    """`docker run -u 1234` has it."""
    assert not writers._is_private.__wrapped__(0, 0, 0)


def test_an_access_list_counts_with_the_groups_right_to_write(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its users have at most the rights that the group's bits show."""
    model = tree / "above" / "model"
    monkeypatch.setattr(os, "listxattr", lambda path: [writers.ACCESS_LIST])
    assert writers.other([model]) == ""
    model.chmod(0o775)
    assert writers.other([model]) == f"an access list lets others write to {model}"


def test_a_file_system_without_access_lists_has_none(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(path: Path) -> list[str]:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    model = tree / "above" / "model"
    model.chmod(0o775)
    monkeypatch.setattr(os, "listxattr", unsupported)
    monkeypatch.setattr(writers, "_is_private", lambda *_: True)
    assert writers.other([model]) == ""
