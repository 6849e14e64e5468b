"""The child, with a stage that takes no model; what stages really do is tested with them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError, sentence
from pipeline.inputs.models import base_models
from pipeline.inputs.models.base_models import Model
from pipeline.runs import submit
from pipeline.stages import artifacts, events, execute, finetune, optimize, quantize, recipe
from pipeline.stages.context import Artifact, Context, Results
from pipeline.store import Store
from pipeline.store.run import COST, DONE, FAILED, PREFLIGHT, Run
from pipeline.system import checksums, clock, hardware, locks
from pipeline.worker import loop, probe, stage_process
from pipeline.worker.ahead import graph, warm
from pipeline.worker.job import lives
from tests.helpers import fake_hub
from tests.helpers.lab import CONFIG, until

Execute = Callable[[Any, Any, Context], Results]


@pytest.fixture
def run(store: Store, recipe_file: Path, no_worker: list[Path]) -> str:
    """A queued run, submitted as a user does; its first stage is quantize."""
    return submit.submit(store, recipe.load(recipe_file))


def writes_a_model(_: Any, options: Any, context: Context) -> Results:
    (context.output / "model").mkdir()
    (context.output / "model" / "weights").write_text(f"{options.bits} bits of {context.model.name}")
    (context.work / "workflow.json").write_text("{}")
    context.checkpoints.mkdir(exist_ok=True)
    return Results([Artifact("m", "checkpoint", context.output / "model")], {"bits": options.bits})


def carry_out(
    store: Store,
    run: str,
    monkeypatch: pytest.MonkeyPatch,
    action: Execute = writes_a_model,
    stage: str = "quantize",
) -> dict[str, Any]:
    """Run the stage in this process and return its result."""
    folder = store.folder(run, stage)
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("OLIVE_LAB_EVENTS", str(folder / "events.jsonl"))
    monkeypatch.setattr(execute, "execute", action)
    monkeypatch.setattr(probe, "require", lambda *_: None)
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    code = stage_process.main(run, stage)
    result: dict[str, Any] = json.loads((folder / stage_process.RESULT).read_text())
    assert code == (0 if result["status"] == DONE else 1)
    return result


def refuse(*_: Any) -> Results:
    pytest.fail("this stage should have been reused")


def test_small_files_of_a_hub_model_go_after_the_trial(
    store: Store, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"config.json": json.dumps(CONFIG).encode(), "tokenizer_config.json": b"{}"}
    seen: list[Path] = []

    def refused(*given: Any) -> None:
        seen.extend(given[3].iterdir())
        raise LabError("This cannot be done.")

    monkeypatch.setattr(probe, "require", refused)
    with fake_hub.served(tmp_path, monkeypatch) as hub:
        commit = hub.put("org/tiny", files, private=False)
        job = stage_process.StageJob.of(store, store.get(run), "quantize")
        job = dataclasses.replace(job, model=Model("org/tiny", "hub", commit, CONFIG, None))
        with pytest.raises(LabError, match="cannot be done"):
            stage_process._try(job, stage_process.Watch(0.0))
    assert sorted(path.name for path in seen) == sorted(files)
    assert not any(path.exists() or path.parent.exists() for path in seen)


def test_a_stage_leaves_its_result_and_its_events(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = carry_out(store, run, monkeypatch)
    assert (result["status"], result["reused"], result["metrics"]) == (DONE, False, {"bits": 4})
    (artifact,) = result["artifacts"]
    assert (artifact["name"], artifact["kind"]) == ("m", "checkpoint")
    assert (Path(artifact["path"]) / "weights").read_text() == "4 bits of tiny-llama"
    folder = store.folder(run, "quantize")
    process = json.loads((folder / stage_process.PROCESS).read_text())
    assert process.pop("pid") == os.getpid()
    assert 0 < (clock.since(process) or 0) < 60
    told = events.read(folder / "events.jsonl")[0]
    progress = [event["progress"] for event in told if "progress" in event]
    assert (told[0]["attempt"], progress[-1]) == (True, 1.0)
    assert (folder / "workflow.json").is_file()
    assert not (folder / "work").exists()
    assert not (folder / "checkpoints").exists()


def test_a_stage_is_given_what_the_user_chose(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Context] = []

    def look(stage: Any, options: Any, context: Context) -> Results:
        seen.append(context)
        return writes_a_model(stage, options, context)

    carry_out(store, run, monkeypatch, look)
    (context,) = seen
    assert (context.template, context.eval_fraction, context.seed, context.device) == ("chat", 0.1, 0, "cpu")
    assert (context.model.name, context.config["hidden_size"]) == ("tiny-llama", 64)
    assert context.data == Path(store.get(run).data)
    assert store.home in context.data.parents


def test_a_folder_with_the_same_files_shares_no_result(
    store: Store, run: str, model_folder: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to theirs could change it while it is read, and back."""
    carry_out(store, run, monkeypatch)
    other = shutil.copytree(model_folder, model_folder.with_name("other"))
    again = submit.submit(store, recipe.load(recipe_file, [f"model={other}"]))
    assert carry_out(store, again, monkeypatch)["reused"] is False


def test_a_model_folder_that_became_a_link_is_not_read(
    store: Store, model_folder: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to theirs could have it lead to what only the lab's user may read."""
    other = shutil.copytree(model_folder, model_folder.with_name("other"))
    linked = submit.submit(store, recipe.load(recipe_file, [f"model={other}"]))
    shutil.rmtree(other)
    other.symlink_to(model_folder)
    result = carry_out(store, linked, monkeypatch, refuse)
    assert result["error"] == f"model: {other} is a link by now; name the folder that it leads to"


def test_nothing_is_kept_of_a_model_that_changes_meanwhile(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be reused by all runs of the model that it was before."""
    folder = Path(base_models.resolve(store.get(run).recipe["model"]).id)

    def work(stage: Any, options: Any, context: Context) -> Results:
        (folder / "chat_template.jinja").write_text("another")
        return writes_a_model(stage, options, context)

    result = carry_out(store, run, monkeypatch, work)
    assert (result["status"], result["error"]) == (FAILED, base_models.CHANGED)
    assert not list((store.home / "artifacts").glob("quantize-*"))
    assert carry_out(store, run, monkeypatch)["status"] == DONE


def test_a_retry_resumes_from_checkpoints_of_the_same_files_only(
    store: Store, run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []

    def fails(_: Any, __: Any, context: Context) -> Results:
        found.append((context.checkpoints / "step").is_file())
        context.checkpoints.mkdir(exist_ok=True)
        (context.checkpoints / "step").touch()
        raise LabError("no")

    for _ in range(2):
        carry_out(store, run, monkeypatch, fails)
    (model_folder / "chat_template.jinja").write_text("another")
    carry_out(store, run, monkeypatch, fails)
    assert found == [False, True, False]


def test_an_unchanged_stage_is_reused_by_the_next_run(
    store: Store, run: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = carry_out(store, run, monkeypatch)
    again = submit.submit(store, recipe.load(recipe_file, ["name=again", "finetune.max_steps=10"]))
    second = carry_out(store, again, monkeypatch, refuse)
    assert (second["status"], second["reused"]) == (DONE, True)
    assert (second["artifacts"], second["metrics"]) == (first["artifacts"], first["metrics"])


def test_what_auto_stands_for_and_the_same_said_share_a_result(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reused = []
    for said in ("auto", "true", "false"):
        run = submit.submit(
            store, recipe.load(recipe_file, ["quantize.algorithm=awq", f"quantize.compensate={said}"])
        )
        reused.append(carry_out(store, run, monkeypatch)["reused"])
    assert reused == [False, True, False]


@pytest.mark.parametrize("change", ["option", "weights"])
def test_a_changed_stage_is_made_anew(
    store: Store,
    run: str,
    recipe_file: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    first = carry_out(store, run, monkeypatch)
    if change == "weights":
        weights = model_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    again = submit.submit(store, recipe.load(recipe_file, ["quantize.bits=8"] if change == "option" else []))
    second = carry_out(store, again, monkeypatch)
    assert not second["reused"]
    assert second["artifacts"][0]["path"] != first["artifacts"][0]["path"]


def test_the_data_decides_where_rows_are_used(
    store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reused(*changes: str) -> bool:
        run = submit.submit(store, recipe.load(recipe_file, list(changes)))
        return bool(carry_out(store, run, monkeypatch)["reused"])

    rtn, gptq = "quantize.algorithm=rtn", "quantize.algorithm=gptq"
    assert [reused(rtn), reused(gptq), reused(gptq)] == [False, False, True]
    dataset.write_text(dataset.read_text() * 2)
    assert [reused(rtn), reused(gptq), reused(gptq, "seed=1")] == [True, False, False]
    assert [reused(gptq, "quantize.general_text=1.0", f"seed={seed}") for seed in (1, 2)] == [False, True]


def test_what_a_stage_finds_beside_its_inputs_decides_too(
    store: Store, run: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation finds other adapters in the exported folder: `evaluate.beside`."""
    beside = ""
    monkeypatch.setattr(quantize, "beside", lambda inputs: beside, raising=False)
    first = carry_out(store, run, monkeypatch)
    beside = "another adapter"
    again = submit.submit(store, recipe.load(recipe_file))
    assert carry_out(store, again, monkeypatch)["artifacts"] != first["artifacts"]
    beside = ""
    assert carry_out(store, again, monkeypatch, refuse)["artifacts"] == first["artifacts"]


def test_the_template_decides_where_rows_are_used_or_it_is_written(
    store: Store, recipe_file: Path, no_worker: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reused(algorithm: str, template: str) -> bool:
        changes = [f"quantize.algorithm={algorithm}", f"template={template}"]
        run = submit.submit(store, recipe.load(recipe_file, changes))
        return bool(carry_out(store, run, monkeypatch)["reused"])

    templates = ("Q {prompt} A {response}", "{prompt}: {response}")
    assert [reused("rtn", template) for template in templates] == [False, True]
    assert [reused("gptq", template) for template in templates] == [False, False]
    assert optimize.uses_template(optimize.Options())


def test_later_stages_get_what_earlier_ones_made(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.claim("cpu")
    result = carry_out(store, run, monkeypatch)
    store.finish(run, "quantize", result.pop("status"), **result)
    store.claim_next(run, "cpu")
    seen: list[Context] = []

    def look(_: Any, options: Any, context: Context) -> Results:
        seen.append(context)
        (context.output / "adapter").mkdir()
        return Results([Artifact("a", "adapter", context.output / "adapter")])

    assert carry_out(store, run, monkeypatch, look, "finetune")["status"] == DONE
    assert seen[0].inputs == {"checkpoint": Path(result["artifacts"][0]["path"])}


class TestFailures:
    def test_the_traceback_is_in_the_log_and_a_sentence_in_the_result(
        self, store: Store, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any) -> Results:
            raise ValueError("the layers\n  do not fit")

        result = carry_out(store, run, monkeypatch, fail)
        assert result["status"] == FAILED
        assert result["error"].startswith(
            "quantize failed (ValueError: the layers do not fit); its log shows"
        )
        assert "Traceback (most recent call last)" in capsys.readouterr().err

    def test_a_model_deleted_meanwhile_is_named(
        self, store: Store, run: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(model_folder)
        result = carry_out(store, run, monkeypatch)
        assert result["error"] == f"model: {model_folder}: no such folder"

    def test_sys_exit_in_a_library_is_a_failure(
        self, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = carry_out(store, run, monkeypatch, lambda *_: sys.exit(3))
        assert result["status"] == FAILED
        assert result["error"].startswith("quantize failed (SystemExit: 3); its log shows where.")

    def test_a_full_disk_leaves_nothing_half_written(
        self, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fill(_: Any, options: Any, context: Context) -> Results:
            (context.output / "begun").write_bytes(b"x" * 1000)
            (context.output / "weights").symlink_to("/dev/full")  # the kernel answers ENOSPC to every write
            (context.output / "weights").write_bytes(b"x" * 1000)
            return Results([])

        result = carry_out(store, run, monkeypatch, fill)
        assert result["error"] == "The disk is full; free some space in the home folder and retry."
        assert [path.name for path in (store.home / "artifacts").iterdir()] == [".locks"]
        assert not (store.folder(run, "quantize") / "work").exists()

    def test_a_result_with_no_number_is_still_json(
        self, store: Store, run: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def diverge(stage: Any, options: Any, context: Context) -> Results:
            return Results(writes_a_model(stage, options, context).artifacts, {"loss": float("nan")})

        assert carry_out(store, run, monkeypatch, diverge)["metrics"] == {"loss": None}


def wrapped(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except BaseException as error:
            raise RuntimeError("the pass failed") from error
    except RuntimeError as error:
        return error


FULL = "The disk is full; free some space in the home folder and retry."
MEMORY = (
    "Memory ran out; start a new run with a smaller batch_size or max_length, or with"
    " gradient_checkpointing on."
)

AGAIN = "try again; if it fails again, report it."
DENIED = "/a/b cannot be used (Permission denied); check that it exists and is yours, and retry."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LabError("Do this."), "Do this."),
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (RuntimeError("IoError: Os { code: 28, message: No space left on device }"), FULL),
        (wrapped(OSError(errno.ENOSPC, "x")), FULL),
        (MemoryError(), MEMORY),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), f"GPU m{MEMORY[1:]}"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (wrapped(MemoryError()), MEMORY),
        (RuntimeError("a\nb" + "c" * 1000), f"This failed (RuntimeError: a b{'c' * 296}…); {AGAIN}"),
        (KeyError("multi_cache"), f"This failed with an internal error (KeyError: 'multi_cache'); {AGAIN}"),
        (IndexError(), f"This failed with an internal error (IndexError); {AGAIN}"),
        (KeyboardInterrupt(), f"This failed (KeyboardInterrupt); {AGAIN}"),
        (PermissionError(13, "Permission denied", "/a/b"), DENIED),
    ],
)
def test_every_error_becomes_one_plain_sentence(error: BaseException, expected: str) -> None:
    assert sentence(error) == expected


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (KeyError("multi_cache"), " with an internal error (KeyError: 'multi_cache')"),
        (ValueError("no"), " (ValueError: no)"),
    ],
)
def test_a_stage_that_fails_for_an_unknown_reason_says_what_to_do(error: Exception, how: str) -> None:
    found = sentence(error, "optimize")
    assert found.startswith(f"optimize failed{how}; its log shows where. Retry it")


def test_memory_that_runs_out_names_what_the_stage_can_have_smaller(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Results:
        raise MemoryError

    assert carry_out(store, run, monkeypatch, fail)["error"] == (
        "Memory ran out; start a new run with a smaller quantize.calibration_blocks or"
        " quantize.calibration_length."
    )


def test_the_export_of_another_adapter_is_looked_for_by_the_stage_itself(
    store: Store, run: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank is another adapter for the same graph; another type of weights is another graph."""
    seen: list[Context] = []

    def work(stage: Any, options: Any, context: Context) -> Results:
        seen.append(context)
        kind = {quantize: "checkpoint", finetune: "adapter", optimize: "onnx"}[stage]
        (context.output / "made").write_text(f"{options}")
        checksums.write(context.output)
        return Results([Artifact("made", kind, context.output / "made")], {"places": ["q_proj"]})

    def exported(run: str) -> Context:
        store.claim("cpu")
        for stage in ("quantize", "finetune", "optimize"):
            result = carry_out(store, run, monkeypatch, work, stage)
            store.finish(run, stage, result.pop("status"), **result)
            store.claim_next(run, "cpu")
        store.finish(run, "evaluate", DONE)
        return seen[-1]

    assert exported(run).graphs == {}
    first = Path(store.get(run).stage("optimize").artifacts[0]["path"]).parent
    again = [["finetune.r=4"], ["finetune.r=8", "optimize.block_size=64"], ["optimize.adapter=merged"]]
    found = [exported(submit.submit(store, recipe.load(recipe_file, changes))).graphs for changes in again]
    assert found == [{first: ["q_proj"]}, {}, {}]


class AtOnce:
    """A process that has done its work, without one."""

    def __init__(self, work: Callable[[], object], _log: Path) -> None:
        work()

    def poll(self) -> int:
        return 0

    def wait(self, *_: float) -> int:
        return 0

    def kill(self) -> None:
        pass


def test_the_graph_that_was_built_beside_the_training_is_exported(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is built with all options of the export, without the adapter, and moved into the scratch folder."""
    seen: list[tuple[Any, Any, Context]] = []

    def work(stage: Any, options: Any, context: Context) -> Results:
        seen.append((stage, options, context))
        kind = {quantize: "checkpoint", finetune: "adapter", optimize: "onnx"}[stage]
        for name in ("made", optimize.GRAPH, f"{optimize.GRAPH}.data"):
            context.output.mkdir(exist_ok=True)
            (context.output / name).write_text(f"{options}")
        if context.ahead is not None:
            assert (context.ahead / optimize.GRAPH).is_file()
        return Results([Artifact("made", kind, context.output / "made")])

    monkeypatch.setattr(graph, "wanted", lambda options, inputs: "checkpoint" in inputs)
    monkeypatch.setattr(execute, "build", work)
    monkeypatch.setattr(warm, "fork_beside", AtOnce)
    store.claim("cpu")
    for stage in ("quantize", "finetune", "optimize"):
        result = carry_out(store, run, monkeypatch, work, stage)
        store.finish(run, stage, result.pop("status"), **result)
        store.claim_next(run, "cpu")
    assert [stage for stage, _, _ in seen] == [quantize, optimize, finetune, optimize]
    _, (_, ahead, early), _, (_, options, late) = seen
    assert ahead == options
    assert list(early.inputs) == ["checkpoint"]
    assert (early.ahead, early.graphs) == (None, {})
    assert late.ahead is not None
    assert late.ahead.is_relative_to(store.folder(run, "optimize") / "work")
    assert not (store.folder(run, "finetune") / graph.FOLDER).exists()


def test_where_nothing_can_be_built_beside_it_the_training_is_done(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def work(stage: Any, options: Any, context: Context) -> Results:
        context.output.mkdir(exist_ok=True)
        (context.output / "made").write_text("x")
        kind = {quantize: "checkpoint", finetune: "adapter"}[stage]
        return Results([Artifact("made", kind, context.output / "made")])

    monkeypatch.setattr(graph, "wanted", lambda options, inputs: "checkpoint" in inputs)
    monkeypatch.setattr(warm, "fork_beside", refused)
    store.claim("cpu")
    for stage in ("quantize", "finetune"):
        result = carry_out(store, run, monkeypatch, work, stage)
        assert result["status"] == DONE
        store.finish(run, stage, result.pop("status"), **result)
        store.claim_next(run, "cpu")
    assert not (store.folder(run, "finetune") / graph.PART).exists()


def test_two_runs_do_not_make_the_same_result_twice(
    store: Store, run: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and reuses what it made."""
    key = {}
    real = artifacts.find

    def find(home: Path, stage: str, name: str) -> artifacts.Stored | None:
        key["key"] = name
        return real(home, stage, name)

    monkeypatch.setattr(artifacts, "find", find)
    carry_out(store, run, monkeypatch)
    stored = real(store.home, "quantize", key["key"])
    assert stored is not None
    hidden = stored.folder.rename(stored.folder.with_name("hidden"))
    other = submit.submit(store, recipe.load(recipe_file))
    with locks.locked(artifacts.lock(store.home, "quantize", key["key"])):
        second = threading.Thread(target=carry_out, args=(store, other, monkeypatch, refuse))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        hidden.rename(stored.folder)
    second.join(60)
    assert json.loads((store.folder(other, "quantize") / stage_process.RESULT).read_text())["reused"]


def test_a_publish_is_carried_out_by_the_real_child(store: Store, finished: Run) -> None:
    """As the worker starts it: a process, a log, and the lock it holds while it lives."""
    options = {"to": "local", "name": "trips", "version": "", "description": ""}
    stage = store.add_publish(finished.id, options)
    served = loop.Worker(store)
    served.step()
    until(lambda: (served.step(), store.get(finished.id).stage(stage).status == DONE)[1], "the publish")
    published = store.get(finished.id).stage(stage)
    assert published.metrics["version"] == "1"
    assert (store.home / "registry" / "trips" / "1" / "model.onnx").is_file()
    assert "Published trips version 1" in (store.folder(finished.id, stage) / "log.txt").read_text()
    assert not lives(store.folder(finished.id, stage))


def test_what_a_stage_took_is_kept_beside_what_was_predicted(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out(store, run, monkeypatch)
    kept = json.loads((store.folder(run, "quantize") / COST).read_text())
    predicted = json.loads((store.folder(run) / PREFLIGHT).read_text())["stages"]
    assert kept["predicted"] == predicted["quantize"]
    measured = kept["measured"]
    assert measured["memory"] > 10**7
    assert measured["disk"] > 0
    assert measured["seconds"] > 0
    assert measured["gpu_memory"] is None


def test_a_reused_stage_took_nothing(store: Store, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(store, run, monkeypatch)
    again = submit.submit(store, submit.again(store.get(run)))
    assert carry_out(store, again, monkeypatch)["reused"]
    assert not (store.folder(again, "quantize") / COST).exists()


@pytest.mark.parametrize("text", [None, "", "[]", '{"stages": []}', '{"stages": {}}'])
def test_without_a_prediction_the_measurement_is_kept(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    file = store.folder(run) / PREFLIGHT
    file.unlink() if text is None else file.write_text(text)
    carry_out(store, run, monkeypatch)
    kept = json.loads((store.folder(run, "quantize") / COST).read_text())
    assert kept["predicted"] is None
    assert kept["measured"]["memory"] > 10**7


ENDS = """
import atexit, ctypes, sys
from pipeline.worker import stage_process

class Module:
    def __del__(self):
        print("taken apart", file=sys.__stderr__, flush=True)

kept = Module()
atexit.register(print, "libraries clean up")
print("python says", end="; ")
ctypes.CDLL(None).printf(b"libraries say; ")
stage_process.end(3)
"""


def test_a_process_ends_at_once_with_all_that_was_said(tmp_path: Path) -> None:
    """What libraries registered is done, but modules are not taken apart: the next stage waits for this."""
    with (tmp_path / "log.txt").open("w") as log:  # a file, so that nothing is written line by line
        done = subprocess.run(
            [sys.executable, "-c", ENDS], cwd=settings.ROOT, stdout=log, stderr=log, timeout=60
        )
    said = (tmp_path / "log.txt").read_text()
    assert done.returncode == 3
    for words in ("python says; ", "libraries say; ", "libraries clean up"):
        assert said.count(words) == 1, said
    assert "taken apart" not in said
