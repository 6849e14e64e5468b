"""The Publish tab in a real browser: this lab or Azure AI, where no login is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.store.run import FAILED
from tests.browser.axe import faults
from tests.helpers import planted
from tests.helpers.lab import until
from webapp.ui import version_tables

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>${window.hacked=1}'
TRAVEL = Place("cli", "11111111-2222-3333-4444-555555555555", "travel-group", "travel-ws")
NO_LOGIN = "az login"
ASKED_MS = 180_000  # a process starts, which imports the client of Azure


def to_azure(page) -> None:
    expect(page.locator("#publish-run input")).not_to_have_value("")  # the tab has been filled
    page.click("#publish-where label:has-text('Azure AI')")
    expect(page.locator("#azure-check")).to_be_visible()


def fill(page, name: str, text: str) -> None:
    page.fill(f"#azure-{name} input, #azure-{name} textarea", text)


def keep(home: Path, run: str) -> None:
    """Versions as the page keeps them once Azure has answered."""
    rows = []
    for number, bits, content in (("2", "8", {}), ("1", "4", {"olive_lab_content": "00"})):
        tags = {"run": run, "base": ATTACK, "bits": bits, "verified": "true"}
        model = {
            "name": "trips", "version": number, "description": "", "tags": tags, "properties": content,
            "created": "2026-11-22T10:00:00+00:00", "created_by": "Ann",
            "portal": TRAVEL.page("trips", number) + "&tid=tenant-of-ann",
        }  # fmt: skip
        rows.append(version_tables._of_azure(TRAVEL, model))
    version_tables.keep(home, TRAVEL, rows)
    azure_workspace.remember(home, TRAVEL)


@pytest.mark.parametrize("dark", [False, True])
def test_azure_without_a_login_says_what_to_do_and_shows_the_dry_run(app, shot, dark):
    planted.finished(app.store)
    page = app.open("?tab=publish", dark=dark)
    expect(page.locator("#publish-run input")).not_to_have_value("")
    page.click("#publish-check")
    expect(page.locator("#publish-problems")).to_contain_text("name: ''")
    to_azure(page)
    expect(page.locator("#publish-problems")).not_to_contain_text("name: ''")
    expect(page.locator("#publish-check")).to_be_hidden()
    page.click("#azure-whoami button, button#azure-whoami")
    expect(page.locator("#azure-notice")).to_contain_text(NO_LOGIN, timeout=ASKED_MS)
    fill(page, "name", "trips")
    page.click("#azure-check")
    expect(page.locator("#publish-problems")).to_contain_text("workspace: is not known")
    config = {
        "subscription_id": TRAVEL.subscription,
        "resource_group": "travel-group",
        "workspace_name": "travel-ws",
    }
    page.set_input_files(
        "input[type=file][accept='.json']",
        {"name": "config.json", "mimeType": "application/json", "buffer": json.dumps(config).encode()},
    )
    expect(page.locator("#azure-workspace input, #azure-workspace textarea")).to_have_value("travel-ws")
    page.click("#azure-check")
    expect(page.locator("#azure-command")).to_contain_text("az ml model create --name trips")
    expect(page.locator("#publish-findings")).to_contain_text("Blocked", timeout=ASKED_MS)
    expect(page.locator("#publish-findings")).to_contain_text("Good")
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"publish-azure{'-dark' if dark else ''}")
    assert app.store.list()[0].stages[-1].name == "evaluate"


def test_a_publish_to_azure_is_followed_with_bytes_and_can_be_canceled(app, shot):
    run = planted.finished(app.store)
    azure_workspace.remember(app.home, TRAVEL)
    page = app.open("?tab=publish")
    to_azure(page)
    expect(page.locator("#azure-workspace input, #azure-workspace textarea")).to_have_value("travel-ws")
    fill(page, "name", "trips")
    page.click("#azure-go")
    expect(page.locator("#publish-progress")).to_contain_text("Waiting")
    app.store.claim_publish()
    facts = {"bytes_done": 3_000_000, "bytes_total": 12_000_000, "eta_seconds": 180}
    planted.event(app.store, run, "publish", message="Sending model.onnx", progress=0.25, **facts)
    expect(page.locator("#publish-progress")).to_contain_text("3.0 of 12.0 MB, about 3 min left")
    shot(page, "publish-azure-progress")
    page.click("#publish-progress button")
    expect(page.locator("#publish-progress button")).to_have_text("Canceling…")
    until(lambda: app.store.get(run).cancel_requested, "the request")
    app.store.finish(run, "publish", FAILED, error="The line dropped.")
    expect(page.locator("#publish-progress")).to_contain_text("The line dropped.")
    expect(page.locator("#publish-progress")).to_contain_text("are not sent again")


def test_registered_models_are_compared_linked_and_used_as_a_base(app, shot):
    run = planted.finished(app.store)
    keep(app.home, run)
    page = app.open("?tab=publish")
    to_azure(page)
    rows = page.locator("#publish-versions tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(ATTACK)
    for row in (0, 1):
        rows.nth(row).locator("input").check()
    expect(page.locator("#models-differences tbody")).to_contain_text("bits84")
    rows.nth(1).locator("button").click()
    expect(page.locator("#models-details")).to_contain_text("training cannot start")
    expect(page.locator("#models-use")).to_be_disabled()
    link = page.locator("#models-portal a")
    expect(link).to_have_attribute("href", TRAVEL.page("trips", "1") + "&tid=tenant-of-ann")
    assert (link.get_attribute("rel"), link.get_attribute("target")) == ("noopener noreferrer", "_blank")
    shot(page, "publish-azure-models")
    page.click("#models-pull")
    expect(page.locator("#models-pulled")).to_contain_text("Failed", timeout=ASKED_MS)
    expect(page.locator("#models-pulled")).to_contain_text(NO_LOGIN)
    rows.nth(0).locator("button").click()
    expect(page.locator("#models-pulled")).not_to_contain_text(NO_LOGIN)
    rows.nth(1).locator("button").click()
    expect(page.locator("#models-pulled")).to_contain_text(NO_LOGIN)  # also for who comes back later
    shot(page, "publish-azure-pull")
    page.click("#models-remove")
    page.click("#models-details dialog button:has-text('Keep')")
    page.click("#models-remove")  # asked again
    page.click("#models-details dialog button:has-text('Remove')")
    expect(page.locator("#models-notice")).to_contain_text("The copy was removed")
    expect(page.locator("#models-pulled")).not_to_contain_text(NO_LOGIN)
    rows.nth(0).locator("button").click()
    expect(page.locator("#models-use")).to_be_enabled()
    page.click("#models-use")
    page.get_by_role("button", name="Recipe and command").click()
    expect(page.locator("#recipe")).to_contain_text("workspaces/travel-ws/models/trips/versions/2")
    page.click("#tab-publish-button")
    expect(page.locator("#models-details")).to_be_hidden()
    rows.nth(0).locator("button").click()
    page.click("#models-compare")
    expect(page.locator("#compare-prompt textarea")).to_have_value("What should I see in Lindenhafen?")
    assert page.evaluate("window.hacked") is None
