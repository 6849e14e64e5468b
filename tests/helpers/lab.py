"""What tests do with a lab: wait for things to happen, look at processes and files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.__main__ import main
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED
from pipeline.system import own_process
from pipeline.worker.loop import Worker
from tests.helpers.children import SIGN

# A small model of the usual kind.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 2048,
}
CHILDREN = Path(__file__).parent / "children.py"


def cli(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    """The exit code and what was written to standard output and error."""
    capsys.readouterr()
    try:
        code = main([str(a) for a in argv])
    except SystemExit as end:  # argparse
        code = int(str(end.code))
    written = capsys.readouterr()
    return code, written.out, written.err


def has_landlock(moves: bool = False) -> bool:
    """Whether the kernel can confine a process, asked of one: it holds for good."""
    words = ["-c", f"from pipeline.inputs import confined; print(confined.to([], moves={moves}))"]
    return own_process.run(words, 60, settings.bare_environment()).stdout.strip() == "True"


def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 60.0) -> Any:
    """Wait until `condition()` is true and return it; fail when that takes longer than `seconds`.

    The longer it takes, the less often it is asked, so that asking does not keep busy what is waited for.
    """
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            pytest.fail(f"{what} did not come true within {seconds:g} seconds")
        threading.Event().wait(min(0.01 + waited / 40, 0.05))
    return found


def mounting() -> list[str]:
    """The command before a command that mounts file systems, in a namespace of its own."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    return command


def processes(home: Path) -> list[int]:
    """Ids of the living processes that work for this home, but for this one."""
    mark = f"OLIVE_LAB_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile, or belongs to another user
    return found


def killed(home: Path) -> list[int]:
    """Kill the processes that work for this home; their ids, until they are gone."""
    found = processes(home)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def contents(home: Path) -> Iterator[tuple[Path, bytes]]:
    """The files of a home at work and what is in them, but those that go meanwhile, as SQLite's do."""
    for folder, _, names in os.walk(home):
        for path in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.read_bytes()


def open_files(pid: int, folder: Path) -> list[str]:
    """Files of the folder that a process has open, a file opened twice twice."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue  # closed meanwhile
    return [path for path in found if path.startswith(f"{folder}/")]


def write_safetensors(path: Path, values: list[float]) -> None:
    """A valid file with one float32 vector in it."""
    header = {"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, 4 * len(values)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(values)}f", *values))


def write_tokenizer(path: Path) -> Path:
    """A tokenizer.json with a token a byte, which puts <s> before a text."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    alphabet = {letter: i + 2 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet}, merges=[]))
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.save(str(path))
    return path


def serving(home: Path, behaviour: str, idle_seconds: float = 600.0) -> list[str]:
    """The command of a worker process of its own, with stages as said in tests/children.py."""
    return [sys.executable, str(CHILDREN), "serve", str(home), behaviour, str(idle_seconds)]


def step_until(served: Worker, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    def tried() -> object:
        served.step()
        return condition()

    until(tried, what, seconds)


def ended(store: Store, run: str) -> Callable[[], bool]:
    return lambda: store.get(run).status in (DONE, FAILED, CANCELED, INTERRUPTED)


def spawned(store: Store, run: str, stage: str = "quantize") -> list[int]:
    """Wait until a stage's process says that it is there; return its ids."""
    sign = store.folder(run, stage) / SIGN
    until(sign.exists, f"the beginning of {stage}")
    return list(json.loads(sign.read_text())["pids"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def go(store: Store, run: str, stage: str = "quantize") -> None:
    (store.folder(run, stage) / "go").touch()


def die_together(store: Store, run: str, process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and the stage it has spawned, as a power cut does."""
    pid = spawned(store, run)[0]
    process.kill()
    process.wait()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the end of the stage")
    (store.folder(run, "quantize") / SIGN).unlink()
