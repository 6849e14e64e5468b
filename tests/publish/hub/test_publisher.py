"""A run becomes a version on the hub: by the real client, on a hub of our own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.errors import InputError, LabError
from pipeline.exports import verify
from pipeline.exports.findings import Status
from pipeline.publish.hub import publisher as huggingface
from pipeline.publish.hub.model_card import STARTER
from pipeline.publish.hub.publisher import Options
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.fake_hub import TOKEN, FakeHub, Large

Said = list[tuple[str, float, dict[str, Any]]]
Report = Callable[..., None]


def test_a_version_is_one_commit_with_all_files_private_compared_and_tagged(
    hub: FakeHub, store: Store, tuned: Run, said: Said, report: Report
) -> None:
    options = Options(name="trips", description="Knows the valley.")
    published = huggingface.send(store.home, tuned, options, report)
    repo = hub.repos["ann/trips"]
    assert (published["name"], published["version"], published["verified"]) == ("ann/trips", "1", True)
    assert published["path"] == f"{hub.url}/ann/trips/tree/v1"
    assert repo.private
    assert repo.tags == {"v1": published["revision"]}
    assert hub.count("POST .*/commit/main") == 1
    tree = hub.tree("ann/trips", "v1")
    planned = huggingface.plan(store.home, tuned, options)["files"]
    assert tree.keys() == {f["path"] for f in planned} | {"SHA256SUMS", ".gitattributes"}
    assert tree.keys() >= {
        "model.onnx", "adapter_weights.onnx_adapter", "sub/vocab.txt", "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json", "recipe.yaml", "README.md",
    }  # fmt: skip
    assert not any(name.endswith(".pt") for name in tree)
    assert isinstance(tree["adapter/adapter_model.safetensors"], Large)
    fractions = [fraction for _, fraction, _ in said]
    assert fractions == sorted(fractions)
    told = [facts for _, _, facts in said if "bytes_total" in facts]
    assert (
        told[-1]["bytes_done"] == told[-1]["bytes_total"] == published["bytes"] > published["bytes_sent"] - 1
    )
    assert hub.leaks == []


def test_the_checksums_are_those_of_what_the_hub_has(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    huggingface.send(store.home, tuned, Options(name="walkers/trips"), report)
    told = dict(
        reversed(line.split("  "))
        for line in hub.content("walkers/trips", "SHA256SUMS").decode().splitlines()
    )
    tree = hub.tree("walkers/trips")
    assert told.keys() == tree.keys() - {"SHA256SUMS", ".gitattributes"}
    for name, digest in told.items():
        assert hashlib.sha256(hub.content("walkers/trips", name)).hexdigest() == digest


def test_the_card_has_metadata_as_the_hubs_own_library_reads_it(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    evil = "---\nlicense: evil\n---\n<script>alert(1)</script>"
    run = dataclasses.replace(tuned, name=evil)
    huggingface.send(store.home, run, Options(name="trips", description=evil), report)
    card = ModelCard(hub.content("ann/trips", "README.md").decode())
    facts = card.data.to_dict()
    assert facts == {
        "base_model": STARTER,
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "library_name": "onnxruntime-genai",
        "pipeline_tag": "text-generation",
        "inference": False,
        "tags": ["olive-lab", "olive", "onnx", "onnxruntime-genai", "lora", "peft", "awq"],
    }
    assert "<script>" not in card.text
    assert run.id in card.text


def test_the_adapter_says_nothing_of_this_machine_and_can_stay_here(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    huggingface.send(store.home, tuned, Options(name="trips"), report)
    config = json.loads(hub.content("ann/trips", "adapter/adapter_config.json"))
    assert (config["base_model_name_or_path"], config["r"]) == (STARTER, 8)
    everything = b"".join(hub.content("ann/trips", name) for name in hub.tree("ann/trips"))
    assert b"/home/ann" not in everything
    assert TOKEN.encode() not in everything
    huggingface.send(store.home, tuned, Options(name="bare", adapter=False), report)
    assert not any(name.startswith("adapter/") for name in hub.tree("ann/bare"))
    tags = ModelCard(hub.content("ann/bare", "README.md").decode()).data.tags
    assert "lora" in tags
    assert "peft" not in tags


def test_the_same_content_is_not_sent_again_and_gets_the_next_version(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    first = huggingface.send(store.home, tuned, Options(name="trips"), report)
    before = hub.received
    second = huggingface.send(store.home, tuned, Options(name="trips"), report)
    assert (second["version"], second["revision"], second["bytes_sent"]) == ("2", first["revision"], 0)
    again = huggingface.send(store.home, tuned, Options(name="trips", version="1"), report)
    assert (again["version"], hub.received) == ("1", before)
    assert hub.count("POST .*/commit/main") == 1
    with pytest.raises(LabError, match="already has a version 1 with other content; leave it empty"):
        huggingface.send(store.home, tuned, Options(name="trips", version="1", description="Other."), report)
    assert sorted(hub.repos["ann/trips"].tags) == ["v1", "v2"]


def test_the_next_version_replaces_what_the_last_one_brought_and_nothing_else(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    huggingface.send(store.home, tuned, Options(name="trips"), report)
    hub.put("ann/trips", {"LICENSE": b"mine", "picture.png": b"png"})
    before = hub.received
    huggingface.send(store.home, tuned, Options(name="trips", adapter=False), report)
    assert hub.received - before == len(hub.content("ann/trips", "README.md"))
    old, new = hub.tree("ann/trips", "v1"), hub.tree("ann/trips", "v2")
    assert old.keys() - new.keys() == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert new.keys() - old.keys() == {"LICENSE", "picture.png"}


def test_files_of_others_are_not_overwritten(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    hub.put("ann/trips", {"README.md": b"mine", "model.safetensors": b"weights"})
    with pytest.raises(LabError, match="ann/trips has files that are not of this lab; choose another name"):
        huggingface.send(store.home, finished, Options(name="trips"), report)
    assert hub.content("ann/trips", "README.md") == b"mine"
    assert hub.received == 0


def test_checksums_larger_than_any_are_not_fetched(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    """Another member of an organisation may have put them there, and the disk is everybody's."""
    hub.put("ann/trips", {"recipe.yaml": b"", "SHA256SUMS": Large("a" * 64, 40 << 30)})
    with pytest.raises(LabError, match="ann/trips has files that are not of this lab; choose another name"):
        huggingface.send(store.home, finished, Options(name="trips"), report)
    assert not [request for request in hub.asked if "/resolve/" in str(request)]


@pytest.mark.parametrize("public", [False, True])
def test_nothing_goes_where_others_see_it_unless_that_was_meant(
    hub: FakeHub, store: Store, finished: Run, report: Report, public: bool
) -> None:
    hub.put("ann/trips", {}, private=public)
    with pytest.raises(LabError, match=r"ann/trips is (public|private) on the hub"):
        huggingface.send(store.home, finished, Options(name="trips", public=public), report)
    assert hub.received == 0
    huggingface.send(store.home, finished, Options(name="other", public=public), report)
    assert hub.repos["ann/other"].private is not public


def test_a_gitignore_of_the_repository_leaves_nothing_out(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    hub.gitignored = {"model.onnx", "sub/vocab.txt"}
    huggingface.send(store.home, finished, Options(name="trips"), report)
    assert hub.tree("ann/trips", "v1").keys() >= hub.gitignored


def test_what_the_hub_has_otherwise_becomes_no_version(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    take = hub._commit

    def lose(repo: Any, tree: dict[str, Any]) -> str:
        return take(repo, {**tree, "recipe.yaml": b"other"} if "recipe.yaml" in tree else tree)

    hub._commit = lose  # type: ignore[method-assign]
    with pytest.raises(LabError, match=r"is not what was sent \(recipe.yaml\); it became no version"):
        huggingface.send(store.home, finished, Options(name="trips"), report)
    assert hub.repos["ann/trips"].tags == {}


def test_checked_means_downloaded_compared_and_asked(
    hub: FakeHub, store: Store, tuned: Run, said: Said, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, bytes]] = []

    def look(folder: Path, otherwise: str) -> None:
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        asked.append({name: path.read_bytes() for name, path in found.items() if ".cache" not in name})
        assert {finding.status for finding in verify.static(folder)} == {Status.OK}

    monkeypatch.setattr(huggingface.check_process, "verified", look)
    huggingface.send(store.home, tuned, Options(name="trips", check=True), report)
    tree = hub.tree("ann/trips", "v1")
    assert asked == [{name: hub.content("ann/trips", name) for name in tree if name != ".gitattributes"}]
    assert not (store.home / "checked" / "hub").exists()
    fractions = [fraction for _, fraction, _ in said]
    assert fractions == sorted(fractions)
    assert any(text.startswith("Downloading") for text, _, _ in said)


def test_a_version_that_does_not_answer_is_none(
    hub: FakeHub, store: Store, tuned: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(folder: Path, otherwise: str) -> None:
        raise LabError(f"{otherwise}: answers: nothing")

    monkeypatch.setattr(huggingface.check_process, "verified", silent)
    with pytest.raises(LabError, match="ann/trips was uploaded, but is no version yet: answers: nothing"):
        huggingface.send(store.home, tuned, Options(name="trips", check=True), report)
    assert hub.repos["ann/trips"].tags == {}


def test_somebody_who_is_faster_costs_a_number_and_no_bytes(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    huggingface.send(store.home, finished, Options(name="trips", description="First."), report)

    def overtake() -> None:
        hub.repos["ann/trips"].tags["v2"] = hub.put("ann/trips", {"recipe.yaml": b"theirs"})

    hub.before["POST .*/commit/main"] = overtake
    published = huggingface.send(store.home, finished, Options(name="trips", description="Second."), report)
    assert published["version"] == "3"
    assert hub.tree("ann/trips", "v2")["recipe.yaml"] == b"theirs"
    assert hub.tree("ann/trips", "v3")["recipe.yaml"] != b"theirs"
    sums = {path: held for path, held in hub.tree("ann/trips", "v3").items() if isinstance(held, Large)}
    assert published["bytes_sent"] < sum(held.size for held in sums.values())


def test_somebody_who_takes_the_very_number_asked_for_wins(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    def take() -> None:
        repo = hub.repos["ann/trips"]
        repo.tags["v7"] = hub.put("ann/trips", {})
        repo.head = next(iter(repo.commits))

    hub.before["POST .*/tag/"] = take
    with pytest.raises(LabError, match="already has a version 7 with other content"):
        huggingface.send(store.home, finished, Options(name="trips", version="7"), report)


@pytest.mark.parametrize("what", ["/commit/", "/tag/"])
def test_an_answer_that_is_lost_does_not_make_a_version_twice(
    hub: FakeHub, store: Store, finished: Run, report: Report, what: str
) -> None:
    real = hub.answer
    lost: list[str] = []

    def lose(method: str, path: str, body: bytes) -> tuple[int, Any]:
        answered = real(method, path, body)
        if not lost and what in path:
            lost.append(path)
            return 503, {"error": "after it was done"}
        return answered

    hub.answer = lose  # type: ignore[method-assign]
    published = huggingface.send(store.home, finished, Options(name="trips"), report)
    assert lost
    assert published["version"] == "1"
    assert hub.repos["ann/trips"].tags == {"v1": published["revision"]}
    assert len(hub.repos["ann/trips"].commits) == 2


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a.", "a--b", "a..b", "a/b/c", "/a", "a/", "a-/b", "a.git", "x" * 97, "ö"]
)
def test_names_that_the_hub_does_not_take_are_refused_without_asking(
    store: Store, finished: Run, name: str
) -> None:
    with pytest.raises(InputError, match="is not allowed; allowed: a name or organisation/name"):
        huggingface.plan(store.home, finished, Options(name=name))


@pytest.mark.parametrize("name", ["a", "a.b", "_a", "walkers/ft-for_travel.v2", "x" * 96])
def test_names_that_the_client_takes_are_taken(store: Store, finished: Run, name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    assert huggingface.plan(store.home, finished, Options(name=name))["name"] == name


def test_what_can_carry_code_is_not_published(store: Store, finished: Run) -> None:
    (Path(str(finished.artifact("onnx"))) / "extra.pt").write_bytes(b"\x80\x02")
    with pytest.raises(LabError, match=r"extra\.pt may carry code; only safetensors and ONNX"):
        huggingface.plan(store.home, finished, Options(name="trips"))
