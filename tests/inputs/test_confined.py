"""A confined process reads what it was given, and no other file, whoever opens it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.inputs import confined
from pipeline.system import own_process
from tests.helpers.lab import has_landlock

OPENS = """
import os, subprocess, sys
from pathlib import Path
sys.modules["torch"] = None
from tokenizers.models import WordPiece
from pipeline.inputs import confined

given, other, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "other":  # as another user has it
    os.geteuid = lambda: 12345
    how = "moving"
assert how == "free" or confined.to([given], moves=how == "moving")
how = sys.argv[4]
try:
    if how == "native":
        words = WordPiece(other, unk_token="a").id_to_token(0)
    elif how == "child":
        read = "print(open(__import__('sys').argv[1]).read())"
        words = [sys.executable, "-S", "-c", read, other]
        done = subprocess.run(words, capture_output=True, text=True)
        words = done.stdout.strip() or done.stderr.splitlines()[-1]
    elif how == "move":
        Path(other).rename(given / "moved")
        words = (given / "moved").read_text("utf-8")
    elif how == "folder":
        words = ",".join(path.name for path in Path(other).parent.iterdir())
    else:
        words = Path(other).read_text("utf-8")
    print("read", words)
except Exception as error:
    print("refused", error)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")


def said(given: Path, other: Path, how: str, confinement: str = "confined") -> str:
    words = ["-c", OPENS, str(given), str(other), confinement, how]
    done = own_process.run(words, 60, settings.bare_environment())
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A snapshot of a hub's cache."""
    folder = tmp_path / "model" / "snapshots" / "given"
    folder.mkdir(parents=True)
    (folder / "own.txt").write_text("own\n", "utf-8")
    (tmp_path / "model" / "blobs").mkdir()
    (tmp_path / "model" / "blobs" / "linked.txt").write_text("linked\n", "utf-8")
    (folder / "link.txt").symlink_to("../../blobs/linked.txt")
    (folder / "out.txt").symlink_to(tmp_path / "elsewhere" / "secret.txt")
    (tmp_path / "elsewhere").mkdir()
    (folder / "way").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "secret.txt").write_text("secret\n", "utf-8")
    return folder


@pytest.mark.parametrize("how", ["python", "native", "child", "folder"])
def test_nothing_else_is_read_by_whatever_opens_it(given: Path, how: str) -> None:
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    other = given.parents[2] / "elsewhere" / "secret.txt"
    assert "secret" in said(given, other, how, "free").removeprefix("read ")
    assert "read secret" not in (answer := said(given, other, how))
    assert "ermission" in answer or "not permitted" in answer, answer


@pytest.mark.parametrize("name", ["own", "link"])
def test_what_is_given_is_read_and_what_it_links_to(given: Path, name: str) -> None:
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    assert said(given, given / f"{name}.txt", "native") == f"read {name.replace('link', 'linked')}"


def test_the_page_can_say_whether_this_works() -> None:
    assert confined.works() == has_landlock(moves=True)


def test_the_home_in_a_checkout_is_none_of_what_python_needs() -> None:
    inside = [path for path in confined._python() if settings.ROOT.is_relative_to(path)]
    assert not inside, inside
    assert settings.ROOT / "pipeline" in confined._python()


def test_a_link_shows_no_other_file(given: Path) -> None:
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    assert said(given, given / "out.txt", "native", "free") == "read secret"
    assert "ermission" in said(given, given / "out.txt", "native")


@pytest.mark.parametrize("how", ["python", "child"])
def test_the_environment_of_other_processes_is_theirs(given: Path, how: str) -> None:
    """Root too, whose processes the kernel lets look at each other."""
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    theirs = Path(f"/proc/{os.getpid()}/environ")
    assert said(given, theirs, how, "free").startswith("read ")
    assert "ermission" in said(given, theirs, how)


def test_what_computes_moves_files_among_its_own_folders_and_none_into_them(given: Path) -> None:
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    (given / "folder").mkdir()
    (given / "folder" / "own.txt").write_text("own")
    assert "cross-device" in said(given, given / "folder" / "own.txt", "move")
    assert said(given, given / "folder" / "own.txt", "move", "moving") == "read own"
    other = given.parents[2] / "elsewhere" / "secret.txt"
    assert "refused" in said(given, other, "move", "moving")
    assert other.is_file()


def test_folders_that_hold_a_person_s_files_or_the_home_are_none_of_what_is_needed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder is on Python's path, and variables may name any."""
    monkeypatch.setattr(sys, "path", [*sys.path, "", str(home.parent), str(home / "modules")])
    (person := tmp_path / "person").mkdir()
    monkeypatch.setenv("HOME", str(person))
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/:{home.parent}:{home}::own")
    monkeypatch.setenv("OLIVE_LAB_READABLE", f"{home.parent}/drivers:other")
    monkeypatch.chdir(home)
    assert not {home.parent, home} & confined._python()
    assert home / "modules" in confined._python()
    seen: list[Path] = []
    monkeypatch.setattr(confined, "to", lambda given, moves: seen.extend(given) or moves)
    assert confined.to_compute([home / "work"])
    assert {home / "work", home.parent / "drivers", person / ".nv"} <= {*seen}
    assert (person / ".triton").is_dir(), "or it could not be opened later"
    assert person not in seen
    assert not {Path("/"), home.parent, home, Path("own"), Path("other")} & {*seen}


OFFLINE = """
import sys
if sys.argv[1] == "before":
    from huggingface_hub import constants
from pipeline.inputs import confined
confined.to_compute([])
from huggingface_hub import constants
print(constants.is_offline_mode())
"""


@pytest.mark.parametrize("imported", ["before", "after"])
def test_what_computes_asks_no_hub(imported: str) -> None:
    """A model's config may name any repository, and the one who runs the lab is logged in."""
    done = own_process.run(["-c", OFFLINE, imported], 60, settings.bare_environment())
    assert done.stdout.strip() == "True", done.stderr


FORGETS = """
import os, sys
from pathlib import Path
from pipeline import settings
from pipeline.inputs import confined
if sys.argv[1] == "fork" and os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
if sys.argv[1] != "start":
    settings.become(settings.local_environment())
assert confined.to_compute([])
left = Path("/proc/self/environ").read_bytes().split(b"\\0")
print(*(name for part in left if (name := part.partition(b"=")[0].decode()) in sys.argv[2:]))
"""


@pytest.mark.parametrize("how", ["start", "become", "fork"])
def test_what_computes_has_no_login_in_its_environment_as_a_file(how: str) -> None:
    """Nor a fork, whose file is that of the process it is forked from, whatever its variables are by now."""
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    logins = ["HF_TOKEN", "AZURE_CLIENT_SECRET", "OLIVE_LAB_WEBHOOK", "NVIDIA_API_KEY"]
    environment = settings.child_environment(**dict.fromkeys((*logins, "OMP_NUM_THREADS"), "3"))
    done = own_process.run(["-c", FORGETS, how, *logins, "OMP_NUM_THREADS"], 60, environment)
    assert done.stdout.split() == ["OMP_NUM_THREADS"], done.stderr


def test_a_home_that_cannot_be_made_is_no_hindrance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads tokenizers does not know the lab's home, and the usual one may be nobody's to make."""
    monkeypatch.setenv("OLIVE_LAB_HOME", "/proc/none")
    assert Path(sys.prefix) in confined._python()


def test_of_folders_around_the_home_what_is_needed_is_still_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home may lie in the environment of Python, or in a folder of the system."""
    around = home.parent
    for name in ("bin", "lib", "pyvenv.cfg", "drivers"):
        (around / name).mkdir()
    monkeypatch.setattr(sys, "prefix", str(around))
    monkeypatch.setenv("HOME", str(around / "person"))
    assert {around / name for name in ("bin", "lib", "pyvenv.cfg")} <= confined._python()
    assert not {around, home, around / "drivers"} & confined._python()
    monkeypatch.setattr(confined, "MACHINE", (str(around),))
    seen: list[Path] = []
    monkeypatch.setattr(confined, "to", lambda given, moves: seen.extend(given))
    confined.to_compute([])
    assert around / "drivers" in seen
    assert not {around, home} & {*seen}


@pytest.mark.skipif(not has_landlock(), reason="this system's Landlock is off or too old")
def test_a_link_that_another_user_made_is_not_followed_to_what_is_given(given: Path, tmp_path: Path) -> None:
    """A model's folder may become one after its launch, where others may write to the folder of models."""
    link = tmp_path / "mine"
    link.symlink_to(given)
    assert said(link, given / "own.txt", "python") == "read own"
    if os.geteuid() == 0:
        os.chown(link, 54321, -1, follow_symlinks=False)
    assert said(link, given / "own.txt", "python", "other").startswith("refused")
    assert said(given, given / "own.txt", "python", "other") == "read own"


def test_where_a_link_leads_is_asked_of_what_is_open(given: Path) -> None:
    """Whoever may write to the folder can change a link after any look at it."""
    inside = (given.parents[1] / "blobs",)
    os.close(confined._follow(given / "link.txt", inside))
    for name in ("out.txt", "way"):
        with pytest.raises(PermissionError, match="leads elsewhere"):
            confined._follow(given / name, inside)


def test_links_count_in_a_cache_of_the_hub_alone(given: Path, tmp_path: Path) -> None:
    """Of another folder they lead out of it, or to what is given already."""
    links = {link.name for link, _ in confined._links(given)}
    assert links == {"link.txt", "out.txt", "way"}
    assert not confined._links(given.rename(tmp_path / "model" / "other"))
