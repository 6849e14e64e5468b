"""Pulls that outlive who began them. A login program that never answers keeps one going."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import InputError, LabError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.models import base_models
from pipeline.inputs.models.base_models import Model
from pipeline.runs import cached_models, disk, pulls
from pipeline.store import Store
from pipeline.store.run import CANCELED, DONE, FAILED, INTERRUPTED, RUNNING
from tests.helpers.fake_hub import FakeHub, Fault, served
from tests.helpers.lab import until

WHERE = Place("cli", "11111111-2222-3333-4444-555555555555", "g", "space")


def version(number: str) -> dict[str, Any]:
    where = f"subscriptions/{WHERE.subscription}/resourceGroups/g/workspaces/{WHERE.workspace}"
    uri = f"azureml://{where}/models/trips/versions/{number}"
    return {"id": uri, "name": "trips", "version": number, "tags": {"run": "r1"}}


@pytest.fixture
def az(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login that says when it is asked, and never answers."""
    azure_workspace.remember(home, WHERE)
    program = tmp_path / "bin" / "az"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {home}/asked\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def start(home: Path, number: str = "1") -> str:
    key = pulls.start(home, version(number), "cli")
    until((home / "asked").exists, "the login to be asked")
    return key


def processes(key: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if key in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def known(home: Path, key: str) -> dict[str, Any]:
    facts = pulls.facts(home, key)
    assert facts is not None
    return facts


def test_a_pull_is_stopped_and_what_was_written_last_stays(home: Path, az: Path) -> None:
    key = start(home)
    (process,) = processes(key)
    assert known(home, key)["status"] == RUNNING
    assert pulls.start(home, version("1"), "cli") == key  # by somebody else meanwhile
    assert processes(key) == [process]
    assert os.getsid(process.pid) == process.pid  # so that no end of the page's process ends it
    with pytest.raises(LabError, match="It is being pulled; stop that first"):
        pulls.remove(home, key)
    pulls.stop(home, key)
    until(lambda: not processes(key), "the end")
    assert (known(home, key)["status"], known(home, key)["error"]) == (CANCELED, f"Stopped. {pulls.AGAIN}")
    with pytest.raises(InputError, match="is not being pulled"):
        pulls.stop(home, key)


def test_one_whose_process_was_killed_is_interrupted_and_begins_again(home: Path, az: Path) -> None:
    key = start(home)
    for process in processes(key):
        process.send_signal(signal.SIGKILL)
    until(lambda: known(home, key)["status"] == INTERRUPTED, "the end to be seen")
    assert pulls.AGAIN in known(home, key)["error"]
    (home / "asked").unlink()
    assert start(home) == key
    assert known(home, key)["status"] == RUNNING
    pulls.stop(home, key)
    until(lambda: not processes(key), "the end")


def test_two_at_a_time(home: Path, az: Path) -> None:
    keys = [start(home, number) for number in "12"]
    with pytest.raises(LabError, match="2 models are being pulled already"):
        pulls.start(home, version("3"), "cli")
    assert [facts["version"] for facts in pulls.listed(home)] == ["2", "1"]
    for key in keys:
        pulls.stop(home, key)
    until(lambda: not any(processes(key) for key in keys), "the end")


def test_as_many_are_known_as_may(home: Path, az: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page reads the facts of all, and shows what is here of each."""
    monkeypatch.setattr(pulls, "MOST_KNOWN", 1)
    key = start(home)
    (part := home / "pulled" / f".{key}.part").mkdir()
    pulls.stop(home, key)
    until(lambda: known(home, key)["status"] == CANCELED, "it to end")
    with pytest.raises(LabError, match="1 models were pulled already, as many as may be kept; remove one"):
        pulls.start(home, version("2"), "cli")
    assert start(home) == key, "it may be resumed"
    pulls.stop(home, key)
    until(lambda: known(home, key)["status"] == CANCELED, "it to end again")  # none may be seen yet
    pulls.remove(home, key)
    assert not part.exists()
    pulls.stop(home, start(home, "2"))


@pytest.mark.parametrize("base", [False, True])
def test_those_of_which_nothing_is_here_make_room(
    home: Path, az: Path, monkeypatch: pytest.MonkeyPatch, base: bool
) -> None:
    """Else those that failed at once, or base models, which are removed elsewhere, close it to others."""
    monkeypatch.setattr(pulls, "MOST_KNOWN", 2)
    facts = {"tags": {}, "login": "cli", "message": "", "error": "no", "progress": 0.0, "status": FAILED}
    for number in "12":
        more = {"base": f"org--tiny-{number}", "kind": "hub"} if base else {}
        pulls._write(home, {**facts, **version(number), "uri": number, "key": f"trips-{number}",
                            "begun": float(number), **more})  # fmt: skip
    key = start(home, "3")
    assert [facts["version"] for facts in pulls.listed(home)] == ["3", "2"]
    pulls.stop(home, key)
    until(lambda: known(home, key)["status"] == CANCELED, "it to end")


def test_a_login_that_is_none_is_said_and_what_there_is_can_be_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = store.home
    azure_workspace.remember(home, WHERE)
    monkeypatch.setenv("PATH", str(home))
    key = pulls.start(home, version("1"), "cli")
    until(lambda: known(home, key)["status"] == FAILED, "the end")
    assert "Azure CLI is not installed" in known(home, key)["error"]
    part = home / "pulled" / f".{key}.part"
    part.mkdir()
    (part / "weights").write_bytes(bytes(1000))
    assert disk.total(home)["pulled models"] > 1000
    until(lambda: not processes(key), "the end of the process")
    pulls.remove(home, key)
    assert not part.exists()
    assert pulls.listed(home) == []
    with pytest.raises(InputError, match="is not here"):
        pulls.remove(home, key)


def test_another_workspace_s_of_that_name_is_another_one(home: Path) -> None:
    keys = {pulls.key_of(home, "trips", "1", uri) for uri in ("azureml://a", "azureml://b")}
    assert len(keys) == 2
    assert all(re.fullmatch("trips-1-[0-9a-f]{32}", key) for key in keys), "too long to find two alike"
    assert "/" not in pulls.key_of(home, "../../trips", "1", "azureml://a")


def test_what_a_former_release_has_pulled_keeps_its_key(home: Path) -> None:
    former = f"trips-1-{hashlib.sha256(b'azureml://a').hexdigest()[:8]}"
    pulls._write(home, {"key": former, "uri": "azureml://a"})
    assert pulls.key_of(home, "trips", "1", "azureml://a") == former
    pulls._write(home, {"key": former, "uri": "azureml://another with the same few letters"})
    assert pulls.key_of(home, "trips", "1", "azureml://a") != former


def test_one_that_was_ended_at_the_last_moment_is_here(home: Path, az: Path) -> None:
    key = start(home)
    pulls.stop(home, key)
    until(lambda: not processes(key), "the end")
    pulls.folder(home, key).mkdir()  # which it gets last
    assert (known(home, key)["status"], known(home, key)["error"]) == (DONE, None)
    pulls.remove(home, key)
    assert pulls.listed(home) == []


def test_one_that_was_deleted_by_hand_can_be_pulled_again(home: Path, az: Path) -> None:
    key = start(home)
    pulls.stop(home, key)
    until(lambda: not processes(key), "the end")
    pulls._write(home, {**known(home, key), "status": DONE})
    assert pulls.facts(home, key) is None
    pulls.folder(home, key).mkdir()
    assert pulls.start(home, version("1"), "cli") == key
    assert processes(key) == []  # it is here


class TestBaseModels:
    """Fetched by a process of their own, from a hub of our own."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
        with served(tmp_path, monkeypatch) as made:
            yield made

    @pytest.fixture
    def model(self, hub: FakeHub) -> Model:
        files: dict[str, Any] = {"config.json": b"{}", "model.safetensors": b"x" * 5000}
        return Model("org/tiny", "hub", hub.put("org/tiny", files), {}, None)

    def ended(self, home: Path, key: str) -> dict[str, Any]:
        until(lambda: known(home, key)["status"] != RUNNING, "the end of the download")
        return known(home, key)

    def test_it_arrives_where_runs_look_for_it(self, hub: FakeHub, model: Model, home: Path) -> None:
        told = self.ended(home, pulls.start_base(home, model))
        assert (told["status"], told["progress"], told["bytes_done"]) == (DONE, 1.0, 5002)
        assert sorted(path.name for path in model.folder(home).iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
        assert base_models.materialize(model, home, pytest.fail) == model.folder(home)

    def test_stopped_and_begun_again_it_resumes(self, hub: FakeHub, model: Model, home: Path) -> None:
        hub.faults.append(Fault("GET .*/model.safetensors", -1))
        key = pulls.start_base(home, model)
        until(lambda: hub.count("GET .*/model.safetensors"), "the weights to be asked for")
        pulls.stop(home, key)
        told = self.ended(home, key)
        assert (told["status"], told["error"]) == (CANCELED, f"Stopped. {pulls.AGAIN_BASE}")
        hub.faults.clear()
        assert pulls.start_base(home, model) == key
        assert self.ended(home, key)["status"] == DONE
        assert hub.count("GET .*/config.json") == 1

    def test_what_stands_against_it_is_told(self, hub: FakeHub, model: Model, home: Path) -> None:
        hub.faults.append(Fault("/resolve/", 403, headers={"X-Error-Code": "GatedRepo"}))
        told = self.ended(home, pulls.start_base(home, model))
        assert told["status"] == FAILED
        assert "accept its license at https://huggingface.co/org/tiny first" in told["error"]

    def test_once_removed_it_is_not_known_any_more(self, hub: FakeHub, model: Model, home: Path) -> None:
        key = pulls.start_base(home, model)
        self.ended(home, key)
        cached_models.remove(Store(home), model.folder(home).name)
        assert pulls.facts(home, key) is None
        assert pulls.listed(home) == []

    def test_one_of_azures_ends_with_all_that_fetches_it(self, home: Path, az: Path) -> None:
        uri = version("1")["id"]
        key = pulls.start_base(home, Model(uri, "azureml", "1", {}, None))
        until((home / "asked").exists, "the login to be asked")
        (fetching,) = processes(uri)
        (login,) = fetching.children()
        pulls.stop(home, key)
        until(lambda: not processes(key) and not processes(uri), "the end of both")
        assert known(home, key)["status"] == CANCELED
        assert login.is_running()  # it was not waited for until whoever had asked gave up
        login.kill()


@pytest.mark.parametrize("text", ["[]", "3", '{"key": "another"}', '{"begun": 1}', "{"])
def test_a_file_that_is_no_pull_hides_none(home: Path, text: str) -> None:
    (home / "pulled").mkdir()
    (home / "pulled" / ".stray.json").write_text(text)
    assert pulls.listed(home) == []
    assert pulls.facts(home, "stray") is None
