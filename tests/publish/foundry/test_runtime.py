"""How the runtime is asked: what hangs, ends or complains is one sentence, and nothing is sent out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import LabError
from pipeline.publish.foundry import runtime

ASKED = [{"messages": [{"role": "user", "content": "Hello!"}], "most": 8}]
# Preloaded: what connects to anything but a socket of this machine writes its family down, and fails.
SHIM = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    FILE *seen = fopen(SEEN, "a");
    if (to->sa_family != AF_UNIX && seen) fprintf(seen, "%d\n", to->sa_family);
    if (seen) fclose(seen);
    errno = ENETUNREACH;
    return -1;
}
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (
            "import signal; signal.pause()",
            "did not answer within 1 seconds; publish again with a larger patience",
        ),
        ("import os; os.abort()", "ended with code -6 before it answered; free some memory, or see the log"),
        ("open(work + '/result.json', 'w').write('{')", "ended with code 0 before it answered"),
        (
            "open(work + '/result.json', 'w').write('{\"error\": \"no such op\"}')",
            "cannot load or ask it: no such op",
        ),
    ],
)
def test_a_runtime_that_fails_is_one_sentence(
    stand_in: Callable[[str], Path], tmp_path: Path, program: str, why: str
) -> None:
    with pytest.raises(LabError, match=why):
        runtime.answers(stand_in(program), tmp_path, "trips-generic-cpu:1", ASKED, 1)


@pytest.mark.chain
def test_nothing_is_sent_anywhere(
    real: Path, merged_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what it calls essential telemetry, which its own switch leaves on."""
    source, library, seen = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "seen"
    source.write_text(f'#define SEEN "{seen}"\n{SHIM}')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    bare = runtime.settings.bare_environment()
    monkeypatch.setattr(runtime.settings, "bare_environment", lambda: {**bare, "LD_PRELOAD": str(library)})
    python, folder = real, merged_export
    answers, _ = runtime.answers(python, folder, "trips-generic-cpu:1", ASKED, 60)
    runtime.register(python, tmp_path / "cache", folder, "trips-generic-cpu:1", {"display_name": "trips"})
    assert answers[0].prompt_tokens == 25
    assert not seen.exists()
    probe = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    subprocess.run([python, "-I", "-c", probe], check=True, env={"LD_PRELOAD": str(library)})
    assert seen.read_text() == "2\n"


@pytest.mark.chain
def test_a_folder_that_it_cannot_load_is_one_sentence(real: Path, tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(LabError, match=r"^Foundry Local cannot load or ask it: .{10,400}$"):
        runtime.answers(real, tmp_path, "trips-generic-cpu:1", ASKED, 60)
