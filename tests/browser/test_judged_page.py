"""Two runs judged against each other in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import examples, planted
from tests.helpers.page import ATTACK

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
AGAINST = "#runs-against input"


@pytest.mark.parametrize("dark", [False, True])
def test_a_run_is_judged_against_another_kept_over_a_reload_and_asked_in_compare(app, shot, dark):
    one, other = examples.two(app.store, **{"name": ATTACK[:40]}, changes=["seed=0"])
    examples.prove(app.store, one)
    waiting = planted.queued(app.store)
    page = app.open("?tab=runs", dark=dark)
    page.click(f"#runs-table tr[data-id='{one}'] .lab-link")
    expect(page.locator("#run-details")).to_contain_text(one)
    page.click(AGAINST)
    expect(page.locator("#runs-against").get_by_role("option")).to_have_count(1)
    page.locator("#runs-against").get_by_role("option", name=other).click()
    panel = page.locator("#runs-judged")
    expect(panel.locator("h2")).to_have_text(f"first against {ATTACK[:40]} · {other}")
    expect(panel.locator(".lab-ruling.is-worse strong")).to_have_text(
        "With their adapters this run is worse:"
    )
    expect(panel.locator("tbody").first).to_contain_text("1 better, 19 worse")
    expect(panel.locator(".lab-examples tbody tr")).to_have_count(10)
    expect(panel.locator(".lab-examples tbody tr").first.locator("ins")).to_have_text([" nothing"])
    expect(panel).to_contain_text(f"{one}: Answered by: Base: adapter none, model.onnx {'b' * 12}")
    expect(panel.get_by_role("alert").first).to_contain_text("no longer")
    assert page.evaluate("window.hacked") is None
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"judged{'-dark' if dark else ''}")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 800})
    if dark:
        return

    page.reload()
    expect(panel.locator("h2")).to_contain_text(other)
    expect(page.locator(AGAINST)).to_have_value(re.compile(other))
    panel.get_by_role("button", name="Ask both in Compare: line 20").click()
    expect(page.locator("#compare-prompt textarea")).to_have_value("What is 20?")
    expect(page.locator("#compare-run input")).to_have_value(re.compile(one))
    expect(page.locator("#compare-also")).to_contain_text(f"With adapter: {ATTACK[:40]}")

    page.click("#tab-runs-button")
    page.fill(AGAINST, waiting)
    page.press(AGAINST, "Enter")
    expect(panel).to_have_text(f"{waiting}: has no evaluation that is done; wait for it to compare it")
    assert "judged=" not in page.url


def test_two_runs_side_by_side_lead_to_the_verdict(app):
    one, other = examples.two(app.store)
    page = app.open(f"?tab=runs&compare={one},{other}")
    page.get_by_role("button", name="Which is better, row by row?").click()
    panel = page.locator("#runs-judged")
    expect(panel.locator("h2")).to_have_text(f"second against first · {one}")
    expect(panel.locator(".lab-ruling.is-better")).to_be_in_viewport()
    page.click(f"#runs-table tr[data-id='{one}'] .lab-link")
    expect(panel.locator("h2")).to_have_count(0)
    expect(page.locator(AGAINST)).to_have_value("")
    assert "judged=" not in page.url
