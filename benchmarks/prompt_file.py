"""A long prompt file through the page's upload: what the page's own process takes, and who reads the file.

    python -m benchmarks.prompt_file [--rows 1000000]

The page runs in a process and a home of its own. A short file goes before, so that what is loaded once is not
counted. The long one is sent as a browser does, in one request, and then taken by the event of **Upload a
prompt file**. Meanwhile the memory of the page's process is looked at many times a second, and which of its
children have read how much.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import page_stream
from benchmarks.page_stream import Page
from pipeline import settings
from pipeline.system.files import to_json

LOOK_SECONDS = 0.02
INPUTS = 4  # of the event that takes an upload
PIECE = 1 << 20
SAMPLE = settings.SAMPLES / "travel.jsonl"
BORDER = "prompt-file-benchmark"
PROMPT = (
    "Which of the {0} towns along the river has the oldest bridge, and how far is it from the sea by road?"
)
ANSWER = "The town with number {0}: its bridge of stone stands {0} years, and the sea is {0} miles away."


@dataclass
class Watched:
    """Memory of the page's process, in bytes, before and at its highest, and the most bytes that a process
    that it started for checks has read."""

    before: int = 0
    highest: int = 0
    read_apart: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def grown(self) -> int:
        return self.highest - self.before


@dataclass(frozen=True)
class Taken:
    """What the page says of a file, where it keeps it, seconds of the upload and the check, and memory."""

    text: str
    kept: Path
    sending: float
    checking: float
    watched: Watched


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir(mode=0o700)
        with page_stream.served(home) as page:
            found = measured(page, Path(folder), rows)
        kept = sum(1 for _ in found.kept.open("rb"))
    watched = found.watched
    print(f"{rows:,} rows: {found.text}")
    print(
        f"sent in {found.sending:.0f} s, checked and kept in {found.checking:.0f} s; {kept:,} lines are kept"
    )
    print(
        f"the page's process: {watched.before / 1e6:.0f} MB before, {watched.highest / 1e6:.0f} MB at most;"
        f" a process for checks has read {watched.read_apart / 1e6:.0f} MB"
    )


def measured(page: Page, folder: Path, rows: int) -> Taken:
    """Send a short file and then one of so many rows through the page."""
    short = written(folder / "short.jsonl", 2)
    for _ in range(2):
        taken(page, short, Watched())
    file = written(folder / "prompts.jsonl", rows)
    with watching(page.process) as watched:
        return taken(page, file, watched)


def written(file: Path, rows: int) -> Path:
    """A file of so many rows, each another one."""
    with file.open("w", encoding="utf-8") as made:
        for number in range(rows):
            row = {"prompt": PROMPT.format(number), "response": ANSWER.format(number)}
            made.write(to_json(row) + "\n")
    return file


def taken(page: Page, file: Path, watched: Watched) -> Taken:
    """What the page says of a file that is uploaded. Raises RuntimeError where it does not take it."""
    began = time.perf_counter()
    path = sent(page.url, file)
    came = time.perf_counter()
    upload = {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
    event = page.event("evaluate-upload", "upload", INPUTS)
    last: list[Any] = []
    for shown in page.call(event, [upload, str(SAMPLE), "chat", "starter"]):
        last = shown
    said, problems, choice = last[:3]
    if not isinstance(choice, dict) or "value" not in choice:
        raise RuntimeError(f"the page has not taken the file: {problems or said}")
    text = said["text"] if "text" in said else said["value"]["text"]
    return Taken(text, Path(choice["value"]), came - began, time.perf_counter() - came, watched)


def sent(url: str, file: Path) -> str:
    """Upload a file as a browser does; its path in the page's folder of uploads."""
    head = (
        f'--{BORDER}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BORDER}--\r\n".encode()
    length = len(head) + file.stat().st_size + len(tail)

    def pieces() -> Iterator[bytes]:
        yield head
        with file.open("rb") as opened:
            while piece := opened.read(PIECE):
                yield piece
        yield tail

    asked = http.client.HTTPConnection(urlsplit(url).netloc, timeout=page_stream.MOST_SECONDS)
    try:
        headers = {"Content-Type": f"multipart/form-data; boundary={BORDER}", "Content-Length": str(length)}
        asked.request("POST", "/gradio_api/upload", body=pieces(), headers=headers)
        return str(json.loads(asked.getresponse().read())[0])
    finally:
        asked.close()


@contextmanager
def watching(process: psutil.Process) -> Iterator[Watched]:
    """Look at a process, and at those that it starts, until the block is left."""
    found = Watched(before=process.memory_info().rss)

    def look() -> None:
        before: dict[int, int] = {}
        while not found.over.wait(LOOK_SECONDS):
            found.highest = max(found.highest, process.memory_info().rss)
            for child in process.children():
                with suppress(psutil.Error):
                    if "pipeline.runs.check_pool" in child.cmdline():
                        read = child.io_counters().read_chars
                        found.read_apart = max(found.read_apart, read - before.setdefault(child.pid, read))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        found.over.set()
        watcher.join()


if __name__ == "__main__":
    main()
