"""Six files of the shapes that people bring, each taken by mouse alone from its upload to a running run."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.store.run import CANCELED
from tests.helpers.formats import lines, parquet, table

pytestmark = pytest.mark.browser

TOWNS = [(f"Where is town {number}?", f"In valley {number}, by the river.") for number in range(12)]


@dataclass(frozen=True)
class Brought:
    """A file, what the page says of it, and a column to choose in a list."""

    name: str
    content: bytes
    said: str
    columns: dict[str, str] = field(default_factory=dict)


def talk(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def shared(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]


FILES = [
    Brought(
        "plain.jsonl",
        lines([{"prompt": asked, "response": answered} for asked, answered in TOWNS]),
        "plain.jsonl: 12 rows · fields: prompt, response",
    ),
    Brought(
        "excel.csv",
        table([{"Spalte A": a, "Spalte B": f"Of {a}", "Spalte C": b} for a, b in TOWNS], ";").encode(
            "utf-16"
        ),
        "prompt = Spalte A + Spalte B, response = Spalte C",
        {"prompt": "Spalte B"},  # beside what is proposed, which is not clear
    ),
    Brought(
        "alpaca.json",
        json.dumps([{"instruction": a, "input": "", "output": b} for a, b in TOWNS]).encode(),
        "json, alpaca",
    ),
    Brought(
        "talks.jsonl",
        lines([{"messages": talk(*pair)} for pair in TOWNS]),
        "talks.jsonl: 12 rows · fields: messages",
    ),
    Brought(
        "shared.parquet.gz",
        gzip.compress(parquet([{"conversations": shared(*pair)} for pair in TOWNS])),
        "parquet.gz, sharegpt",
    ),
    Brought(
        "story.txt",
        "\n\n".join(f"{asked} {answered}" for asked, answered in TOWNS).encode(),
        "txt, plain text: response = text; each is learned as a whole",
    ),
]


def test_six_files_are_taken_by_mouse_to_a_running_run(working_app, tmp_path: Path, shot) -> None:
    for brought in FILES:
        path = tmp_path / brought.name
        path.write_bytes(brought.content)
        page = working_app.open("?tab=data")
        expect(page.locator("#data-summary")).to_contain_text("144 rows")
        with page.expect_file_chooser() as chooser:
            page.locator("#data-upload").get_by_role("button").first.click()
        chooser.value.set_files(path)
        for part, name in brought.columns.items():
            chosen = page.locator(f"#data-{part}")
            expect(chosen.locator("input")).to_be_editable()
            chosen.locator("input").click()
            chosen.get_by_role("option", name=name).click()
            page.locator("#data-template label").click()  # which closes the list
        expect(page.locator("#data-summary")).to_contain_text(brought.said)
        page.click("#data-use")
        page.get_by_label("Quick try").check()
        expect(page.locator("#preset-notice")).to_contain_text("20 training steps of 4 rows each")
        expect(page.locator("#preset-notice")).to_contain_text("so none is cut")
        page.click("#launch")
        expect(page.locator(".lab-run .lab-head")).to_contain_text("Running")
        shot(page, f"five-{brought.name}")
        (run,) = working_app.store.list(limit=1)
        assert Path(run.data).name.startswith(brought.name.partition(".")[0])
        assert run.recipe["finetune"]["max_steps"] == 20
        page.click("#run-cancel")
        page.click("#cancel-yes")
        expect(page.locator(".lab-run .lab-head")).to_contain_text("Canceled")
        page.context.close()
    assert [run.status for run in working_app.store.list()] == [CANCELED] * len(FILES)
