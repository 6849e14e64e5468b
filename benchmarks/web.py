"""The web process: seconds from start to the first answer, and idle memory.

python -m benchmarks.web [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = [once() for _ in range(parser.parse_args().runs)]
    seconds, memory = zip(*runs, strict=True)
    print(f"{'':24}{'min':>8}{'median':>8}{'max':>8}")
    print(f"{'first answer, s':24}{min(seconds):8.2f}{statistics.median(seconds):8.2f}{max(seconds):8.2f}")
    print(f"{'idle memory, MB':24}{min(memory):8.0f}{statistics.median(memory):8.0f}{max(memory):8.0f}")


def once() -> tuple[float, float]:
    """Start the app on an empty home; return (seconds to the first whole page, MB of RSS after it)."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        started = time.perf_counter()
        command = [sys.executable, "-m", "webapp", "--port", str(port)]
        app = subprocess.Popen(command, env={**os.environ, "OLIVE_LAB_HOME": home}, stdout=subprocess.DEVNULL)
        try:
            while not answers(f"http://127.0.0.1:{port}/"):
                if app.poll() is not None:
                    raise SystemExit("the app ended before it answered")
                time.sleep(0.01)
            return time.perf_counter() - started, psutil.Process(app.pid).memory_info().rss / 1e6
        finally:
            app.terminate()
            app.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.read())
    except (urllib.error.URLError, ConnectionError):
        return False


if __name__ == "__main__":
    main()
