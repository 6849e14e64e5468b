"""How plain text is trained, where a recipe says nothing else: values for it, as `auto` has them."""

from __future__ import annotations

from typing import Any

from pipeline.inputs.prompts import templates
from pipeline.stages.recipe import Recipe

TEMPLATE, LOSS = "template", "finetune.loss_on"


def settling(recipe: Recipe, template: str) -> tuple[dict[str, Any], list[str]]:
    """What becomes of a recipe whose dataset is read with another template than `chat`, which it says; and a
    sentence for each value. Nothing where it has a template of its own: then it says all.
    """
    if recipe.template.strip() != templates.CHAT or template == recipe.template:
        return {}, []
    values = {TEMPLATE: template}
    said = [f"{TEMPLATE} is {template}: the rows are plain text, whose beginning is the prompt."]
    if recipe.finetune is not None and recipe.finetune.loss_on != "all":
        values[LOSS] = "all"
        said.append(f"{LOSS} is all: plain text is learned as a whole.")
    return values, said
