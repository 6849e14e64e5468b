from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.runs.preflight import fitting, predict
from pipeline.stages.costs.machine import GPU
from pipeline.system.capacity import Capacity
from tests.runs.preflight.test_predict import QUESTION, made

GB = 1000**3
LARGE = Capacity(1000 * GB, 1000 * GB, 1000 * GB)


def memory(question: predict.Question = QUESTION, **finetune: Any) -> float:
    return predict.costs(made(finetune=finetune), question)["finetune"].memory.likely


def test_what_fits_is_no_problem() -> None:
    assert fitting.problems(made(), QUESTION, LARGE) == []


def test_the_nearest_setting_that_fits_is_named() -> None:
    wanted = made(finetune={"batch_size": 32})
    enough = replace(LARGE, memory=int((memory(batch_size=8) + 1e6) / fitting.USABLE))
    (problem,) = fitting.problems(wanted, QUESTION, enough)
    assert problem.startswith("finetune.batch_size: 32 needs about ")
    assert problem.endswith(" can be used here; 8 fits")
    assert fitting.problems(made(finetune={"batch_size": 8}), QUESTION, enough) == []
    assert fitting.problems(made(finetune={"batch_size": 16}), QUESTION, enough) != []


def test_where_one_row_is_too_much_it_is_checkpointing_or_shorter_rows() -> None:
    rows = replace(QUESTION, rows=replace(QUESTION.rows, most=30_000.0))
    wanted = made(finetune={"batch_size": 2, "max_length": 4096})
    least = memory(rows, batch_size=1, max_length=1024, gradient_checkpointing=True)
    there = replace(LARGE, memory=int((least + 1e6) / fitting.USABLE))
    problem = fitting.problems(wanted, rows, there)[0]
    assert problem.startswith("finetune.max_length: 4096 needs about ")
    assert problem.endswith("; 1024 fits with finetune.batch_size 1 and finetune.gradient_checkpointing true")


def test_where_nothing_fits_it_says_so() -> None:
    problems = fitting.problems(made(), QUESTION, replace(LARGE, memory=100_000_000))
    assert [problem.partition(":")[0] for problem in problems] == [
        "quantize",
        "finetune",
        "optimize",
        "evaluate",
    ]
    assert all("whatever its options are" in problem for problem in problems)


def test_the_memory_of_a_gpu_counts() -> None:
    question = replace(QUESTION, machine=GPU)
    found = predict.costs(made(finetune={"batch_size": 64}), question)["finetune"]
    assert found.gpu_memory is not None
    there = replace(LARGE, gpu_memory=int(found.gpu_memory.likely * 0.8) + fitting.CONTEXT)
    (problem,) = fitting.problems(made(quantize=None, finetune={"batch_size": 64}), question, there)
    assert "of GPU memory" in problem
    assert "fits" in problem


def test_all_results_share_the_disk() -> None:
    one = predict.costs(made(), QUESTION)["quantize"].disk.likely
    there = replace(LARGE, disk=fitting.KEPT_FREE + int(one * 1.1))
    problems = fitting.problems(made(), QUESTION, there)
    assert problems
    assert all("of disk space" in problem and "free space on the disk" in problem for problem in problems)
    assert not problems[0].startswith("quantize")


@pytest.mark.parametrize("what", ["memory", "gpu_memory", "disk"])
def test_a_machine_without_any_room_takes_nothing(what: str) -> None:
    question = replace(QUESTION, machine=GPU)
    assert fitting.problems(made(), question, replace(LARGE, **{what: 0}))


MILLION = replace(QUESTION, brought={"evaluate": replace(QUESTION.rows, train=1, held_out=1_000_000)})


def endless(question: predict.Question, **evaluate: Any) -> list[str]:
    return fitting.endless(made(evaluate=evaluate), question, lambda other: predict.costs(other, question))


def test_days_of_reading_all_rows_are_asked_back_about() -> None:
    (problem,) = endless(MILLION, rows="all", data="/million.jsonl")
    assert problem.startswith("evaluate.rows: all takes about ")
    assert "days for 1,000,000 rows; 500 from all over them take about" in problem
    assert problem.endswith(". Give a number; 1000000 reads all of them anyway")


@pytest.mark.parametrize("rows", [1_000_000, 500, 0])
def test_a_number_of_rows_is_never_refused(rows: int) -> None:
    assert endless(MILLION, rows=rows, data="/million.jsonl") == []


def test_all_of_the_held_out_rows_are_read_where_that_is_no_matter_of_days() -> None:
    assert endless(QUESTION, rows="all") == []
    assert fitting.endless(made(evaluate=None), QUESTION, lambda _: {}) == []
    assert fitting.endless(made(evaluate={"rows": "all"}), QUESTION, lambda _: {}) == []
