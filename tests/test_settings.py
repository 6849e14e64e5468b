"""What is read from the environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports.chat import chat_processes, sources
from pipeline.exports.verifying import answering
from pipeline.inputs.data import lengths
from pipeline.inputs.prompts.templates import Rendered
from pipeline.publish import check_process
from pipeline.system import own_process
from pipeline.worker import probe


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "-1", "1e300", "many"])
@pytest.mark.parametrize(
    "name", ["OLIVE_LAB_MAX_UPLOAD_MB", "OLIVE_LAB_CHECKPOINT_SECONDS", "OLIVE_LAB_EXIT_SECONDS"]
)
def test_a_variable_that_gives_no_number_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}: '{value}' is not allowed; allowed: a number from 0 to"):
        settings.home()
    monkeypatch.setenv(name, "0.5")
    assert settings.home() == home


def _count(folder: Path) -> None:
    with lengths.Lengths(lambda: folder, "the-model", lengths.Limits(row=1)) as counting:
        counting.add(0, 1, Rendered("many words", "many words and an answer"))
        counting.count()


# What each asks of a process that reads a model of anybody's.
READERS: dict[str, Callable[[Path], object]] = {
    "lengths": _count,
    "verify": answering.live,
    "apart": lambda folder: check_process.verified(folder, "Nothing"),
    "inference": lambda folder: asyncio.run(
        chat_processes.load(folder, sources.Source("run", folder, None, False))
    ),
    "probe": lambda folder: probe._try(probe.Task(str(folder), "data", {}), folder / "scratch", None),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_who_reads_a_strange_model_gets_no_secrets(
    reader: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AZURE_CLIENT_SECRET", "MSI_SECRET", "OLIVE_LAB_WEBHOOK",
               "OLIVE_LAB_SERVE_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "NVIDIA_API_KEY",
               "CONDA_TOKEN", "XDG_password")  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, f"the-{name}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nenv > {tmp_path}/part\nmv {tmp_path}/part {tmp_path}/environment\nexit 9\n"
    )
    python.chmod(0o700)
    monkeypatch.setattr(settings, "python", lambda: str(python))
    with suppress(LabError):
        reader(tmp_path)
    given = (tmp_path / "environment").read_text()
    assert "the-" not in given
    assert "TOKENIZERS_PARALLELISM=false\n" in given
    assert ("CUDA_VISIBLE_DEVICES=5\n" in given) == (reader is not READERS["lengths"])


def _without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OLIVE_LAB_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr(settings, "ROOT", tmp_path / "checkout")


def test_the_home_is_the_one_that_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for installed in (False, True):
        monkeypatch.setattr(settings, "INSTALLED", installed)
        assert settings.home() == home


def test_else_that_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, tmp_path)
    assert settings.home() == tmp_path / "checkout" / "data"


def test_else_a_folder_among_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, tmp_path)
    monkeypatch.setattr(settings, "INSTALLED", True)
    assert settings.home() == tmp_path / "share" / "olive-lab"
    assert settings.home().stat().st_mode & 0o777 == 0o700


def test_who_has_no_folder_of_their_own_is_asked_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLIVE_LAB_HOME", "~nobody-of-that-name/lab")
    with pytest.raises(InputError, match=r"^OLIVE_LAB_HOME: this user has no home folder for ~nobody"):
        settings.home()


def test_processes_find_an_installed_lab_without_its_folder_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert settings.child_environment()["PYTHONPATH"] == f"{settings.ROOT}:/theirs"
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    for given in (settings.child_environment(), settings.local_environment(), settings.bare_environment()):
        assert (given["PYTHONPATH"], given["PYTHONSAFEPATH"]) == ("/theirs", "1")


# Large blocks, each with a small one after it that stays; then how many bytes are left of them.
HOLES = """
from pipeline.system.peak_memory import memory_now
bytearray(24 << 20)  # from now on glibc would keep blocks of this size in its heap
before = memory_now()
large, small = [], []
for _ in range(64):
    large.append(bytearray(b"x") * (2 << 20))
    small.append(bytearray(2000))
del large
print(memory_now() - before)
"""


def test_a_stage_on_a_cpu_gives_memory_back_and_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in settings.EVEN_MEMORY:
        monkeypatch.delenv(name, raising=False)

    def left(environment: dict[str, str]) -> int:
        return int(own_process.run(["-c", HOLES], None, environment).stdout)

    assert left(settings.stage_environment(False)) < 16 << 20 < left(settings.stage_environment(True))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4096")
    assert settings.stage_environment(False, MORE="1")["MALLOC_MMAP_THRESHOLD_"] == "4096"


def test_arrow_starts_no_thread_in_our_processes() -> None:
    """Its allocator would start one, and fill the log where that may not be."""
    code = "import pyarrow, pathlib; print(len([*pathlib.Path('/proc/self/task').iterdir()]))"
    given = settings.child_environment(OPENBLAS_NUM_THREADS="1")
    assert own_process.run(["-c", code], None, given).stdout == "1\n"
