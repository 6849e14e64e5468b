"""What goes wrong on the way to the hub is one sentence, costs no more than it must, and hangs nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.azure import Watch
from pipeline.errors import LabError
from pipeline.publish.hub import ask, client, faults
from pipeline.publish.hub import publisher as huggingface
from pipeline.publish.hub.publisher import Options
from pipeline.publish.hub.repository import Counted
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import ENDED, Run
from pipeline.system import checksums
from tests.helpers.fake_hub import LARGE, PART, SIGNATURE, TOKEN, FakeHub, Fault
from tests.helpers.lab import contents, processes, until

Report = Callable[..., None]
MIB = 1 << 20
# Only where nothing gets through: who is slow for so long is given up. A fourth wait, of 2 s, is too long.
PATIENCE = 3.5
PASSING = (-1, 0, 429, 500, 503)


def publishes(store: Store, run: Run, report: Report, **given: Any) -> dict[str, Any]:
    return huggingface.send(store.home, run, Options(name="trips", **given), report)


@pytest.mark.parametrize(
    ("match", "status", "message", "told"),
    [
        ("whoami", 401, "Invalid credentials", "The hub does not take the token; log in with `hf auth login"),
        (
            "create",
            403,
            "no rights here",
            r"The login may not write to trips \(no rights here\); take a token",
        ),
        (
            "create",
            404,
            "no namespace",
            "trips is not on the hub, or its owner is not, or the login cannot see",
        ),
        ("create", 400, "Invalid name", r"The hub does not take this \(Invalid name\); correct it"),
        ("commit", 403, "Private repository storage limit reached", "The hub has no room for it"),
        ("batch", 402, "Payment required", r"The hub has no room for it \(Payment required\); free some"),
        ("storage", 403, "Request has expired", r"The login may not write to trips \(Request has expired\)"),
        ("refs", 429, "Too many", r"The hub has too many requests from this login \(429\); try again"),
        ("refs", 503, "Down", r"The hub has problems of its own \(503\); try again in some minutes"),
        ("commit", 500, "Down", r"The hub has problems of its own \(500\)"),
        ("tag", 500, "Down", r"The hub has problems of its own \(500\)"),
        (
            "preupload",
            503,
            "Down",
            r"The hub has problems of its own \(503\); try again in some minutes",
        ),
        ("storage", 0, "", "Nothing got through to or from the hub for 3.5 seconds"),
        ("commit", 0, "", "The hub cannot be reached .*; check the network and the proxy"),
        ("refs", 0, "", "The hub cannot be reached .*; check the network and the proxy"),
        ("batch", -1, "", "Nothing got through to or from the hub for 3.5 seconds|The hub cannot be reached"),
        ("tree", 418, "teapot", "an unexpected response: HfHubHTTPError: teapot"),
    ],
)
def test_each_fault_is_a_sentence_and_no_version(
    hub: FakeHub, store: Store, finished: Run, report: Report, capfd: pytest.CaptureFixture[str],
    match: str, status: int, message: str, told: str,
) -> None:  # fmt: skip
    hub.faults.append(Fault(match, status, f"{message} {TOKEN}".strip() if message else ""))
    with pytest.raises(
        LabError, match=told.replace(message, f"{message} .removed.") if message else told
    ) as raised:
        publishes(store, finished, report, **({"patience": PATIENCE} if status in PASSING else {}))
    assert not any(repo.tags for repo in hub.repos.values())
    said = str(raised.value) + "".join(capfd.readouterr())
    assert TOKEN not in said
    assert SIGNATURE not in said
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("match", "status"), [("whoami", 503), ("refs", 429), ("storage", 403), ("storage", 0)]
)
def test_what_passes_is_tried_again(
    hub: FakeHub, store: Store, finished: Run, report: Report, match: str, status: int
) -> None:
    hub.faults.append(Fault(match, status, times=1, headers={"Retry-After": "0"}))
    published = huggingface.send(store.home, finished, Options(name="trips"), report)
    assert published["version"] == "1"
    assert hub.faults[0].times == 0


def test_nobody_logged_in_is_told_what_to_do(
    hub: FakeHub, store: Store, finished: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LabError, match="run `hf auth login` in a terminal, or set HF_TOKEN"):
        publishes(store, finished, report)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongTokenOfSomebody")
    with pytest.raises(LabError, match="The hub does not take the token") as raised:
        publishes(store, finished, report)
    assert "hf_wrong" not in str(raised.value)
    assert hub.asked == ["GET /api/whoami-v2"]


def test_a_lab_that_may_not_call_out_says_so(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LabError, match="HF_HUB_OFFLINE is set, so the hub is not asked; unset it"):
        ask.whoami(store.home)
    assert hub.asked == []


def test_a_hub_that_is_not_there_is_a_sentence(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    hub.close()
    with pytest.raises(LabError, match=r"The hub cannot be reached .*; check the network"):
        publishes(store, finished, report, patience=PATIENCE)


def test_a_broken_upload_goes_on_with_the_files_that_are_not_there(
    hub: FakeHub, store: Store, tuned: Run, report: Report
) -> None:
    hub.faults.append(Fault("PUT /storage/", 500, skip=2))
    with pytest.raises(LabError, match=r"Nothing got through|problems of its own"):
        publishes(store, tuned, report, patience=PATIENCE)
    assert hub.repos["ann/trips"].tags == {}
    there = {path.name for path in hub.folder.iterdir()}
    assert len(there) == 2
    hub.faults.clear()
    hub.asked.clear()
    published = publishes(store, tuned, report)
    sent = {line.rpartition("/")[2] for line in hub.asked if line.startswith("PUT")}
    assert sent
    assert sent & there == set()
    assert (published["version"], hub.received) == ("1", sum(p.stat().st_size for p in hub.folder.iterdir()))


def test_a_large_file_goes_in_parts_and_a_part_that_breaks_off_is_sent_again(
    hub: FakeHub, store: Store, finished: Run, report: Report, said: list[Any]
) -> None:
    folder = Path(str(finished.artifact("onnx")))
    (folder / "more.data").write_bytes(os.urandom(3 * PART + 5))
    checksums.write(folder)
    hub.parts = True
    part = f"PUT /storage/{checksums.read(folder)['more.data']}"
    hub.faults.append(Fault(part, 0, times=1, skip=1, after=70_000))
    published = huggingface.send(store.home, finished, Options(name="trips"), report)
    assert published["version"] == "1"
    assert hub.content("ann/trips", "more.data") == (folder / "more.data").read_bytes()
    done = [facts["bytes_done"] for _, _, facts in said if "bytes_done" in facts]
    assert done == sorted(done)
    assert done[-1] == published["bytes"]
    assert hub.faults[0].times == 0
    assert hub.count(part) == 5  # four parts, one of them twice


def test_a_request_that_nobody_answers_is_given_up_and_sent_again(
    hub: FakeHub, store: Store, finished: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STALL_SECONDS", 1.0)
    hub.faults.append(Fault("PUT /storage/", -1, times=1, skip=1))
    assert publishes(store, finished, report)["version"] == "1"
    assert hub.faults[0].times == 0


def test_a_file_that_changes_meanwhile_is_not_published(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    graph = Path(str(finished.artifact("onnx"))) / "model.onnx"
    hub.before["POST /api/repos/create"] = lambda: graph.write_bytes(graph.read_bytes() + b"x") and None
    with pytest.raises(LabError, match=r"model\.onnx changed while it was uploaded; publish again"):
        publishes(store, finished, report)
    assert hub.repos["ann/trips"].tags == {}


def test_secrets_never_get_into_a_message() -> None:
    for text in (
        f"at https://s3/x?X-Amz-Credential=aB%2Fc&{SIGNATURE}&x=1",
        f"Authorization: Bearer {TOKEN}",
        f"the token {TOKEN} is bad",
        "https://cdn/x?Policy=aB%2Fc&Signature=aB%2Fc~&Key-Pair-Id=aB%2Fc",
    ):
        shown = faults.scrub(text)
        assert "[removed]" in shown
        assert not any(secret in shown for secret in (TOKEN, "NobodyMaySee", "aB%2Fc"))
    assert TOKEN[:6] not in faults.scrub(f"{'x ' * (faults.LONGEST // 2 - 5)}{TOKEN}"), "half of one neither"
    assert len(faults.scrub("-eyJaaaaaaaa" * 10**6)) <= faults.LONGEST, "which takes hours to look through"
    assert faults.scrub("hf_hub_download of hf_xet failed") == "hf_hub_download of hf_xet failed"


class TestTheWorker:
    """Publishing as it is: queued, in a process of its own."""

    def queue(self, store: Store, run: Run, **given: Any) -> str:
        return submit.publish(store, run, "huggingface", Options(name="trips", **given))

    def test_publishes_and_nothing_it_leaves_has_the_token(
        self, hub: FakeHub, store: Store, finished: Run
    ) -> None:
        hub.faults.append(Fault("PUT /storage/", 503, f"of {TOKEN}", times=1))
        stage = self.queue(store, finished)
        until(lambda: store.get(finished.id).stage(stage).status in ENDED, "the end", 180)
        ended = store.get(finished.id).stage(stage)
        assert (ended.status, ended.error) == ("done", None)
        assert ended.metrics["path"] == f"{hub.url}/ann/trips/tree/v1"
        assert ended.metrics["verified"] is True
        events = (store.folder(finished.id, stage) / "events.jsonl").read_text().splitlines()
        assert max(json.loads(event).get("bytes_done", 0) for event in events) == ended.metrics["bytes"]
        assert (
            "The hub answered 503 to PUT /storage/"
            in (store.folder(finished.id, stage) / "log.txt").read_text()
        )
        for path, content in contents(store.home):
            assert TOKEN.encode() not in content, path
            assert SIGNATURE.encode() not in content, path
        (listed,) = huggingface.versions(store.home)
        assert (listed["name"], listed["version"], listed["run"]) == ("ann/trips", "1", finished.id)

    def test_killed_or_canceled_in_the_middle_there_is_no_version_and_it_goes_on(
        self, hub: FakeHub, store: Store, finished: Run
    ) -> None:
        hub.faults.append(Fault("PUT /storage/", -1, skip=1))
        stage = self.queue(store, finished)
        until(lambda: hub.count("PUT /storage/") == 2, "the second file", 180)
        (child,) = [p for p in processes(store.home) if b"pipeline.worker.stage_process" in command(p)]
        os.kill(child, signal.SIGKILL)
        until(lambda: store.get(finished.id).stage(stage).status in ENDED, "the end", 180)
        stage = self.queue(store, finished)
        until(lambda: hub.count("PUT /storage/") == 3, "the second file again", 180)
        store.request_cancel(finished.id)
        until(lambda: store.get(finished.id).stage(stage).status in ENDED, "the end", 180)
        assert store.get(finished.id).stage(stage).status == "canceled"
        assert len(hub.repos["ann/trips"].commits) == 1
        hub.faults.clear()
        before = hub.received
        again = self.queue(store, finished)
        until(lambda: store.get(finished.id).stage(again).status in ENDED, "the end", 180)
        assert store.get(finished.id).stage(again).metrics["version"] == "1"
        assert 0 < before < hub.received
        contents = [hub.content("ann/trips", name) for name in hub.tree("ann/trips")]
        assert hub.received == sum(len(content) for content in contents if len(content) >= LARGE), "each once"

    def test_a_large_file_needs_little_memory(self, hub: FakeHub, store: Store, finished: Run) -> None:
        folder = Path(str(finished.artifact("onnx")))
        with (folder / "more.data").open("wb") as file:
            file.truncate(200 * MIB)
        checksums.write(folder)
        watch = Watch("pipeline.worker.stage_process")
        stage = self.queue(store, finished)
        until(lambda: store.get(finished.id).stage(stage).status in ENDED, "the end", 180)
        ended = store.get(finished.id).stage(stage)
        assert (ended.status, ended.error) == ("done", None)
        assert hub.received > 200 * MIB
        assert 30 < watch.most() < 120


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_what_goes_a_second_time_shows_that_the_line_is_alive() -> None:
    heard: list[int] = []
    file = Counted(io.BytesIO(b"x" * 100), heard.append)
    file.read()  # as the client hashes it
    file.seek(0)
    file.begin(0)
    file.read(60)
    file.seek(0)  # it broke off
    file.read(40)
    file.read(40)
    file.read(40)
    assert heard == [60, 0, 20, 20]


def test_a_repository_that_stays_out_of_sight_is_not_called_public(
    hub: FakeHub, store: Store, finished: Run, report: Report
) -> None:
    hub.put("ann/trips", {})
    unseen = Fault("GET /api/models/ann/trips$", 404, headers={"X-Error-Code": "RepoNotFound"})
    hub.faults.append(unseen)
    with pytest.raises(LabError, match="ann/trips is on the hub, but this login cannot read it"):
        publishes(store, finished, report)


@pytest.mark.parametrize("token", [None, {}, {"role": "fineGrained", "fineGrained": None}])
def test_a_login_of_which_the_hub_says_little(token: Any) -> None:
    found = client.account({"name": "ann", "auth": {"accessToken": token}, "orgs": []})
    assert (found["name"], found["scopes"]) == ("ann", [])


@pytest.mark.parametrize("told", ["nan", "-1", "inf", "soon", "1e9"])
def test_a_wait_is_always_a_short_time(told: str) -> None:
    error = OSError("busy")
    error.response = SimpleNamespace(  # type: ignore[attr-defined]
        status_code=503, headers={"Retry-After": told}, request=SimpleNamespace(method="GET")
    )
    for tries in (0, 2000):
        wait = faults.wait(error, tries)
        assert wait is not None
        assert 0.2 < wait <= faults.LONGEST_WAIT
