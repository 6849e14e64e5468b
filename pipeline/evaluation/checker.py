"""Applies checks to answers in a process of its own, which a catastrophic pattern or schema cannot hang.

`python -m pipeline.evaluation.checker`: the first line of its input is {"checks": text, "seconds": number},
each further one {"check": number, "text": answer}; it answers true, false or {"why": …}. Each check has so
many seconds of the processor, not of the clock, so that a busy machine decides nothing: then the kernel ends
the process.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from pipeline import settings
from pipeline.evaluation import checks
from pipeline.evaluation.checks import CONTAINS, JSON, NUMBER, REGEX, Check
from pipeline.system import own_process

SECONDS = 1.0  # of the processor, for one check of one answer
PATIENCE = 60.0  # seconds of the clock, on a machine that does much else
MEMORY = 2 << 30  # bytes of address space
MOST_FAILURES = 2  # answers on which a check may fail before no more are tried
SLOW, UNTRIED = f"it took longer than {SECONDS:g} s", "it took too long on other answers"
BROKEN = "it took too much memory, or its process ended"
_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
Outcome = bool | str  # whether an answer passes, or why nobody can tell


class Checker:
    """Applies checks; a context, at whose end the process ends."""

    def __init__(self, text: str) -> None:
        self.checks = checks.read(text, "evaluate.checks")
        self._text = text
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = [0] * len(self.checks)

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def apply(self, answer: str) -> list[Outcome]:
        """The outcome of each check."""
        return [self._apply(number, answer) for number in range(len(self.checks))]

    def _apply(self, number: int, answer: str) -> Outcome:
        if self._failed[number] >= MOST_FAILURES:
            return UNTRIED
        found = self._ask({"check": number, "text": answer})
        if isinstance(found, str):
            self._failed[number] += 1
        return found

    def _ask(self, asked: dict[str, Any]) -> Outcome:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked, allow_nan=False).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        for line in own_process.lines(process.stdout.fileno(), PATIENCE):
            if line is not None:
                found = json.loads(line)
                return found if isinstance(found, bool) else str(found["why"])
        return self._ended()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = own_process.start_group(["-m", __name__], settings.local_environment())
        assert self._process.stdin is not None
        begin = {"checks": self._text, "seconds": SECONDS}
        self._process.stdin.write(json.dumps(begin, allow_nan=False).encode() + b"\n")
        return self._process

    def _ended(self) -> str:
        assert self._process is not None
        running = self._process.poll() is None
        code = self._end()
        return SLOW if running or code == -signal.SIGPROF else BROKEN

    def _end(self) -> int:
        process, self._process = self._process, None
        return own_process.end(process) if process is not None else 0


def passes(check: Check, answer: str) -> bool:
    """Whether an answer passes. Raises what a check raises that cannot be applied to it."""
    if check.kind == CONTAINS:
        return check.given.casefold() in answer.casefold()
    if check.kind == REGEX:
        return re.search(check.given, answer) is not None
    if check.kind == NUMBER:
        low, high = check.given
        figures = _NUMBER.findall(answer)
        return bool(figures) and low <= float(figures[-1].replace(",", "")) <= high
    try:
        found = json.loads(answer, parse_constant=_refuse)
    except (ValueError, RecursionError):  # nested as deep as no JSON of use is
        return False
    return check.kind == JSON or _fits(found, check.given)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fits(found: Any, schema: Any) -> bool:
    import jsonschema
    import referencing

    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    # This registry fetches nothing; the library's own one does.
    return bool(kind(schema, registry=referencing.Registry()).is_valid(found))


def _outcome(check: Check, answer: str) -> Any:
    try:
        return passes(check, answer)
    except MemoryError:
        return {"why": BROKEN}
    except RecursionError:
        return {"why": "the schema refers to itself without end, or the answer is nested too deeply"}
    except Exception as error:  # whatever a library raises for a schema that it cannot use
        return {"why": f"it cannot be applied: {type(error).__name__}"}


def main() -> None:
    """Answer line by line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    begin = json.loads(sys.stdin.readline())
    known: Sequence[Check] = checks.read(begin["checks"], "evaluate.checks")
    if any(check.kind == checks.SCHEMA for check in known):
        import jsonschema  # noqa: F401, so that loading it is not the first check's time
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, begin["seconds"])
        found = _outcome(known[asked["check"]], asked["text"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(found, allow_nan=False) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
