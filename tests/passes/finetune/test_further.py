"""The further processes of a training: what the first one says when one of them ends. Without torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.passes.finetune import further
from tests.helpers.lab import CHILDREN, alive

TWO = ["0", "1"]


def script(folder: Path, text: str) -> list[str]:
    """The words of a process that carries out a text with `shared` and `rank`."""
    file = folder / "along.py"
    file.write_text(f"import sys, pathlib\nshared, rank = pathlib.Path(sys.argv[1]), sys.argv[2]\n{text}")
    return [str(file)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "(shared / f'{rank}.error').write_text('GPU memory ran out; start a new run.'); sys.exit(1)",
            "GPU process 2 of 2: GPU memory ran out; start a new run.",
        ),
        (
            "print('one'); print('two'); sys.exit(3)",
            "GPU process 2 of 2 ended with exit code 3, and this training with it; its last line: two;"
            " retry it.",
        ),
    ],
)
def test_one_that_fails_before_all_are_ready_says_why(tmp_path: Path, text: str, said: str) -> None:
    with (
        pytest.raises(LabError) as raised,
        further.started(tmp_path, TWO, {}, script(tmp_path, text)) as others,
    ):
        others.meet()
    assert str(raised.value) == said
    assert not (tmp_path / further.FOLDER).exists()


def test_what_follows_from_its_end_is_said_as_its_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        text = "(shared / f'{rank}.ready').touch(); print('a traceback'); sys.exit(1)"
        with further.started(tmp_path, TWO, {}, script(tmp_path, text)):
            raise further.Lost("Connection closed by peer")

    with pytest.raises(LabError, match="process 2 of 2 ended with exit code 1"):
        train()
    assert "GPU process 2 of 2 wrote:\na traceback" in capfd.readouterr().out


def test_one_whose_first_process_is_gone_ends_before_it_loads_anything(tmp_path: Path) -> None:
    (tmp_path / further.TASK).write_text(json.dumps({"parent": 1, "count": 2}))
    command = [sys.executable, *further.ENTRY, str(tmp_path), "1"]
    done = subprocess.run(command, env=settings.child_environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_an_error_of_the_first_process_is_its_own(tmp_path: Path) -> None:
    pids = []

    def train() -> None:
        with further.started(tmp_path, TWO, {"rows": 3}, [str(CHILDREN), "along"]) as others:
            others.meet()
            assert json.loads((others.folder / further.TASK).read_text())["rows"] == 3
            pids.extend(process.pid for process in others._processes)
            raise LabError("Training diverged")

    with pytest.raises(LabError, match="Training diverged"):
        train()
    assert len(pids) == 1
    assert not alive(pids[0])
