"""The dry run asks the hub all that can be asked, and writes nothing; the command line tells it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.publish.hub import ask, preflight
from pipeline.publish.hub import publisher as huggingface
from pipeline.publish.hub.publisher import Options
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.fake_hub import TOKEN, FakeHub, Large


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [settings.python(), "-m", "pipeline", *words], capture_output=True, text=True, cwd=settings.ROOT,
        env=settings.child_environment(),
    )  # fmt: skip


def found(store: Store, run: Run, **given: object) -> dict[str, tuple[str, str]]:
    told = preflight.preflight(store.home, run, Options(**{"name": "trips", **given}))  # type: ignore[arg-type]
    return {finding.check: (finding.status, finding.message) for finding in told}


def test_nothing_stands_against_a_first_version(hub: FakeHub, store: Store, finished: Run) -> None:
    said = found(store, finished)
    assert said["login"] == ("ok", "ann, by the token laptop (write)")
    assert said["permission"] == ("ok", "may write to ann/trips")
    assert said["repository"] == ("ok", "ann/trips is not there yet; it would be made, private")
    assert said["version"] == ("ok", "the first one would be 1")
    assert said["adapter"][0] == "ok"
    assert (hub.repos, hub.count("^(PUT|POST)")) == ({}, 0)


def test_the_next_version_and_one_that_is_there(
    hub: FakeHub, store: Store, finished: Run, report: Callable[..., None]
) -> None:
    huggingface.send(store.home, finished, Options(name="trips"), report)
    assert found(store, finished)["version"] == ("ok", "the next one is 2")
    assert found(store, finished, version="5")["version"] == ("ok", "5 is free")
    assert found(store, finished, version="1")["version"][0] == "unknown"
    said = found(store, finished, public=True)
    assert said["repository"][0] == "failed"
    assert said["version"] == ("skipped", "is asked once what stands above is good")


@pytest.mark.parametrize(
    ("role", "name", "status"),
    [
        ("read", "trips", "failed"),
        ("write", "walkers/trips", "ok"),
        ("write", "strangers/trips", "failed"),
        ("fineGrained", "walkers/trips", "ok"),
        ("fineGrained", "ann/trips", "failed"),
    ],
)
def test_what_a_token_may(
    hub: FakeHub, store: Store, finished: Run, role: str, name: str, status: str
) -> None:
    hub.role = role
    assert found(store, finished, name=name)["permission"][0] == status


def test_nobody_learns_which_repositories_of_others_there_are(
    hub: FakeHub, store: Store, finished: Run, report: Callable[..., None]
) -> None:
    hub.put("readers/hidden", {"README.md": b"# Secret"}, private=True)
    for role in ("write", "read", "fineGrained"):
        hub.role = role
        said = set()
        for name in ("readers/hidden", "readers/absent", "readers/open"):
            told = found(store, finished, name=name)
            with pytest.raises(LabError) as refused:
                huggingface.send(store.home, finished, Options(name=name), report)
            said.add((told["permission"], told["repository"], told["version"], str(refused.value)))
        ((permission, repository, _, refusal),) = said
        assert permission == ("failed", refusal)
        assert refusal.startswith("You may not write to readers with this login; ")
        assert repository[0] == "skipped"
    assert not hub.count("readers")


def test_files_of_others_stand_against_it(hub: FakeHub, store: Store, finished: Run) -> None:
    for there in (
        {"model.safetensors": b"weights"},
        {"recipe.yaml": b"", "SHA256SUMS": Large("a" * 64, 40 << 30)},
    ):
        hub.put("ann/trips", there)
        assert found(store, finished)["version"] == (
            "failed", "ann/trips has files that are not of this lab; choose another name",
        )  # fmt: skip


def test_a_readme_that_would_be_replaced_is_said(hub: FakeHub, store: Store, finished: Run) -> None:
    hub.put("ann/trips", {"README.md": b"# Mine", ".gitattributes": b""})
    assert found(store, finished)["version"] == (
        "ok", "the next one is 1; the model card replaces the README.md that is there",
    )  # fmt: skip


def test_the_command_line_asks_and_publishes(hub: FakeHub, store: Store, finished: Run) -> None:
    assert ask.whoami(store.home)["organisations"] == ["walkers"]
    shown = cli("hub", "whoami")
    assert (shown.returncode, shown.stdout) == (
        0, "ann, by the token laptop (write)\n  and the organisation walkers\n",
    )  # fmt: skip
    given = ["publish", finished.id, "--to", "huggingface", "--name", "walkers/trips", "--public"]
    dry = cli(*given, "--dry-run", "--json")
    told = json.loads(dry.stdout)
    assert (dry.returncode, told["good"], hub.repos) == (0, True, {})
    assert told["plan"]["target"] == "a public repository on the Hugging Face Hub"
    done = cli(*given)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Published to {hub.url}/walkers/trips/tree/v1\n")
    assert hub.repos["walkers/trips"].private is False
    assert TOKEN not in dry.stdout + done.stdout


def test_a_dry_run_that_finds_something_bad_says_so(hub: FakeHub, store: Store, finished: Run) -> None:
    hub.role = "read"
    dry = cli("publish", finished.id, "--to", "huggingface", "--name", "trips", "--dry-run")
    assert dry.returncode == 1
    assert "  failed   permission: the token may not write to ann/trips; make one that may" in dry.stdout
    assert "Nothing was published: this was a dry run." in dry.stdout


def test_an_option_of_another_place_is_refused(store: Store, finished: Run) -> None:
    refused = cli("publish", finished.id, "--to", "local", "--name", "trips", "--public")
    assert refused.returncode == 2
    assert "public" in refused.stderr


def test_nothing_of_the_client_is_imported_beforehand() -> None:
    code = (
        "import sys, pipeline.__main__, pipeline.worker.stage_process;"
        "import pipeline.publish.hub.preflight, pipeline.publish.hub.repository;"
        "client = ('huggingface_hub', 'httpx2', 'hf_xet');"
        "print([name for name in sys.modules if name.split('.')[0] in client])"
    )
    done = subprocess.run(
        [settings.python(), "-c", code], capture_output=True, text=True, cwd=settings.ROOT,
        env=settings.child_environment(),
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
