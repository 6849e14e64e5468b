"""Training: what the model is shown, that it learns, and that packed weights learn like plain ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.options import describe
from pipeline.stages import evaluate, finetune, optimize, quantize
from pipeline.stages.context import Context
from tests.helpers import talks, tiny
from tests.helpers.carry import OPTIONS, context_of, stage

pytestmark = pytest.mark.chain


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_a_quantized_model_learns(
    architecture: str, tmp_path: Path, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    model = tiny.build(architecture, tmp_path / "model")
    context = context_of(tmp_path, model)
    checkpoint = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    trained = stage(context, "finetune", finetune, OPTIONS, checkpoint=checkpoint)
    assert trained.metrics["eval_loss_after"] < trained.metrics["eval_loss_before"] - 0.5
    assert trained.metrics["steps"] == 12
    steps = [event for event in reported() if "loss" in event]
    looks = {event["step"]: event["eval_loss"] for event in reported() if "eval_loss" in event}
    assert looks == {0: trained.metrics["eval_loss_before"], 12: trained.metrics["eval_loss_after"]}
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert steps[-1]["eta_seconds"] == 0
    assert all({"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= event.keys() for event in steps)
    progress = [event["progress"] for event in reported() if "progress" in event]
    assert progress[-1] == 1
    adapter = trained.artifacts[0].path
    assert (adapter / "adapter_model.safetensors").is_file()
    assert not (adapter.parent / "model").exists()


def test_a_float_model_learns_and_the_same_seed_learns_the_same(context: Context) -> None:
    first = stage(context, "first", finetune, OPTIONS).metrics
    second = stage(context, "second", finetune, OPTIONS).metrics
    assert first["eval_loss_after"] < first["eval_loss_before"] - 0.5
    assert first["eval_loss_after"] == second["eval_loss_after"]
    other = stage(replace(context, seed=1), "other", finetune, OPTIONS).metrics
    assert other["eval_loss_after"] != first["eval_loss_after"]


def batch() -> dict[str, Any]:
    import torch

    torch.manual_seed(3)
    ids = torch.randint(3, 250, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.clone()
    labels[:, :6] = -100
    labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_the_loss_is_transformers_loss(context: Context) -> None:
    from transformers import AutoModelForCausalLM

    from pipeline.passes.finetune import quant_lora, training

    model = AutoModelForCausalLM.from_pretrained(context.model)
    expected = float(model(**batch()).loss)
    config = SimpleNamespace(method="lora", r=4, alpha=8, lora_dropout=0.0, target_modules=None)
    adapted = quant_lora.add_lora(model, config)  # an adapter starts as no change
    total, tokens = training.ResponseLoss(adapted)(batch())
    assert tokens == 14 + 9 + 14
    assert float(total) / tokens == pytest.approx(expected, rel=1e-5)


def test_training_gone_astray_says_what_to_change(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.passes.finetune import training

    compute = training.ResponseTrainer.compute_loss

    def astray(self: Any, *args: Any, **kwargs: Any) -> Any:
        return compute(self, *args, **kwargs) * (float("nan") if self.state.global_step == 3 else 1)

    monkeypatch.setattr(training.ResponseTrainer, "compute_loss", astray)
    with pytest.raises(LabError, match=r"diverged at step 4: the loss is nan. Lower finetune.learning_rate"):
        stage(context, "astray", finetune, OPTIONS)


def test_no_path_of_this_machine_is_left_in_what_is_written(context: Context) -> None:
    made = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    adapter = stage(context, "finetune", finetune, OPTIONS, checkpoint=made).artifacts[0].path
    inputs = {"checkpoint": made, "adapter": adapter}
    folder = stage(context, "optimize", optimize, optimize.Options(), **inputs).artifacts[0].path
    for file in [*made.parent.rglob("*"), *adapter.parent.rglob("*"), *folder.rglob("*")]:
        if file.is_file():
            assert str(context.output.parent).encode() not in file.read_bytes(), file


LENGTHS = [1, 30, 2, 25, 3, 20, 4, 15, 5, 10, 6, 8]


@pytest.fixture
def uneven(context: Context) -> Context:
    """Responses of very different lengths: a mean of the means of batches would weigh short ones more."""
    rows = [{"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n)))} for n in LENGTHS]
    context.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return context


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "gradient_accumulation": 5},
        {"batch_size": 4, "gradient_accumulation": 3},  # the last batch has two rows
        {"gradient_checkpointing": True},
        {"packing": True, "max_length": 256},
        {"packing": True, "max_length": 256, "batch_size": 1, "gradient_accumulation": 10},
    ],
    ids=str,
)
def test_one_step_over_all_rows_is_the_same_however_they_are_batched(
    uneven: Context, reported: Callable[[], list[dict[str, Any]]], changes: dict[str, Any]
) -> None:
    """Loss and gradient norm of one pass: only the order of sums may differ."""
    whole = replace(OPTIONS, epochs=1.0, batch_size=10)
    for name, options in {"whole": whole, "parts": replace(whole, **changes)}.items():
        assert stage(uneven, name, finetune, options).metrics["steps"] == 1
    first, second = [event for event in reported() if "loss" in event]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("epochs", "batches", "accumulation", "steps", "warmup"),
    [(2, 3, 1, 6, 3), (2, 3, 2, 4, 2), (0.5, 3, 1, 2, 1), (0.01, 3, 1, 1, 0), (100, 3, 1, 300, 5)],
)
def test_epochs_are_steps_and_the_warm_up_is_half_of_them_at_most(
    epochs: float, batches: int, accumulation: int, steps: int, warmup: int
) -> None:
    from pipeline.passes.finetune.training import plan

    arguments = SimpleNamespace(
        max_steps=-1, num_train_epochs=epochs, gradient_accumulation_steps=accumulation, warmup_steps=5
    )
    plan(arguments, batches)
    assert (arguments.max_steps, arguments.warmup_steps) == (steps, warmup)


@pytest.mark.parametrize(
    ("name", "end", "tops"),
    [
        ("constant", 1.0, 1),
        ("linear", 0.0, 1),
        ("cosine", 0.0, 1),
        ("cosine_with_min_lr", 0.1, 1),
        ("cosine_with_restarts", 0.0, 4),
    ],
)
def test_every_schedule_warms_up_and_ends_as_it_says(name: str, end: float, tops: int) -> None:
    import torch
    from transformers import get_scheduler

    kind, arguments = finetune.SCHEDULERS[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(kind, optimizer, 5, 105, scheduler_specific_kwargs=arguments)
    rates = []
    for _ in range(106):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert rates[105] == pytest.approx(end, abs=1e-3)
    starts = [i for i in range(5, 105) if rates[i] > 0.99 and (rates[i - 1] < rates[i])]
    assert len(starts) == tops
    assert name in next(o.choices for o in describe(finetune.Options) if o.name == "scheduler")


def test_gptq_is_calibrated_on_the_users_rows(
    context: Context, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    made = stage(context, "gptq", quantize, quantize.Options(algorithm="gptq", calibration_blocks=4))
    assert made.metrics["bits"] == 4
    messages = [event["message"] for event in reported() if "message" in event]
    assert "Rounded 14 of 14 weight matrices" in messages
    plain = stage(context, "rtn", quantize, quantize.Options(algorithm="rtn")).artifacts[0].path
    assert (made.artifacts[0].path / "model.safetensors").read_bytes() != (
        plain / "model.safetensors"
    ).read_bytes()


def test_stages_may_be_skipped(context: Context) -> None:
    """A float model with a template of one's own, neither quantized nor tuned, answers as base only."""
    context = replace(context, template="Q: {prompt}\\nA: {response}<end>")
    options = optimize.Options(precision="fp32")
    exported = stage(context, "optimize", optimize, options).artifacts
    assert [artifact.kind for artifact in exported] == ["onnx"]
    folder = exported[0].path
    done = stage(context, "evaluate", evaluate, evaluate.Options(prompts=2, max_new_tokens=4), onnx=folder)
    rows = json.loads(done.artifacts[0].path.read_text())["rows"]
    assert len(rows) == 1  # the two held-out rows have the same prompt
    assert all(row["adapter"] is None and row["base"]["tokens"] <= 4 for row in rows)
    assert json.loads((folder / "lab.json").read_text())["stop"] == "<end>"


def test_conversations_go_through_the_whole_lab(context: Context) -> None:
    """And the held-out prompt that is answered is a whole conversation but for its last answer."""
    towns = ("Rome", "Bonn", "Oslo", "Bern", "Riga", "Pisa")
    talks_ = [
        talks.talk(f"To {town}?", "Yes.", f"{n * 7919 + 31}?", f"See {town} {n * 104729 + 17} times.")
        for n, town in enumerate(towns)
    ]
    context.data.write_text("".join(json.dumps(row) + "\n" for row in talks_))
    trained = stage(context, "finetune", finetune, OPTIONS)
    assert trained.metrics["rows"] == 5
    assert trained.metrics["eval_loss_after"] < trained.metrics["eval_loss_before"] - 0.5
    given: dict[str, Any] = {"adapter": trained.artifacts[0].path}
    made = {
        one.kind: one.path
        for one in stage(context, "optimize", optimize, optimize.Options(), **given).artifacts
    }
    done = stage(context, "evaluate", evaluate, evaluate.Options(prompts=1, max_new_tokens=2), **made)
    (row,) = json.loads(done.artifacts[0].path.read_text())["rows"]
    asked = json.loads(row["prompt"])["messages"]
    assert [message["role"] for message in asked] == ["user", "assistant", "user"]
    assert row["expected"].startswith("See ")


def rows(context: Context, **params: Any) -> Any:
    from pipeline.passes.rows import lab_rows

    given = {"part": "train", "eval_fraction": 0.2, "seed": 0, "max_length": 512, **params}
    return lab_rows(str(context.data), params.pop("template", "chat"), str(context.model), **given)


def test_what_the_model_is_shown(context: Context) -> None:
    shown = rows(context)
    sample, labels = shown[0]
    row, ids = shown.rows[0], sample["input_ids"]
    text = shown.tokenizer.decode(ids)
    assert text == (
        f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{row['response']}<|im_end|>"
    )
    learned = ids[labels != -100]
    assert shown.tokenizer.decode(learned) == row["response"] + "<|im_end|>"
    assert learned[-1] == shown.tokenizer.eos_token_id
    assert (rows(context, loss_on="all")[0][1] == ids).all()


def test_a_template_without_an_end_gets_the_models(context: Context) -> None:
    from pipeline.passes.rows import lab_rows

    given: dict[str, Any] = {"part": "train", "eval_fraction": 0.2, "seed": 0, "max_length": 512}
    shown = lab_rows(str(context.data), "Q: {prompt}\\nA: {response}", str(context.model), **given)
    text = shown.tokenizer.decode(shown[0][0]["input_ids"])
    assert text.startswith("Q: What to see in")
    assert text.endswith(shown.rows[0]["response"] + "<|im_end|>")
    given["part"] = "eval"
    held_out = lab_rows(str(context.data), "{prompt}{response}", str(context.model), **given)
    assert len(shown) + len(held_out) == 12
    assert not [row for row in held_out.rows if row in shown.rows]


def test_long_rows_keep_something_to_learn() -> None:
    from pipeline.inputs.prompts.training_ids import cut

    assert cut([1] * 5, [2] * 5, 10) == ([1] * 5, [2] * 5)
    assert cut([0] + [1] * 20, [2] * 3, 10) == ([1] * 7, [2] * 3)
    assert cut([1] * 20, [2] * 20, 10) == ([1] * 5, [2] * 5)
    assert cut([1] * 2, [2] * 20, 10) == ([1] * 2, [2] * 8)
    assert cut([1] * 2, [2] * 20 + [3], 10) == ([1] * 2, [2] * 7 + [3]), "the end of the answer stays"
    prompt = [7, 8, *[1] * 20, 9, 9]
    assert cut(prompt, [2] * 3, 10, 2, 2) == ([7, 8, 1, 1, 1, 9, 9], [2] * 3)
    assert cut(prompt, [2] * 3, 6, 2, 2) == ([7, 9, 9], [2] * 3), "begin-of-text and the end of the prompt"


def test_batches_have_rows_of_like_length() -> None:
    from pipeline.passes.finetune.batches import LikeLengths

    lengths = [(i * 37) % 101 for i in range(103)]
    sampler = LikeLengths(lengths, 4, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(103))
    assert order == list(LikeLengths(lengths, 4, seed=0))
    spread = [
        max(part) - min(part) for part in ([lengths[i] for i in order[n : n + 4]] for n in range(0, 60, 4))
    ]
    assert sum(spread) / len(spread) < 15
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_the_written_workflow_runs_with_olives_own_command(context: Context) -> None:
    import shutil
    import subprocess
    import sys

    from pipeline import settings

    stage(context, "quantize", quantize, quantize.Options())
    folder = context.output.parent / "quantize"
    shutil.rmtree(folder / "output")
    shutil.rmtree(folder / "work" / "olive-cache")
    command = [
        sys.executable,
        "-m",
        "olive",
        "run",
        "--config",
        "workflow.json",
        "--package-config",
        "package.json",
    ]
    subprocess.run(
        command, cwd=folder / "work", env=settings.child_environment(), check=True, capture_output=True
    )
    assert (folder / "output" / "model" / "model.safetensors").is_file()


def test_a_pass_that_fails_is_an_error(context: Context) -> None:
    with pytest.raises(AssertionError, match="divisible by group_size"):
        stage(
            replace(context, config={}),
            "quantize",
            quantize,
            quantize.Options(algorithm="rtn", group_size=256),
        )


CALLS = """
import socket
called = []
def lookup(*args, **kwargs):
    called.append(args[0])
    raise OSError("no network in this test")
socket.getaddrinfo = lookup
from olive.telemetry.telemetry import Telemetry
telemetry = Telemetry()
telemetry.log("OliveAction", {"action_name": "run"})
telemetry.shutdown()
print(called)
"""


def test_olive_calls_nobody() -> None:
    """Olive's own switch lets one message through, so this looks at what the process asks the network."""
    build_servers = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL", "CODEBUILD_BUILD_ID")
    environment = {k: v for k, v in settings.child_environment().items() if k not in build_servers}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
