"""Serving a model from the page, in a real browser: only the one that started it shows address and token."""

from __future__ import annotations

import shutil

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import planted

pytestmark = pytest.mark.browser


def panel(page):
    expect(page.locator("#compare-run input")).not_to_have_value("")
    page.click("#serve > button")
    return page.locator("#serve-facts dd")


def test_a_model_is_served_to_whom_has_started_it(app, written_export):
    run = planted.finished(app.store)
    folder = app.store.get(run).artifact("onnx")
    shutil.copytree(written_export, folder, dirs_exist_ok=True)
    page = app.open(f"?tab=compare&run={run}")
    facts = panel(page)
    page.click("#serve-go")
    expect(facts).to_have_count(3)
    address, models, token = facts.all_inner_texts()
    assert models == "base, adapter_weights"
    ask = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{address}/models", headers=ask).status_code == 200
    assert faults(page) == []
    page.reload()
    expect(panel(page)).to_have_text([address, models, token])

    other = app.open(f"?tab=compare&run={run}")
    assert panel(other).count() == 0
    expect(other.locator("#serve-notice")).to_have_text("You serve no model.")
    other.click("#serve-stop")
    expect(other.locator("#serve-notice")).to_have_text("You serve no model.")

    third = app.open(f"?tab=compare&run={run}")
    panel(third)
    other.click("#serve-go")
    expect(other.locator("#serve-facts dd")).to_have_count(3)
    third.click("#serve-go")
    expect(third.locator("#serve-notice")).to_contain_text("2 models are served already")
    third.click("#serve-other input")
    third.get_by_role("option").last.click()
    assert faults(third) == []
    third.click("#serve-free")
    expect(third.locator("#serve-notice")).to_contain_text(f"Stopped serving run {run}; start yours now.")
    expect(third.locator("#serve-other")).to_be_hidden()
    page.click("#serve-stop")
    expect(page.locator("#serve-notice")).to_contain_text(f"Stopped serving run {run}.")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/models", headers=ask)
    assert app.errors == []
