"""A prompt file of very many rows through the real page: a process of its own, its routes, its uploads."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from benchmarks import page_stream, prompt_file
from pipeline import settings
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import spread
from pipeline.inputs.data.splitting import Parts
from pipeline.inputs.prompts import templates
from pipeline.passes import new_rows

ROWS = int(os.environ.get("PROMPT_ROWS", "20000"))  # a million are 200 MB and some minutes
MOST_GROWN = 40 << 20  # bytes of the page's process, however long the file is


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def test_a_prompt_file_of_very_many_rows_is_read_apart_kept_whole_and_spread(
    home: Path, tmp_path: Path
) -> None:
    """The page's own process neither reads nor holds the rows, whose bytes pass through it."""
    with page_stream.served(home) as page:
        taken = prompt_file.measured(page, tmp_path, ROWS)
    sent = tmp_path / "prompts.jsonl"
    assert taken.text.startswith(f"prompts.jsonl: {ROWS:,} rows")
    assert taken.watched.read_apart >= sent.stat().st_size
    assert taken.watched.grown < MOST_GROWN
    assert taken.kept.is_relative_to(home / "datasets")
    assert digest(taken.kept) == digest(sent)
    template = templates.parse("{prompt} {response}")
    new = new_rows.of(settings.SAMPLES / "travel.jsonl", Parts((), (), (), (), "rows"), taken.kept, template)
    assert (len(new.positions), len(new.asked)) == (ROWS, ROWS)
    chosen = spread(new.positions, 500)
    assert len(set(chosen)) == 500
    assert chosen[-1] >= ROWS - ROWS // 500
    last = [row for at, (_, row) in enumerate(datasets.rows(taken.kept)) if at == chosen[-1]]
    assert last == [{
        "prompt": prompt_file.PROMPT.format(chosen[-1]), "response": prompt_file.ANSWER.format(chosen[-1]),
    }]  # fmt: skip
