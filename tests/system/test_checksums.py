from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

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


def test_a_list_that_somebody_made_huge_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "LARGEST", 1000)
    (folder / checksums.NAME).write_text("\n" * 1001)
    with pytest.raises(ValueError, match="is larger than any real one"):
        checksums.read(folder)
    assert not checksums.intact(folder)
