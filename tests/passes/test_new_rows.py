"""Which rows an evaluation is made on."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data.splitting import Parts
from pipeline.inputs.prompts import templates
from pipeline.passes import new_rows

TEMPLATE = templates.parse("{prompt}\n{response}")
PARTS = Parts([0], [1, 2], [1], [], "prompts")


def test_held_out_rows_unless_a_file_is_brought(tmp_path: Path) -> None:
    data, brought = tmp_path / "data.jsonl", tmp_path / "prompts.jsonl"
    assert new_rows.of(data, PARTS, None, TEMPLATE) == new_rows.NewRows(data, [1, 2], [1])
    rows = [{"prompt": prompt, "response": "x"} for prompt in "abab"]
    brought.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = new_rows.of(data, PARTS, brought, TEMPLATE)
    assert (found.file, list(found.positions), list(found.asked)) == (brought, [0, 1, 2, 3], [0, 1])


def test_near_copies_are_in_no_list_of_rows_and_are_counted(tmp_path: Path) -> None:
    long = "The market of the old town, and then the river with its bridges. "
    rows = [{"prompt": f"{n}?", "response": long if n in (0, 2) else f"{n * 104729} miles"} for n in range(4)]
    data, brought = tmp_path / "data.jsonl", tmp_path / "prompts.jsonl"
    for file in (data, brought):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = Parts([0, 1], [2, 3], [2, 3], [], "prompts")
    found = new_rows.of(data, parts, None, TEMPLATE).without_copies(data, parts, TEMPLATE)
    assert (list(found.positions), list(found.asked)) == ([3], [3])
    assert found.left_out() == {"copies_left_out": 1}
    found = new_rows.of(data, parts, brought, TEMPLATE).without_copies(data, parts, TEMPLATE)
    assert (list(found.positions), list(found.asked), found.copies) == ([3], [3], 3)


def test_a_row_that_does_not_fit_is_named_by_its_line(tmp_path: Path) -> None:
    brought = tmp_path / "prompts.jsonl"
    brought.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"prompts\.jsonl:2: "):
        new_rows.of(tmp_path / "data.jsonl", PARTS, brought, TEMPLATE)


def test_memory_does_not_follow_the_texts(tmp_path: Path) -> None:
    """A row of 2,000 letters takes as much as one of two; a million are 60 MB and not 2 GB."""
    brought = tmp_path / "prompts.jsonl"
    with brought.open("w") as file:
        for number in range(4000):
            file.write(json.dumps({"prompt": f"{number}", "response": "x" * 2000}) + "\n")
    tracemalloc.start()
    new_rows.of(tmp_path / "data.jsonl", PARTS, brought, TEMPLATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
