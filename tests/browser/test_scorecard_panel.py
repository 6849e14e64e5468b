"""The scorecard's panel in a real browser."""

from __future__ import annotations

import math

import pytest
from playwright.sync_api import expect

from pipeline.store.run import DONE, FAILED
from tests.helpers import planted
from tests.helpers.lab import until

pytestmark = pytest.mark.browser


# Both ends of the first way's interval on the chart, in perplexity.
ENDS = """() => {
  const { y, error_y: bars } = document.querySelector("#scorecard-view .lab-plot").data[1];
  return [y[0] - bars.arrayminus[0], y[0] + bars.array[0]];
}"""
BY = (-0.05, 0.05)  # nats, as planted


def tab(page, name: str) -> None:
    page.click(f"#tab-{name}-button")


def unfold(page) -> None:
    expect(page.locator("#data-summary")).to_contain_text("rows")
    tab(page, "tune")


def test_a_scorecard_fills_while_one_looks(app, shot):
    planted.scorecard(app.store)
    page = app.open("?tab=data")
    unfold(page)
    view = page.locator("#scorecard-view")
    expect(view.locator("tbody tr")).to_have_count(3)
    expect(view.locator("tbody tr").nth(1)).to_contain_text("34.9")
    expect(view.locator(".textpoint")).to_have_count(4)  # two ways, two texts
    expect(view.locator(".errorbars path.yerror")).to_have_count(2)  # the intervals, on one's own data
    assert [round(end, 3) for end in page.evaluate(ENDS)] == [round(94.4 * math.exp(by), 3) for by in BY]
    waiting = view.locator("tbody tr").nth(2)
    expect(waiting).to_contain_text("Waiting")
    run = app.store.list()[0].id
    app.store.claim("cpu")
    expect(waiting).to_contain_text("Running")
    for stage, metrics in (
        ("quantize", {"olive_seconds": 95.0}),
        ("optimize", {"model_bytes": 88_000_000}),
        ("score", {"data_perplexity": 90.1, "general_perplexity": 35.2, "tokens_per_second": 139.0}),
    ):
        app.store.finish(run, stage, DONE, seconds=1.0, metrics=metrics)
        app.store.claim_next(run, "cpu")
    expect(waiting).to_contain_text("1 min 35 s")
    expect(view.locator(".textpoint")).to_have_count(6)
    shot(page, "scorecard")


def test_measuring_queues_runs_and_says_what_it_leaves_out(app, shot):
    page = app.open("?tab=data")
    unfold(page)
    app.settle(page)  # what was measured last would be shown instead
    page.locator("#scorecard-ways").get_by_label("Not quantized").uncheck()
    page.locator("#scorecard-ways").get_by_label("GPTQ", exact=True).uncheck()
    page.click("#scorecard-start")
    view = page.locator("#scorecard-view")
    expect(view.locator("tbody tr")).to_have_count(2)
    expect(view).to_contain_text("Waiting")
    until(lambda: len(app.store.list()) == 2, "two runs")
    run = app.store.list()[-1].id
    app.store.claim("cpu")
    app.store.finish(run, "quantize", FAILED, error="The disk is full.")
    expect(view).to_contain_text("quantize: The disk is full.")
    tab(page, "runs")
    expect(page.locator("#runs-table")).to_contain_text("awq of")
