"""The Data tab in a real browser."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from tests.helpers.page import ATTACK, upload

pytestmark = pytest.mark.browser


def test_a_good_dataset_is_shown_and_taken_to_the_lab(app, shot):
    page = app.open("?tab=data")
    said = []  # in the console
    page.on("console", lambda message: said.append(message.text))
    expect(page.locator("#data-summary")).to_contain_text("rows")
    row = {"prompt": f"Say {ATTACK}", "response": "no"}
    upload(page, "mine.jsonl", b"".join(json.dumps({**row, "n": n}).encode() + b"\n" for n in range(12)))
    expect(page.locator("#data-summary")).to_contain_text("mine.jsonl: 12 rows · fields: prompt, response, n")
    expect(page.locator("#data-rows tbody tr")).to_have_count(5)
    expect(page.locator("#data-rows")).to_contain_text(ATTACK)
    shot(page, "data")
    page.click("#data-use")
    page.get_by_role("button", name="Recipe and command").click()
    expect(page.locator("#recipe")).to_contain_text("mine.jsonl")
    assert page.evaluate("window.hacked") is None
    kept = list((app.home / "datasets").glob("*/mine.jsonl"))
    assert len(kept) == 1
    assert list((app.home / ".gradio-uploads" / ".copies").rglob("*.jsonl")) == []
    assert said == []


def test_a_bad_dataset_is_refused_with_line_numbers_and_not_kept(app, shot):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("rows")
    good = b'{"prompt": "a", "response": "b"}\n'
    upload(page, "bad.jsonl", good * 6 + b'{"prompt": "a", \n' + good * 30 + b'["no"]\n')
    expect(page.locator("#data-problems")).to_contain_text("Line 7: not JSON")
    expect(page.locator("#data-use")).to_be_disabled()
    expect(page.locator("#data-pick input")).to_have_value("")  # the sample was not what was checked
    shot(page, "data-bad")
    upload(page, f"{ATTACK[:12].replace('/', '')}.jsonl", b'{"<b>x</b>": 1}\n')
    expect(page.locator("#data-problems")).to_contain_text("<b>x</b>")
    expect(page.locator("#data-problems b")).to_have_count(0)
    # It stays in its box, for another template; no link leads to it, because uploads are not served.
    expect(page.locator("#data-upload .filename")).to_be_visible()
    expect(page.locator("#data-upload a >> visible=true")).to_have_count(0)
    assert not (app.home / "datasets").exists()


def test_columns_are_chosen_by_mouse(app, shot):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("144 rows")
    upload(page, "towns.csv", "eins;zwei;drei\r\na b;c d;e f\r\ng h;i j;k l\r\n".encode("utf-16"))
    expect(page.locator("#data-problems")).to_contain_text(
        "which columns hold prompt and response is not clear"
    )
    expect(page.locator("#data-prompt")).to_contain_text("eins")
    page.click("#data-prompt input")
    page.get_by_role("option", name="drei").click()
    page.keyboard.press("Escape")
    expect(page.locator("#data-summary")).to_contain_text("prompt = eins + drei, response = zwei")
    expect(page.locator("#data-rows tbody tr")).to_have_count(2)
    shot(page, "data-columns")
    page.click("#data-use")
    app.unfold(page)
    expect(page.locator("#recipe")).to_contain_text("towns.jsonl")
    assert len(list((app.home / "datasets").glob("*/original/towns.csv"))) == 1


def test_several_files_are_uploaded_together(app):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("144 rows")
    files = [("1.csv", "question,answer\na,b\n"), ("2.json", '[{"question": "c", "answer": "d"}]')]
    page.set_input_files(
        "#data-upload input[type=file]",
        [{"name": name, "mimeType": "text/plain", "buffer": text.encode()} for name, text in files],
    )
    expect(page.locator("#data-summary")).to_contain_text("1.csv + 2.json: 2 rows")
    expect(page.locator("#data-use")).to_be_enabled()
