"""An adapter becomes a part of a graph, or nothing is written and a sentence says why."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import contract, generation, verify
from pipeline.exports.bound import binding, constants
from pipeline.exports.bound.binding import bind
from pipeline.exports.chat import sources
from pipeline.exports.findings import failed
from pipeline.system import checksums, files
from tests.helpers import exports
from tests.helpers.lab import mounting

IDS = np.arange(3, 90, dtype=np.int64)[None]


def logits(folder: Path, adapter: Path | None = None, prepacked: bool = True) -> Any:
    """What ONNX Runtime computes, unless `prepacked` without packing constants: numpy [1, tokens, words]."""
    options = onnxruntime.SessionOptions()
    if not prepacked:
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
    run = onnxruntime.RunOptions()
    loaded = onnxruntime.LoraAdapter()
    if adapter is not None:
        loaded.Load(str(adapter))
        run.add_active_adapter(loaded)
    return session.run(["logits"], {"input_ids": IDS}, run)[0]


def left(folder: Path) -> list[str]:
    """What lies in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system, which has no links to this one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is no other disk here")
        yield Path(folder)


def test_it_computes_what_the_graph_does_with_the_adapter(export: Path, tmp_path: Path) -> None:
    made = bind(export, None, tmp_path / "bound")
    assert (made.adapter.name, made.tensors, made.shared) == (exports.ADAPTER, 2, files.LINKED)
    for prepacked in (True, False):
        found = logits(made.folder, prepacked=prepacked)
        assert (found == logits(export, export / exports.ADAPTER, prepacked)).all()
        assert (found != logits(export, prepacked=prepacked)).any()


def test_it_has_no_adapter_inputs_and_its_arrays_begin_on_pages(export: Path, tmp_path: Path) -> None:
    made = bind(export, exports.ADAPTER, tmp_path / "bound")
    graph = contract.read_graph(made.folder / "model.onnx")
    assert list(graph.inputs) == ["input_ids"]
    pieces = [piece for piece in graph.pieces if piece.location == contract.ADAPTER_DATA]
    assert sorted(piece.name for piece in pieces) == ["a", "b"]
    assert [piece.offset % 4096 for piece in pieces] == [0, 0]
    assert sum(piece.length for piece in pieces) == 2 * 16 * 4 * 4
    assert made.adapter_bytes == (made.folder / contract.ADAPTER_DATA).stat().st_size


def test_weights_are_shared_and_small_files_are_not(export: Path, tmp_path: Path) -> None:
    made = bind(export, None, tmp_path / "bound")
    shared = [name for name in left(made.folder) if (made.folder / name).stat().st_nlink > 1]
    assert shared == ["model.onnx.data"]
    assert (made.folder / "model.onnx.data").samefile(export / "model.onnx.data")
    assert files.size(export, made.folder) < files.size(export) + files.size(made.folder)
    assert set(left(export)) - set(left(made.folder)) == {exports.ADAPTER}
    assert left(tmp_path) == ["bound", "export"]


@pytest.mark.parametrize("name", ["notes.txt", "model.onnx.data"])
def test_a_file_that_becomes_a_link_after_the_look_is_not_taken(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever may write to the export could have any file of the reader's put into the new folder."""
    (tmp_path / "secret").write_text("secret")
    (export / "notes.txt").write_text("notes")
    fix = constants.fix

    def exchanged(*given: Any, **more: Any) -> Any:
        (export / name).unlink()
        (export / name).symlink_to(tmp_path / "secret")
        return fix(*given, **more)

    monkeypatch.setattr(constants, "fix", exchanged)
    with pytest.raises(OSError, match="it is no file of its folder"):
        bind(export, None, tmp_path / "bound")
    assert left(tmp_path) == ["export", "secret"]


def test_a_folder_that_becomes_a_link_after_the_look_is_not_read(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    fix = constants.fix

    def exchanged(*given: Any, **more: Any) -> Any:
        made = fix(*given, **more)
        export.rename(tmp_path / "aside")
        export.symlink_to(tmp_path / "secrets")
        return made

    monkeypatch.setattr(constants, "fix", exchanged)
    with pytest.raises(OSError):  # noqa: PT011 - the weights are not there
        bind(export, None, tmp_path / "bound")
    assert left(tmp_path) == ["aside", "export", "secrets"]


@pytest.mark.parametrize("name", [checksums.NAME, f".{checksums.NAME}.part", f"./.{contract.BOUND}.part"])
def test_what_the_base_shares_is_never_written_to(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(contract, "NO_WEIGHTS", ())  # as if a name of ours were not known there
    checksums.write(export)
    if name != checksums.NAME:
        (export / name).write_bytes(b"\0" * 64)
    model = onnx.load(export / "model.onnx", load_external_data=False)
    more = model.graph.initializer.add(name="more", data_type=onnx.TensorProto.UINT8, dims=[8])
    more.data_location = onnx.TensorProto.EXTERNAL
    more.external_data.add(key="location", value=name)
    onnx.save(model, export / "model.onnx")
    before = (export / name).read_bytes()
    bind(export, None, tmp_path / "bound")
    assert (export / name).read_bytes() == before


def test_it_verifies_and_answers_alone(export: Path, tmp_path: Path) -> None:
    made = bind(export, None, tmp_path / "bound")
    found = {each.check: each for each in verify.whole(made.folder)}
    assert {each.status for each in found.values()} == {"ok"}, found
    assert found["bound adapter"].message == f"'{exports.ADAPTER}' is a part of the graph: 2 tensors"
    source = sources.of_folder(made.folder, "it")
    assert (source.sides, source.adapter) == (("adapter",), None)
    assert source.missing_side == (
        "The adapter of it is a part of its graph; the folder that it was bound from has its base."
    )
    model = generation.load(made.folder)
    detachable = generation.load(export, {"adapter": export / exports.ADAPTER})
    near = generation.logits(detachable, "Hello", "adapter")
    assert (generation.logits(model, "Hello") == near).all()


def test_a_changed_byte_of_the_adapter_is_found(export: Path, tmp_path: Path) -> None:
    made = bind(export, None, tmp_path / "bound")
    with (made.folder / contract.ADAPTER_DATA).open("r+b") as file:
        file.write(b"\x01")
    assert [each.check for each in failed(verify.whole(made.folder))] == ["checksums"]


def test_a_graph_without_the_tensors_that_it_should_have_is_found(export: Path, tmp_path: Path) -> None:
    made = bind(export, None, tmp_path / "bound")
    shutil.copyfile(export / "model.onnx", made.folder / "model.onnx")
    (found,) = failed(verify.static(made.folder))
    assert found.message == (
        "the graph has 0 tensors of the bound adapter, and bound.json says 2; bind the adapter again"
    )


def test_what_it_is_made_of_is_written_down(export: Path, tmp_path: Path) -> None:
    edit_lab(export, base="org/base")
    made = bind(export, None, tmp_path / "bound")
    sums = checksums.of(export, [exports.ADAPTER, "model.onnx"])
    assert binding.facts_of(made.folder) == {
        "adapter": exports.ADAPTER,
        "sha256": sums[exports.ADAPTER],
        "tensors": 2,
        "base": "org/base",
        "base_graph": sums["model.onnx"],
    }
    assert binding.facts_of(export) == {}
    assert str(tmp_path) not in (made.folder / contract.BOUND).read_text()


def test_on_another_disk_weights_are_copied_and_it_says_so(export: Path, other_disk: Path) -> None:
    made = bind(export, None, other_disk / "bound")
    assert made.shared == files.COPIED
    assert "of weights copied: this disk cannot share the base's files" in str(made)
    assert (logits(made.folder) == logits(export, export / exports.ADAPTER)).all()
    assert left(other_disk) == ["bound"]


def test_an_adapter_from_elsewhere_is_bound_and_an_empty_folder_is_filled(
    export: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.onnx_adapter"
    exports.write_adapter(file, {"a": exports.random(16, 2), "b": exports.random(2, 16)})
    (tmp_path / "bound").mkdir()
    made = bind(export, file, tmp_path / "bound")
    assert (logits(made.folder) == logits(export, file)).all()
    assert str(made).startswith(f"{tmp_path / 'bound'}: mine.onnx_adapter bound, 2 tensors of ")


@pytest.mark.parametrize(
    ("given", "recorded"),
    [([{"cuda": {"enable_cuda_graph": "0"}}], "1"), ([{"cuda": {}}], "1"), ([{"dml": {}}], None), ([], None)],
)
def test_steps_on_a_gpu_are_recorded(
    export: Path, tmp_path: Path, given: list[dict[str, Any]], recorded: str | None
) -> None:
    config = export / "genai_config.json"
    told = json.loads(config.read_text())
    told["model"]["decoder"]["session_options"] = {"provider_options": given}
    config.write_text(json.dumps(told))
    bind(export, None, tmp_path / "bound")
    made = json.loads((tmp_path / "bound" / "genai_config.json").read_text())
    options = made["model"]["decoder"]["session_options"]["provider_options"]
    assert [each.get("cuda", {}).get("enable_cuda_graph") for each in options] == [recorded] * len(given)
    assert json.loads(config.read_text()) == told, "the detachable side's are not"


def test_steps_of_a_graph_with_branches_are_not_recorded(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "BRANCHES", ("MatMul",))
    test_steps_on_a_gpu_are_recorded(export, tmp_path, [{"cuda": {"enable_cuda_graph": "0"}}], "0")


def edit_lab(folder: Path, **facts: Any) -> None:
    lab = json.loads((folder / "lab.json").read_text())
    (folder / "lab.json").write_text(json.dumps({**lab, **facts}))


def another_base(export: Path, tmp_path: Path) -> Path:
    other = exports.write(tmp_path / "other")
    edit_lab(export, base="org/one")
    edit_lab(other, base="org/two")
    return other / exports.ADAPTER


def another_shape(export: Path, tmp_path: Path) -> Path:
    exports.write_adapter(export / "x.onnx_adapter", {"a": exports.random(15, 4), "b": exports.random(4, 16)})
    return Path("x")


def no_places(export: Path, tmp_path: Path) -> None:
    config = json.loads((export / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"] |= {"one": "a", "two": "b"}
    (export / "genai_config.json").write_text(json.dumps(config))


def cut_short(export: Path, tmp_path: Path) -> None:
    os.truncate(export / "model.onnx.data", 100)


def no_adapter(export: Path, tmp_path: Path) -> None:
    (export / exports.ADAPTER).unlink()


def bound_already(export: Path, tmp_path: Path) -> None:
    (export / contract.BOUND).write_text("{}")


def own_values(export: Path, tmp_path: Path) -> None:
    """Of somebody whose values would take the place of the adapter's."""
    (export / contract.ADAPTER_DATA).write_bytes(b"\0" * 9999)


def merged(export: Path, tmp_path: Path) -> None:
    (export / contract.MERGED).write_text("{}")


def taken(export: Path, tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "bound" / "mine.txt").write_text("kept")


def no_sums(export: Path, _: Path) -> None:
    (export / "SHA256SUMS").write_bytes(b"\xff\xfe")


def no_graph(export: Path, tmp_path: Path) -> None:
    (export / "model.onnx").write_bytes(b"no graph")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (another_base, "was trained on 'org/two', and export is 'org/one'; bind an adapter of the same base"),
        (another_shape, "a has shape [15, 4] where the graph takes [16, rank]"),
        (no_places, "export: the graph has no places for an adapter; export it once with optimize.adapter"),
        (cut_short, "it was cut short or belongs to another graph"),
        (no_adapter, "export has no adapter; name the file of one with --adapter"),
        (bound_already, "is bound already; bind the adapter to the folder that it was made from"),
        (own_values, "export has a file adapter.onnx.data, as only bound folders have"),
        (merged, "has its adapter merged into the weights; bind one to a detachable export"),
        (taken, "bound: already exists; give another name with --to"),
        (no_graph, "model.onnx is not an ONNX graph, or only part of one; export the model again"),
        (no_sums, "export: SHA256SUMS is not text in UTF-8; export the model again"),
        (lambda *_: Path("none"), "adapter: 'none' is no .onnx_adapter file; in the folder there are"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound_is_refused_and_nothing_is_written(
    export: Path, tmp_path: Path, fault: Callable[[Path, Path], Path | None], words: str
) -> None:
    adapter = fault(export, tmp_path)
    before = {folder: left(folder) for folder in (tmp_path, export)}
    with pytest.raises(InputError) as refused:
        bind(export, adapter, tmp_path / "bound")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before == {folder: left(folder) for folder in (tmp_path, export)}


def test_another_adapter_that_does_not_fit_is_no_hindrance(export: Path, tmp_path: Path) -> None:
    another_shape(export, tmp_path)
    assert bind(export, exports.ADAPTER, tmp_path / "bound").tensors == 2


def test_a_full_disk_leaves_nothing(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path, inside: tuple[Path, ...]) -> str:
        assert (target.parent / contract.ADAPTER_DATA).is_file()  # it is halfway
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(files, "share", full)
    with pytest.raises(LabError, match=r"bound is full; free some space there and bind again\. Nothing was"):
        bind(export, None, tmp_path / "bound")
    assert left(tmp_path) == ["export"]


def test_a_name_that_is_taken_meanwhile_is_refused(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = files.share

    def slow(source: Path, target: Path, inside: tuple[Path, ...]) -> str:
        taken(export, tmp_path)
        return share(source, target, inside)

    monkeypatch.setattr(files, "share", slow)
    with pytest.raises(InputError, match="already exists"):
        bind(export, None, tmp_path / "bound")
    assert left(tmp_path) == ["bound", "export"]
    assert left(tmp_path / "bound") == ["mine.txt"]


@pytest.mark.parametrize("name", ["lab.json", "bound.json"])
def test_small_files_of_somebody_are_not_read_when_they_are_large(tmp_path: Path, name: str) -> None:
    read = binding.facts_of if name == "bound.json" else binding._lab
    (tmp_path / name).write_text('{"base": "x"}')
    assert read(tmp_path) == {"base": "x"}
    (tmp_path / name).write_text(f'{{"base": "x"{" " * (1 << 20)}}}')
    assert read(tmp_path) == {}


IN_A_SMALL_ROOM = """
mount -t tmpfs -o size=24k,mode=700 tmpfs "$1" || exit 9
"$2" -m pipeline bind "$3" --to "$1/bound"
echo "code $?: $(ls -A "$1")"
"""


def test_a_disk_that_gets_full_halfway_is_a_sentence_and_is_left_empty(
    home: Path, export: Path, tmp_path: Path
) -> None:
    """A real one: the adapter's file fits on it, and the base's weights, which cannot be linked, do not."""
    room = tmp_path / "room"
    room.mkdir()
    words = [*mounting(), "sh", "-c", IN_A_SMALL_ROOM, "sh", room, sys.executable, export]
    done = subprocess.run(
        words, cwd=settings.ROOT, env=settings.child_environment(OLIVE_LAB_HOME=str(home)),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "code 1: \n"
    assert done.stderr == (
        f"The disk of {room}/bound is full; free some space there and bind again. Nothing was written.\n"
    )
