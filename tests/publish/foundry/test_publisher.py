"""What Foundry Local gets, and that nothing is left there if it cannot have it."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError, LabError
from pipeline.publish import inference_model
from pipeline.publish.foundry import preflight, publisher, version_folder
from pipeline.publish.foundry.lab_side import Answer
from pipeline.publish.foundry.publisher import Options
from pipeline.publish.foundry.runtime import Answered
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums, files
from tests.helpers import exports
from tests.publish.foundry.conftest import Planted

Said = list[tuple[str, float]]


def publish(store: Store, run: Run, said: Said | None = None, **options: Any) -> dict[str, Any]:
    heard: Said = [] if said is None else said
    chosen = Options(**{"name": "trips", **options})
    return publisher.publish(store.home, run, chosen, lambda text, part: heard.append((text, part)))


def left(store: Store) -> list[str]:
    """Everything below the folder of models."""
    folder = store.home / "foundry-local"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def changed(export: Path, folder: Path, file: str, *keys: str, to: Any) -> Path:
    """A copy of an export with another value in one of its files of JSON."""
    shutil.copytree(export, folder)
    content = inner = json.loads((folder / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / file).write_text(json.dumps(content))
    checksums.write(folder)
    return folder


@pytest.mark.chain
def test_the_real_runtime_answers_before_it_counts(store: Store, planted: Planted, real: Path) -> None:
    said: Said = []
    made = publish(store, planted(None, "Where is the sea?"), said, description="Knows the valley.")
    folder = Path(made["path"])
    assert folder == store.home / "foundry-local" / "models" / "olive-lab" / "trips-generic-cpu-1"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "LICENSE-base-model.txt", "README.md", "SHA256SUMS", "chat_template.jinja", "genai_config.json",
        "inference_model.json", "model.onnx", "model.onnx.data", "recipe.yaml", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert checksums.intact(folder)
    kept = [path for path in folder.parent.parent.rglob("*") if path.is_file()]
    assert [path.name for path in kept if b"the sea?" in path.read_bytes()] == []  # a row that was asked
    assert (made["id"], made["answers"], made["same_answers"]) == ("trips-generic-cpu:1", 3, 3)
    assert made["runtime"]["foundry-local-sdk"] == "2.2.1"
    assert [part for _, part in said] == sorted(part for _, part in said)
    catalogue = json.loads((folder.parent.parent / "foundry.local.modelinfo.json").read_text())
    entered = {model["model_info"]["id"]: model["model_path"] for model in catalogue["models"]}
    assert entered == {"trips-generic-cpu:1": str(folder)}
    assert "Knows the valley." in (folder / "README.md").read_text()
    assert publish(store, planted())["version"] == "2"
    assert not publisher._mark(store.home).exists()


@pytest.mark.chain
def test_the_program_of_the_card_gets_an_answer(
    store: Store, planted: Planted, real: Path, tmp_path: Path
) -> None:
    folder = Path(publish(store, planted())["path"])
    program = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[0]
    for _ in range(2):  # the second time it is registered already
        done = subprocess.run(
            [real, "-I", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60,
            env={"HOME": str(tmp_path), "BUILDKITE": "olive-lab"},
        )  # fmt: skip
        assert (done.returncode, len(done.stdout.strip()) > 20) == (0, True), done.stdout + done.stderr


@pytest.mark.chain
def test_a_text_template_becomes_the_folder_s_chat_template(
    store: Store, planted: Planted, real: Path, merged_export: Path, tmp_path: Path
) -> None:
    text = "### Q: {question} #\\n### A: {answer}\\n\\n"
    export = changed(merged_export, tmp_path / "text", "lab.json", "template", to=text)
    lab = json.loads((export / "lab.json").read_text())
    (export / "lab.json").write_text(json.dumps({**lab, "fields": ["question"], "stop": "\n\n"}))
    checksums.write(export)
    made = publish(store, planted(export))
    assert (made["template"], made["unusual_prompts"], made["same_answers"]) == ("written", 0, 3)
    assert (
        "'### Q: ' + m['content'] + ' #\\n### A:'" in (Path(made["path"]) / "chat_template.jinja").read_text()
    )
    about = json.loads((Path(made["path"]) / inference_model.NAME).read_text())
    assert about["Name"] == "trips-generic-cpu:1"


def test_the_older_service_gets_the_prompt_s_words(merged_export: Path, tmp_path: Path) -> None:
    pieces = ["<|user|>\n", {"prompt": ""}, "<|end|>\n "]
    export = changed(merged_export, tmp_path / "pieces", "lab.json", "prompt", to=pieces)
    assert inference_model.about(export, "trips-generic-cpu:1") == {
        "Name": "trips-generic-cpu:1",
        "PromptTemplate": {"assistant": "{Content}", "prompt": "<|user|>\n{Content}<|end|>\n"},
    }


PROVIDERS = ("model", "decoder", "session_options", "provider_options")


@pytest.mark.parametrize(
    ("file", "keys", "to", "why"),
    [
        ("genai_config.json", PROVIDERS, [{"cuda": {}}], r"exported for a GPU.*export with device cpu"),
        ("genai_config.json", ("more",), [[]] * 300_000, "its export is not whole; run its recipe again"),
        ("lab.json", ("more",), [[]] * 300_000, "its export is not whole; run its recipe again"),
        ("lab.json", ("template",), "{a}\\n{b}\\n{c}", r"several fields \(a, b\).*message .* is one text"),
    ],
)
def test_what_it_cannot_run_is_refused_at_once(
    store: Store,
    planted: Planted,
    merged_export: Path,
    tmp_path: Path,
    file: str,
    keys: Any,
    to: Any,
    why: str,
) -> None:
    run = planted(changed(merged_export, tmp_path / "other", file, *keys, to=to))
    with pytest.raises(InputError, match=why):
        publisher.plan(store.home, run, Options(name="trips"))


@pytest.mark.chain
def test_a_detachable_adapter_is_bound_on_the_way(store: Store, finished: Run, real: Path) -> None:
    planned = publisher.plan(store.home, finished, Options(name="trips"))
    made = publish(store, finished)
    there = {path.name for path in Path(made["path"]).iterdir()}
    assert {file["path"] for file in planned["files"]} - {"sub/vocab.txt"} <= there
    assert {"adapter.onnx.data", "bound.json"} <= there
    assert not any(name.endswith(".onnx_adapter") for name in there)
    assert (made["answers"], made["same_answers"]) == (3, 3)
    assert not (store.home / "foundry-local" / publisher.BOUND).exists()


def test_a_cache_must_be_there_and_is_kept_as_a_whole_path(
    store: Store, planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planted()
    with pytest.raises(InputError, match=r"cache: .*/nothing: no such folder"):
        publisher.plan(store.home, run, Options(name="trips", cache=str(tmp_path / "nothing")))
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path)
    settled = publisher.settled(store.home, Options(name="trips", cache="cache"))
    assert settled.cache == str(tmp_path / "cache")
    planned = publisher.plan(store.home, run, settled)
    assert planned["target"] == str(tmp_path / "cache" / "olive-lab" / "trips-generic-cpu-1")
    Path(planned["target"]).mkdir(parents=True)
    assert publisher.plan(store.home, run, settled)["version"] == "2"
    with pytest.raises(InputError, match="already has a version 1"):
        publisher.plan(store.home, run, Options(name="trips", version="1", cache=settled.cache))


def test_a_runtime_that_fails_leaves_nothing(
    store: Store, planted: Planted, stand_in: Callable[[str], Path]
) -> None:
    stand_in("import signal; signal.pause()")
    with pytest.raises(
        LabError, match="did not answer within 1 seconds; publish again with a larger patience"
    ):
        publish(store, planted(), patience=1)
    assert left(store) == []


def test_one_that_is_killed_while_it_is_registered_is_removed(store: Store) -> None:
    """Its folder is whole, and no list has it, so nobody could."""
    folder = store.home / publisher.environment.FOLDER
    for name in ("models/olive-lab/m-generic-cpu-1", "models/olive-lab/.m-generic-cpu-2.part", "bound.part"):
        (folder / name).mkdir(parents=True)
    (kept := folder / "models" / "olive-lab" / "k-generic-cpu-1").mkdir()
    publisher._mark(store.home).write_text(str(folder / "models/olive-lab/m-generic-cpu-1"))
    publisher.sweep(store.home)
    assert list((folder / "models" / "olive-lab").iterdir()) == [kept]
    assert [path.name for path in folder.iterdir()] == ["models"]
    publisher.sweep(store.home)
    assert kept.is_dir()


def test_a_catalogue_that_fails_leaves_nothing(
    store: Store, planted: Planted, stand_in: Callable[[str], Path], tmp_path: Path
) -> None:
    python = stand_in("open(work + '/result.json', 'w').write('{\"models\": []}')")
    run, options = planted(), Options(name="trips")
    planned = publisher.plan(store.home, run, options)
    Path(planned["target"]).mkdir(parents=True)
    version = publisher._Version(store.home, run, options, planned, python, lambda *told: None)
    with pytest.raises(LabError, match=r"catalogue in .* did not take trips-generic-cpu:1; publish again"):
        version._register(Path(planned["target"]), "trips-generic-cpu:1")
    assert not Path(planned["target"]).exists()


def ours(text: str, sure: str) -> Answer:
    return Answer([{"role": "user", "content": "Hello!"}], 24, 25, text, sure, "<|end|>")


def test_answers_count_up_to_the_stop_and_where_ours_are_sure() -> None:
    said = [Answered("Go there.<|end|> and on", 25), Answered("Go here, now.", 25)]
    assert publisher.compare([ours("Go there. ", ""), ours("Go here again", "Go here")], said) == 1


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        (
            ours("Go.", "Go."),
            Answered("Go.", 7),
            "of 'Hello!' Foundry Local read 7 tokens, and training reads 25",
        ),
        (
            ours("Go.", "Go."),
            Answered("Stay", 25),
            "to 'Hello!' Foundry Local says 'Stay' where the lab says 'Go.'",
        ),
        (ours("Go.", ""), Answered("Stay", 25), "Foundry Local says 'Stay'"),
    ],
)
def test_another_answer_does_not_count(mine: Answer, theirs: Answered, why: str) -> None:
    with pytest.raises(LabError, match=why):
        publisher.compare([mine], [theirs])


def test_a_model_without_room_is_refused() -> None:
    with pytest.raises(LabError, match="no room for a prompt and an answer"):
        publisher.compare([], [])


def test_a_dry_run_compares_prompts_and_loads_nothing(
    store: Store, planted: Planted, stand_in: Callable[[str], Path]
) -> None:
    stand_in("raise SystemExit('not asked')")
    told = preflight.preflight(store.home, planted(), Options(name="trips"))
    said = {finding.check: (finding.status, finding.message) for finding in told}
    assert said["prompts"] == ("ok", "71 prompts were compared with training by their tokens")
    assert said["runtime"][0] == "ok"
    assert left(store) == []


def test_versions_are_those_of_runs_that_are_still_there(store: Store, finished: Run, tmp_path: Path) -> None:
    for number, folder in enumerate((tmp_path, tmp_path / "gone"), 1):
        stage = store.add_publish(finished.id, {"to": "foundry-local", "name": "trips"})
        store.claim_publish()
        facts = {"name": "trips", "version": str(number), "path": str(folder), "id": f"trips:{number}"}
        store.finish(finished.id, stage, "done", seconds=1.0, metrics=facts)
    assert [version["id"] for version in publisher.versions(store.home)] == ["trips:1"]


def test_only_small_files_are_copied(store: Store, tmp_path: Path) -> None:
    source, part = exports.write(tmp_path / "source", merged=True), tmp_path / "part"
    (source / "model.onnx.data").write_bytes(bytes(version_folder.LARGE))
    part.mkdir()
    version_folder.fill(part, source, None, {})
    assert (part / "model.onnx.data").stat().st_ino == (source / "model.onnx.data").stat().st_ino
    assert (part / "genai_config.json").stat().st_ino != (source / "genai_config.json").stat().st_ino


def test_on_another_disk_they_are_copied(tmp_path: Path) -> None:
    source = exports.write(tmp_path / "source", merged=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        if Path(folder).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is no other disk here")
        (source / "model.onnx.data").write_bytes(bytes(version_folder.LARGE))
        version_folder.fill(Path(folder), source, None, {})
        copy = Path(folder) / "model.onnx.data"
        assert (copy.stat().st_nlink, copy.stat().st_size) == (1, version_folder.LARGE)
        assert checksums.intact(Path(folder))


def test_a_disk_that_gets_full_halfway_leaves_nothing(
    store: Store, planted: Planted, stand_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = files.link_or_copy

    def full(source: Path, target: Path) -> None:
        if any(target.parent.iterdir()):  # it is halfway
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copy(source, target)

    monkeypatch.setattr(version_folder, "LARGE", 0)
    monkeypatch.setattr(files, "link_or_copy", full)
    stand_in("raise SystemExit('not asked')")
    with pytest.raises(LabError, match=r"models/olive-lab is full; free some space there and publish"):
        publish(store, planted())
    assert left(store) == []
