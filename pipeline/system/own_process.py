"""Have a Python process of our own do one thing: it may hang or crash without harm, and ends with ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from pipeline import settings

_running: set[subprocess.Popen[str]] = set()


def run(words: list[str], seconds: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` prints. Raises TimeoutExpired, and ends it, after so many seconds."""
    command = [settings.python(), *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=settings.ROOT, env=environment,
    ) as process:  # fmt: skip
        _running.add(process)
        try:
            out, error = process.communicate(timeout=seconds)
        except BaseException:
            process.kill()
            raise
        finally:
            _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def follow(words: list[str], environment: dict[str, str], tell: Callable[[str], None]) -> int:
    """Run `python WORDS`, give `tell` each line that it prints, and return its exit code.

    Its errors go where ours go. It ends when `tell` raises.
    """
    with subprocess.Popen(
        [settings.python(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        cwd=settings.ROOT, env=environment,
    ) as process:  # fmt: skip
        _running.add(process)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                tell(line.rstrip("\n"))
            return process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            _running.discard(process)


def close() -> None:
    """End all of them: whoever waits for one gets an answer. For the end of the app."""
    for process in list(_running):
        process.kill()
