"""The stages of a run, in order. A new stage is one file here and one line in STAGES.

A stage is a module with
    Options                       a frozen dataclass of `option(...)` fields
    check(options, model)         problems that can be known before anything starts, as sentences
    uses_rows(options)            whether the result depends on the dataset
    workflow(options, context)    the Olive workflow as a dict; pure, so it is tested without torch
    results(context)              after Olive ran: metrics and the artifacts written
and, where a result without rows depends on it all the same,
    uses_template(options)        whether the result depends on the prompt template
and, where a stage may be for a device that is not here,
    not_run_here(options)         why its workflow is only checked, None if it is run
    unrun(context, reason)        what it gives then
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import evaluate, finetune, optimize, quantize, score

STAGES: dict[str, Any] = {
    "quantize": quantize,
    "finetune": finetune,
    "optimize": optimize,
    "evaluate": evaluate,
    "score": score,
}
