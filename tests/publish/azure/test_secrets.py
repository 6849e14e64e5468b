"""No secret of a publish is found anywhere afterwards, whichever login it used and however it ended."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline import settings
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import publisher as azureml
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import ENDED, Run
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.fake_arm import CLIENT_SECRET, KEY, Fault
from tests.helpers.azure.proxy import Spoil
from tests.helpers.lab import contents, until

with settings.importing_gradio():
    import gradio as gr

    from webapp.app import create
    from webapp.tabs import azure
    from webapp.tabs import versions as models

MACHINE_SECRET = "secret-of-the-machine"
LOGINS = ("cli", "identity", "environment")
ENDS = ("ok", "403", "drop")


def planted(bench: Bench) -> str:
    """An error as a careless service or proxy might word it, with all secrets there are."""
    sas, token = bench.azure.sas(), bench.azure.token("ann@example.org")
    return (
        f"GET https://x.blob.core/c/b?{sas} failed; Authorization: Bearer {token};"
        f" client_secret={CLIENT_SECRET}; X-IDENTITY-HEADER: {MACHINE_SECRET}; AccountKey={KEY};"
    )


def spoil(bench: Bench, end: str) -> None:
    """Have the next publish end so."""
    bench.proxy.spoils.clear()
    if end == "403":
        said = {"code": "AuthenticationFailed", "message": planted(bench)}
        bench.proxy.spoils.append(Spoil("comp=block", "status", status=403, **said))
    if end == "drop":
        bench.proxy.spoils.append(Spoil("^PUT", "drop"))


def found(texts: Iterator[tuple[str, bytes]], secrets: set[str]) -> list[str]:
    """Where a secret is, and its first letters."""
    return [
        f"{where}: {secret[:8]}" for where, text in texts for secret in secrets if secret.encode() in text
    ]


def at_rest(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the home but what stages made: the store, logs, events, what is remembered."""
    for path, content in contents(home):
        if "artifacts" not in path.relative_to(home).parts:
            yield str(path.relative_to(home)), content


def on_the_page(run: str, stages: list[str]) -> Iterator[tuple[str, bytes]]:
    """What the page's own routes answer."""
    paths = [f"/runs/{run}.json", f"/runs/{run}/live", "/queue.json", "/activity.json"]
    for stage in stages:
        of_it = ("log?before=1000000", "log.txt")
        paths += [f"/runs/{run}/live?stage={stage}&log=0", *(f"/runs/{run}/{stage}/{path}" for path in of_it)]
    with TestClient(create(), base_url="http://localhost:7860") as client:
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 200, path
            yield path, answer.content


@pytest.fixture
def inputs() -> Any:
    with gr.Blocks():
        return azure.build().inputs


def asked(inputs: Any, finished: Run, login: str) -> Iterator[tuple[str, bytes]]:
    """What the page's questions to Azure answer; of the dry run all there is."""
    pairs = zip(inputs.keys, inputs.inputs, strict=True)
    given = {"name": "trips", "login": login}
    values = [given.get(name, component.value) for (_, name), component in pairs]
    yield "check", json.dumps(list(azure.check(inputs, finished.id, *values))[-1], default=str).encode()
    yield "refresh", json.dumps(list(models.refresh(inputs, "azureml", *values))[-1], default=str).encode()


def test_no_secret_is_anywhere_after_publishing(
    bench: Bench, store: Store, finished: Run, where: Place, inputs: Any
) -> None:
    secrets = {MACHINE_SECRET, CLIENT_SECRET, KEY}
    ends: dict[tuple[str, str], str] = {}
    for login in LOGINS:
        for end in ENDS:
            spoil(bench, end)
            patience = 60.0 if end == "ok" else 1.0
            options = azureml.Options(name=f"t-{login}", login=login, patience=patience, check=False)  # type: ignore[arg-type]
            options = dataclasses.replace(options, description=f"{login} {end}")  # content of its own
            stage = submit.publish(store, finished, "azureml", options)
            until(lambda stage=stage: store.get(finished.id).stage(stage).status in ENDED, "the end", 180)
            ends[login, end] = stage
    run = store.get(finished.id)
    done = [key for key, stage in ends.items() if run.stage(stage).status == "done"]
    assert done == [(login, "ok") for login in LOGINS]
    # Secrets that pass through a question which fails with words that Azure itself has put them in.
    bench.azure.faults.append(Fault("^GET .*/models/", 418, "Odd", planted(bench)))
    assert found(asked(inputs, finished, "identity"), secrets | bench.azure.secrets) == []
    secrets |= bench.azure.secrets
    assert len(secrets) > 3 * len(ends)
    assert bench.proxy.count("sig=") > len(ends)
    assert found(on_the_page(finished.id, list(ends.values())), secrets) == []
    assert found(at_rest(store.home), secrets) == []
    # And the search does find what is there.
    logs = sorted(store.home.rglob("log.txt"))
    assert sum("[removed]" in log.read_text() for log in logs) >= len(LOGINS)
    logs[0].write_text(f"once: {CLIENT_SECRET}")
    assert len(found(at_rest(store.home), secrets)) == 1
