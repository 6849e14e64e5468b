"""Whether an exported folder turns prompts into the same token ids as training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.exports import serving_ids
from pipeline.inputs.models.contents import tokenizer_of
from pipeline.inputs.prompts import lab_prompt, model_template, templates
from pipeline.inputs.prompts.training_ids import WAY_OUT, prompt_ids


def require(
    source: Path,
    exported: Path,
    template: str,
    rows: Iterable[templates.Row] = (),
    tokenizer: Any = None,
) -> None:
    """Compare ids of hard texts and of `rows` as training on the Hugging Face folder `source` reads them,
    as the lab serves them from the folder `exported`, and as that folder's own app.py does.

    Only tokenizer files, genai_config.json and lab.json are read; `tokenizer` is that of `source`, if it is
    loaded already. Raises LabError with an example.
    """
    tokenizer = tokenizer or tokenizer_of(source)
    prompts = serving_ids.load(exported)
    shipped = _shipped(exported, prompts.tokenizer)
    parsed = templates.parse(template, model_template.chat_template(source))
    asked = [*serving_ids.hard_rows(prompts.reader, parsed), *rows]
    for reader, name in ((prompts.reader, "chat and Compare"), (shipped, "app.py")):
        serving_ids.require_same(parsed, asked, partial(prompt_ids, tokenizer), reader.ids, name, WAY_OUT)


def _shipped(exported: Path, tokenizer: Any) -> lab_prompt.Reader:
    """The reader of the folder's own app.py. Its chat template, a program, is rendered within limits."""
    lab = json.loads((exported / serving_ids.LAB).read_text("utf-8"))
    file = exported / "chat_template.jinja"
    chat = templates.Chat(file.read_text("utf-8"), lab_prompt.tokens(exported)) if file.is_file() else None
    return lab_prompt.Reader(lab, tokenizer, templates.ChatTemplate(chat).prompt)
