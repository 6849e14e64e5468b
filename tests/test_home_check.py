"""Homes on file systems that lack something, made by a library that is loaded before all others."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import home_check, settings, writers
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.system import locks
from tests.helpers import reachable

LIBRARY = Path(__file__).parent / "helpers" / "lacking.c"
SILENT = 0
FLOCK = "file locks (flock)"
RANGES = "locks on parts of a file (fcntl)"
MAPS = "shared memory maps (mmap)"
MODES = "permissions (chmod)"
RENAMES = "replacing an open file (rename)"
SYNCS = "writing through to the disk (fsync)"
APPENDS = "appending to a file (O_APPEND)"
CUTS = "cutting a file short (truncate)"
TIMES = "time stamps (utime)"
REMOVALS = "removing files (unlink)"
OLD = home_check.ABANDONED_SECONDS + 60


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    built = tmp_path_factory.mktemp("library") / "lacking.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", built, LIBRARY, "-ldl"], check=True)
    return built


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Path]:
    """A folder that is empty before and after: nothing was started, and nothing is left."""
    home = tmp_path / "cloudfiles" / "lab"
    home.mkdir(parents=True)
    yield home
    assert list(home.iterdir()) == []


def begin(library: Path, home: Path, lacking: str, error: int, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=settings.ROOT,
        env=environment(library, home, lacking, error),
    )  # fmt: skip


def environment(library: Path, home: Path, lacking: str, error: int) -> dict[str, str]:
    return settings.child_environment(
        OLIVE_LAB_HOME=str(home), LD_PRELOAD=str(library), LACKING=lacking,
        LACKING_UNDER=f"{home}/", LACKING_ERRNO=str(error),
    )  # fmt: skip


def sentence(process: subprocess.Popen[str]) -> str:
    """What a command that is refused says."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    (said,) = err.splitlines()
    return said


def test_every_command_says_what_is_missing_and_where_to_go(
    library: Path, share: Path, recipe_file: Path
) -> None:
    commands = (
        ("flock", errno.EOPNOTSUPP, FLOCK, ["webapp", "--port", "0"]),
        ("fcntl", errno.ENOLCK, RANGES, ["pipeline", "list"]),
        ("mmap", errno.ENODEV, MAPS, ["pipeline", "worker"]),
        ("chmod", errno.EPERM, MODES, ["pipeline", "run", recipe_file]),
    )
    begun = [begin(library, share, lacking, error, *command) for lacking, error, _, command in commands]
    for process, (_, _, words, _) in zip(begun, commands, strict=True):
        assert sentence(process) == (
            f"OLIVE_LAB_HOME: the file system of {share} lacks {words}, which the lab needs; put the home on"
            " a local disk, as OLIVE_LAB_HOME=/a/local/folder."
        )


# Leaves a row out, and carries a graph's files over, in a home without hard links; says what lies there.
LINKING = """
import pathlib, sys
from pipeline.inputs.data import datasets, telling
from pipeline.passes.optimize import folders
from pipeline import settings
from pipeline.runs.data import data_card
home = settings.home()
rows, graph = home / "datasets/a/rows.jsonl", home / "graph/model.onnx"
for path in (rows, graph):
    path.parent.mkdir(parents=True)
    path.write_text('{"prompt": "a", "response": "b"}\\n' * 3)
(graph.parent / "model.onnx.data").write_text("weights")
work = home / "work"
work.mkdir()
asked = data_card.Question(rows, "{prompt} {response}", None, 512, leave_out=("duplicates",))
path, went = telling.ended(data_card.without(asked, work))
folders.carry_over(graph, home / "carried")
carried = (home / "carried/model.onnx.data").read_text()
print(went, path.read_text().count("prompt"), path.stat().st_nlink, carried)
"""


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.EMLINK, errno.EACCES])
def test_without_hard_links_files_are_copied(library: Path, tmp_path: Path, error: int) -> None:
    (tmp_path / "lab").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LINKING], capture_output=True, text=True, cwd=settings.ROOT,
        env=environment(library, tmp_path / "lab", "link", error),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("2 1 1 weights\n", "")


WAYS = {
    "flock": ((errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EACCES, SILENT), FLOCK),
    "fcntl": ((errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, SILENT), RANGES),
    "mmap": ((errno.ENODEV, errno.EACCES, errno.EIO, SILENT), MAPS),
    "chmod": ((errno.EPERM, errno.EOPNOTSUPP, SILENT), MODES),
    "rename": ((errno.EEXIST, errno.EACCES), RENAMES),
    "fsync": ((errno.EINVAL, errno.EIO), SYNCS),
    "append": ((errno.EINVAL, errno.EPERM, SILENT), APPENDS),
    "truncate": ((errno.EINVAL, SILENT), CUTS),
    "ftruncate": ((errno.EINVAL, SILENT), CUTS),
    "utime": ((errno.EPERM, SILENT), TIMES),
}
# Tries a home once for each way that its standard input names; what is said comes as a list of texts.
TRIES = """
import json, os, pathlib, sys
from pipeline import home_check
said = []
for lacking, error in json.load(sys.stdin):
    os.environ.update(LACKING=lacking, LACKING_ERRNO=str(error))
    home_check.need.cache_clear()
    try:
        home_check.need(pathlib.Path(os.environ["OLIVE_LAB_HOME"]))
        said.append("")
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""


def tried(library: Path, home: Path, ways: list[tuple[str, int]]) -> list[str]:
    """What one process says of a home for each (what is lacking, error); "" if it can hold a lab."""
    done = subprocess.run(
        [sys.executable, "-c", TRIES], input=json.dumps(ways), capture_output=True, text=True, timeout=60,
        check=True, cwd=settings.ROOT, env=environment(library, home, "nothing", 0),
    )  # fmt: skip
    said: list[str] = json.loads(done.stdout)
    assert len(said) == len(ways)
    return said


def test_it_fails_in_many_ways(library: Path, share: Path) -> None:
    ways = [(lacking, error, words) for lacking, (errors, words) in WAYS.items() for error in errors]
    said = tried(library, share, [(lacking, error) for lacking, error, _ in ways])
    for (lacking, error, words), text in zip(ways, said, strict=True):
        expected = f"InputError: OLIVE_LAB_HOME: the file system of {share} lacks {words}, which"
        assert text.startswith(expected), (lacking, error)


def test_where_nothing_can_be_removed_is_said(library: Path, tmp_path: Path) -> None:
    (text,) = tried(library, tmp_path, [("unlink", errno.EPERM)])
    assert f" lacks {RENAMES} and {REMOVALS}, " in text or f" lacks {REMOVALS}, " in text


def test_a_home_whose_path_is_too_long_for_the_database(tmp_path: Path) -> None:
    long = tmp_path.joinpath(*["a" * 200] * 3)
    long.mkdir(parents=True)
    assert "is longer than 480 bytes" in lacks(long)


def test_who_may_not_write_is_told_so(library: Path, share: Path) -> None:
    for text in tried(library, share, [("mkdir", errno.EACCES), ("mkdir", errno.EPERM)]):
        assert text.startswith(f"InputError: {share} cannot be written (")
        assert "writable, or set OLIVE_LAB_HOME" in text


def test_a_full_disk_is_no_matter_of_its_kind(library: Path, home: Path) -> None:
    full = [(lacking, errno.ENOSPC) for lacking in ("mkdir", "mmap", "rename")]
    assert tried(library, home, full) == ["", "", ""]
    said = begin(library, home, "mkdir", errno.ENOSPC, "pipeline", "list").communicate(timeout=60)[1]
    assert "lacks" not in said


def test_what_works_is_used(library: Path, home: Path) -> None:
    begun = begin(library, home, "nothing", errno.EIO, "pipeline", "list")
    assert begun.communicate(timeout=60)[0].startswith("There are no runs yet")


def lacks(home: Path) -> str:
    with pytest.raises(InputError) as caught:
        home_check.need.__wrapped__(home)
    return str(caught.value)


def test_all_that_is_missing_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr("mmap.mmap", refuse)
    assert f"lacks {FLOCK}, {MAPS} and {MODES}, which" in lacks(home)
    assert list(home.iterdir()) == []


def test_it_leaves_nothing_when_it_is_interrupted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            home_check.need.__wrapped__(home)
        assert list(home.iterdir()) == []
        monkeypatch.undo()


OTHERS = (
    "every user of this machine may write to {0}, and so change all that is kept there; close it to them:"
)


@pytest.mark.parametrize(
    ("mode", "refused"), [(0o700, False), (0o777, True), (0o1777, False), (0o775, False)]
)
def test_a_home_that_all_may_write_to_is_refused(
    home: Path, mode: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could plant links in it, to files that its user would then write. A group is somebody's choice,
    and of a sticky folder nobody removes another's files."""
    home.chmod(mode)
    monkeypatch.setattr(writers, "_is_private", lambda *_: True)  # whatever groups the machine has
    if refused:
        assert lacks(home) == f"OLIVE_LAB_HOME: {OTHERS.format(home)} chmod o-w {home}"
    else:
        home_check.need.__wrapped__(home)
    warned = home_check.warning(home)
    assert (warned is not None) == bool(mode & 0o002)


def test_the_operator_is_warned_of_a_home_that_others_can_exchange() -> None:
    with reachable.folder() as above:
        home = above / "home"
        home.mkdir(0o700)
        assert home_check.warning(home) is None
        above.chmod(0o777)
        home_check.need.__wrapped__(home)
        assert str(home_check.warning(home)).startswith(f"every user may write to {above}: ")


# Tries a home as another user does: 23457, who may write to it.
AS_ANOTHER = """
import os, pathlib, sys
from pipeline import home_check
os.setuid(23457)
try:
    home_check.need(pathlib.Path(sys.argv[1]))
    print(home_check.warning(pathlib.Path(sys.argv[1])))
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.parametrize(
    ("owner", "said"),
    [
        (23456, f"{{0}} {home_check.ANOTHERS}; name a folder of your own, or have it given to you: sudo"),
        (23457, f"OLIVE_LAB_HOME: {OTHERS}"),
        (0, f"{OTHERS}"),
    ],
    ids=["another's", "one's own", "root's, as containers have"],
)
def test_a_home_of_another_user_is_refused(owner: int, said: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # below which all may look
        home = Path(folder)
        os.chown(home, owner, owner)
        home.chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER, folder], capture_output=True, text=True, cwd=settings.ROOT
        )
        assert said.format(home) in done.stdout
        assert done.stdout.startswith("OLIVE_LAB_HOME") == (owner != 0)
        if owner == 23456:  # root may use it, and is warned
            home_check.need.__wrapped__(home)
            assert str(home_check.warning(home)).endswith(f"{folder} {home_check.ANOTHERS}.")


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds), follow_symlinks=False)


def test_what_a_killed_one_left_is_swept_and_others_at_work_are_not(home: Path) -> None:
    new = home / f"{home_check.PREFIX}{'a' * 12}"
    for left, age in ((home / f"{home_check.PREFIX}{'0' * 12}", OLD), (new, 0.0)):
        left.mkdir()
        (left / "flock").touch()
        aged(left, age)
    home_check.need.__wrapped__(home)
    assert list(home.iterdir()) == [new]


def test_only_what_this_check_made_is_swept(home: Path, tmp_path: Path) -> None:
    named = f"{home_check.PREFIX}{'0' * 12}"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    precious = [tmp_path / "elsewhere/flock", home / ".probe-rs/config.toml", home / named / "thesis.txt"]
    (home / f"{home_check.PREFIX}{'1' * 12}").symlink_to(tmp_path / "elsewhere")
    for file in precious:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    for path in [*home.iterdir(), tmp_path / "elsewhere"]:
        aged(path, OLD)
    home_check.need.__wrapped__(home)
    assert all(file.exists() for file in precious)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755


def test_a_lab_at_work_in_the_same_home_does_not_notice(store: Store) -> None:
    """Locks that are held stay held, and none is taken of them."""
    held = [locks.take(store.home / name) for name in ("worker.lock", "webapp.lock", "runs.lock")]
    before = {path: path.stat().st_mtime_ns for path in store.home.iterdir()}
    home_check.need.__wrapped__(store.home)
    assert {path: path.stat().st_mtime_ns for path in store.home.iterdir()} == before
    for name, descriptor in zip(("worker.lock", "webapp.lock", "runs.lock"), held, strict=True):
        assert descriptor is not None
        assert locks.held(store.home / name)
        os.close(descriptor)


def test_it_is_asked_once_a_process(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.home()
    monkeypatch.setattr(home_check, "TRIED", None)
    assert settings.home() == home
