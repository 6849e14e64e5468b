"""The blind vote in a real browser: by key and touch, wide and narrow, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import planted
from tests.helpers.page import ATTACK, tab
from tests.helpers.votes import rows

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
TITLE = "#vote-booth h2"


def named(app, query: str, name: str = "Ada", **options):
    """A page of somebody with a name."""
    page = app.open(query, **options)
    expect(page.locator("#vote-name")).to_be_visible()
    page.fill("#you", name)
    page.press("#you", "Tab")
    return page


def vote(page, key: str, then: str) -> None:
    page.keyboard.press(key)
    expect(page.locator(TITLE)).to_have_text(then)


def box(page, selector: str):
    return page.locator(selector).bounding_box()


def test_a_vote_by_keys_from_a_finished_run_to_the_pairs(app, shot):
    """Typing never votes; undo, reload and another browser resume; the sides are shown after Reveal only."""
    answers = rows(3)
    answers[0]["base"]["text"] += ATTACK
    run = planted.finished(app.store, answers=answers)
    page = app.open(f"?tab=lab&run={run}")
    page.click("#run-vote")
    expect(page.locator("#vote-booth")).to_contain_text("Write your name")
    page.click("#vote-name")
    page.keyboard.type("Tab 1234")  # letters and digits that vote elsewhere
    page.keyboard.press("Tab")
    expect(page.locator(TITLE)).to_have_text("Row 1 of 3")
    expect(page.locator("#vote-booth details").nth(1)).not_to_have_attribute("open", "")
    vote(page, "a", "Row 2 of 3")
    vote(page, "4", "Row 3 of 3")
    vote(page, "u", "Row 2 of 3")
    expect(page.locator("#vote-bad")).to_have_class(re.compile("is-primary"))
    vote(page, "t", "Row 3 of 3")
    page.focus("#vote-run input")
    page.keyboard.press("b")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator(TITLE)).to_have_text("Row 3 of 3")
    other = named(app, f"?tab=vote&vote={run}", "tab  1234")
    expect(other.locator(TITLE)).to_have_text("Row 3 of 3")
    before = re.sub("of the (base|adapter)", "", other.locator("#vote-booth").inner_html())
    assert not [word for word in ("adapter", "base", "loss", "token") if word in before]
    vote(page, "2", "All 3 rows have your vote")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#vote-reveal")
    expect(page.locator(TITLE)).to_have_text("Result")
    expect(page.locator("#vote-booth")).to_contain_text("What the sides were")
    assert sum(part in url for url in asked for part in ("/reveal", "/result.json")) == 1, "counted once"
    expect(page.locator("#vote-booth")).to_contain_text("Cannot tell from 3 rows")
    expect(page.locator("#vote-judge")).to_be_hidden()
    with page.expect_download() as loading:
        page.click("#vote-pairs")
    assert Path(loading.value.path()).read_text().count('"chosen"') == 2
    assert page.evaluate("window.hacked") is None
    shot(page, "vote-result")


def test_a_browser_that_keeps_nothing_for_this_page_votes_all_the_same(app):
    planted.finished(app.store, answers=rows(2))
    page = app.open("lab/olive.svg")
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } });"
    )
    page.goto(app.url + "?tab=vote")
    expect(page.locator("#vote-name")).to_be_visible()
    page.fill("#you", "Ada")
    page.press("#you", "Tab")
    expect(page.locator(TITLE)).to_have_text("Row 1 of 2")
    vote(page, "a", "Row 2 of 2")


def test_before_the_vote_the_answers_are_in_the_booth_and_nowhere_else_in_the_page(app):
    """Neither what the page fetches while it opens nor another tab's part of it has them with their sides."""
    planted.finished(app.store, answers=rows(3))
    page = named(app, "?tab=vote")
    expect(page.locator(TITLE)).to_have_text("Row 1 of 3")
    telling = []

    def pass_on(route) -> None:
        reply = route.fetch()
        if b"of the adapter 0" in reply.body():
            telling.append(route.request.url)
        route.fulfill(response=reply)

    events = re.compile("queue/data|/live|/watch")  # streams, which do not end
    page.route(lambda url: not events.search(url), pass_on)
    page.reload()
    expect(page.locator(TITLE)).to_have_text("Row 1 of 3")
    vote(page, "a", "Row 2 of 3")
    assert telling, "or nothing was looked at"
    assert {url.split("?")[0].rsplit("/", 2)[-2] for url in telling} == {"votes"}
    page.evaluate("document.querySelector('#vote-booth .lab-pair').remove()")
    whole = page.evaluate(
        "document.documentElement.outerHTML + JSON.stringify({...localStorage, ...sessionStorage})"
    )
    assert not [text for text in ("of the adapter 0", "of the base 0") if text in whole]
    parts = page.evaluate(
        "[...document.querySelectorAll('#vote-booth *')].map((one) => one.outerHTML).join()"
    )
    assert not [word for word in ("adapter", "base", "chosen", "rejected") if word in parts.lower()]


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_both_answers_are_read_at_once_and_touched(app, shot, width, dark):
    answers = rows(12)
    answers[0]["base"]["text"] = answers[0]["adapter"]["text"] + " word" * 3000
    planted.finished(app.store, answers=answers)
    page = named(app, "?tab=vote", width=width, dark=dark, has_touch=True)
    expect(page.locator(TITLE)).to_have_text("Row 1 of 12")
    page.evaluate(CHECKS.read_text())
    first, second = (box(page, f"#vote-booth .lab-pair section >> nth={n}") for n in (0, 1))
    assert (first["y"] == second["y"]) == (width == 1280)
    assert (first["x"] == second["x"]) == (width == 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("checks.faint()") == []
    assert faults(page) == []
    shot(page, f"vote-{width}")
    for name, then in (("a", 2), ("bad", 3)):
        button = box(page, f"#vote-{name}")
        assert button["height"] >= 44
        assert 0 <= button["y"] <= 800 - button["height"]  # in reach, however long the answers are
        page.tap(f"#vote-{name}")
        expect(page.locator(TITLE)).to_have_text(f"Row {then} of 12")
    tab(page, "runs")
    page.keyboard.press("a")
    tab(page, "vote")
    expect(page.locator(TITLE)).to_have_text("Row 3 of 12")
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.accept()))
    page.tap("#vote-reveal")
    expect(page.locator(TITLE)).to_have_text("Result")
    assert len(said) == 1
