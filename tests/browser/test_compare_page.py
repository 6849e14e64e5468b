"""The buttons of the Compare tab in a real browser, over models that really answer."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.system import checksums
from tests.helpers import exports, planted
from webapp import talks

pytestmark = pytest.mark.browser

COLUMNS = ("base", "adapter", "also-1", "also-2")
WATCH = """() => {
  const button = document.getElementById("compare-go");
  window.wasBusy = false;
  window.watcher ??= new MutationObserver(() => { window.wasBusy ||= button.disabled; });
  window.watcher.observe(button, { attributes: true });
}"""
IS_DONE = "window.wasBusy && !document.getElementById('compare-go').disabled"


def answering(app, export: Path, **more) -> str:
    """A finished run with an export that answers, and without recorded answers: no prompt is filled in."""
    run = planted.finished(app.store, answers=[], **more)
    shutil.copytree(export, app.store.get(run).artifact("onnx"), dirs_exist_ok=True)
    return run


def draws(page, **given) -> None:
    """Set how answers are drawn, by the beginnings of the labels."""
    boxes = {
        "tokens": page.get_by_label("number input for Max tokens"),
        "temperature": page.get_by_label("number input for Temperature"),
        "seed": page.get_by_label("Seed"),
    }
    for name, value in given.items():
        boxes[name].fill(str(value))
        boxes[name].press("Tab")


def texts(page) -> list[str]:
    """The answers in all columns that are there."""
    there = [page.locator(f"#answer-{name} textarea") for name in COLUMNS]
    return [box.input_value() for box in there if box.count()]


def answers(page, button: str) -> list[str]:
    """What all columns say once what a button asks is answered."""
    page.evaluate(WATCH)
    page.click(f"#compare-{button}")
    page.wait_for_function(IS_DONE)
    return texts(page)


def kept(app, page) -> talks.Talk:
    """The conversation of a page."""
    return talks.load(app.home, page.evaluate("localStorage.getItem('olive-lab-talk')"))


def test_columns_draw_with_one_seed_and_the_buttons_do_what_they_say(app, written_export, shot):
    other, run = (answering(app, written_export, name=name) for name in ("other", "travel"))
    page = app.open("?tab=compare")
    expect(page.locator("#compare-run input")).to_have_value(re.compile(run))
    heights = [page.locator(f"#compare-{name}").bounding_box()["height"] for name in ("go", "again", "probe")]
    assert len({*heights}) == 1, "no button's words wrap"
    for asked in (run, other):
        page.click("#compare-also input")
        page.get_by_role("option", name=re.compile(f"^Base: .*{asked}")).click()
    page.keyboard.press("Escape")
    expect(page.locator("#answer-also-2")).to_be_visible()
    draws(page, tokens=8, temperature=1, seed=7)
    page.fill("#compare-prompt textarea", "One?")

    first = answers(page, "go")
    assert first[0] == first[2] == first[3], "the same side: in two columns, and of an equal model"
    assert first[0] != first[1]
    assert min(map(len, first)) > 0
    assert answers(page, "again") == first
    draws(page, seed=8)
    second = answers(page, "again")
    assert second[0] == second[2] == second[3]
    assert second[0] != first[0]
    assert [turn.prompt for turn in kept(app, page).turns] == ["One?"]

    page.check("#compare-continues input")
    page.fill("#compare-prompt textarea", "Two?")
    answers(page, "go")
    page.click("#compare-edit")
    expect(page.locator("#compare-notice")).to_contain_text("take the place of the last ones")
    page.fill("#compare-prompt textarea", "Three?")
    third = answers(page, "go")
    assert [turn.prompt for turn in kept(app, page).turns] == ["One?", "Three?"]
    asked = page.locator(".lab-turns").first
    expect(asked).to_contain_text("One?")
    expect(asked).not_to_contain_text("Two?")

    page.click("#compare-probe")
    proof = page.locator("#compare-proof")
    expect(proof).to_contain_text(re.compile("✓ With the adapter [0-9a-f]{12} the logits differ; with it"))
    expect(proof).to_contain_text("equal bit for bit those of a fresh process that never loaded an adapter")
    expect(page.locator("#compare-probe")).to_be_enabled()
    assert texts(page) == third
    shot(page, "compare-buttons")


def test_stop_ends_an_answer_and_what_came_stays(app, written_export, tmp_path):
    slow = shutil.copytree(written_export, tmp_path / "slow")
    exports.make_slow(slow)
    answering(app, slow)
    page = app.open("?tab=compare")
    expect(page.locator("#compare-run input")).not_to_have_value("")
    draws(page, tokens=200)
    page.fill("#compare-prompt textarea", "One?")
    page.click("#compare-go")
    base = page.locator("#answer-base textarea")
    expect(base).not_to_have_value("")
    page.click("#compare-stop")
    expect(page.locator("#compare-notice")).to_have_text("Stopped.")
    expect(page.locator("#compare-go")).to_be_enabled()
    came = base.input_value()
    app.settle(page)
    assert base.input_value() == came
    (turn,) = kept(app, page).turns
    assert turn.answers[0].text.startswith(came)
    page.reload()
    expect(base).to_have_value(turn.answers[0].text)
    expect(page.locator(".lab-facts").first).to_have_text(re.compile("Ended.*before it was complete"))
    draws(page, tokens=1)  # the model is there for the next question
    answers(page, "again")
    expect(page.locator(".lab-facts").first).to_contain_text("Tokens per second")


def test_a_template_of_several_fields_has_a_box_for_each(app, written_export, tmp_path):
    export = shutil.copytree(written_export, tmp_path / "fields")
    lab = json.loads((export / "lab.json").read_text())
    text = {"template": "{city} by {way}:\\n{answer}\\n\\n", "fields": ["city", "way"], "stop": "\n\n"}
    (export / "lab.json").write_text(json.dumps({**lab, **text}))
    checksums.write(export)
    plain = answering(app, written_export)
    run = answering(app, export, name="fields")
    page = app.open("?tab=compare")
    expect(page.locator("#compare-run input")).to_have_value(re.compile(run))
    boxes = page.locator("#compare-boxes")
    expect(boxes.locator("textarea")).to_have_count(2)
    expect(page.locator("#compare-prompt")).to_be_hidden()
    draws(page, tokens=16)
    boxes.get_by_label("city").fill("Rome")
    boxes.get_by_label("way").fill('train "7"')
    assert all(answers(page, "go"))
    (turn,) = kept(app, page).turns
    assert (json.loads(turn.prompt), turn.fields) == ({"city": "Rome", "way": 'train "7"'}, ("city", "way"))
    page.reload()
    expect(boxes.get_by_label("city")).to_have_value("Rome")
    expect(boxes.get_by_label("way")).to_have_value('train "7"')
    page.click("#compare-also input")
    page.get_by_role("option", name=re.compile(f"^Base: .*{plain}")).click()
    expect(boxes.locator("textarea")).to_have_count(3)
    expect(boxes).to_contain_text("The templates differ: each model gets the fields of its own.")
    expect(boxes.get_by_label("city")).to_have_value("Rome")
