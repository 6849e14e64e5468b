"""Stages answer for themselves; who carries them out knows none by name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import ANY_SMALLER
from pipeline.inputs.options import describe
from pipeline.stages import evaluate, finetune, optimize, quantize, recipe
from pipeline.stages.all_stages import STAGES, about, ask

STRANGERS = (
    "errors.py", "runs/prepared.py", "runs/submit.py",
    "worker/stage_process.py", "worker/loop.py", "worker/miniature.py", "worker/ahead/warm.py",
)  # fmt: skip


def named(code: str) -> list[str]:
    """The stages that code names: in a text that begins with one, an import, or as an attribute."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.split(r"[.:]", node.value)[0])
        elif isinstance(node, ast.alias):
            found += node.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            found += (node.module or "").split(".")
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
    return [word for word in found if word in STAGES]


@pytest.mark.parametrize("path", STRANGERS)
def test_who_carries_stages_out_knows_none_by_name(path: str) -> None:
    assert named((settings.ROOT / "pipeline" / path).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "from pipeline.stages import optimize",
        "import pipeline.stages.score",
        "from pipeline.stages.evaluate import Options",
        "x = {'quantize': 1}",
        "x = f'finetune.method: {y}'",
        "x = chosen.optimize",
    ],
)
def test_a_stage_that_is_named_is_found(code: str) -> None:
    assert len(named(code)) == 1


def test_a_stage_without_an_answer_has_the_default() -> None:
    assert ask("quantize", "max_length", quantize.Options()) is None
    assert ask("finetune", "max_length", finetune.Options(max_length=99), default=1) == 99
    assert ask("score", "check_among", None, default=[]) == []
    assert about("publish-1", "SMALLER", ANY_SMALLER) == ANY_SMALLER


@pytest.mark.parametrize("stage", STAGES)
def test_what_to_take_smaller_is_an_option_of_the_stage(stage: str) -> None:
    said = about(stage, "SMALLER")
    assert said.startswith("a smaller ")
    options = {option.name for option in describe(recipe.OPTIONS[stage])}
    found = re.findall(rf"{stage}\.(\w+)", said)
    assert set(found) <= options
    assert found or stage == "optimize"


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_imported_ahead_is_there(stage: str) -> None:
    for module in about(stage, "MODULES", ()):
        inner = Path(*module.split("."))
        assert not module.startswith("pipeline") or (settings.ROOT / inner.with_suffix(".py")).is_file()


def test_only_evaluation_answers_prompts() -> None:
    assert [name for name in STAGES if ask(name, "needs_prompts", None)] == ["evaluate"]


def test_a_trial_leaves_out_what_cannot_fail_for_a_model() -> None:
    assert ask("evaluate", "tried", evaluate.Options(), {}, default=1) is None
    assert ask("score", "tried", None, {}, default=1) is None
    assert ask("optimize", "tried", optimize.Options(), {}, default=1) == 1


def test_another_adapter_makes_no_other_graph() -> None:
    identity = {"checkpoint": "quantize-1", "adapter": "finetune-2", "device": "cpu"}
    assert optimize.likeness(identity) == {"checkpoint": "quantize-1", "device": "cpu"}


def test_the_stages_of_a_recipe_that_nobody_names_are_those_without_default() -> None:
    assert {"score"} == recipe.LEFT_OUT


def test_what_needs_a_gpu_is_named_by_the_stage() -> None:
    gpu = optimize.Options(device="gpu", provider=optimize.CUDA)
    assert ask("optimize", "needs_gpu", gpu) == "optimize.device: 'gpu'"
    assert ask("optimize", "needs_gpu", optimize.Options(device="gpu", provider=optimize.TRT_RTX)) is None
    assert ask("quantize", "needs_gpu", quantize.Options(engine="autoawq")) == "quantize.engine: 'autoawq'"
    assert ask("finetune", "needs_gpu", finetune.Options(method="qlora")) == "finetune.method: 'qlora'"
    assert not any(ask(name, "needs_gpu", cls()) for name, cls in recipe.OPTIONS.items())
