"""What it learns, in a real browser: rows as tokens, one after the other."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import talks
from tests.helpers.page import ATTACK, upload

pytestmark = pytest.mark.browser


def test_rows_are_looked_through_as_tokens(app, shot):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("rows")
    rows = [talks.TALK, talks.talk(ATTACK, "no", "Why?", "x " * 2500)]
    upload(page, "talks.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    expect(page.locator("#data-summary")).to_contain_text("talks.jsonl: 2 rows · fields: messages")
    page.get_by_role("button", name="What it learns").click()
    panel = page.locator("#data-learned")
    panel.get_by_role("button", name="Show", exact=True).click()
    tokens = page.locator("#data-tokens")
    expect(tokens.locator(".lab-legend")).to_be_visible(timeout=60_000)
    expect(tokens).to_contain_text("ids are equal")
    expect(tokens.locator("pre .is-end")).to_have_count(3)
    learned = tokens.locator("pre .is-learned").all_text_contents()
    assert "".join(learned) == "Rome.No.Then go there."
    panel.get_by_role("button", name="Next", exact=True).click()
    expect(page.locator("#data-line input")).to_have_value("2")
    expect(tokens).to_contain_text("are cut, because")
    expect(tokens.locator("img")).to_have_count(0)
    assert page.evaluate("window.hacked") is None
    shot(page, "learned")
    panel.get_by_role("button", name="Next", exact=True).click()
    expect(tokens).to_contain_text("no row is behind line 2")
    panel.get_by_role("button", name="Previous", exact=True).click()
    expect(page.locator("#data-line input")).to_have_value("1")
    app.settle(page)
    assert faults(page) == []
