"""Whether a model answers, and that whatever its process does becomes a finding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import settings
from pipeline.exports.findings import failed
from pipeline.exports.verifying import answering
from tests.helpers import exports
from tests.helpers.verified import OTHER, edit


def test_an_adapter_of_zeros_does_not_differ(export: Path) -> None:
    zeros = {"a": exports.random(16, 4), "b": np.zeros((4, 16), np.float32)}
    exports.write_adapter(export / exports.ADAPTER, zeros)
    exports.write_adapter(export / OTHER, {"a": exports.random(16, 4), "b": exports.random(4, 16)})
    found = {finding.check: finding for finding in answering.live(export)}
    assert found[f"answers with {exports.ADAPTER}"].status == "failed"
    assert "do not differ from the base's" in found[f"answers with {exports.ADAPTER}"].message
    assert found[f"answers with {OTHER}"].status == "ok", "one adapter's fault is not another's"


def test_an_adapter_that_learned_little_is_said_to(export: Path) -> None:
    small = {"a": exports.random(16, 4) * 1e-3, "b": exports.random(4, 16) * 1e-3}
    exports.write_adapter(export / exports.ADAPTER, small)
    found = answering.live(export)[-1]
    assert found.status == "ok"
    assert "none of the answers; it may need more training" in found.message


def test_an_adapter_that_overflows_is_found(export: Path) -> None:
    huge = {"a": exports.random(16, 4) * 1e30, "b": exports.random(4, 16) * 1e30}
    exports.write_adapter(export / exports.ADAPTER, huge)
    found = answering.live(export)[-1]
    assert (found.status, found.message[:24]) == ("failed", "it computes NaN or infin")


def test_answers_that_are_empty_are_found(export: Path) -> None:
    """Where every token ends the answer, there is none."""
    edit(export / "genai_config.json", lambda c: c["model"].update(eos_token_id=list(range(259))))
    found = answering.live(export)
    assert [(f.check, f.status) for f in found] == [
        ("prompts", "ok"), ("answers", "failed"), (f"answers with {exports.ADAPTER}", "failed"),
    ]  # fmt: skip
    assert "answers in a row are empty" in found[1].message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (exports.CHAT.replace("m['role']", "m['role'].upper()"), "it cannot be written: RuntimeError"),
        (exports.CHAT + "{{ strftime_now('%d') }}", "from token"),
    ],
)
def test_an_app_of_an_earlier_release_that_asks_otherwise_is_found(
    export: Path, template: str, reason: str
) -> None:
    """It leaves the template to GenAI's own engine, which knows less of Jinja than training does."""
    (export / "app.py").write_text("of an earlier release")
    (export / "chat_template.jinja").write_text(template)
    found = answering.live(export)
    assert [f.check for f in failed(found)] == ["prompts"]
    assert "in app.py" in found[0].message
    assert reason in found[0].message
    (export / "app.py").unlink()
    assert failed(answering.live(export)) == [], "the lab itself prompts as in training"


def test_a_model_the_runtime_refuses_is_a_finding(export: Path) -> None:
    (export / "tokenizer.json").write_text("{}")
    (found,) = answering.live(export)
    assert (found.check, found.status) == ("answers", "failed")
    assert found.message.startswith("the model does not load: ")
    assert "This failed" not in found.message


def test_a_model_for_a_gpu_is_not_loaded_without_one(
    export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"provider_options": [{"cuda": {}}]}
    edit(export / "genai_config.json", lambda c: c["model"]["decoder"].update(session_options=options))
    monkeypatch.setenv("PATH", str(tmp_path))  # where no nvidia-smi is
    (found,) = answering.live(export)
    assert (found.check, found.status) == ("answers", "skipped")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("kill -9 $$", "ended with code -9"),
        ("echo 'corrupted heap' >&2; exit 3", "ended with code 3; it said: corrupted heap"),
        ("exec sleep 60", "did not answer within 0 seconds"),
    ],
)
def test_a_process_that_crashes_or_hangs_is_a_finding(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, fault: str
) -> None:
    process = tmp_path / "process"
    process.write_text(f"#!/bin/sh\n{script}\n")
    process.chmod(0o700)
    monkeypatch.setattr(settings, "python", lambda: str(process))
    monkeypatch.setattr(answering, "LIVE_SECONDS", 0.2 if "sleep" in script else 60)
    (found,) = answering.live(export)
    assert (found.check, found.status) == ("answers", "failed")
    assert fault in found.message


def test_an_answer_does_not_wait_for_a_thread_that_a_library_has_left(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(answering, "LIVE_SECONDS", 60.0)
    assert failed(answering.live(export)) == []
