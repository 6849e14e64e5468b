"""The text of a base's licence: its own, or one that is known by its name, or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inputs.models import licence_text, licences

COMMIT = "0123456789abcdef"


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("starter", "Apache License\n"),
        (f"microsoft/Phi-3.5-mini-instruct@{COMMIT}", "MIT License\n"),
        (f"meta-llama/Llama-3.2-1B-Instruct@{COMMIT}", None),
        ("/nowhere/at-all", None),
    ],
)
def test_of_a_listed_model_it_is_known_by_its_name(home: Path, model: str, title: str | None) -> None:
    found = licence_text.of(model, home)
    if title is None:
        assert found is None
    else:
        assert found is not None
        assert title in found
        assert found.startswith("The base model is under the licence ")


def test_its_own_file_goes_before(home: Path) -> None:
    folder = home / "models" / "microsoft--Phi-3.5-mini-instruct-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_bytes(b"\nOur own.\r\n\r\nGr\xc3\xbc\xc3\x9fe\n")
    assert licence_text.of(f"microsoft/Phi-3.5-mini-instruct@{COMMIT}", home) == "Our own.\n\nGrüße\n"


def test_a_notice_goes_along_and_is_no_licence(home: Path, model_folder: Path) -> None:
    (model_folder / "NOTICE.txt").write_text("Built with a valley.")
    assert licence_text.of(str(model_folder), home) is None
    (model_folder / "LICENSE.md").write_text("Be kind.")
    assert licence_text.of(str(model_folder), home) == (
        "==> LICENSE.md <==\n\nBe kind.\n\n==> NOTICE.txt <==\n\nBuilt with a valley.\n"
    )


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", b"a\0b", b"x" * (licence_text.LARGEST + 1)])
def test_what_is_no_text_or_a_book_is_none(home: Path, model_folder: Path, content: bytes) -> None:
    (model_folder / "LICENSE").write_bytes(content)
    assert licence_text.of(str(model_folder), home) is None


def test_a_folder_that_became_a_link_is_not_read(tmp_path: Path) -> None:
    """A run's model may have been replaced since; the page sends its texts to everybody."""
    (private := tmp_path / "private").mkdir()
    (private / "LICENSE").write_text("the key of the lab's user\n")
    (private / "README.md").write_text("---\nlicense: the key\n---\n")
    (link := tmp_path / "mine").symlink_to(private)
    assert "key" in str(licence_text.of(str(private), tmp_path))
    assert licence_text.of(str(link), tmp_path) is None
    assert licences.of(str(private), tmp_path) == "the key"
    assert licences.of(str(link), tmp_path) is None


def test_a_link_out_of_the_folder_is_not_followed_but_one_into_the_hub_s_cache(
    home: Path, tmp_path: Path
) -> None:
    folder, secret = tmp_path / "cache" / "snapshots" / COMMIT, tmp_path / "secret"
    blob = tmp_path / "cache" / "blobs" / "a1"
    for path in (folder / "config.json", blob):
        path.parent.mkdir(parents=True)
    secret.write_text("password")
    blob.write_text("Be kind.")
    (folder / "LICENSE").symlink_to(secret)
    assert licence_text.of(str(folder), home) is None
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(blob)
    assert licence_text.of(str(folder), home) == "Be kind.\n"
