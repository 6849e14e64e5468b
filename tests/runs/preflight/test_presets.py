"""presets: what suits a dataset and a machine, and stays within what the options allow."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import telling
from pipeline.runs import submit
from pipeline.runs.data import row_lengths
from pipeline.runs.data.row_lengths import RowLengths
from pipeline.runs.preflight import presets
from pipeline.runs.preflight.presets import Facts
from pipeline.runs.preflight.step_room import StepRoom
from pipeline.stages import recipe
from pipeline.store import Store

NAMES = sorted(presets.PRESETS)
PLENTY = StepRoom(1000, 10**12)


def facts(rows: int, *tokens: int, device: str = "cpu", context: int | None = None, **rest: object) -> Facts:
    """Of a dataset whose rows have so many tokens, on a machine with plenty of memory."""
    given = {"memory": PLENTY, **rest}
    return Facts(rows, RowLengths(tuple(sorted(tokens))), device, context, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 3, 30, 144, 5_000, 2_000_000])
@pytest.mark.parametrize("longest", [None, 1, 700, 30_000])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_preset_makes_a_recipe_that_can_run(name: str, rows: int, longest: int | None, device: str) -> None:
    tokens = [] if longest is None else [longest] * min(rows, 100)
    changes, said = presets.changes(name, facts(rows, *tokens, device=device, context=1024), 0.1)
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
    assert len({frozenset(presets.changes(name, facts(50), 0.1)[0]) for name in NAMES}) == 1


def test_steps_follow_the_rows_up_to_a_limit() -> None:
    def steps(rows: int) -> int:
        return int(presets.changes("balanced", facts(rows, 100), 0.1)[0]["finetune.max_steps"])

    assert steps(20) == 60
    assert steps(200) == math.ceil(3 * 180 / 4)
    assert steps(100_000) == 1000


def length(rows: int, *tokens: int, context: int | None = None) -> tuple[int, str]:
    changes, said = presets.changes("quick", facts(rows, *tokens, context=context), 0.1)
    return changes["finetune.max_length"], said[1]


def test_the_length_is_that_of_the_longest_row() -> None:
    assert length(2, 90, 130) == (192, "Rows of up to 192 tokens; the longest has 130, so none is cut.")
    assert length(2, 8000, 9000) == (
        2048, "Rows of up to 2,048 tokens; the longest has 9,000, so 2 rows are cut.",
    )  # fmt: skip
    assert length(2, 100, 600, context=512)[1].endswith("so 1 row is cut.")


def test_a_few_rows_that_are_far_longer_are_cut_and_counted() -> None:
    short = [100] * 198
    assert length(200, *short, 900, 1000) == (
        128, "Rows of up to 128 tokens; the longest has 1,000, so 2 rows are cut.",
    )  # fmt: skip
    assert length(200, *short, 140, 190)[0] == 192  # not far
    assert length(100, *short[:97], 800, 900, 1000)[0] == 1024  # more than a few


def test_of_a_sample_the_number_cut_is_an_estimate_and_that_is_said() -> None:
    said = length(20_000, *[100] * 198, 900, 1000)[1]
    assert said == (
        "Rows of up to 128 tokens; the longest has 1,000, so about 200 rows are cut. Counted in 200 of 20,000"
        " rows, spread over all."
    )


def test_lengths_that_nobody_knows_are_said_to_be_so() -> None:
    unknown = Facts(10, RowLengths((), "the hub cannot be reached."))
    changes, said = presets.changes("quick", unknown, 0.1)
    assert changes["finetune.max_length"] == 512
    assert said[1] == (
        "Longer rows than 512 tokens are cut; how long they are is not known: the hub cannot be reached."
    )


def batch(longest: int, device: str, memory: StepRoom | None = PLENTY) -> tuple[int, str]:
    given = facts(1000, *[longest] * 100, device=device, memory=memory)
    changes, said = presets.changes("balanced", given, 0.1)
    return int(changes["finetune.batch_size"]), said[2]


def test_long_rows_make_small_batches_and_a_gpu_large_ones() -> None:
    found = [batch(100, "cpu"), batch(2000, "cpu"), batch(100, "gpu"), batch(2000, "gpu")]
    assert [size for size, _ in found] == [4, 1, 16, 8]
    assert (
        found[0][1] == "4 rows at a time: that takes up to about 512.0 kB of memory, of 1000.0 GB that are"
        " there for it."
    )


def test_little_memory_makes_small_batches_and_says_where_even_one_row_is_too_much() -> None:
    assert batch(100, "cpu", StepRoom(10**6, 3 * 10**8))[0] == 2
    size, said = batch(2000, "gpu", StepRoom(10**6, 10**9))
    assert size == 1
    assert "even one of 2,048 tokens takes about 2.0 GB of memory, and 1.0 GB are there for it" in said
    assert batch(100, "cpu", None) == (4, "4 rows at a time: 512 tokens, whose memory is not known.")


AUTO = ("finetune.max_steps=auto", "finetune.batch_size=auto", "finetune.max_length=auto")


class TestSuiting:
    """With a tokenizer of a token a byte."""

    def test_the_lengths_of_the_rows_are_counted_of_many_in_a_sample(
        self, home: Path, dataset: Path, model_folder: Path, bytes_as_tokens: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(row_lengths, "MOST_ROWS", 15)
        given = "quick", str(dataset), "chat", str(model_folder), 0.1, "cpu"
        changes, said = telling.ended(presets.answer(*given))
        assert changes["finetune.max_length"] == 64
        # <s> and <|end|> are tokens, each other byte one of its own.
        longest = len("s<|user|>\nWhere is town 10?e\n<|assistant|>\nIn valley 10.e")
        assert said[1].startswith(f"Rows of up to 64 tokens; the longest has {longest}, so none is cut.")
        assert re.search(r" Counted in ([5-9]|1[0-5]) of 20 rows, spread over all\.$", said[1])

    def test_no_tokenizer_is_a_reason_in_the_sentence(
        self, home: Path, dataset: Path, model_folder: Path
    ) -> None:
        given = "quick", str(dataset), "chat", str(model_folder), 0.1, "cpu"
        changes, said = telling.ended(presets.answer(*given))
        assert changes["finetune.max_length"] == 512
        assert "has no tokenizer.json; put the tokenizer's files there" in said[1]


class TestAuto:
    """`auto` in a recipe, which is settled when the run is queued."""

    def test_it_becomes_the_value_in_the_run_and_is_said(
        self, store: Store, recipe_file: Path, bytes_as_tokens: Path, dataset: Path, no_worker: list[Path]
    ) -> None:
        row = {"prompt": "Where?", "response": "x" * 600}
        dataset.write_text(dataset.read_text() + f"{json.dumps(row)}\n" * 10)
        said: list[str] = []
        chosen = recipe.load(recipe_file, ["quantize=null", *AUTO])
        assert chosen.to_dict()["finetune"]["max_steps"] == "auto"
        assert recipe.from_dict(chosen.to_dict()) == chosen
        found = store.get(submit.submit(store, chosen, note=said.append))
        options = found.stage("finetune").options
        assert [options[name] for name in ("max_steps", "batch_size", "max_length")] == [60, 2, 640]
        assert found.recipe["finetune"] == options
        assert recipe.from_dict(found.recipe).auto == ()
        assert said[0].startswith("finetune.max_steps is 60 (auto): 60 training steps of 2 rows each: ")
        assert said[2].startswith("finetune.max_length is 640 (auto): Rows of up to 640 tokens; the longest")
        assert not any("will be cut" in text for text in said)  # by the length that stands there meanwhile

    def test_it_follows_from_what_was_chosen_by_hand(
        self, store: Store, recipe_file: Path, dataset: Path, no_worker: list[Path]
    ) -> None:
        dataset.write_text(dataset.read_text() * 30)
        by_hand = ["finetune.batch_size=2", "finetune.gradient_accumulation=3", "finetune.max_steps=auto"]
        found = store.get(submit.submit(store, recipe.load(recipe_file, ["quantize=null", *by_hand])))
        assert found.stage("finetune").options["max_steps"] == 3 * 540 // (2 * 3)
        assert found.stage("finetune").options["max_length"] == 512

    def test_all_faults_are_named_with_it(self, store: Store, recipe_file: Path, dataset: Path) -> None:
        dataset.write_text('{"prompt": "a"}\n' * 2)
        changes = [*AUTO, "quantize.bits=4", "finetune.target_modules=nothing"]
        with pytest.raises(InputError) as caught:
            submit.submit(store, recipe.load(recipe_file, changes))
        assert any(problem.startswith("finetune.target_modules") for problem in caught.value.problems)
        assert any("response" in problem for problem in caught.value.problems)

    def test_it_is_refused_elsewhere(self, recipe_file: Path) -> None:
        with pytest.raises(InputError, match=r"finetune\.r: 'auto' is not allowed"):
            recipe.load(recipe_file, ["finetune.r=auto"])
        with pytest.raises(InputError, match=r"max_steps: 0 is not allowed; allowed: 'auto' or a whole"):
            recipe.load(recipe_file, ["finetune.max_steps=0"])
