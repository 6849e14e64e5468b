"""The stages of a run, in order. A new stage is one file here and one line in STAGES.

A stage is a module with
    Options                       a frozen dataclass of `option(...)` fields
    check(options, model)         problems that can be known before anything starts, as sentences
    uses_rows(options)            whether the result depends on the dataset
    workflow(options, context)    the Olive workflow as a dict; pure, so it is tested without torch
    results(options, context)     after Olive ran: metrics and the artifacts written

Optional, looked up by `ask` (functions) and `about` (constants):
    check_among(options, stages, model)   problems with the other stages of a recipe, given by name
    check_recipe(options, stages)         those that can be found without a model
    file(options)                         the value of its option `data`: a file that its result depends on
    beside(inputs)                        what else beside its inputs decides the result, "" for nothing
    as_options(given)                     a recipe's mapping with plain values in place of lists
    needs_gpu(options)                    the option that needs a GPU, such as "finetune.method: 'qlora'"
    gpu_problems(options)                 further problems on a machine without a GPU
    needs_prompts(options)                whether it answers prompts of held-out rows
    max_length(options)                   tokens to which it cuts a row
    uses_template(options)                whether the result depends on the template though not on rows
    likeness(identity)                    the part of the identity that similar results share
    prepared(options, context, home, likeness)  the context, with similar results that can be reused
    not_run_here(options)                 why its workflow is only checked, None if it is run
    unrun(context, reason)                the results in that case
    decided(options)                      options with what some `auto` stands for: equal work has equal ones
    tried(options, config)                options for a quick trial; None leaves the stage out
    size_step(options, config)            what a model's sizes must be multiples of
    DOES                                  what it does to a model, as in "This model cannot be ..."
    SMALLER                               what to reduce if memory runs out
    MODULES                               modules that its passes import and that take long to load
    RENAMED                               old names of options, and their current names
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


def ask(stage: str, question: str, *given: Any, default: Any = None) -> Any:
    """A stage's answer to one of the questions above; `default` where its module has none."""
    answer = getattr(STAGES[stage], question, None)
    return default if answer is None else answer(*given)


def about(stage: str, fact: str, default: Any = None) -> Any:
    """One of the facts above of a stage; `default` where its module has none, or it is a publish."""
    return getattr(STAGES.get(stage), fact, default)
