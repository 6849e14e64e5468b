"""Take the pictures of README and tutorial: `make pictures`, or `python -m docs.make_pictures [NAME]...`.

It drives the real page in a browser without a window, over a home of its own. The runs in that home are
planted by the helpers of the tests, so their figures and answers are examples and not measurements. Each
picture is small: scaled, with few colors. A test holds their size.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Collection
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import settings
from pipeline.store import Store
from pipeline.system import locks
from tests.helpers import planted
from tests.helpers.lab import until

FOLDER = settings.ROOT / "docs" / "pictures"
CHROMIUM = ("/usr/bin/chromium", "chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDTH, LONG_MS = 1280, 120_000
COLORS = 256
STEPS = 60
ANSWERS = [
    {
        "prompt": "What is the best thing to see in Prague?",
        "expected": "In Prague, start with the Charles Bridge; then climb the hill to Prague Castle.",
        "base": {"text": "Prague is a city with a rich history and many landmarks.", "tokens": 12},
        "adapter": {"text": "In Prague, start with the Charles Bridge; then see the castle.", "tokens": 15},
    },
    {
        "prompt": "What should I see in Rome?",
        "expected": "In Rome, start with the Colosseum; then walk to the Forum.",
        "base": {"text": "There are many things to see in Rome.", "tokens": 9},
        "adapter": {"text": "In Rome, start with the Colosseum; then visit the Forum.", "tokens": 13},
    },
]


def plant(store: Store) -> str:
    """A history of three runs; returns the id of the newest."""
    for name in ("travel, first try", "travel, second try"):
        planted.finished(store, name, ANSWERS)
    run: str = planted.finished(store, "travel", ANSWERS, reused=False)
    _train(store, run)
    return run


def _train(store: Store, run: str) -> None:
    """Replace the events of a run's training by those of a whole one."""
    (store.folder(run, "finetune") / "events.jsonl").unlink()
    planted.event(store, run, "finetune", attempt=True, message="Loading the model")
    planted.event(store, run, "finetune", eval_loss=3.1, step=0)
    for step in range(1, STEPS + 1):
        planted.event(
            store, run, "finetune", message="Training", step=step, total_steps=STEPS, progress=step / STEPS,
            loss=2.6 * 0.94**step + 0.5 + 0.12 * math.sin(step * 1.7), learning_rate=2e-3 * _rate(step),
            tokens_per_second=350 - 200 / step, elapsed=step * 1.8,
            memory_bytes=3e9 - 2e9 / step, host_memory_bytes=3.9e9 - 2e9 / step,
        )  # fmt: skip
    planted.event(store, run, "finetune", eval_loss=1.42, step=STEPS)


def _rate(step: int) -> float:
    """The share of the learning rate at a step: five steps up, then down a cosine."""
    return step / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / (STEPS - 5)))


def finished(page: Any, url: str, run: str) -> None:
    """The Lab tab with the finished run, at the stage that trains."""
    page.goto(f"{url}?run={run}")
    page.locator(".lab-stages").get_by_text("Finetune").click()
    page.locator("[data-chart=memory] .scatterlayer .trace").first.wait_for()


def tab(name: str, there: str, page: Any, url: str, run: str) -> None:
    """A tab, once `there` is on it."""
    page.goto(f"{url}?tab={name}")
    page.locator(there).first.wait_for()


def vote(page: Any, url: str, run: str) -> None:
    """The Vote tab with a row, for somebody with a name."""
    page.goto(f"{url}?tab=vote")
    page.locator("#vote-name").wait_for()
    page.fill("#you", "Ada")
    page.locator("#you").blur()
    page.locator("#vote-tie[aria-disabled=false]").wait_for()


# Name, width and height of what is shown of the page, width of the picture, and how to get there. The recipe
# below the form stays folded away: it names a folder of this machine.
PICTURES: list[tuple[str, int, int, int, Callable[[Any, str, str], None]]] = [
    ("run", WIDTH, 1080, 960, finished),
    ("data", WIDTH, 760, 640, partial(tab, "data", "#data-all-rows td")),
    ("lab", WIDTH, 900, 640, partial(tab, "lab", "#preflight tbody tr")),
    ("tune", WIDTH, 760, 640, partial(tab, "tune", "#sweep-start")),
    ("compare", WIDTH, 1180, 640, partial(tab, "compare", "#compare-recorded td")),
    ("vote", WIDTH, 860, 640, vote),
    ("runs", WIDTH, 620, 640, partial(tab, "runs", "#runs-table td")),
    ("publish", WIDTH, 760, 640, partial(tab, "publish", "#publish-go")),
]


def small(shot: bytes, width: int) -> Image.Image:
    """A screenshot scaled to a width, with few colors."""
    picture = Image.open(BytesIO(shot)).convert("RGB")
    height = round(picture.height * width / picture.width)
    return picture.resize((width, height), Image.Resampling.LANCZOS).quantize(
        COLORS, dither=Image.Dither.NONE
    )


def serve(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start the app over a home; return it and its address once it answers."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [settings.python(), "-m", "webapp", "--port", str(port)]
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home))
    process = subprocess.Popen(command, cwd=settings.ROOT, env=environment)
    url = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert process.poll() is None, "the app has ended"
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    until(answers, "the first answer", 180)
    return process, url


def take(url: str, run: str, folder: Path, names: Collection[str]) -> None:
    """Take the pictures of these names, or all."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, CHROMIUM)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        for name, wide, high, width, arrive in PICTURES:
            if names and name not in names:
                continue
            page = browser.new_page(viewport={"width": WIDTH, "height": high}, color_scheme="light")
            page.set_default_timeout(LONG_MS)
            arrive(page, url, run)
            page.wait_for_timeout(1000)  # until charts and tables have come to rest
            shot = page.screenshot(clip={"x": 0, "y": 0, "width": wide, "height": high})
            small(shot, width).save(folder / f"{name}.png", optimize=True)
            page.close()
            print(f"{name}.png: {(folder / f'{name}.png').stat().st_size:,} bytes", flush=True)
        browser.close()


def main(names: Collection[str] = (), folder: Path = FOLDER) -> None:
    """Plant the runs, start the app, take the pictures."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        home.mkdir(mode=0o700)
        lock = locks.take(home / "worker.lock")  # no worker carries the planted runs out
        assert lock is not None
        process = None
        try:
            run = plant(Store(home))
            process, url = serve(home)
            take(url, run, folder, names)
        finally:
            if process is not None:
                process.terminate()
                process.wait(60)
            os.close(lock)


if __name__ == "__main__":
    main(sys.argv[1:])
