"""The data card in a real browser: figures, histogram, findings, rows with search, and rows left out."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults

pytestmark = pytest.mark.browser

BAD = '<img src=x onerror="window.hacked=1">'


def rows() -> bytes:
    """30 rows; line 2 is a copy of line 1, and line 3 has an e-mail address."""
    made = [
        {"prompt": f"What is number {number}?", "response": "so " * number + BAD} for number in range(1, 31)
    ]
    made[1] = made[0]
    made[2] = {"prompt": "Whom do I ask?", "response": "Ask jane@acme.org, please"}
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def test_a_card_from_upload_to_recipe(app, shot):
    page = app.open()
    page.set_input_files(
        "#data-upload input[type=file]", {"name": "mine.jsonl", "mimeType": "text/plain", "buffer": rows()}
    )
    card = page.locator("#data-card")
    expect(card).to_contain_text("30 rows. Tokens a row: median")
    expect(card.locator("#card-tokens .plotly, #card-tokens .main-svg").first).to_be_visible()
    found = card.locator("tr[data-finding=emails]")
    expect(found).to_contain_text("E-mail addresses")
    with page.expect_download() as download:
        found.get_by_role("link", name="csv").click()
    assert download.value.path().read_text() == "line\n3\n"
    card = page.locator("#data-all-rows")
    table = card.locator(".lab-table")
    expect(table.locator("tbody tr")).to_have_count(20)
    expect(page.locator("#data-rows")).to_be_hidden()  # the first rows stand once on the page
    card.get_by_role("button", name="Next").click()
    expect(table.locator("tbody tr")).to_have_count(10)
    search = card.get_by_label("Search the rows")
    search.fill("NUMBER 30?")
    search.press("Enter")
    expect(table.locator("tbody tr")).to_have_count(1)
    expect(table).to_contain_text(BAD)
    assert page.evaluate("window.hacked") is None
    shot(page, "data-card")
    assert faults(page) == []
    page.get_by_label("Duplicates (1)").check()
    page.get_by_label("E-mail addresses (1)").check()
    page.click("#data-use")
    app.unfold(page)
    expect(page.locator("#recipe")).to_contain_text("leave_out: duplicates,emails")


def test_where_no_card_can_be_made_the_first_rows_stay(app):
    page = app.open("?tab=data")
    expect(page.locator("#data-all-rows tbody tr")).to_have_count(20)  # of the sample
    misfit = b'{"question": "a", "answer": "b"}\n' * 3 + b"[]\n"
    page.set_input_files(
        "#data-upload input[type=file]", {"name": "mine.jsonl", "mimeType": "text/plain", "buffer": misfit}
    )
    expect(page.locator("#data-problems")).to_contain_text("Line 4")
    expect(page.locator("#data-rows")).to_be_visible()
    expect(page.locator("#data-rows tbody tr")).to_have_count(3)
    expect(page.locator("#data-all-rows tbody tr")).to_have_count(0)
