from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from io import BufferedReader
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.system import checksums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "sub" / "two words.txt").write_bytes(b"words")
    checksums.write(tmp_path)
    return tmp_path


def test_sha256sum_reads_what_is_written_and_so_do_we(folder: Path) -> None:
    check = ["sha256sum", "--check", "--strict", checksums.NAME]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "model.onnx: OK\nsub/two words.txt: OK\n")
    assert checksums.read(folder) == checksums.of(folder, ["sub/two words.txt", "model.onnx"])
    (folder / "model.onnx").write_bytes(b"grapH")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1
    assert checksums.read(folder) != checksums.of(folder, ["sub/two words.txt", "model.onnx"])


@pytest.mark.parametrize(
    "line",
    [
        "{}  ./sub/a (1).bin",
        "{} *sub/a (1).bin",
        "SHA256 (sub/a (1).bin) = {}",
        "SHA256 (./sub/a (1).bin) = {}",
    ],
)
def test_what_other_programs_write_is_read(line: str) -> None:
    digest = checksums.of_bytes(b"words")
    assert checksums.parse(line.format(digest.upper()) + "\r\n") == {"sub/a (1).bin": digest}


def test_a_folder_is_intact_until_a_byte_changes(folder: Path) -> None:
    assert checksums.intact(folder)
    (folder / "sub" / "two words.txt").write_bytes(b"wordz")
    assert not checksums.intact(folder)
    (folder / "sub" / "two words.txt").unlink()
    assert not checksums.intact(folder)
    (folder / checksums.NAME).unlink()
    assert not checksums.intact(folder)


def test_writing_again_does_not_count_the_list_itself(folder: Path) -> None:
    before = (folder / checksums.NAME).read_bytes()
    checksums.write(folder)
    assert (folder / checksums.NAME).read_bytes() == before


def test_a_folder_without_has_none_and_a_faulty_line_is_named(folder: Path) -> None:
    with (folder / checksums.NAME).open("a") as file:
        file.write("abc  model.onnx\n")
    with pytest.raises(ValueError, match="line 3 of SHA256SUMS is not a checksum"):
        checksums.read(folder)
    (folder / checksums.NAME).unlink()
    assert checksums.read(folder) == {}


def test_what_is_no_text_is_named(folder: Path) -> None:
    (folder / checksums.NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"^SHA256SUMS is not text in UTF-8; export the model again$"):
        checksums.read(folder)


def test_a_list_that_somebody_made_huge_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "LARGEST", 1000)
    (folder / checksums.NAME).write_text("\n" * 1001)
    with pytest.raises(ValueError, match="is larger than any real one"):
        checksums.read(folder)
    assert not checksums.intact(folder)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names: list[str] = []
    taken = checksums._digest

    def noted(file: BufferedReader) -> str:
        names.append(Path(file.name).name)
        return taken(file)

    monkeypatch.setattr(checksums, "_digest", noted)
    return names


def test_a_sum_that_was_begun_is_that_of_the_file_under_any_name(tmp_path: Path, read: list[str]) -> None:
    """The same sums as without, and the file is read once, whatever it is called by then."""
    made, folder = tmp_path / "made.data", tmp_path / "folder"
    folder.mkdir()
    made.write_bytes(b"weights" * 100_000)
    (folder / "graph").write_bytes(b"graph")
    checksums.begin(made)
    os.link(made, folder / "model.data")
    made.unlink()
    checksums.write(folder)
    ahead = (folder / checksums.NAME).read_bytes()
    assert sorted(read) == ["graph", "made.data"]
    checksums.write(folder)
    assert (folder / checksums.NAME).read_bytes() == ahead
    assert checksums.intact(folder)


@pytest.mark.parametrize("how", ["copied", "changed", "gone"])
def test_a_file_that_is_not_the_one_begun_is_read_again(how: str, tmp_path: Path, read: list[str]) -> None:
    made, folder = tmp_path / "made.data", tmp_path / "folder"
    folder.mkdir()
    made.write_bytes(b"weights")
    checksums.begin(made)
    if how == "copied":
        shutil.copyfile(made, folder / "model.data")
    else:
        os.link(made, folder / "model.data")
    if how == "changed":
        with made.open("ab") as file:
            file.write(b"more")
    made.unlink()
    checksums.write(folder)
    assert checksums.read(folder) == {"model.data": checksums.of(folder, ["model.data"])["model.data"]}
    assert checksums.intact(folder)


@pytest.mark.parametrize("once", [True, False])
def test_what_goes_wrong_ahead_is_met_again_or_gone(
    once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that fails for good fails `write` with the error that it would have had without."""
    (tmp_path / "model.data").write_bytes(b"weights")
    taken, failed = checksums._digest, threading.Event()

    def broken(file: BufferedReader) -> str:
        if failed.is_set() and once:
            return taken(file)
        failed.set()
        raise OSError(errno.EIO, "Input/output error", file.name)

    monkeypatch.setattr(checksums, "_digest", broken)
    checksums.begin(tmp_path / "model.data")
    assert failed.wait(60)
    if once:
        checksums.write(tmp_path)
        assert checksums.intact(tmp_path)
        return
    with pytest.raises(OSError, match="Input/output error") as error:
        checksums.write(tmp_path)
    assert error.value.filename == str(tmp_path / "model.data")
    assert not (tmp_path / checksums.NAME).exists()


ENDS = """
import os, pathlib, sys
from pipeline.system import checksums
file = pathlib.Path(sys.argv[1])
file.touch()
os.truncate(file, 1 << 43)  # of which nothing is on the disk
checksums.begin(file)
"""


def test_the_end_of_a_process_does_not_wait_for_a_sum(tmp_path: Path) -> None:
    """A stage that fails meanwhile ends at once: to hash this takes hours."""
    command = [sys.executable, "-c", ENDS, str(tmp_path / "endless")]
    assert subprocess.run(command, cwd=settings.ROOT, timeout=60).returncode == 0
