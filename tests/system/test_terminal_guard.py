"""Real commands on a real terminal, with texts that would clear it, move its cursor or turn it round."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.stages import events
from pipeline.store import Store
from pipeline.store.run import FAILED
from pipeline.system import own_process, terminal_guard
from tests.helpers.planted import finish_all, plant

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b1A\x7f\x08\u202eevil\u2066\u200f\u061c\u2028"
SHOWN = "\\u001b[2J\\u001b]0;owned\\u0007\\u009b1A\\u007f\\u0008\\u202eevil\\u2066\\u200f\\u061c\\u2028"
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def on_terminal(*words: object) -> str:
    """What a command writes, standard output and error, both on one terminal."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)  # or it would write \r\n for \n
    process = subprocess.Popen(
        [sys.executable, *(["-m"] if words[0] != "-c" else []), *map(str, words)],
        stdin=theirs, stdout=theirs, stderr=theirs,
        cwd=settings.ROOT, env=settings.child_environment(),
    )  # fmt: skip
    os.close(theirs)
    timer = threading.Timer(60, process.kill)
    timer.start()
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while block := os.read(ours, 65536):
            written += block
    os.close(ours)
    process.wait()
    timer.cancel()
    return written.decode()


@pytest.fixture
def run(store: Store) -> str:
    """A run every text of which is hostile."""
    run = plant(store, f"trip {HOSTILE}", ["quantize"], owner=HOSTILE, model=HOSTILE)
    store.annotate(run, notes=HOSTILE, tags=[HOSTILE])
    store.claim("cpu")
    store.finish(run, "quantize", FAILED, error=f"It broke: {HOSTILE}", seconds=1.0)
    folder = store.folder(run, "quantize")
    folder.mkdir()
    (folder / "log.txt").write_bytes(f"Progress\r\n{HOSTILE}\n\xff".encode())
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with such a name, and a file in it whose rows have such keys."""
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"\\u001b[2J\\u202e": "x"}\n')
    return folder


def commands(run: str, folder: Path) -> Iterator[list[object]]:
    yield ["pipeline", "list"]
    yield ["pipeline", "show", run]
    yield ["pipeline", "logs", run]
    yield ["pipeline", "note", run]
    yield ["pipeline", "diff", run, run]
    yield ["pipeline", "list", "--json"]
    yield ["pipeline", "verify", folder]
    yield ["pipeline", "check", folder / "rows.jsonl"]
    yield ["pipeline", "show", HOSTILE]
    yield ["pipeline", "submit", folder / "missing.yaml"]
    yield ["pipeline", HOSTILE]
    yield ["webapp", HOSTILE]


@pytest.mark.parametrize("number", range(12))
def test_no_command_lets_a_text_move_the_cursor(run: str, folder: Path, number: int) -> None:
    words = list(commands(run, folder))[number]
    written = on_terminal(*words)
    assert HARMFUL.findall(written) == []
    assert "\\u001b" in written or "\\x1b" in written


def test_a_log_is_shown_line_by_line_and_piped_as_it_is(run: str) -> None:
    assert on_terminal("pipeline", "logs", run) == f"Progress\n{SHOWN}\n\xff"
    piped = subprocess.run(
        [sys.executable, "-m", "pipeline", "logs", run],
        cwd=settings.ROOT, env=settings.child_environment(), capture_output=True,
    )  # fmt: skip
    assert piped.stdout == f"Progress\r\n{HOSTILE}\n\xff".encode()


def test_a_live_line_is_rewritten_and_holds_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import terminal

    run = plant(store)
    store.claim("cpu")
    told = store.folder(run, "quantize") / "events.jsonl"
    told.parent.mkdir()
    events.append(told, {"attempt": True, "message": f"{HOSTILE}\nmore", "progress": 0.5})
    plain = io.StringIO()
    monkeypatch.setattr(plain, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setattr("pipeline.cli.terminal.POLL_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.worker.loop.ensure", lambda home: finish_all(store, run))
    terminal_guard.guard()
    terminal_guard.guard()  # which changes nothing
    terminal.run(store, run)
    first, *rest = plain.getvalue().split(terminal_guard.REWRITE)[1:]
    assert "quantize" in first
    assert SHOWN[:20] in first
    assert "\n" not in first
    assert HARMFUL.findall("".join([first, *rest])) == []


# A program on a terminal that has a child print there, in each of the ways in which one can inherit it.
PARENT = """
import asyncio, subprocess, sys
from pipeline import settings
from pipeline.system import own_process
words, environment = ["-m", "tests.helpers.shouting", sys.argv[2]], settings.child_environment()
if sys.argv[1] == "start":
    own_process.start(words, environment).wait()
elif sys.argv[1] == "start, errors alone":
    own_process.start(words, environment, stdout=subprocess.DEVNULL).wait()
elif sys.argv[1] == "follow":
    own_process.follow(words, environment, lambda line: None)
elif sys.argv[1] == "start_group":
    process = own_process.start_group(words, environment)
    process.stdout.read()
    own_process.end(process)
else:
    async def talk():
        await (await own_process.converse(words, environment, stderr=None, longest_line=9999)).communicate()
    asyncio.run(talk())
"""


@pytest.mark.parametrize("way", ["start", "start, errors alone", "follow", "start_group", "converse"])
def test_no_process_of_ours_moves_the_cursor_either(way: str) -> None:
    written = on_terminal("-c", PARENT, way, HOSTILE)
    assert HARMFUL.findall(written) == []
    assert SHOWN in written
    assert f"module {SHOWN}" in written, "what a library logs is guarded too"


def test_only_own_process_starts_python() -> None:
    """Else what is started so may write past the guard."""
    starting = set()
    for path in [*(settings.ROOT / "pipeline").rglob("*.py"), *(settings.ROOT / "webapp").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            named = node.attr if isinstance(node, ast.Attribute) else ""
            if named == "executable" or (
                isinstance(node, ast.Call) and ast.unparse(node.func) == "settings.python"
            ):
                starting.add(path.relative_to(settings.ROOT).as_posix())
    assert starting == {"pipeline/settings.py", "pipeline/system/own_process.py"}
    calls = [
        node
        for node in ast.walk(ast.parse(Path(own_process.__file__).read_text("utf-8")))
        if isinstance(node, ast.Call)
        and any(
            ast.unparse(one).endswith("settings.python()")
            for given in node.args
            for one in (given.elts if isinstance(given, ast.List) else [given])
        )
    ]
    assert len(calls) == 2
    assert all("*_guarded(words, " in ast.unparse(call) for call in calls)


def test_what_a_hub_wants_to_be_said_is_not_printed() -> None:
    """The client's logger would print the text of a header."""
    said = subprocess.run(
        [sys.executable, "-c", "from pipeline import settings; settings.quiet_this_process();"
         "from huggingface_hub.utils import logging as log;"
         "log.get_logger('huggingface_hub.x').warning('PWNED')"],
        cwd=settings.ROOT, env={**os.environ, "HF_HUB_VERBOSITY": "info"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (said.returncode, said.stderr) == (0, "")


def test_half_characters_are_no_error(tmp_path: Path, home: Path) -> None:
    """As in the name of a file that is not UTF-8."""
    file = os.fsencode(tmp_path) + b"/\xff.jsonl"
    Path(os.fsdecode(file)).write_text('{"prompt": "a", "response": "b"}\n' * 4)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "check", file],
        cwd=settings.ROOT, env=settings.child_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\ufffd.jsonl" in done.stdout


def test_what_is_ordinary_stays_as_it_is() -> None:
    text = "a\tb\nGrüße 你好 שלום مرحبا 👩‍👩‍👧 █░ é می\u200cخواهم"
    assert terminal_guard.harmless(text) == text
    assert terminal_guard.harmless(HOSTILE) == SHOWN
