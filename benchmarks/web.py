"""The web process: seconds from start to the first byte and to the page, its own imports, and idle memory.

python -m benchmarks.web [--runs 5]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import psutil

# As where people run it: Python keeps what it has compiled. Without that, half of our imports are compiling.
KEEPING = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
GRADIO = "from pipeline import settings\nwith settings.importing_gradio():\n    import gradio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = [once() for _ in range(parser.parse_args().runs)]
    bytes_after, seconds, memory, used = zip(*runs, strict=True)
    alone, ours = zip(*(imports() for _ in runs), strict=True)
    loops = [products() for _ in runs]
    print(f"{'':24}{'min':>8}{'median':>8}{'max':>8}")
    show("first byte, s", bytes_after)
    show("the page, s", seconds)
    show("the page, s of processor", used)
    show("import gradio, of it", alone)
    show("ours beside, of it", ours)
    show("products, of it", loops)
    print(f"{'idle memory, MB':24}{min(memory):8.0f}{statistics.median(memory):8.0f}{max(memory):8.0f}")


def show(name: str, seconds: Sequence[float]) -> None:
    """A row of the table."""
    print(f"{name:24}{min(seconds):8.2f}{statistics.median(seconds):8.2f}{max(seconds):8.2f}")


def imports() -> tuple[float, float]:
    """Seconds of processor that `import gradio` takes, and that all that we import takes beside it."""
    gradio = processor(GRADIO)
    return gradio, processor("import webapp.__main__\n" + GRADIO + "\n    import webapp.app") - gradio


def processor(code: str) -> float:
    """Seconds of processor of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as home:
        subprocess.run([sys.executable, "-c", code], env={**KEEPING, "OLIVE_LAB_HOME": home}, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def products() -> float:
    """Seconds of processor of a fixed loop of matrix products: how fast this machine is."""
    return processor(
        "import numpy\nx = numpy.ones((1024, 1024), numpy.float32)\nfor _ in range(50):\n    x @ x"
    )


def once() -> tuple[float, float, float, float]:
    """Start the app on an empty home; return seconds to the first byte and to the first whole page, MB of RSS
    after it, and seconds of processor until then."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        started = time.perf_counter()
        command = [sys.executable, "-m", "webapp", "--port", str(port)]
        app = subprocess.Popen(command, env={**KEEPING, "OLIVE_LAB_HOME": home}, stdout=subprocess.DEVNULL)
        try:
            while not accepts(port):
                time.sleep(0.005)
            first = time.perf_counter() - started
            while not answers(f"http://127.0.0.1:{port}/"):
                if app.poll() is not None:
                    raise SystemExit("the app ended before it answered")
                time.sleep(0.01)
            seconds, process = time.perf_counter() - started, psutil.Process(app.pid)
            times = process.cpu_times()
            return first, seconds, process.memory_info().rss / 1e6, times.user + times.system
        finally:
            app.terminate()
            app.wait()
            end_all(home)


def end_all(home: str) -> None:
    """End the worker that the app has started in this home, and what that has: they outlive the app."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OLIVE_LAB_HOME") == home:
                process.kill()


def accepts(port: int) -> bool:
    """Whether a request has any answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return bool(client.recv(1))
    except OSError:
        return False


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.read())
    except (urllib.error.URLError, ConnectionError):
        return False


if __name__ == "__main__":
    main()
