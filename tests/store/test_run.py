"""Records of a run: what is worked out from what is stored."""

from __future__ import annotations

from pipeline.store.run import DONE, FAILED, QUEUED, RUNNING, StageRun
from tests.helpers.planted import record


def stage(name: str, status: str, *kinds: str) -> StageRun:
    return StageRun(
        name, status, artifacts=[{"name": k, "kind": k, "path": f"/{name}/{k}", "bytes": 1} for k in kinds]
    )


def test_a_file_in_another_artifacts_folder_counts_once() -> None:
    artifacts = [
        {"name": "model", "kind": "onnx", "path": "/a/optimize-1", "bytes": 100},
        {"name": "adapter", "kind": "onnx_adapter", "path": "/a/optimize-1/w.onnx_adapter", "bytes": 30},
        {"name": "notes", "kind": "answers", "path": "/a/optimize-10/answers.json", "bytes": 5},
    ]
    assert StageRun("optimize", DONE, artifacts=artifacts).bytes == 105


def test_the_current_stage() -> None:
    done, queued = stage("quantize", DONE), stage("evaluate", QUEUED)
    assert record(done, stage("finetune", RUNNING), queued).current == stage("finetune", RUNNING)
    assert record(done, stage("finetune", FAILED), queued).current == stage("finetune", FAILED)
    assert record(done, queued).current == queued
    assert record(done).current == done
    assert record().current is None


def test_the_newest_artifact_of_a_kind_that_is_done() -> None:
    found = record(stage("a", DONE, "onnx"), stage("b", DONE, "onnx"), stage("c", FAILED, "onnx"))
    assert found.artifact("onnx") == "/b/onnx"
    assert found.artifact("adapter") is None


def test_a_repeated_publish_is_still_a_publish() -> None:
    assert StageRun("publish-2").kind == StageRun("publish").kind == "publish"


def test_the_verdict_is_the_evaluations_in_words() -> None:
    told = StageRun("evaluate", DONE, metrics={"verdict": {"outcome": "better", "text": "Better: all."}})
    found = record(stage("quantize", DONE), told, stage("publish", DONE))
    assert found.verdict == told.verdict == "Better: all."
    assert record(stage("evaluate", DONE)).verdict == ""
    asked = StageRun("evaluate", DONE, {"data": "/home/datasets/0/prompts.jsonl"})
    assert record(stage("optimize", DONE), asked).asked == asked.asked == "prompts.jsonl"
    assert found.asked == StageRun("score", DONE, {"data": "/a/b.jsonl"}).asked == ""
    for other in (None, "better", {"outcome": "better"}):
        assert StageRun("evaluate", DONE, metrics={"verdict": other}).verdict == ""
