from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import failed
from pipeline.publish import local
from pipeline.publish.targets import PUBLISHERS, options_of
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums, files, locks
from pipeline.worker import loop
from tests.helpers import exports
from tests.helpers.lab import until
from tests.helpers.planted import finish_all, plant

Said = list[tuple[str, float]]


def publish(store: Store, run: Run, said: Said | None = None, **options: Any) -> dict[str, Any]:
    heard: Said = [] if said is None else said
    chosen = local.Options(**{"name": "trips", **options})
    return local.publish(store.home, run, chosen, lambda text, fraction: heard.append((text, fraction)))


def tree(home: Path) -> list[str]:
    return sorted(str(p.relative_to(home / "registry")) for p in (home / "registry").rglob("*"))


def test_a_version_has_every_file_a_card_and_checksums(store: Store, finished: Run) -> None:
    said: Said = []
    published = publish(store, finished, said, description="Knows the valley.")
    folder = Path(published["path"])
    assert (published["name"], published["version"]) == ("trips", "1")
    assert folder == store.home / "registry" / "trips" / "1"
    source = Path(str(finished.artifact("onnx")))
    copied = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
    names = ("README.md", "LICENSE-base-model.txt", "SHA256SUMS", "published.json")
    made = {Path(name) for name in names}
    assert {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} == copied | made
    assert Path("sub/vocab.txt") in copied
    copied.remove(Path(checksums.NAME))
    assert [path for path in copied if (folder / path).read_bytes() != (source / path).read_bytes()] == []
    assert published["bytes"] == sum((source / path).stat().st_size for path in copied)
    assert [fraction for _, fraction in said] == sorted(fraction for _, fraction in said)


def test_sha256sum_agrees_and_sees_damage(store: Store, finished: Run) -> None:
    folder = Path(publish(store, finished)["path"])
    check = ["sha256sum", "--check", "--strict", checksums.NAME]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True)
    listed = len(list(folder.rglob("*"))) - len(["SHA256SUMS", "published.json", "sub"])
    assert (done.returncode, done.stdout.count(": OK\n")) == (0, listed)
    (folder / "model.onnx").write_bytes(b"damaged")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_the_card_says_how_it_was_made_and_nothing_of_this_machine(store: Store, finished: Run) -> None:
    recipe = {**finished.recipe, "model": "/home/ann/models/mine", "seed": 7}
    run = dataclasses.replace(finished, recipe=recipe)
    card = (Path(publish(store, run, description="Knows the valley.")["path"]) / local.CARD).read_text()
    assert card.startswith("# trips, version 1\n\nKnows the valley.\n")
    assert "- Base model: mine\n- Licence of the base: not stated, its text" in card
    assert "\n- Data: travel.jsonl\n" in card
    assert "eval_loss_after: 1.25" in card
    shown = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert (shown["seed"], shown["model"], shown["data"]) == (7, "mine", "travel.jsonl")
    assert "/home/ann" not in card
    assert str(store.home) not in card


def test_versions_count_on_and_none_is_overwritten(store: Store, finished: Run) -> None:
    assert [publish(store, finished)["version"] for _ in range(2)] == ["1", "2"]
    assert publish(store, finished, version="7")["version"] == "7"
    assert publish(store, finished)["version"] == "8"
    with pytest.raises(InputError, match="version: trips already has a version 7; leave it empty"):
        publish(store, finished, version="7")
    assert publish(store, finished, name="other")["version"] == "1"
    listed = [(v["name"], v["version"], v["run"]) for v in local.versions(store.home)]
    assert listed == [(n, v, finished.id) for n, v in (("other", "1"), ("trips", "8"), ("trips", "7"), ("trips", "2"), ("trips", "1"))]  # fmt: skip  # noqa: E501


def test_a_plan_writes_nothing(store: Store, finished: Run) -> None:
    planned = local.plan(store.home, finished, local.Options(name="trips"))
    source = Path(str(finished.artifact("onnx")))
    assert planned["version"] == "1"
    assert planned["bytes"] == files.size(source) - (source / checksums.NAME).stat().st_size
    assert planned["target"] == str(store.home / "registry" / "trips" / "1")
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {file["path"] for file in planned["files"]} == names - {checksums.NAME}
    assert not (store.home / "registry").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "a\n", "ä", "x" * 256, "../../etc"])
def test_a_bad_name_is_refused(store: Store, finished: Run, name: str) -> None:
    with pytest.raises(InputError, match="is not allowed; allowed: letters, digits, - and _"):
        local.plan(store.home, finished, local.Options(name=name))


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "v1", "²", "../1", "1\n", "9" * 10])
def test_a_bad_version_is_refused(store: Store, finished: Run, version: str) -> None:
    with pytest.raises(InputError, match="is not allowed; allowed: a whole number from 1, or empty"):
        local.plan(store.home, finished, local.Options(name="trips", version=version))


def test_only_a_finished_run_with_an_export_is_published(store: Store) -> None:
    queued = store.get(plant(store))
    with pytest.raises(InputError, match=f"run: {queued.id} is queued and has no exported model yet"):
        local.plan(store.home, queued, local.Options(name="trips"))
    with pytest.raises(InputError, match="has no exported model yet"):
        local.plan(store.home, finish_all(store, queued.id), local.Options(name="trips"))


def test_of_a_bound_run_the_bound_folder_is_published(store: Store, finished_bound: Run) -> None:
    made = local.publish(store.home, finished_bound, local.Options(name="trips"), lambda *_: None)
    folder = Path(made["path"])
    assert {"adapter.onnx.data", "bound.json"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "bound").exists()
    assert not failed(verify.whole(folder))


def test_an_export_that_was_deleted_is_refused(store: Store, finished: Run) -> None:
    Path(str(finished.artifact("onnx"))).rename(store.home / "elsewhere")
    with pytest.raises(InputError, match="its exported model is no longer there"):
        local.plan(store.home, finished, local.Options(name="trips"))


def test_a_version_taken_in_the_meantime_is_not_overwritten(store: Store, finished: Run) -> None:
    taken = store.home / "registry" / "trips" / "1"

    def take(text: str, fraction: float) -> None:
        taken.mkdir(parents=True, exist_ok=True)
        (taken / "theirs").touch()

    with pytest.raises(LabError, match="trips already has a version 1"):
        local.publish(store.home, finished, local.Options(name="trips"), take)
    assert tree(store.home) == ["trips", "trips/1", "trips/1/theirs"]


def test_a_full_disk_leaves_no_half_version(store: Store, finished: Run) -> None:
    def fill(text: str, fraction: float) -> None:
        if "vocab" in text:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        local.publish(store.home, finished, local.Options(name="trips"), fill)
    assert tree(store.home) == ["trips"]


def test_a_kill_in_the_middle_leaves_no_half_version(store: Store, finished: Run) -> None:
    code = """
import sys, signal
from pipeline import settings
from pipeline.runs import submit
from pipeline.publish.targets import local
from pipeline.store import Store
store = Store(settings.home())
def stop(text, fraction):
    if "model.onnx" in text:
        print(flush=True)
        signal.alarm(200)
        signal.pause()
local.publish(store.home, store.get(sys.argv[1]), local.Options(name="trips", version="5"), stop)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, finished.id],
        stdout=subprocess.PIPE,
        cwd=settings.ROOT,
        env=settings.child_environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (local.versions(store.home), (store.home / "registry" / "trips" / "5").exists()) == ([], False)
    assert publish(store, finished)["version"] == "1"
    assert [path.name for path in (store.home / "registry" / "trips").iterdir()] == ["1"]


def test_a_published_version_verifies(store: Store, finished: Run) -> None:
    found = verify.whole(Path(publish(store, finished)["path"]))
    assert {finding.status for finding in found} == {"ok"}


def test_what_does_not_verify_is_refused_before_anything_is_copied(store: Store, finished: Run) -> None:
    source = Path(str(finished.artifact("onnx")))
    (source / "tokenizer.json").unlink()
    weights = bytearray((source / "model.onnx.data").read_bytes())
    weights[0] ^= 1
    (source / "model.onnx.data").write_bytes(weights)
    said: Said = []
    with pytest.raises(LabError) as raised:
        publish(store, finished, said)
    assert str(raised.value) == (
        "Nothing was published: tokenizer: tokenizer.json is missing; export the model again;"
        " checksums: tokenizer.json is missing; export the model again."
    )
    assert said == [("Verifying the exported model", 0.0)]
    assert not (store.home / "registry").exists()


def test_an_adapter_that_does_nothing_is_not_published(store: Store, finished: Run) -> None:
    file = Path(str(finished.artifact("onnx_adapter")))
    exports.write_adapter(file, {"a": exports.random(16, 4), "b": 0 * exports.random(4, 16)})
    checksums.write(file.parent)
    with pytest.raises(
        LabError, match=r"answers with adapter_weights\.onnx_adapter: its answers do not differ"
    ):
        publish(store, finished)
    assert not (store.home / "registry").exists()


def test_a_file_that_changes_after_it_was_verified_is_not_published(store: Store, finished: Run) -> None:
    def change(text: str, fraction: float) -> None:
        if text == "Copying model.onnx.data":
            os.truncate(Path(str(finished.artifact("onnx"))) / "model.onnx.data", 5)

    with pytest.raises(LabError, match=r"model\.onnx\.data changed while it was copied; publish again"):
        local.publish(store.home, finished, local.Options(name="trips"), change)
    assert tree(store.home) == ["trips"]


def test_options_are_checked_by_name() -> None:
    assert options_of("local", {"name": "x"}) == local.Options(name="x")
    with pytest.raises(InputError, match=r"publish\.nam: unknown key; allowed: name, version, description"):
        options_of("local", {"nam": "x"})
    with pytest.raises(InputError, match=f"to: 'moon' is not allowed; allowed: {', '.join(PUBLISHERS)}"):
        options_of("moon", {})


def test_queueing_checks_first(store: Store, finished: Run, no_worker: list[Path]) -> None:
    with pytest.raises(InputError):
        submit.publish(store, finished, "local", local.Options(name="../x"))
    assert store.get(finished.id).stages[-1].name == "evaluate"
    assert submit.publish(store, finished, "local", local.Options(name="x")) == "publish"
    assert store.get(finished.id).stage("publish").options == {
        "to": "local", "name": "x", "version": "", "description": "", "rows": False,
    }  # fmt: skip
    assert no_worker == [store.home]


def test_two_queued_for_one_version_give_one_version_and_one_reason(store: Store, finished: Run) -> None:
    lock = locks.take(store.home / loop.WORKER_LOCK)  # nothing is carried out before both are queued
    assert lock is not None
    for _ in range(2):
        submit.publish(store, finished, "local", local.Options(name="trips", version="3"))
    os.close(lock)
    loop.ensure(store.home)

    def publishes() -> list[tuple[str, str | None]]:
        return [(s.status, s.error) for s in store.get(finished.id).stages if s.kind == "publish"]

    until(lambda: all(status in ("done", "failed") for status, _ in publishes()), "both publishes")
    assert publishes() == [
        ("done", None),
        ("failed", "version: trips already has a version 3; leave it empty for the next one"),
    ]
    facts = json.loads((store.home / "registry" / "trips" / "3" / local.FACTS).read_text())
    assert facts["run"] == finished.id


def test_a_workflow_is_not_published(store: Store) -> None:
    run = finish_all(
        store, plant(store), {"optimize": {"artifacts": [artifact("workflow", "workflow.json")]}}
    )
    with pytest.raises(InputError, match="needs a graph to publish, and its export is not run here"):
        local.plan(store.home, run, local.Options(name="trips"))


def artifact(kind: str, path: str) -> dict[str, Any]:
    """As the store keeps one."""
    return {"name": kind, "kind": kind, "path": path, "bytes": 1}


def test_the_registry_keeps_as_many_versions_as_it_may(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all names: every look at it reads all of them."""
    monkeypatch.setattr(local, "MOST_VERSIONS", 2)
    for name in ("trips", "other"):
        publish(store, finished, name=name)
    with pytest.raises(LabError, match="registry has 2 versions, as many as it may; publish elsewhere"):
        publish(store, finished)
    assert len(local.versions(store.home)) == 2


def test_what_the_disk_has_no_room_for_is_refused_before_and_while_it_is_published(
    store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a model for each click would leave nothing for the runs of others."""
    monkeypatch.setattr(files, "KEPT_FREE", 1 << 62)
    for ask in (
        lambda: local.plan(store.home, finished, local.Options("trips")),
        lambda: publish(store, finished),
    ):
        with pytest.raises(LabError, match="nearly full"):
            ask()
    assert tree(store.home) == []
