"""The queue and sweeps in a real browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.helpers import planted
from tests.helpers.lab import until

pytestmark = pytest.mark.browser


def test_a_run_is_moved_and_the_queue_paused_by_keyboard_and_mouse(app, shot):
    planted.running(app.store, "first")
    runs = [planted.queued(app.store, name) for name in ("a", "b", "c")]
    page = app.open("?tab=lab")
    summary = page.locator("#queue summary")
    expect(summary).to_have_text("Queue: 1 running, 3 waiting")
    summary.click()
    page.click(f"#first-{runs[2]}")
    expect(page.locator("#queue .lab-link").first).to_have_text("c")
    page.locator(f"#down-{runs[2]}").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#queue .lab-link")).to_have_text(["a", "c", "b"])
    assert page.evaluate("document.activeElement.id") == f"down-{runs[2]}"
    assert [run.name for run in app.store.queue()] == ["a", "c", "b"]
    page.click("#queue-pause")
    expect(summary).to_contain_text("paused")
    assert app.store.paused
    shot(page, "queue")
    other = app.open("?tab=lab")
    expect(other.locator("#queue summary")).to_contain_text("paused")
    page.click("#queue-pause")
    expect(other.locator("#queue summary")).not_to_contain_text("paused")
    page.get_by_role("button", name="b", exact=True).click()
    expect(page.locator(".lab-run h2")).to_have_text("b")
    expect(page.locator(".lab-run")).to_contain_text("waiting for 3 runs ahead of it")


def test_a_waiting_run_is_taken_out_of_the_queue_once_it_is_confirmed(app):
    planted.running(app.store, "first")
    runs = [planted.queued(app.store, name) for name in ("a", "b")]
    page = app.open("?tab=lab")
    page.locator("#queue summary").click()
    answers, asked = ["dismiss", "accept"], []
    page.on("dialog", lambda dialog: (asked.append(dialog), getattr(dialog, answers[len(asked) - 1])()))
    page.click(f"#cancel-{runs[0]}")
    until(lambda: page.evaluate("1") and asked, "the question")
    assert [run.name for run in app.store.queue()] == ["a", "b"]
    page.click(f"#cancel-{runs[0]}")
    expect(page.locator("#queue .lab-link")).to_have_text(["b"])
    assert [run.name for run in app.store.queue()] == ["b"]
    assert app.store.get(runs[0]).status == "canceled"


def test_a_name_is_kept_and_stands_on_the_runs_of_a_sweep(app, shot):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("rows")
    page.fill("#you", "Ann")
    page.reload()
    expect(page.locator("#you")).to_have_value("Ann")
    page.click("#tab-tune-button")
    page.locator("#sweep-option-1 input").click()
    page.get_by_role("option", name="Finetune: Rank (r)", exact=True).click()
    page.fill("#sweep-values-1 input, #sweep-values-1 textarea", "4, 8")
    shot(page, "sweep")
    page.click("#sweep-start")
    expect(page.locator("#sweep-notice")).to_contain_text("Queued 2 runs")
    until(lambda: len(app.store.queue()) == 2, "two runs")
    assert [(run.name, run.owner) for run in app.store.queue()] == [("run r=4", "Ann"), ("run r=8", "Ann")]
    expect(page.locator("#queue summary")).to_have_text("Queue: 0 running, 2 waiting")
