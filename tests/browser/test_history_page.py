"""The history in a real browser: search, notes, tags, comparison, deletion, space."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.axe import faults
from tests.helpers import examples, planted

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"
FIND, TAGS = (f"#{name} input, #{name} textarea" for name in ("runs-find", "runs-tags"))
ATTACK = '<img src=x onerror="window.hacked=1">${window.hacked=1}'


def rows(page):
    return page.locator("#runs-table tbody tr")


def pick(page, run: str) -> None:
    page.click(f"#runs-table tr[data-id='{run}'] .lab-link")
    expect(page.locator("#run-details")).to_contain_text(run)


def check(page, run: str) -> None:
    page.check(f"#runs-table tr[data-id='{run}'] input[type=checkbox]")


def differing(store, name: str) -> str:
    """A finished run whose recipe is not quite the sample's."""
    return planted.finished(store, name, changes=["finetune.r=8", "seed=3"])


def test_runs_are_found_by_words_status_and_tag(app):
    alps = planted.finished(app.store, "alps")
    planted.queued(app.store, "sea")
    page = app.open("?tab=runs")
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#runs-owner")).to_have_count(0)
    page.fill(FIND, "alps")
    expect(rows(page)).to_have_count(1)
    page.fill(FIND, "alps nothing")
    expect(page.locator("#runs-table")).to_contain_text("No matching runs")
    page.fill(FIND, "")
    expect(rows(page)).to_have_count(2)
    page.click("#runs-shown input")
    page.get_by_role("option", name="Waiting").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("sea")
    page.click("#runs-shown input")
    page.get_by_role("option", name="All", exact=True).click()
    expect(rows(page)).to_have_count(2)
    pick(page, alps)
    page.fill(TAGS, "keep")
    page.press(TAGS, "Enter")
    expect(page.locator("#runs-table thead")).to_contain_text("Tags")
    page.click("#runs-tag input")
    page.get_by_role("option", name="keep").click()
    expect(rows(page)).to_have_count(1)


def test_notes_and_tags_are_kept_and_read_as_text(app, shot):
    run = planted.finished(app.store)
    page = app.open("?tab=runs")
    pick(page, run)
    page.fill("#runs-notes textarea", f"as good as float {ATTACK}")
    page.press("#runs-notes textarea", "Tab")
    expect(page.locator("#runs-saved")).to_contain_text("Saved")
    page.fill(TAGS, f"{ATTACK[:30]}, keep")
    page.press(TAGS, "Enter")
    expect(rows(page)).to_contain_text(f"{ATTACK[:30]}, keep")
    assert app.store.get(run).tags == (ATTACK[:30], "keep")
    page.fill("#runs-notes textarea", "x" * 10_001)
    page.press("#runs-notes textarea", "Tab")
    expect(page.locator("#runs-problems")).to_contain_text("allowed: 10,000")
    page.click("#runs-refresh")
    expect(page.locator("#runs-notes textarea")).to_have_value("x" * 10_001)
    page.reload()
    pick(page, run)
    expect(page.locator("#runs-notes textarea")).to_have_value(f"as good as float {ATTACK}")
    expect(page.locator(TAGS)).to_have_value(f"{ATTACK[:30]}, keep")
    expect(page.locator("#runs-storage")).to_contain_text("Freed if deleted")
    shot(page, "notes")
    assert page.evaluate("window.hacked") is None


def test_what_is_written_is_kept_on_its_run_and_the_click_that_leaves_it_counts(app):
    one, two = planted.finished(app.store, "one"), planted.finished(app.store, "two")
    page = app.open("?tab=runs")
    pick(page, one)
    page.fill(TAGS, "keep")
    row = page.locator(f"#runs-table tr[data-id='{two}'] .lab-link").bounding_box()
    page.mouse.move(row["x"] + 5, row["y"] + 5)
    with page.expect_response(lambda reply: '"check":"Compare"' in reply.text()) as listed:
        page.mouse.down()
    assert "keep" in listed.value.text()
    page.mouse.up()
    expect(page.locator("#run-details")).to_contain_text(two)
    expect(rows(page).filter(has_text=one)).to_contain_text("keep")
    expect(page.locator(TAGS)).to_have_value("")
    assert [app.store.get(run).tags for run in (one, two)] == [("keep",), ()]


def test_a_box_that_is_pressed_while_a_text_is_left_stays_checked(app):
    """As a hand does it: the table that is asked for on leaving the text comes while the box is held down."""
    one, two = planted.finished(app.store, "one"), planted.finished(app.store, "two")
    page = app.open("?tab=runs")
    pick(page, one)
    page.focus(TAGS)
    box = page.locator(f"#runs-table tr[data-id='{one}'] input").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    with page.expect_response(lambda reply: '"check":"Compare"' in reply.text()):
        page.mouse.down()
    page.mouse.up()
    app.settle(page)
    check(page, two)
    expect(page.locator("#runs-table input:checked")).to_have_count(2)
    expect(page.locator("#runs-compare")).to_have_text("Compare 2 runs")


@pytest.mark.parametrize("dark", [False, True])
def test_runs_are_compared_side_by_side(app, shot, dark):
    one, two = planted.finished(app.store, "first"), differing(app.store, ATTACK[:40])
    three = planted.running(app.store, "third", steps=12)
    page = app.open("?tab=runs", dark=dark)
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#runs-compare")).to_be_disabled()
    check(page, one)
    page.fill(FIND, three)
    expect(rows(page)).to_have_count(1)
    check(page, three)
    page.fill(FIND, "")
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#runs-table input:checked")).to_have_count(2)
    page.focus(f"#runs-table tr[data-id='{two}'] input")
    page.keyboard.press("Space")
    expect(page.locator("#runs-compare")).to_have_text("Compare 3 runs")
    expect(page.locator("#run-details")).to_be_hidden()
    page.click("#runs-compare")
    panel = page.locator("#comparison")
    expect(panel.locator("h2")).to_be_focused()
    told = panel.locator(".lab-table >> nth=0").locator("tbody tr")
    expect(told).to_have_count(2)
    expect(told.filter(has_text="finetune.r")).to_contain_text("8")
    expect(panel).to_contain_text("finetune: eval loss after")
    expect(panel.locator(".scatterlayer .trace")).to_have_count(6)  # three runs, training and held-out
    colors = panel.locator(".scatterlayer .js-line").evaluate_all("all => all.map((e) => e.style.stroke)")
    assert len(set(colors)) == 3
    expect(panel.locator(".legend .traces")).to_have_count(3)
    expect(panel.locator(".legend")).to_contain_text(ATTACK[:40])
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"comparison{'-dark' if dark else ''}")
    assert f"compare={one}%2C{three}%2C{two}" in page.url
    page.reload()
    expect(panel.locator(".scatterlayer .trace")).to_have_count(6)
    panel.get_by_role("button", name="Close").click()
    expect(panel.locator("h2")).to_have_count(0)
    assert "compare=" not in page.url
    assert page.evaluate("window.hacked") is None


def test_a_deleted_run_can_be_undone_and_restored(app, shot):
    run, other = planted.finished(app.store, "gone"), planted.finished(app.store, "stays")
    page = app.open("?tab=runs")
    for run_ in (run, other):
        check(page, run_)
    pick(page, run)
    page.click("#runs-delete")
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Delete gone?")
    expect(dialog).to_contain_text("will be freed a day from now")
    shot(page, "delete")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert app.store.get(run).deleted is None

    page.click("#runs-delete")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.locator("#runs-notice")).to_contain_text("gone is deleted.")
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#run-details")).to_be_hidden()
    expect(page.locator("#runs-compare")).to_be_disabled()
    assert app.store.get(run).deleted is not None
    shot(page, "deleted")
    page.get_by_role("button", name="Undo").click()
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#runs-notice")).to_contain_text("gone is back.")

    pick(page, run)
    page.click("#runs-delete")
    dialog.get_by_role("button", name="Delete").click()
    expect(rows(page)).to_have_count(1)
    page.click("#runs-shown input")
    page.get_by_role("option", name="Deleted").click()
    expect(rows(page)).to_contain_text("gone")
    pick(page, run)
    expect(page.locator("#run-details")).to_contain_text("can be restored")
    expect(page.locator("#runs-delete")).to_have_count(0)
    shot(page, "restore")
    page.click("#runs-restore")
    expect(page.locator("#runs-table")).to_contain_text("There are no deleted runs to restore")
    assert app.store.get(run).deleted is None


def test_space_is_freed_after_a_question(app, shot):
    run = planted.finished(app.store)
    folder = app.home / "artifacts" / "quantize-0123456789abcdef"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 5_000_000)
    old = time.time() - 7200
    for path in (folder / "weights", folder):
        os.utime(path, (old, old))
    page = app.open("?tab=runs")
    expect(rows(page)).to_have_count(1)
    page.click("#runs-free")
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Free 5.0 MB?")
    shot(page, "free")
    dialog.get_by_role("button", name="Keep").click()
    assert folder.is_dir()
    page.click("#runs-free")
    dialog.get_by_role("button", name="Free 5.0 MB").click()
    expect(page.locator("#runs-notice")).to_contain_text("5.0 MB were freed")
    assert not folder.exists()
    assert Path(str(app.store.get(run).artifact("onnx"))).is_dir()
    page.click("#runs-free")
    expect(dialog).to_contain_text("There is nothing to free.")
    dialog.get_by_role("button", name="Close").click()


def test_a_run_opened_from_the_history_is_not_below_the_form(app):
    run = planted.finished(app.store)
    page = app.open("?tab=runs")
    pick(page, run)
    page.click("#runs-open")
    expect(page.locator(".lab-run h2")).to_have_text("travel")
    expect(page.locator("#launch")).to_be_hidden()
    expect(page.locator(".lab-run h2")).to_be_in_viewport()


@pytest.mark.parametrize("dark", [False, True])
def test_the_tab_is_fit_for_everyone(app, shot, dark):
    run = planted.finished(app.store, "a run with a rather long name, as people give them")
    planted.queued(app.store)
    app.store.annotate(
        run, notes="Learned towns by heart.\nNext: r 32.", tags=["keep", "phi", "for the talk"]
    )
    page = app.open("?tab=runs", dark=dark)
    pick(page, run)
    expect(page.locator("#runs-storage")).to_contain_text("Freed if deleted")
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, f"history{'-dark' if dark else ''}")


def test_examples_are_marked_filtered_taken_along_and_opened_in_compare(app, shot):
    told = [(f"What is {ATTACK}?", f"It is {ATTACK}.", 3.0, 3.5), *examples.rows(24)]
    answers = [
        examples.answer(told[0][0], told[0][1], f"It was {ATTACK}.", f"It is not {ATTACK}."),
        examples.answer("What is 24?", "It is 24.", "word " * 8000, "It is 24."),
    ]
    run = examples.measured(app.store, told, answers)
    examples.prove(app.store, run)
    page = app.open("?tab=runs")
    pick(page, run)
    table = page.locator("#runs-examples")
    shown = table.locator("tbody tr")
    expect(shown).to_have_count(20)
    expect(table).to_contain_text(f"Answered by: Base: adapter none, model.onnx {'b' * 12};")
    expect(table).to_contain_text(f"With adapter: adapter {'a' * 12}, ")
    expect(table.get_by_title(f"SHA-256 {'a' * 64}")).to_be_visible()
    expect(table.get_by_role("alert").first).to_contain_text("no longer")
    expect(shown.first).to_contain_text("+0.50")
    expect(shown.first.locator("ins")).to_have_text(["was", " not"])
    expect(shown.first.locator("del")).to_have_text(["is"])
    assert page.evaluate("window.hacked") is None
    table.get_by_label("Adapter worse").check()
    expect(shown).to_have_count(9)
    table.get_by_label("Search the examples").fill("WHAT IS 24?")
    table.get_by_label("Search the examples").press("Enter")
    expect(shown).to_have_count(1)
    assert len(shown.first.inner_text()) < 2000
    table.get_by_role("button", name="Show all of line 25").click()
    expect(shown.first).to_contain_text("word " * 7999)
    page.evaluate(CHECKS.read_text())
    assert faults(page) == []
    assert page.evaluate("checks.faint()") == []
    shot(page, "examples")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "examples-narrow")
    with page.expect_download() as download:
        table.get_by_role("link", name="Examples as csv").click()
    assert download.value.path().read_text("utf-8").count("\n") == 26
    with page.context.expect_page() as opened:
        page.locator("#runs-report").get_by_role("link", name="Report", exact=True).click()
    expect(opened.value.locator("h1")).to_have_text("travel")
    assert ATTACK not in opened.value.content()
    opened.value.close()
    page.set_viewport_size({"width": 1280, "height": 800})
    button = table.get_by_role("button", name="Open in Compare: line 25")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#compare-prompt textarea")).to_have_value("What is 24?")
    expect(page.locator("#compare-run input")).to_have_value(re.compile(run))
