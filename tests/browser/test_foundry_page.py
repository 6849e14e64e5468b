"""The Publish tab in a real browser: Foundry Local, with a dry run of a model that fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import exports
from tests.helpers.planted import finish_all, plant

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
ASKED_MS = 180_000  # two processes start, one of which imports GenAI


def test_foundry_local_is_a_place_to_publish_to(own_app, shot, tmp_path):
    folder = exports.write(tmp_path / "export", merged=True)
    made = [{"name": "model", "kind": "onnx", "path": str(folder), "bytes": 1}]
    finish_all(own_app.store, plant(own_app.store), {"optimize": {"artifacts": made}})
    page = own_app.open("?tab=publish")
    expect(page.locator("#publish-run input")).not_to_have_value("")
    page.click("#publish-where label:has-text('Foundry Local')")
    expect(page.locator("#foundry-check")).to_be_visible()
    expect(page.locator("#publish-check")).to_be_hidden()
    expect(page.locator("#foundry-versions")).to_contain_text("Nothing was published for it yet.")
    page.fill("#foundry-local-name input, #foundry-local-name textarea", "trips")
    page.click("#foundry-check")
    expect(page.locator("#publish-findings")).to_contain_text("71 prompts", timeout=ASKED_MS)
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, "publish-foundry-local")
