"""Which programs a ZIP has: those that can ask the model in it."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish.foundry import environment
from pipeline.publish.samples import offered
from pipeline.publish.zip_file import Takeaway
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers import exports
from tests.helpers.foundry import JAVASCRIPT

ALL = {offered.SERVER, offered.PYTHON, offered.JAVASCRIPT, "inference_model.json"}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return exports.write(tmp_path / "merged", merged=True)


def change(folder: Path, file: str, *keys: str, to: Any) -> None:
    content = inner = json.loads((folder / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / file).write_text(json.dumps(content))


def unpacked(store: Store, run: Run) -> dict[str, str]:
    with Takeaway(store.home, run) as zipped, zipfile.ZipFile(io.BytesIO(b"".join(zipped))) as archive:
        texts = {name for name in archive.namelist() if name.endswith((".md", ".py", ".mjs", ".json"))}
        return {name: archive.read(name).decode() for name in texts}


def test_the_adapted_model_itself_has_all_of_them(store: Store, finished_bound: Run) -> None:
    files = unpacked(store, finished_bound)
    assert files.keys() >= ALL
    assert json.loads(files["inference_model.json"])["Name"] == f"finished-{finished_bound.id}-generic-cpu:1"
    for name in ALL - {"inference_model.json"}:
        (said,) = [part for part in files["README.md"].split("\n- ") if part.startswith(f"`{name}`: ")]
        assert said.partition("\n\n")[0].count("\n") == 1, "two lines each"
    assert "`python app.py`" in files["README.md"]
    assert "Foundry Local has no adapters" not in files["README.md"]


def test_a_detachable_adapter_has_the_one_for_servers_and_says_how(store: Store, finished: Run) -> None:
    files = unpacked(store, finished)
    assert ALL & files.keys() == {offered.SERVER}
    assert "Foundry Local has no adapters: bind this one" in files["README.md"]


@pytest.mark.parametrize(
    ("file", "keys", "to"),
    [
        ("genai_config.json", ("model", "decoder", "session_options", "provider_options"), [{"cuda": {}}]),
        ("lab.json", ("template",), "Q: {question}\\nA: {answer}"),
        ("lab.json", ("template",), "{"),
        ("lab.json", (), None),
    ],
)
def test_what_its_sessions_would_read_otherwise_has_none_for_them(
    merged: Path, file: str, keys: tuple[str, ...], to: Any
) -> None:
    assert offered.texts(merged, "trips").keys() == ALL
    if keys:
        change(merged, file, *keys, to=to)
    else:
        (merged / file).write_text("[]")
    assert offered.texts(merged, "trips").keys() == {offered.SERVER}


def test_versions_are_those_that_are_tested(merged: Path) -> None:
    texts = offered.texts(merged, "trips")
    said = offered.lines(merged, texts) + "".join(texts.values())
    pinned = {line.split()[0] for line in environment.REQUIREMENTS.read_text().splitlines() if "==" in line}
    assert "foundry-local-sdk==2.2.1" in pinned
    assert said.count("foundry-local-sdk==2.2.1") == said.count("foundry-local-sdk==") == 2
    package = json.loads((JAVASCRIPT.parent / "package.json").read_text())
    assert package["dependencies"] == {"foundry-local-sdk": "1.2.3"}
    assert said.count("foundry-local-sdk@1.2.3") == said.count("foundry-local-sdk@") == 2
