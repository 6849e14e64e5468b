"""Routes of data cards: lines as downloads, rows a page at a time, and nothing but what is offered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runs import kept_datasets
from pipeline.runs.data import data_card
from tests.runs.data.test_data_card import ROWS, ended


@pytest.fixture
def key(home: Path, tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    kept = kept_datasets.keep(home, path)
    card = ended(data_card.card(data_card.Question(kept, "{prompt} {response}", None, 512)))
    return str(card["key"])


def test_lines_are_downloads(client, key):
    found = client.get(f"/cards/{key}/duplicates.csv")
    assert (found.text, found.headers["content-disposition"]) == (
        "line\r\n2\r\n", 'attachment; filename="duplicates.csv"',
    )  # fmt: skip
    assert client.get(f"/cards/{key}/emails.json").json() == {"finding": "emails", "lines": [3]}
    assert client.get(f"/cards/{key}/leaks.json").json()["lines"] == []


def test_rows_are_shown_a_page_at_a_time(client, key):
    found = client.get(f"/cards/{key}/rows", params={"search": "NOTHING"}).json()
    assert [row["line"] for row in found["rows"]] == [4]
    assert client.get(f"/cards/{key}/rows").json()["rows"][0]["cells"] == ROWS[0]


@pytest.mark.parametrize(
    "path",
    ["KEY/nope.csv", "KEY/../runs.db/rows", "nope/rows", "nope/leaks.csv", "KEY/rows?offset=3",
     "00000000000000000000000000000000/rows"],
)  # fmt: skip
def test_nothing_else_is_served(client, key, path):
    assert client.get(f"/cards/{path.replace('KEY', key)}").status_code == 404


def test_a_dataset_that_is_not_offered_any_more_is_not_read(client, home, key):
    file = home / "cards" / key / "card.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "path": "/etc/passwd"}))
    assert client.get(f"/cards/{key}/rows").status_code == 404
