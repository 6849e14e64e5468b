"""Two processes publish to the same repository at the same moment."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

from pipeline import settings
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.fake_hub import FakeHub, Large

SEND = """
import sys
from pipeline import settings
from pipeline.publish.targets import huggingface
from pipeline.store import Store
store = Store(settings.home())
options = huggingface.Options(name="trips", version=sys.argv[2], description=sys.argv[3])
try:
    run = store.get(sys.argv[1])
    print(huggingface.send(store.home, run, options, lambda *said, **facts: None)["version"])
except Exception as error:
    print(error)
"""


def both(hub: FakeHub, run: Run, version: str) -> list[str]:
    """What two that commit at the same moment say in the end, each of whom has a description of its own."""
    together, real, left = threading.Barrier(2), hub.answer, [1, 1]

    def meet(method: str, path: str, body: bytes) -> tuple[int, Any]:
        if "/commit/" in path and left:
            left.pop()
            together.wait(120)
        return real(method, path, body)

    hub.answer = meet  # type: ignore[method-assign]
    begun = [
        subprocess.Popen(
            [settings.python(), "-c", SEND, run.id, version, f"Number {n}."],
            stdout=subprocess.PIPE, text=True, cwd=settings.ROOT, env=settings.child_environment(),
        )
        for n in (1, 2)
    ]  # fmt: skip
    return [process.communicate(timeout=180)[0].strip() for process in begun]


def described(hub: FakeHub, version: str) -> str:
    card = hub.content("ann/trips", "README.md", version).decode()
    return next(line for line in card.splitlines() if line.startswith("Number"))


def test_each_gets_a_number_and_has_its_own_content_whole(hub: FakeHub, store: Store, finished: Run) -> None:
    told = both(hub, finished, "")
    assert sorted(told) == ["1", "2"]
    for n, version in enumerate(told, 1):
        assert described(hub, f"v{version}") == f"Number {n}."
    large = {held.sha256 for held in hub.tree("ann/trips").values() if isinstance(held, Large)}
    assert large <= {path.name for path in hub.folder.iterdir()}


def test_of_two_who_want_the_same_number_one_gets_it(hub: FakeHub, store: Store, finished: Run) -> None:
    told = both(hub, finished, "1")
    (winner,) = [n for n, said in enumerate(told, 1) if said == "1"]
    (loser,) = [said for said in told if said != "1"]
    assert loser.startswith("ann/trips already has a version 1 with other content")
    assert hub.repos["ann/trips"].tags.keys() == {"v1"}
    assert described(hub, "v1") == f"Number {winner}."
