"""How many tokens rows have, counted as training makes them, by a process of its own.

A tokenizer.json is a program of a kind: one that is faulty or hostile may crash, hang or take memory there
without harm. `python -m pipeline.inputs.data.lengths FOLDER`, where a model's tokenizer files are, reads
the text that ends an answer, as JSON on a line, then a batch a line, [[prompt, whole text], …], and writes
a line with the numbers of tokens of each prompt and answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import settings
from pipeline.errors import Busy, LabError
from pipeline.inputs import confined
from pipeline.inputs.data.many.bits import Bits
from pipeline.inputs.models import contents
from pipeline.inputs.prompts.templates import Rendered
from pipeline.system import own_process
from pipeline.system.files import to_json

BATCH = 1_000_000  # letters sent at a time
SECONDS = 60.0  # for a batch; a usual tokenizer takes one or two
ALL_SECONDS = 900  # of processor time for a file
MEMORY = 4 << 30  # bytes of address space beside what its programs take
AT_ONCE = 2  # processes: a page may be asked for many more counts
WAIT_SECONDS = 10.0  # for one of them to be free
SPECIAL = 8  # tokens that may stand around a row: begin, end, and those a tokenizer adds by itself
LETTERS_A_TOKEN = 256  # more than any has; the longest known are runs of 128 spaces
FIRST = 5
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


@dataclass(frozen=True)
class Limits:
    """What rows are measured against, in tokens; None is no limit.

    row       finetune.max_length: longer rows are cut
    context   what the model reads, prompt and answer together
    """

    row: int | None = None
    context: int | None = None


@dataclass
class Lines:
    """Numbers of lines: how many there are, and the first few."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    _last: int = 0

    def add(self, line: int) -> None:
        """Count a line, in ascending order and each once."""
        if line == self._last:
            return
        self._last = line
        self.count += 1
        if len(self.first) < FIRST:
            self.first.append(line)

    def __str__(self) -> str:
        listed = ", ".join(f"{line:,}" for line in self.first)
        more = self.count - len(self.first)
        return f"line{'s' * (self.count > 1)} {listed}" + (f" and {more:,} more" if more else "")


class Lengths:
    """Counts the rows that are too long. To be left with `close`, or as a context manager.

    `folder` gives the tokenizer's files when they are needed, which may take long; it raises LabError with
    the reason why there are none. `stop` gives the text that ends an answer. With `every` all rows are
    counted to their ends, and it gets (position, tokens of the prompt, tokens of the answer) of each.
    """

    def __init__(
        self,
        folder: Callable[[], Path],
        whose: str,
        limits: Limits,
        stop: Callable[[], str] = str,
        every: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.long_rows = Lines()
        self.long_prompts = Lines()
        self.unasked = Bits()  # positions of rows whose prompt leaves no room for an answer
        self.unknown = ""  # why nothing could be counted
        self._folder = folder
        self._stop = stop
        self._whose = whose
        self._limits = limits
        self._every = every
        self._batch: list[tuple[int, int, Rendered]] = []
        self._letters = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Lengths:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def full(self) -> bool:
        """Whether it is time to `count`."""
        return self._letters >= BATCH

    @property
    def waits_for(self) -> str:
        """What `count` will wait for before it can begin, as a sentence; "" if for nothing."""
        if not self._batch or self._process is not None or self.unknown:
            return ""
        return f"Getting the tokenizer of {self._whose}…"

    def add(self, position: int, line: int, row: Rendered) -> None:
        """Note a row for the next `count`, unless it has too few bytes to have too many tokens.

        Of a conversation, the last answer counts with all that stands before it, or each `apart`; with
        `every` only the last one.
        """
        everything = self._every is not None
        for sample in (row,) if everything else (*row.apart, row):
            if self.unknown or not (everything or self._may_be_long(sample)):
                continue
            short = sample if everything else self._beginning(sample)
            self._batch.append((position, line, short))
            self._letters += len(short.full)

    def _beginning(self, row: Rendered) -> Rendered:
        """The row, or as much of it as is too long already: a template may write megabytes a row."""
        most = LETTERS_A_TOKEN * (max(self._limits.row or 0, self._limits.context or 0) + SPECIAL)
        if len(row.full) <= most:
            return row
        prompt = row.prompt[:most]
        return Rendered(prompt, prompt + row.full[len(row.prompt) :][:most])

    def _may_be_long(self, row: Rendered) -> bool:
        limits = self._limits
        return (limits.row is not None and _most_tokens(row.full) > limits.row) or (
            limits.context is not None and _most_tokens(row.prompt) >= limits.context
        )

    def count(self) -> None:
        """Count the tokens of the rows that were added; why that cannot be done stands in `unknown`.

        Raises Busy if others take what it needs.
        """
        batch, self._batch, self._letters = self._batch, [], 0
        if not batch or self.unknown:
            return
        try:
            counts = self._ask([(row.prompt, row.full) for _, _, row in batch])
        except Busy:
            raise
        except LabError as error:
            self.unknown = str(error)
            self.close()
            return
        for at, ((position, line, _), counted) in enumerate(zip(batch, counts, strict=True)):
            prompt, answer = counted
            is_last = at + 1 == len(batch) or batch[at + 1][0] != position
            if self._every is not None:
                self._every(position, prompt, answer)
            if self._limits.row is not None and prompt + answer > self._limits.row:
                self.long_rows.add(line)
            if is_last and self._limits.context is not None and prompt >= self._limits.context:
                self.long_prompts.add(line)
                self.unasked.add(position)

    def notes(self, rows: int) -> list[str]:
        """What there is to say of `rows` rows, one sentence each."""
        found = []
        if self.long_rows.count:
            who = _share(self.long_rows.count, rows)
            found.append(
                f"{who} longer than {self._limits.row:,} tokens (finetune.max_length) and will be cut:"
                f" {self.long_rows}."
            )
        if self.long_prompts.count:
            found.append(
                f"{_share(self.long_prompts.count, rows, 'prompt')} longer than the {self._limits.context:,}"
                f" tokens that the model reads, so nothing can answer: {self.long_prompts}."
            )
        if self.unknown:
            found.append(f"The lengths of long rows are not counted: {self.unknown}")
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _free.release()
            _processes.discard(self._process)
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what it was still to get
                    assert pipe is not None
                    pipe.close()
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        """The process, of which there are few. Raises Busy, LabError."""
        folder, stop = self._folder(), self._stop()
        if not _free.acquire(timeout=WAIT_SECONDS):
            raise Busy("others' rows are being counted just now; check again in a minute")
        try:
            process = _start(folder, stop)
        except BaseException:
            _free.release()
            raise
        _processes.add(process)
        return process

    def _ask(self, texts: list[tuple[str, str]]) -> list[tuple[int, int]]:
        if self._process is None:
            self._process = self._started()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        watch = threading.Timer(SECONDS, end)
        own_process.start_thread(watch)
        try:
            process.stdin.write(to_json(texts).encode() + b"\n")
            process.stdin.flush()
            counts = json.loads(process.stdout.readline())
            return [(int(prompt), int(answer)) for prompt, answer in counts]
        except (OSError, ValueError):
            why = f"takes longer than {SECONDS:.0f} seconds" if late.is_set() else "cannot be used"
            raise LabError(f"the tokenizer of {self._whose} {why}.") from None
        finally:
            watch.cancel()


_free = threading.BoundedSemaphore(AT_ONCE)
_processes: set[subprocess.Popen[bytes]] = set()


def close() -> None:
    """End all processes: whoever waits for one gets a sentence. For the end of the app."""
    for process in list(_processes):
        process.kill()


def _most_tokens(text: str) -> int:
    """More tokens than a text can have: a token stands for a byte or more, once a tokenizer has normalized
    the text, which may write out a letter beyond ASCII as several."""
    return (len(text) if text.isascii() else 2 * len(text.encode())) + SPECIAL


def _share(count: int, of: int, what: str = "row") -> str:
    if count == of:
        return f"All {of:,} {what}s are" if of > 1 else f"The only {what} is"
    return f"{count:,} of {of:,} {what}s {'are' if count > 1 else 'is'}"


def _start(folder: Path, stop: str) -> subprocess.Popen[bytes]:
    process = own_process.start(
        ["-m", "pipeline.inputs.data.lengths", str(folder)],
        {**settings.bare_environment(), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    with suppress(OSError):  # it has ended, which whoever asks it sees
        process.stdin.write(to_json(stop).encode() + b"\n")
    return process


def _main(folder: Path) -> int:
    if not _watched():
        return 0
    sys.modules["torch"] = None  # type: ignore[assignment]  # half of the time and memory, and not needed
    from transformers import AutoTokenizer  # noqa: F401  # the limits are for what is read

    from pipeline.inputs.prompts import training_ids

    limit()
    confined.to([folder])
    stop = json.loads(sys.stdin.buffer.readline())
    tokenizer = contents.tokenizer_of(folder)
    ends = training_ids.end_tokens(tokenizer, folder, stop)
    for line in sys.stdin.buffer:
        texts = [Rendered(prompt, full) for prompt, full in json.loads(line)]
        found = training_ids.encode_all(tokenizer, texts, ends)
        print(to_json([(len(prompt), len(answer)) for prompt, answer in found]), flush=True)
    return 0


def _watched() -> bool:
    """Go on in a child, whose end comes with that of who asks, even in the middle of a count.

    True in the child. The parent returns when the child has ended, or nobody can ask any more.
    """
    parent = os.getpid()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getppid() == parent  # else it is gone already
    asker = select.poll()
    asker.register(sys.stdin.fileno(), 0)  # no writer is left: that is reported always
    asker.register(os.pidfd_open(child), select.POLLIN)
    asker.poll()
    return False


def limit() -> None:
    """Limit what this process may take from now on."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, most in ((resource.RLIMIT_AS, used + MEMORY), (resource.RLIMIT_CPU, ALL_SECONDS)):
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
