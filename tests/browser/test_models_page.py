"""The panel of base models in a real browser: what one is, and deleting one that is here."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.inputs.models import base_models
from tests.browser.axe import faults
from tests.helpers.planted import plant

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
LONG_MS = 30_000
NAME, USED = "org--tiny-0123456789ab", "org--used-0123456789ab"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_model_is_looked_up_and_one_that_is_here_deleted(own_app, shot, width):
    models = own_app.store.home / "models"
    for name in (NAME, USED):
        (models / name).mkdir(parents=True)
        base_models.mark(models / name)
        (models / name / "model.safetensors").write_bytes(b"x" * 2000)
    own_app.store.pause(True)
    run = plant(own_app.store, model="org/used@0123456789abcdef")
    page = own_app.open("?tab=lab")
    page.set_viewport_size({"width": width, "height": 800})
    page.click("#base-models button:has-text('Base models')")
    expect(page.locator("#base-cached")).to_contain_text(f"used by {run}", timeout=LONG_MS)
    page.click("#base-look")
    expect(page.locator("#base-facts")).to_contain_text("8,192 tokens", timeout=LONG_MS)
    expect(page.locator("#base-download")).to_be_disabled()
    page.click(f"#base-cached tr:has-text('{USED}')")
    expect(page.locator("#base-note")).to_contain_text(f"{USED}: 2.0 kB, used by {run}", timeout=LONG_MS)
    expect(page.locator("#base-delete")).to_be_disabled()
    page.click(f"#base-cached tr:has-text('{NAME}')")
    page.click("#base-delete")
    page.click("dialog button:text-is('Delete')")
    expect(page.locator("#base-note")).to_contain_text("2.0 kB are free again", timeout=LONG_MS)
    assert [path.name for path in models.glob("[!.]*") if path.is_dir()] == [USED]
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"base-models-{width}")
