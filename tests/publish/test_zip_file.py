"""The ZIP of a finished run: whole, checked, of a known length, and made while it is read."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import failed
from pipeline.publish import card, local, zip_file
from pipeline.publish.zip_file import Takeaway
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.store.run import FAILED, Run
from tests.helpers.lab import open_files
from tests.helpers.planted import plant

MEGABYTE = 1 << 20
REPORTS = ["report.html", "report.md"]
TEXTS = ["README.md", "recipe.yaml", "LICENSE-base-model.txt", *REPORTS, "ask_server.mjs"]


def export(run: Run) -> Path:
    return Path(str(run.artifact("onnx")))


def made(store: Store, run: Run) -> bytes:
    with Takeaway(store.home, run) as zipped:
        data = b"".join(zipped)
        assert len(data) == zipped.size
    return data


def held(run: Run) -> list[str]:
    """Names of the export's own files that the zip takes along, in its order."""
    files = sorted(path for path in export(run).rglob("*") if path.is_file())
    names = [path.relative_to(export(run)).as_posix() for path in files]
    return [name for name in names if name not in ("README.md", "artifact.json", "SHA256SUMS")]


def sparse(run: Run, megabytes: int) -> Path:
    """A file of zeros in the export that takes no room on the disk."""
    path = export(run) / "model.onnx.data"
    with path.open("wb") as file:
        file.truncate(megabytes * MEGABYTE)
    return path


def test_it_holds_the_export_with_card_recipe_and_checksums(
    store: Store, finished: Run, tmp_path: Path
) -> None:
    (export(finished) / "artifact.json").write_text("{}")
    (export(finished) / "README.md").write_text("of the export")
    with zipfile.ZipFile(io.BytesIO(made(store, finished))) as archive:
        assert archive.testzip() is None
        names = held(finished)
        assert {"adapter_weights.onnx_adapter", "model.onnx", "genai_config.json"} <= set(names)
        assert archive.namelist() == [*TEXTS, *names, "SHA256SUMS"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "model.onnx").read_bytes() == (export(finished) / "model.onnx").read_bytes()
    assert (out / "README.md").read_text().startswith("# finished\n")
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=out, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, len(TEXTS) + len(names))
    (out / "model.onnx").write_bytes(b"damaged")
    assert subprocess.run(check, cwd=out, capture_output=True).returncode == 1


def test_of_a_bound_run_it_holds_the_bound_folder(store: Store, finished_bound: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(made(store, finished_bound))) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "out")
    assert {"model.onnx", "model.onnx.data", "adapter.onnx.data", "bound.json", "README.md"} <= names
    assert not [name for name in names if name.startswith("bound/") or name.endswith(".onnx_adapter")]
    assert card.BOUND in (tmp_path / "out" / "README.md").read_text()
    assert not failed(verify.whole(tmp_path / "out"))


def test_what_a_program_left_that_was_run_in_the_folder_stays_there(store: Store, finished: Run) -> None:
    before = held(finished)
    bytecode = export(finished) / "__pycache__" / "lab_model.cpython-311.pyc"
    bytecode.parent.mkdir()
    bytecode.write_bytes(b"code")
    with zipfile.ZipFile(io.BytesIO(made(store, finished))) as archive:
        assert [name for name in archive.namelist() if name in held(finished)] == before
    planned = local.plan(store.home, finished, local.Options(name="trips"))
    assert not any("__pycache__" in file["path"] for file in planned["files"])


def test_another_program_unpacks_it_readable(store: Store, finished: Run, tmp_path: Path) -> None:
    (export(finished) / "größe 1.txt").write_text("x")
    (tmp_path / "it.zip").write_bytes(made(store, finished))
    extract = "import shutil; shutil.unpack_archive('it.zip', 'out')"
    program = ["unzip", "-q", "it.zip", "-d", "out"] if shutil.which("unzip") else ["python3", "-c", extract]
    subprocess.run(program, cwd=tmp_path, check=True)
    assert (tmp_path / "out" / "größe 1.txt").read_text() == "x"
    info = zipfile.ZipFile(tmp_path / "it.zip").getinfo("model.onnx")
    assert info.external_attr >> 16 == 0o100644


def test_the_recipe_in_it_can_be_run_again_where_model_and_data_are(store: Store, finished: Run) -> None:
    given = {**finished.recipe, "model": "/home/ann/mine", "finetune": {"max_steps": 7}}
    run = dataclasses.replace(finished, recipe=given)
    with zipfile.ZipFile(io.BytesIO(made(store, run))) as archive:
        text = archive.read("recipe.yaml").decode()
    assert "/home" not in text
    again = recipe.from_dict(yaml.safe_load(text), Path("/elsewhere"))
    assert again.data == "/elsewhere/travel.jsonl"
    assert again.finetune is not None
    assert again.finetune.max_steps == 7


def test_each_download_is_the_same(store: Store, finished: Run) -> None:
    assert made(store, finished) == made(store, finished)


@pytest.mark.parametrize("limit", [0, 7, 100, 4000, 4900, 5000, 6000, 7000])
def test_the_length_is_known_where_files_and_positions_pass_the_limit_of_zip(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """zipfile's own limit of 2 GiB, brought down to the sizes of these files."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    data = made(store, finished)  # compares the length
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("model.onnx") == (export(finished) / "model.onnx").read_bytes()


def test_many_files_have_a_known_length_too(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 4)
    assert len(zipfile.ZipFile(io.BytesIO(made(store, finished))).namelist()) == len(TEXTS) + 1 + len(
        held(finished)
    )


def test_a_large_file_is_never_in_memory(store: Store, finished: Run) -> None:
    sparse(finished, 64)
    with Takeaway(store.home, finished) as zipped:
        tracemalloc.start()
        longest = max(map(len, zipped))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert longest == MEGABYTE
    assert peak < 8 * MEGABYTE


def test_a_large_text_waits_on_the_disk_for_a_slow_reader(store: Store, finished: Run) -> None:
    answers = "x" * (40 << 20)
    tracemalloc.start()
    try:
        with Takeaway(store.home, finished, {"answers.json": answers}) as zipped:
            assert tracemalloc.get_traced_memory()[0] < 4 << 20
            with zipfile.ZipFile(io.BytesIO(b"".join(zipped))) as archive:
                assert archive.read("answers.json").decode() == answers
    finally:
        tracemalloc.stop()


def test_an_export_that_is_deleted_or_replaced_meanwhile_is_sent_whole(store: Store, finished: Run) -> None:
    expected = made(store, finished)
    with Takeaway(store.home, finished) as zipped:
        shutil.rmtree(export(finished))
        export(finished).mkdir()
        (export(finished) / "model.onnx").write_text("another")
        assert b"".join(zipped) == expected


def test_a_file_that_gets_shorter_is_an_error(store: Store, finished: Run) -> None:
    data = sparse(finished, 3)
    with Takeaway(store.home, finished) as zipped:
        pieces = iter(zipped)
        while len(next(pieces)) < MEGABYTE:
            pass
        with data.open("r+b") as file:
            file.truncate(MEGABYTE)
        with pytest.raises(LabError, match=r"model\.onnx\.data became shorter while it was being downloaded"):
            list(pieces)


def test_a_file_that_grows_is_sent_as_it_was(store: Store, finished: Run) -> None:
    expected = made(store, finished)
    with Takeaway(store.home, finished) as zipped:
        with (export(finished) / "model.onnx").open("ab") as file:
            file.write(b"more")
        assert b"".join(zipped) == expected


def test_closing_lets_go_of_every_file(store: Store, finished: Run) -> None:
    gc.disable()
    try:
        zipped = Takeaway(store.home, finished)
        assert len(open_files(os.getpid(), export(finished))) == len(held(finished))
        pieces = iter(zipped)
        next(pieces)
        zipped.close()
        assert open_files(os.getpid(), export(finished)) == []
    finally:
        gc.enable()


def test_a_run_without_an_export_has_none(store: Store, finished: Run) -> None:
    queued = store.get(plant(store))
    with pytest.raises(
        InputError, match=f"Run {queued.id} is queued and has no exported model; only a finished"
    ):
        Takeaway(store.home, queued)
    assert zip_file.exported(queued) is None
    assert zip_file.exported(finished) == export(finished)
    assert zip_file.exported(dataclasses.replace(finished, status=FAILED)) is None
    shutil.rmtree(export(finished))
    assert zip_file.exported(finished) is None
    with pytest.raises(InputError, match="is no longer there; run its recipe again"):
        Takeaway(store.home, finished)


def test_one_that_is_deleted_while_it_is_opened_says_so(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zip_file, "files", lambda folder: [folder / "model.onnx", folder / "gone"])
    with pytest.raises(InputError, match="is being replaced; try again"):
        Takeaway(store.home, finished)
    gc.collect()
    assert open_files(os.getpid(), export(finished)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my trip, 2", "my-trip-2-"),
        ('a"; filename="b.exe', "a-filename-b-exe-"),
        ("../../etc/passwd\r\n", "etc-passwd-"),
        ("旅", ""),
        ("x" * 100, "x" * 60 + "-"),
    ],
)
def test_the_file_has_a_name_that_every_system_takes(finished: Run, name: str, expected: str) -> None:
    assert zip_file.file_name(dataclasses.replace(finished, name=name)) == f"{expected}{finished.id}.zip"


def test_a_time_that_zip_does_not_know_is_no_obstacle(store: Store, finished: Run) -> None:
    data = made(store, dataclasses.replace(finished, created=0.0))
    assert zipfile.ZipFile(io.BytesIO(data)).infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_it_is_saved_whole_or_not_at_all(store: Store, finished: Run, tmp_path: Path) -> None:
    target = tmp_path / "out" / "it.zip"
    with pytest.raises(InputError, match="out: no such folder"):
        zip_file.save(store.home, finished, target)
    target.parent.mkdir()
    assert zip_file.save(store.home, finished, target) == target.stat().st_size
    assert target.read_bytes() == made(store, finished)
    with pytest.raises(InputError, match=r"it\.zip: already exists"):
        zip_file.save(store.home, finished, target)
    assert [path.name for path in target.parent.iterdir()] == ["it.zip"]


def test_what_breaks_while_it_is_saved_leaves_nothing(
    store: Store, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(zipped: Takeaway) -> object:
        yield b"PK"
        raise LabError("model.onnx became shorter")

    monkeypatch.setattr(Takeaway, "__iter__", break_off)
    (tmp_path / "out").mkdir()
    with pytest.raises(LabError, match="became shorter"):
        zip_file.save(store.home, finished, tmp_path / "out" / "it.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_one_that_somebody_else_wrote_meanwhile_is_kept(
    store: Store, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "it.zip"
    target.parent.mkdir()

    def write_theirs(zipped: Takeaway) -> object:
        target.write_text("theirs")
        yield b"PK"

    monkeypatch.setattr(Takeaway, "__iter__", write_theirs)
    with pytest.raises(LabError, match="was created meanwhile"):
        zip_file.save(store.home, finished, target)
    assert [path.read_text() for path in target.parent.iterdir()] == ["theirs"]


def test_the_versions_of_the_manifest_are_in_the_card(store: Store, finished: Run) -> None:
    manifest = export(finished) / "artifact.json"
    manifest.write_text(json.dumps({"packages": {"onnxruntime-genai": "0.18.0", "torch": "2.13.0"}}))
    with zipfile.ZipFile(io.BytesIO(made(store, finished))) as archive:
        text = archive.read("README.md").decode()
    assert "`pip install onnxruntime-genai==0.18.0` and `python app.py`" in text
    assert "torch: 2.13.0" in text
