"""app.py of an exported folder, as a person runs it: what it cannot ask is one sentence, not a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import exports

pytestmark = pytest.mark.chain


@pytest.fixture
def shipped(export: Path) -> Path:
    """A small export with app.py in it, that reads 256 tokens."""
    exports.add_app(export)
    return export


def run(folder: Path, given: bytes, *words: bytes, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable.encode(), b"app.py", *words],
        cwd=folder,
        input=given,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode()


ESCAPED = {"PYTHONIOENCODING": "utf-8:surrogateescape"}  # what Python does where the system's language is C
NOT_TEXT = "The prompt is not utf-8 text; save it as UTF-8 and try again.\n"
LONG = "The prompt has 419 tokens, and this model reads 256, prompt and answer together; shorten it.\n"
NUL = (
    "The model cannot be asked this: the prompt has a NUL character, behind which the tokenizer reads"
    " nothing; change the prompt.\n"
)


@pytest.mark.parametrize(
    ("given", "words", "environment", "said"),
    [
        (b"caf\xe9\n", [], {}, NOT_TEXT),
        (b"caf\xe9\n", [], ESCAPED, NOT_TEXT.replace("utf", "UTF")),
        (b"Where?\n", [b"caf\xe9"], {}, NOT_TEXT.replace("utf", "UTF")),
        (b"a" * 400 + b"\n", [], {}, LONG),
        (b"a\0b\n", [], {}, NUL),
    ],
    ids=["not UTF-8", "not UTF-8, escaped", "words not UTF-8", "too long", "NUL"],
)
def test_what_cannot_be_asked_is_a_sentence(
    shipped: Path, given: bytes, words: list[bytes], environment: dict[str, str], said: str
) -> None:
    code, _, errors = run(shipped, given, *words, **environment)
    assert (code, errors) == (1, said)


def test_letters_that_the_terminal_lacks_are_no_end(shipped: Path) -> None:
    code, out, errors = run(shipped, b"Where?\n", PYTHONIOENCODING="ascii")
    assert (code, errors) == (0, "")
    assert "[adapter_weights] ?" in out
