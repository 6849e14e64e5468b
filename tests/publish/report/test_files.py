"""What is published holds no row of the data unless that is asked for, wherever it is published."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.publish import local
from pipeline.publish.azure import lineage
from pipeline.publish.azure import publisher as azure
from pipeline.publish.foundry import publisher as foundry
from pipeline.publish.foundry import version_folder
from pipeline.publish.hub import publisher as hub
from pipeline.publish.items import packed
from pipeline.publish.report import files
from pipeline.publish.source import source_of
from pipeline.publish.targets import PUBLISHERS
from pipeline.publish.zip_file import Takeaway, save
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers import examples

ASKED, ANSWERED = "zirkonmarker", "quarzmarker"  # in the prompt, in the response
Files = dict[str, bytes]


@pytest.fixture
def marked(store: Store, finished: Run, tmp_path: Path) -> Run:
    """A finished run whose data, losses and answers have both words, and whose verdict is known."""
    told = [(f"Where is {ASKED}?", f"In {ANSWERED}.", 3.0, 1.0)]
    data = examples.write_data(tmp_path / "data.jsonl", told)
    losses = examples.write_losses(tmp_path / "rows.jsonl", told)
    stage = finished.stage("evaluate")
    path = Path(str(finished.artifact("answers")))
    answer = examples.answer(told[0][0], told[0][1], f"I don't know {ASKED}.", f"In {ANSWERED}.")
    path.write_text(json.dumps({"rows": [answer], "left_out": 0}))
    made = [*stage.artifacts, {"name": "rows", "kind": "row_losses", "path": str(losses), "bytes": 1}]
    metrics = {
        **stage.metrics,
        "base_loss": 3.0,
        "adapter_loss": 1.0,
        "verdict": {"text": "Better: 66 % less."},
    }
    with store._write() as db:
        db.execute("UPDATE runs SET data = ? WHERE id = ?", (str(data), finished.id))
        db.execute(
            "UPDATE stages SET artifacts = ?, metrics = ? WHERE run = ? AND name = 'evaluate'",
            (json.dumps(made), json.dumps(metrics), finished.id),
        )
    return store.get(finished.id)


def zipped(store: Store, run: Run, rows: bool, tmp_path: Path) -> Files:
    target = tmp_path / f"{rows}.zip"
    save(store.home, run, target, rows)
    with zipfile.ZipFile(target) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def locally(store: Store, run: Run, rows: bool, tmp_path: Path) -> Files:
    options = local.Options(name="trips", rows=rows)
    folder = Path(local.publish(store.home, run, options, lambda *_: None)["path"])
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_azure(store: Store, run: Run, rows: bool, tmp_path: Path) -> Files:
    options = azure.Options(name="trips", rows=rows)
    sent = packed(Path(str(run.artifact("onnx"))), azure._written(store.home, run, options))
    about = {"tags": lineage.tags(run, {}), "properties": lineage.properties(run, "d", 1)}
    return {**{item.name: item.open().read() for item in sent}, "about": json.dumps(about).encode()}


def on_hub(store: Store, run: Run, rows: bool, tmp_path: Path) -> Files:
    options = hub.Options(name="trips", rows=rows)
    written, beside = hub._written(store.home, run, options), hub._beside(run, options)
    sent = packed(Path(str(run.artifact("onnx"))), written, beside)
    return {item.name: item.open().read() for item in sent}


def on_devices(store: Store, run: Run, rows: bool, tmp_path: Path) -> Files:
    """It has no option to include rows."""
    assert not rows
    folder = tmp_path / "version"
    folder.mkdir()
    with foundry._adapted(store.home, source_of(run, "trips", "1")) as source:
        texts = version_folder.texts(store.home, run, source, "trips", "1", "")
        version_folder.fill(folder, source, None, texts)
    sent = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {**sent, "about": json.dumps(version_folder.in_catalogue(store.home, run, "trips")).encode()}


# How each publisher is asked here, by its name in PUBLISHERS; the ZIP is none of these.
WAYS: dict[str, Callable[..., Files]] = {
    "zip": zipped, "local": locally, "azureml": in_azure, "huggingface": on_hub, "foundry-local": on_devices,
}  # fmt: skip


def with_words(found: Files) -> set[str]:
    """The files that have one of the words."""
    return {name for name, data in found.items() if ASKED.encode() in data or ANSWERED.encode() in data}


@pytest.mark.parametrize("to", ["zip", *PUBLISHERS])
def test_rows_are_published_only_if_that_is_ticked(
    store: Store, marked: Run, tmp_path: Path, to: str
) -> None:
    assert to in WAYS, "a new publisher: say here how it is asked what it would publish"
    publish = WAYS[to]
    without = publish(store, marked, False, tmp_path)
    assert with_words(without) == set()
    assert "answers.json" not in without
    assert b"Better: 66 % less." in without["README.md"]  # the verdict and figures are no rows
    assert b"| Loss on held-out answers (nats a token) | 3 | 1 |" in without["README.md"]
    if to in PUBLISHERS and not hasattr(PUBLISHERS[to].Options, "rows"):
        return  # there is nothing to tick
    ticked = publish(store, marked, True, tmp_path)
    told = with_words(ticked)
    assert told == {"report.html", "report.md", "answers.json"}
    sums = ticked["SHA256SUMS"].decode()
    assert all(name in sums for name in told)


def test_a_zip_has_a_report_without_rows_and_is_the_same_each_time(store: Store, marked: Run) -> None:
    made = []
    for _ in range(2):
        with Takeaway(store.home, marked) as zipped:
            made.append(b"".join(zipped))
    assert made[0] == made[1]
    with zipfile.ZipFile(io.BytesIO(made[0])) as archive:
        assert {"report.html", "report.md"} <= set(archive.namelist())


def test_an_old_report_in_the_folder_is_not_published(store: Store, marked: Run, tmp_path: Path) -> None:
    """As in a folder that was taken from a ZIP with rows."""
    folder = Path(str(marked.artifact("onnx")))
    (folder / "answers.json").write_text(ASKED)
    (folder / "report.md").write_text(ANSWERED)
    for to, publish in WAYS.items():
        assert with_words(publish(store, marked, False, tmp_path)) == set(), to


def test_both_formats_are_of_the_same_run(store: Store, marked: Run) -> None:
    for kind in files.FORMATS:
        assert marked.id in files.text(store.home, marked, kind, False)
