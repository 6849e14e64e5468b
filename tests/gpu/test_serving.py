"""`serve` on a GPU: OpenAI's client gets the export's own answers, and no run starts on the GPU meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.exports import generation
from pipeline.exports.bound.binding import bind
from pipeline.exports.contract import ADAPTER
from pipeline.store import device_locks
from pipeline.system import hardware
from tests.gpu.test_bound import exported
from tests.helpers import openai_client
from tests.helpers.openai_client import Asking

pytestmark = pytest.mark.gpu

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("llama", tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def asking(folder: Path, home: Path) -> Iterator[Asking]:
    yield from served(folder, home)


def served(folder: Path, home: Path) -> Iterator[Asking]:
    environment = settings.child_environment(OLIVE_LAB_HOME=str(home), OLIVE_LAB_SERVE_TOKEN=TOKEN)
    words = [sys.executable, "-m", "pipeline", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        words, cwd=settings.ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("It computes on cuda:")
        yield Asking(process.stdout.readline().split()[-1], TOKEN, "base")
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0].endswith("have ended.\n")
    assert process.returncode == 0


def test_both_sides_answer_as_the_export_does(folder: Path, asking: Asking) -> None:
    model = generation.load(folder, {"adapter_weights": folder / ADAPTER})
    prompt = model.template.prompt({"prompt": openai_client.QUESTION})
    expected = {
        name: "".join(generation.stream(model, prompt, adapter, max_new_tokens=openai_client.TOKENS)).strip()
        for name, adapter in (("base", None), ("adapter_weights", "adapter_weights"))
    }
    assert expected["base"] != expected["adapter_weights"]
    openai_client.check_answers(asking, expected, len(model.reader.encode(prompt)))


def test_sixteen_clients_at_once_get_the_answers_of_one(asking: Asking) -> None:
    openai_client.check_many(asking, ("base", "adapter_weights"))


def test_no_run_of_the_queue_starts_on_its_gpu(home: Path, asking: Asking) -> None:
    assert asking.text()
    free = []
    for device in hardware.devices():
        with device_locks.unheld(home, device) as is_free:
            free.append(is_free)
    assert free.count(False) == 1


def test_a_bound_export_answers_in_recorded_steps(folder: Path, tmp_path: Path) -> None:
    bound = bind(folder, None, tmp_path / "bound").folder
    model = generation.load(bound, {})
    prompt = model.template.prompt({"prompt": openai_client.QUESTION})
    alone = "".join(generation.stream(model, prompt, None, max_new_tokens=openai_client.TOKENS)).strip()
    (tmp_path / "home").mkdir()
    for asking in served(bound, tmp_path / "home"):
        (name,) = (each.id for each in asking.client.models.list())
        assert asking.text(model=name).strip() == alone
