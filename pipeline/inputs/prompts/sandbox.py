"""A process that renders chat templates, which are programs written by others.

`rendering` starts it as `python -m pipeline.inputs.prompts.sandbox LIMITS` and talks to it over its
standard input, a socket: frames of JSON after their length in 4 bytes. A request is {source, tokens, jobs,
one_by_one}; a job is [messages, add_generation_prompt], and a third item are the tools. A frame of answers is
a list with {"text"}, {"error"} or {"limit"} for each job, several together unless `one_by_one`, and after the
last one {"seconds"}, the CPU time of all. There can be fewer answers than jobs, because the process
stops early where others may want it. A template that cannot be compiled is answered by {"faulty"}.

A template can only compute: Jinja's sandbox keeps it from the interpreter, and if it escapes, this process
can open no file and start no other process. The kernel ends it when a job takes too long, inside
a single operation as well.
"""

from __future__ import annotations

import html  # noqa: F401 - see jinja2.constants
import json
import math
import os
import pprint  # noqa: F401
import resource
import select
import signal
import struct
import sys
import textwrap  # noqa: F401
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.constants  # this and a few others jinja2 imports when it needs them; then no file can be opened
import jinja2.debug
import jinja2.ext
import jinja2.sandbox
import jinja2.utils

from pipeline.inputs.prompts import lab_prompt

CHANNEL = 0
LENGTH = struct.Struct(">I")
OUT_OF_MEMORY = 3  # the exit code
BATCH_SECONDS = 0.5  # of CPU time, after which another template gets its turn
TOGETHER = 1 << 14  # characters that are sent together
LONGEST_ERROR = 180
OPEN_FILES = 3  # standard input, output and error
ENDLESS = "it is nested too deeply or calls itself endlessly"


def main(limits: dict[str, float]) -> None:
    """Answer requests until the other side ends or needs nothing for `idle_seconds`."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a terminal; this process ends when its channel closes
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGALRM])
    _warm_up()
    _restrict(int(limits["memory"]))
    _write([])
    while (request := _awaited(limits)) is not None:
        _answer(request, limits["seconds"], int(limits["characters"]))


def _awaited(limits: dict[str, float]) -> Any:
    """The next request, or None. The kernel ends a process that hangs before it asks again."""
    signal.alarm(math.ceil(limits["most_seconds"]))
    return _read(limits["idle_seconds"])


def _warm_up() -> None:
    """Use once what Python and Jinja load from files at first use."""
    source = "{% macro m() %}{{ 'a\\n' ~ strftime_now('%c') | tojson }}{% endmacro %}"
    source += "{{ m() }}{{ raise_exception('') }}"
    _rendered(_compile(source), {}, LONGEST_ERROR)


def _restrict(memory: int) -> None:
    """Allow from here on `memory` more bytes, and no files, processes or core dumps."""
    with (
        suppress(OSError),  # some containers forbid it
        open("/proc/self/oom_score_adj", "w", encoding="ascii") as file,  # noqa: PTH123 - pathlib is slow
    ):
        file.write("1000")  # if memory runs short, the kernel ends this process first
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    for kind, wanted in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def _read(idle_seconds: float) -> Any:
    """The next request; None if there is none for that long, or the channel has closed."""
    waiting = select.poll()
    waiting.register(CHANNEL, select.POLLIN)
    if not waiting.poll(idle_seconds * 1000):
        return None
    length = _bytes(LENGTH.size)
    return json.loads(_bytes(*LENGTH.unpack(length))) if length else None


def _bytes(count: int) -> bytes:
    """That many bytes from the channel, b"" at its end."""
    found = bytearray()
    while len(found) < count:
        piece = os.read(CHANNEL, count - len(found))
        if not piece:
            return b""
        found += piece
    return bytes(found)


def _write(answers: list[dict[str, Any]]) -> None:
    text = json.dumps(answers, allow_nan=False).encode()
    left = memoryview(LENGTH.pack(len(text)) + text)
    while left:
        left = left[os.write(CHANNEL, left) :]


def _answer(request: dict[str, Any], seconds: float, characters: int) -> None:
    began = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        template = _compile(request["source"])
    except MemoryError:
        raise
    except RecursionError:
        _write([{"faulty": ENDLESS}])
        return
    except Exception as error:  # jinja2's, or Python's for the code that jinja2 generates
        _write([{"faulty": _reason(error)}])
        return
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    answers: list[dict[str, Any]] = []
    total, unsent = 0, TOGETHER  # the first answer is sent at once: without it, the first job was the last
    for messages, prompt, *tools in request["jobs"]:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        given = {"tools": tools[0] if tools else None, "add_generation_prompt": prompt, **request["tokens"]}
        for attempt in lab_prompt.attempts(request["source"], messages):
            answer = _rendered(template, {"messages": attempt, **given}, characters)
            if "error" not in answer:
                break
        answers.append(answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        written = len(answers[-1].get("text", ""))
        total, unsent = total + written, unsent + written
        if unsent >= TOGETHER or request["one_by_one"]:
            _write(answers)
            answers, unsent = [], 0
        if total > characters or time.process_time() - began > BATCH_SECONDS:
            break
    _write([*answers, {"seconds": time.process_time() - began}])


def _rendered(template: jinja2.Template, given: dict[str, Any], characters: int) -> dict[str, str]:
    """The text as an answer, or the reason why there is none. Raises MemoryError."""
    pieces: list[str] = []
    written = 0
    try:
        for piece in template.generate({"documents": None, **given}):
            pieces.append(piece)
            written += len(piece)
            if written > characters:
                return {"limit": f"it writes more than {characters:,} characters"}
    except MemoryError:
        raise
    except RecursionError:
        return {"limit": ENDLESS}
    except Exception as error:  # whatever the template raises
        return {"error": _reason(error)}
    return {"text": "".join(pieces)}


def _reason(error: Exception) -> str:
    """The error on one line, cut if long."""
    text = " ".join(str(error)[: 10 * LONGEST_ERROR].split())
    text = "".join(letter for letter in text if letter.isprintable())
    return text[:LONGEST_ERROR] or type(error).__name__


@lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
    """Compile a chat template as every program of ours does."""
    template: jinja2.Template = lab_prompt.environment().from_string(source)
    return template


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
