"""The Publish tab in a real browser: the Hugging Face Hub, where nobody is logged in."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import planted

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
ASKED_MS = 180_000  # a process starts, which imports the client of the hub
PAGE = "https://huggingface.co/ann/trips/tree/v1"


@pytest.fixture
def nobody(home, monkeypatch):
    """No login, whoever runs this; to be asked for before the app, which starts with it."""
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dark", [False, True])
def test_the_hub_without_a_login_says_what_to_do_and_lists_what_is_there(nobody, own_app, shot, dark):
    run = planted.finished(own_app.store)
    stage = own_app.store.add_publish(run, {"to": "huggingface"})
    own_app.store.claim_publish()
    facts = {
        "name": "ann/trips",
        "version": "1",
        "path": PAGE,
        "private": True,
        "bytes": 2048,
        "verified": True,
    }
    own_app.store.finish(run, stage, "done", seconds=1.0, metrics=facts)
    page = own_app.open("?tab=publish", dark=dark)
    expect(page.locator("#publish-run input")).not_to_have_value("")
    page.click("#publish-where label:has-text('Hugging Face Hub')")
    expect(page.locator("#hub-check")).to_be_visible()
    expect(page.locator("#publish-check")).to_be_hidden()
    expect(page.locator("#models-refresh")).to_be_hidden()
    page.click("button#hub-whoami")
    expect(page.locator("#hub-notice")).to_contain_text("hf auth login", timeout=ASKED_MS)
    page.fill("#huggingface-name input, #huggingface-name textarea", "trips")
    page.click("#hub-check")
    expect(page.locator("#publish-findings")).to_contain_text("Blocked", timeout=ASKED_MS)
    expect(page.locator("#publish-findings")).to_contain_text("Good")
    page.click("#hub-versions tbody tr")
    expect(page.locator("#hub-title")).to_contain_text("ann/trips, version 1")
    expect(page.locator("#hub-link a")).to_have_attribute("href", PAGE)
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"publish-hub{'-dark' if dark else ''}")
