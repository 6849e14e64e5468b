"""A stage opens no files but those of the home and the model: from its libraries on, in a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.runs import submit
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.worker import stage_process
from tests.helpers.lab import has_landlock

READS = """
import os, sys
from pathlib import Path
from pipeline.stages import execute
from pipeline.worker import probe, stage_process

def read(stage, options, context):
    print("read", context.data.read_text()[:9], (context.model / "config.json").read_text()[:1])
    print("knows", open("/proc/self/environ").read().replace("\\0", " "), os.environ)
    Path(sys.argv[3]).read_text()

execute.execute = read
probe.require = lambda *_: None
sys.exit(stage_process.main(sys.argv[1], sys.argv[2]))
"""


def test_what_a_model_s_files_name_outside_the_home_is_not_opened(
    store: Store, recipe_file: Path, no_worker: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its environment, which has logins for what comes before: in /proc that is a file too."""
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    run = submit.submit(store, recipe.load(recipe_file))
    (tmp_path / "temporary").mkdir()
    (private := tmp_path / "private").write_text("secret")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "a secret")
    monkeypatch.setenv("OLIVE_LAB_WEBHOOK", "http://a.secret")
    folder = store.folder(run, "quantize")
    folder.mkdir()
    environment = settings.stage_environment(False, OLIVE_LAB_EVENTS=str(folder / "events.jsonl"))
    given = {**environment, "TMPDIR": str(tmp_path / "temporary")}
    words = [sys.executable, "-c", READS, run, "quantize"]
    for path, error in ((private, "ermission denied"), (store.home / "none", "No such file")):
        done = subprocess.run([*words, str(path)], env=given, capture_output=True, text=True)
        assert 'read {"prompt" {' in done.stdout, done.stderr
        assert "OLIVE_LAB_HOME" in done.stdout
        assert "secret" not in done.stdout.partition("knows ")[2]
        assert error in json.loads((folder / stage_process.RESULT).read_text())["error"]
