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
    expect(card).not_to_contain_text("jane")
    card = page.locator("#data-all-rows")
    expect(card).to_contain_text("Rows are shown as they are in the file, also secrets and personal data.")
    table = card.locator(".lab-table")
    expect(table).to_contain_text("jane@acme.org")
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


DRAW = """async (value) => {
    const { draw } = await import(new URL("lab/card.js", document.baseURI));
    const root = document.body.appendChild(document.createElement("div"));
    draw.card(root, value);
    const plot = root.querySelector("#card-tokens");
    while (!plot.layout?.xaxis) await new Promise(requestAnimationFrame);
    const { layout: { shapes, xaxis }, data: [{ type, x, y }] } = plot;
    const text = root.querySelector("p").textContent;
    return { text, shapes, range: xaxis.range, title: xaxis.title.text, type, x, y };
}"""
TOKENS = {"median": 40, "p95": 480, "max": 1190, "cut": 2, "max_length": 512, "trained": 0.4567}


def test_the_histogram_has_the_line_where_rows_are_cut_and_the_share_trained_on_is_said(app):
    page = app.open("?tab=data")
    card = {"key": "0", "rows": 1040, "notes": [], "findings": []}
    card["tokens"] = {**TOKENS, "width": 100, "bars": [900, 100, 20, 10, 5, 3, 0, 0, 0, 0, 0, 2]}
    drawn = page.evaluate(DRAW, card)
    assert drawn["text"] == (
        "1,040 rows. Tokens a row: median 40, 95 % have 480 or fewer, longest 1,190."
        " 2 rows of more than 512 tokens will be cut. 46 % of the tokens are trained on."
    )
    assert (drawn["type"], drawn["x"][:2], drawn["y"]) == ("bar", [50, 150], card["tokens"]["bars"])
    (line,) = drawn["shapes"]
    assert {name: line[name] for name in ("type", "x0", "x1", "yref", "y0", "y1")} == {
        "type": "line", "x0": 512, "x1": 512, "yref": "paper", "y0": 0, "y1": 1,
    }  # fmt: skip
    assert line["line"]["dash"] == "dot"
    assert drawn["title"] == "Tokens (dotted: where rows are cut)"
    assert drawn["range"] == [0, 1200]
    card["tokens"] |= {"max": 90, "cut": 0, "width": 10, "bars": [900, 100, 20, 10, 5, 3, 0, 0, 2]}
    far = page.evaluate(DRAW, card)
    assert (far["shapes"], far["title"]) == ([], "Tokens (rows are cut at 512, far to the right)")
    assert far["range"] == [0, 90]
    assert " 0 rows of more than 512 tokens will be cut." in far["text"]


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
