"""presets: what suits a dataset and a machine, and stays within what the options allow."""

from __future__ import annotations

import math

import pytest

from pipeline.runs import presets
from pipeline.runs.presets import Facts
from pipeline.stages import recipe

NAMES = sorted(presets.PRESETS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 3, 30, 144, 5_000, 2_000_000])
@pytest.mark.parametrize("longest", [None, 1, 700, 30_000])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_preset_makes_a_recipe_that_can_run(name: str, rows: int, longest: int | None, device: str) -> None:
    changes, said = presets.changes(name, Facts(rows, longest), 0.1, device, 1024)
    given: dict[str, dict[str, object]] = {"quantize": {}, "finetune": {}}
    for key, value in changes.items():
        stage, _, option = key.partition(".")
        given[stage][option] = value
    made = recipe.from_dict({"name": "a", "data": "/a.jsonl", **given})
    assert made.finetune is not None
    assert made.finetune.max_length <= 1024
    preset = presets.PRESETS[name]
    assert preset.least <= made.finetune.max_steps <= preset.most
    assert made.finetune.batch_size <= rows
    assert f"{made.finetune.max_steps:,} training steps" in said[0]


def test_all_presets_set_the_same_options() -> None:
    """So that nothing is left of the one that was chosen before."""
    assert len({frozenset(presets.changes(name, Facts(50), 0.1, "cpu")[0]) for name in NAMES}) == 1


def test_steps_follow_the_rows_up_to_a_limit() -> None:
    def steps(rows: int) -> int:
        return int(presets.changes("balanced", Facts(rows, 100), 0.1, "cpu")[0]["finetune.max_steps"])

    assert steps(20) == 60
    assert steps(200) == math.ceil(3 * 180 / 4)
    assert steps(100_000) == 1000


def test_the_length_is_that_of_the_longest_row() -> None:
    def length(longest: int | None, context: int | None = None) -> tuple[int, str]:
        changes, said = presets.changes("quick", Facts(100, longest), 0.1, "cpu", context)
        return changes["finetune.max_length"], said[1]

    assert length(130) == (192, "Rows of up to 192 tokens; the longest has 130, so none is cut.")
    assert length(9000)[0] == 2048
    assert length(9000, 512) == (
        512,
        "Rows of up to 512 tokens; the longest has 9,000, so longer ones are cut.",
    )
    assert length(None)[0] == 512


def test_long_rows_make_small_batches_and_a_gpu_large_ones() -> None:
    def batch(longest: int, device: str) -> int:
        changes, _ = presets.changes("balanced", Facts(1000, longest), 0.1, device)
        return int(changes["finetune.batch_size"])

    assert [batch(100, "cpu"), batch(2000, "cpu"), batch(100, "gpu"), batch(2000, "gpu")] == [4, 1, 16, 8]
