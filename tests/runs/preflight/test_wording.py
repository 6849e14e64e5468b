from __future__ import annotations

from typing import Any

from pipeline.runs.preflight import wording
from pipeline.stages.costs.cost import Cost, Range

COST = Cost(Range(1e9, 1.2e9, 1.3e9), None, Range(2e6, 2e6, 2e6), Range(40.0, 50.0, 70.0))
ROWS = {"train": 1200, "held_out": 10, "mean": 5.0, "most": 9.0, "answer": 0.5, "counted": True}


def facts(**given: Any) -> dict[str, Any]:
    stages = {"quantize": COST.to_dict(), "finetune": COST.to_dict()}
    machine = {"memory": 8e9, "gpu_memory": None, "disk": 5e10}
    usual: dict[str, Any] = {"stages": stages, "rows": ROWS, "passes": 2.5, "machine": machine}
    return {**usual, "problems": [], "errors": {}, "calibrated": True, "gpu": False, **given}


def test_a_row_a_stage_and_all() -> None:
    assert wording.table(facts()) == [
        ("Stage", "Memory", "Disk", "Time"),
        ("quantize", "1.0 to 1.3 GB", "2.0 MB", "40 s to 1 min 10 s"),
        ("finetune", "1.0 to 1.3 GB", "2.0 MB", "40 s to 1 min 10 s"),
        ("all", "1.0 to 1.3 GB", "4.0 MB", "1 min 20 s to 2 min 20 s"),
    ]


def test_on_a_gpu_its_memory_has_a_column() -> None:
    on_gpu = {**COST.to_dict(), "gpu_memory": [5e9, 6e9, 7e9]}
    none = {**COST.to_dict(), "gpu_memory": [0.0, 0.0, 0.0]}
    shown = wording.table(facts(gpu=True, stages={"finetune": on_gpu, "optimize": none}))
    assert [row[2] for row in shown] == ["GPU memory", "5.0 to 7.0 GB", "none", "5.0 to 7.0 GB"]


def test_passes_are_said() -> None:
    assert wording.sentences(facts())[0] == (
        "Training makes 2.5 passes over the 1,200 rows that are not held out."
    )
    assert "makes 1 pass over" in wording.sentences(facts(passes=1.0))[0]
    assert "makes 1,234 passes over" in wording.sentences(facts(passes=1234.4))[0]
    assert wording.sentences(facts(passes=None)) == []


def test_what_the_ranges_rest_on_is_said() -> None:
    said = wording.sentences(facts(rows={**ROWS, "counted": False}, calibrated=False))
    assert "guessed" in said[1]
    assert "not been measured yet" in said[2]
    errors = {"finetune": {"stages": 3, "memory": 0.041, "seconds": 0.2}}
    assert wording.sentences(facts(errors=errors))[1] == (
        "Off so far, in the median (of so many stages): finetune memory 4%, time 20% (3)."
    )


def test_a_model_of_unknown_sizes() -> None:
    assert wording.table(facts(stages={})) == []
    assert wording.sentences(facts(stages={})) == [wording.UNKNOWN]


def test_what_the_machine_has() -> None:
    assert wording.fits(facts()) == "This machine has 8.0 GB of memory, 50.0 GB free on the disk."
