"""Sweeps: which runs they make, and that all or none are queued."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.runs import submit, sweep
from pipeline.runs.data import row_lengths
from pipeline.runs.preflight import row_facts
from pipeline.stages import recipe
from pipeline.store import Store


def made(recipe_file: Path, *axes: str) -> list[recipe.Recipe]:
    return sweep.variants(lambda changes: recipe.load(recipe_file, changes), list(axes))


def test_every_combination_is_a_run_of_one_group(recipe_file: Path) -> None:
    found = made(recipe_file, "finetune.r=8,16", "quantize.algorithm=rtn,gptq")
    assert [(r.finetune.r, r.quantize.algorithm) for r in found] == [  # type: ignore[union-attr]
        (8, "rtn"), (8, "gptq"), (16, "rtn"), (16, "gptq"),
    ]  # fmt: skip
    assert [r.name for r in found][:2] == ["trip r=8, algorithm=rtn", "trip r=8, algorithm=gptq"]
    (group,) = {r.group for r in found}
    assert group.startswith("sweep-")


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        (["finetune.r"], "write it as option=value,value"),
        (["finetune.r="], "write it as option=value,value"),
        (["finetune.r=8", "finetune.r=16"], "finetune.r: given twice"),
        (["finetune.r=8,zwei"], "finetune.r: 'zwei'"),
        (["finetune.rank=8,16"], "finetune.rank: unknown"),
        (["seed=" + ",".join(map(str, range(101)))], "up to 100"),
        (["seed=1," + "- x\n" * 1000], "a value has more than 300 letters"),
    ],
)
def test_what_cannot_be_swept_is_refused(recipe_file: Path, axes: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        made(recipe_file, *axes)


def test_all_are_queued(store: Store, recipe_file: Path, no_worker: list[Path]) -> None:
    runs = sweep.start(store, made(recipe_file, "finetune.r=4,8"), "ann")
    found = [store.get(run) for run in runs]
    assert [(run.owner, run.recipe["finetune"]["r"]) for run in found] == [("ann", 4), ("ann", 8)]
    assert no_worker == [store.home]


@pytest.mark.parametrize(
    ("fixed", "processes"),
    [((), 2), (("finetune.max_steps=auto",), 3), (("evaluate.data",), 3)],
    ids=["plain", "auto", "a file to evaluate on"],
)
def test_the_rows_that_all_runs_have_are_counted_once(
    recipe_file: Path, dataset: Path, fixed: tuple[str, ...], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That starts a process with the model's tokenizer: a sweep of a hundred runs took minutes."""
    counted: list[str] = []
    for module, name in ((row_facts, "of"), (row_lengths, "counting")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, real=real, name=name: counted.append(name) or real(*given)
        )
    prompts = dataset.with_name("prompts.jsonl")
    prompts.write_bytes(dataset.read_bytes())
    given = [f"{one}={prompts}" if one.endswith("data") else one for one in fixed]
    axes = ["finetune.r=4,8", "seed=1,2", "eval_fraction=0.1,0.2"]
    recipes = sweep.variants(lambda changes: recipe.load(recipe_file, [*given, *changes]), axes)
    found = submit.checked(recipes)
    assert len(counted) == processes
    rows = [one.preflight["rows"] for one in found if not isinstance(one, InputError) and one.preflight]
    assert [one["held_out"] for one in rows] == [2, 4] * 4


def test_one_that_cannot_run_keeps_all_from_being_queued(
    store: Store, recipe_file: Path, tmp_path: Path, no_worker: list[Path]
) -> None:
    (tmp_path / "bad.jsonl").write_text("not json\n")
    recipes = made(recipe_file, "data=travel.jsonl,bad.jsonl")
    with pytest.raises(InputError, match=r"^trip data=bad\.jsonl: .*bad\.jsonl:1: the file is plain text"):
        sweep.start(store, recipes)
    assert (store.list(), no_worker) == ([], [])


def test_what_is_wrong_with_a_hundred_runs_is_a_short_list(
    store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    given = recipe.load(recipe_file, ["template={foo} {bar}"]).to_dict()
    with pytest.raises(InputError) as caught:
        sweep.launch(store, given, ["seed=" + ",".join(map(str, range(100)))])
    assert len(caught.value.problems) == 21
    assert caught.value.problems[20].startswith("and ")
    assert len(str(caught.value)) < 45_000
    assert store.list() == []


def test_combinations_beyond_all_measure_are_counted_and_not_made():
    axes = [f"{key}={','.join(map(str, range(1000)))}" for key in ("seed", "finetune.r")]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="These are 1000000 runs"):
            sweep.variants(lambda changes: pytest.fail("one was made"), axes)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
