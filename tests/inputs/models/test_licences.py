from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.inputs.models import licences

COMMIT = "0123456789abcdef"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("starter", "Apache-2.0"),
        (f"microsoft/Phi-3.5-mini-instruct@{COMMIT}", "MIT"),
        (f"org/unknown@{COMMIT}", None),
        ("/nowhere/at-all", None),
    ],
)
def test_the_catalogue_knows_its_own(home: Path, model: str, expected: str | None) -> None:
    assert licences.of(model, home) == expected


def test_a_pipe_is_no_readme(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    assert licences._head(tmp_path / "README.md") == ""


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model", "mit"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("\ufeff---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("license: mit", None),
        ("", None),
    ],
)
def test_a_folder_is_asked_in_its_readme(
    home: Path, model_folder: Path, head: str, expected: str | None
) -> None:
    (model_folder / "README.md").write_bytes(head.encode())
    assert licences.of(str(model_folder), home) == expected


def test_a_licence_that_is_no_text_is_not_unfolded(home: Path, model_folder: Path) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nlicense: [*b, *b]"
    (model_folder / "README.md").write_text(f"---\n{bomb}\n---\n")
    assert licences.of(str(model_folder), home) is None


def test_or_in_its_licence_file(home: Path, model_folder: Path) -> None:
    (model_folder / "LICENSE.txt").write_text("\n   LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nBy clicking")
    assert licences.of(str(model_folder), home) == "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"
    (model_folder / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    assert licences.of(str(model_folder), home) == "llama3.2"


def test_a_fetched_model_speaks_for_itself(home: Path) -> None:
    folder = home / "models" / "microsoft--Phi-3.5-mini-instruct-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: their-own\n---\n")
    assert licences.of(f"microsoft/Phi-3.5-mini-instruct@{COMMIT}", home) == "their-own"


def test_nobody_writes_a_book(home: Path, model_folder: Path) -> None:
    (model_folder / "LICENSE").write_bytes(b"x" * 200_000 + b"\xff")
    assert licences.of(str(model_folder), home) == "x" * licences.LONGEST


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT License", {"license": "mit"}),
        ("Llama 3.2", {"license": "llama3.2"}),
        ("Travel & Co's: own", {"license": "other", "license_name": "travel-co-s-own"}),
        ("許諾", {"license": "other"}),
    ],
)
def test_the_hub_has_names_of_its_own(said: str | None, expected: dict[str, str]) -> None:
    assert licences.on_hub(said) == expected
