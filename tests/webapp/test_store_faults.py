"""The page over a store that cannot be used for a while, or was mended."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from pipeline.store import Store, backup
from tests.helpers import planted
from webapp import app
from webapp import home as opened


def test_a_locked_database_is_a_sentence(client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, run = planted.queued(store), planted.queued(store)
    assert client.get(f"/runs/{first}.json").status_code == 200
    monkeypatch.setattr(backup, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")  # else readers would not notice
        other.execute("BEGIN EXCLUSIVE")
        answer = client.get(f"/runs/{run}.json")
        assert answer.status_code == 503
        assert answer.text.endswith("close what has it open, and try again.\n")
        assert answer.headers["Retry-After"] == "5"
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.post(f"/runs/{run}/cancel")
        assert answer.status_code == 409
        assert "close what has it open" in answer.json()["error"]
    assert client.post(f"/runs/{run}/cancel").json()["status"] == "canceled"


def test_the_page_says_that_the_database_was_mended_until_it_is_dismissed(home, store: Store) -> None:
    run = planted.queued(store)
    assert app.told() == ({"visible": False, "__type__": "update"}, None)
    store.path.write_bytes(b"damaged" * 1000)
    opened._open.cache_clear()
    row, notice = app.told()
    assert row["visible"]
    assert "1 run added" in notice["text"]
    assert opened.store().get(run).status == "queued"
    assert app.dismiss()["visible"] is False
    assert app.told()[1] is None
