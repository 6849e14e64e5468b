"""The form of the Lab tab in a real browser: three steps, presets, problems, and what it keeps."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from playwright.sync_api import expect

from pipeline.stages.costs.cost import Cost
from pipeline.store.run import COST
from pipeline.system import capacity
from tests.helpers import planted
from tests.helpers.lab import CONFIG, until
from tests.helpers.page import ATTACK

pytestmark = pytest.mark.browser


def test_launch_shows_every_problem_beside_the_button_and_starts_nothing(app, shot):
    page = app.form()
    expect(page.locator("#recipe")).to_contain_text("travel.jsonl")
    page.fill("#finetune-r input", "100000")
    expect(page.locator("#lab-problems")).to_contain_text("Finetune, Rank (r): 100000 is not allowed")
    expect(page.locator("#finetune-r .lab-wrong")).to_contain_text("a whole number from 1 to 512")
    expect(page.locator("#launch")).to_be_disabled()
    expect(page.locator("#launch-why")).to_contain_text("Launch is off until the point below is put right")
    page.get_by_role("button", name="All options").click()
    expect(page.locator("#finetune-r")).to_be_hidden()
    page.locator("#lab-problems").get_by_role("button", name="Rank (r)").click()
    expect(page.locator("#finetune-r input")).to_be_focused()
    shot(page, "lab-problems")
    page.fill("#finetune-r input", "8")
    expect(page.locator("#launch")).to_be_enabled()
    expect(page.locator(".lab-wrong")).to_have_count(0)
    assert app.store.list() == []


def test_a_preset_suits_the_data_and_says_how(app, shot):
    page = app.form()
    page.get_by_label("Thorough").check()
    expect(page.locator("#preset-notice")).to_contain_text("8 passes over the 130 rows that are not held out")
    expect(page.locator("#finetune-r input")).to_have_value("32")
    expect(page.locator("#recipe")).to_contain_text("compensate: auto")
    shot(page, "preset")
    page.get_by_label("Quick try").check()
    expect(page.locator("#recipe")).to_contain_text("algorithm: rtn")
    page.click("#tab-data-button")
    page.click("#data-use")
    expect(page.locator("#preset input:checked")).to_have_count(0)  # it can be chosen for this data
    expect(page.locator("#preset-notice")).to_be_hidden()
    page.get_by_label("Quick try").check()
    expect(page.locator("#preset-notice")).to_contain_text("130 rows")
    page.click("#start-over")
    expect(page.locator("#finetune-max_steps input")).to_have_value("auto")
    expect(page.locator("#preset input:checked")).to_have_count(0)


def test_everything_to_launch_is_on_one_screen_and_the_bar_stays_in_reach(app, shot):
    planted.finished(app.store)  # else the welcome stands above
    for width in (1280, 390):
        page = app.open("?tab=lab", width=width)
        expect(page.locator("#launch")).to_be_in_viewport(ratio=1)
        if width == 1280:
            for place in ("#data", "#model", "#preset"):
                expect(page.locator(place)).to_be_in_viewport(ratio=1)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        if width == 390:
            expect(page.locator("#launch")).to_be_in_viewport(ratio=1)
        shot(page, f"steps-{width}")


def test_what_the_run_takes_stands_beside_launch(app, shot, model_folder):
    offered = shutil.copytree(model_folder, app.home / "models" / "tiny-llama")
    page = app.form()
    page.click("#model input")
    page.fill("#model input", str(offered))
    page.press("#model input", "Enter")
    expect(page.locator("#preflight tbody tr")).to_have_count(5)
    expect(page.locator("#preflight")).to_contain_text("finetune")
    expect(page.locator("#preflight-notice")).to_contain_text("This machine has")
    expect(page.locator("#preflight-notice")).to_contain_text("passes over the")
    shot(page, "preflight")


def test_what_does_not_fit_stands_at_its_field_and_launch_says_why_it_is_off(app, shot, model_folder):
    run = planted.plant(app.store)
    planted.finish_all(app.store, run)
    took = {"predicted": Cost.of(1e9, None, 1e6, 100.0).to_dict(), "measured": {"seconds": 125.0}}
    app.store.folder(run, "finetune").mkdir(parents=True)
    (app.store.folder(run, "finetune") / COST).write_text(json.dumps(took))
    offered = shutil.copytree(model_folder, app.home / "models" / "tiny-llama")
    # So many words that, on any machine, a batch of 1,024 takes a multiple of its memory, and a few rows fit.
    config = {**CONFIG, "vocab_size": capacity.of(app.home).memory // 30_000}
    (offered / "config.json").write_text(json.dumps(config))
    page = app.form()
    page.click("#model input")
    page.fill("#model input", str(offered))
    page.press("#model input", "Enter")
    page.fill("#finetune-batch_size input", "1024")
    expect(page.locator("#launch")).to_be_disabled()
    wrong = page.locator("#finetune-batch_size .lab-wrong")
    expect(wrong).to_have_count(1)
    said = wrong.inner_text()
    told = re.fullmatch(r"1024 needs about .* of memory, and .* can be used here; (\d+) fits", said)
    assert told, said
    expect(page.locator("#launch-why")).to_have_text(
        f"Launch is off, this does not fit this machine. Finetune, Batch size: {said}."
    )
    expect(page.locator("#preflight-notice")).to_contain_text(
        "Off so far, in the median (of so many stages): finetune time 20% (1)."
    )
    shot(page, "does-not-fit")
    page.locator("#preflight-problems").get_by_role("button", name="Batch size").click()
    expect(page.locator("#finetune-batch_size input")).to_be_focused()
    page.fill("#finetune-batch_size input", told[1])
    expect(page.locator(".lab-wrong")).to_have_count(0)
    expect(page.locator("#launch")).to_be_enabled()
    expect(page.locator("#launch-why")).to_be_empty()
    page.fill("#finetune-batch_size input", "1024")
    expect(page.locator("#launch")).to_be_disabled()
    (offered / "config.json").write_text(json.dumps(CONFIG))  # as if space was freed somewhere else
    page.click("#tab-data-button")
    page.click("#tab-lab-button")
    expect(page.locator("#launch")).to_be_enabled()
    expect(page.locator(".lab-wrong")).to_have_count(0)


def test_launch_queues_a_run_and_follows_it(app, tmp_path, model_folder):
    offered = shutil.copytree(model_folder, app.home / "models" / "tiny-llama")
    page = app.form()
    expect(page.locator("#recipe")).to_contain_text("travel.jsonl")
    page.fill("#name textarea, #name input", "my first run")
    page.click("#model input")
    page.fill("#model input", str(offered))
    page.press("#model input", "Enter")
    expect(page.locator("#command")).to_contain_text("my-first-run.yaml")
    expect(page.locator("#recipe")).to_contain_text("tiny-llama")
    page.uncheck("#quantize-on input")
    expect(page.locator("#recipe")).to_contain_text("quantize: null")
    expect(page.locator("#quantize-bits")).to_be_hidden()
    with page.expect_download() as download:
        page.click("#download-recipe")
    assert download.value.suggested_filename == "my-first-run.yaml"
    page.click("#launch")
    expect(page.locator(".lab-run h2")).to_have_text("my first run")
    expect(page.locator(".lab-stages li")).to_have_count(3)
    run = app.store.list()[0]
    assert f"run={run.id}" in page.url
    expect(page.locator("#run-sample")).to_be_hidden()


def test_what_was_typed_while_the_server_was_away_is_still_there_after_the_reload(app):
    page = app.form()
    page.fill("#name input, #name textarea", "before")
    expect(page.locator("#recipe")).to_contain_text("before")
    app.settle(page)
    page.evaluate("window.kept = true")
    app.stop()
    held = []  # the first question that fails is the last that Gradio asks, so both are typed before that

    def hold(route) -> None:
        held.append(route)

    page.route("**/gradio_api/**", hold)
    page.fill("#name input, #name textarea", "meanwhile")
    until(lambda: page.evaluate("1") and held, "a question")
    page.evaluate(
        "document.getElementById('preview-now').addEventListener('click', () => { window.hasSettled = true })"
    )
    page.fill("#finetune-r input", "32")
    page.wait_for_function("window.hasSettled")
    page.evaluate("new Promise((done) => requestIdleCallback(done))")
    for route in held:
        route.abort()
    page.unroute("**/gradio_api/**")
    expect(page.locator(".toast-wrap")).to_contain_text("Connection to the server was lost")
    page.fill("#name input, #name textarea", "afterwards")
    page.fill("#finetune-alpha input", "48")
    page.uncheck("#evaluate-on input")
    app.start()
    page.wait_for_function("window.kept === undefined")  # Gradio has reloaded it
    app.unfold(page)
    expect(page.locator("#recipe")).to_contain_text("afterwards")
    expect(page.locator("#recipe")).to_contain_text("alpha: 48")
    expect(page.locator("#recipe")).to_contain_text("evaluate: null")
    expect(page.locator("#finetune-r input")).to_have_value("32")
    page.reload()  # the reader's own
    app.unfold(page)
    expect(page.locator("#recipe")).to_contain_text("afterwards")
    page.click("#start-over")
    expect(page.locator("#recipe")).not_to_contain_text("afterwards")
    app.settle(page)
    page.reload()
    app.unfold(page)
    expect(page.locator("#recipe")).to_contain_text("name: run")


def test_a_prompt_file_is_uploaded_kept_over_a_reload_and_removed_again(app, shot):
    page = app.form()
    expect(page.locator("#recipe")).to_contain_text("travel.jsonl")
    expect(page.locator("#evaluate-data input")).to_have_value("Held-out rows")
    expect(page.locator("#evaluate-remove")).to_be_hidden()
    rows = "question,answer\n" + "".join(f"{ATTACK[:9]} {n}?,Here {n}.\n" for n in range(12))
    bring(page, "bad.csv", rows + "one cell\n")
    expect(page.locator("#evaluate-problems")).to_contain_text("bad.csv is not taken")
    expect(page.locator("#evaluate-problems li")).to_contain_text("Line 14: the row has 1 cell")
    shot(page, "prompt-file-bad")
    bring(page, "prompts.csv", rows)
    said = "prompts.csv: 12 rows · csv, question/answer: prompt = question, response = answer"
    expect(page.locator("#evaluate-said")).to_contain_text(said)
    expect(page.locator("#evaluate-problems")).to_be_hidden()
    expect(page.locator("#evaluate-data input")).to_have_value(re.compile(r"^prompts\.jsonl · "))
    expect(page.locator("#recipe")).to_contain_text("prompts.jsonl")
    shot(page, "prompt-file")
    app.settle(page)
    page.reload()
    app.unfold(page)
    expect(page.locator("#evaluate-said")).to_contain_text(said)
    expect(page.locator("#evaluate-data input")).to_have_value(re.compile(r"^prompts\.jsonl · "))
    expect(page.locator("#recipe")).to_contain_text("prompts.jsonl")
    page.click("#evaluate-remove")
    expect(page.locator("#evaluate-data input")).to_have_value("Held-out rows")
    expect(page.locator("#evaluate-said")).to_be_hidden()
    expect(page.locator("#evaluate-remove")).to_be_hidden()
    expect(page.locator("#recipe")).not_to_contain_text("prompts.jsonl")
    bring(page, "bad.csv", rows + "one cell\n")
    expect(page.locator("#evaluate-problems")).to_contain_text("bad.csv is not taken")
    page.click("#start-over")
    expect(page.locator("#evaluate-problems")).to_be_hidden()
    assert len(list((app.home / "datasets").glob("*/original/prompts.csv"))) == 1
    assert page.evaluate("window.hacked") is None


def test_a_prompt_file_that_comes_right_after_start_over_stays(app):
    """However late anything that was asked before it is answered."""
    page = app.form()
    expect(page.locator("#recipe")).to_contain_text("travel.jsonl")
    page.fill("#name input, #name textarea", "other")
    page.uncheck("#quantize-on input")
    expect(page.locator("#recipe")).to_contain_text("name: other")
    app.settle(page)
    held = []

    def hold(route) -> None:
        held.append(route)

    page.route("**/gradio_api/run/**", hold)
    page.click("#start-over")
    expect(page.locator("#name input, #name textarea")).to_have_value("run")
    expect(page.locator("#quantize-on input")).to_be_checked()
    bring(page, "prompts.csv", "question,answer\nWhere?,Here.\n")
    chosen = page.locator("#evaluate-data input")
    expect(chosen).to_have_value(re.compile(r"^prompts\.jsonl · "))
    for route in held:
        route.continue_()
        route.request.response().finished()
    page.unroute("**/gradio_api/run/**")
    expect(page.locator("#recipe")).to_contain_text("prompts.jsonl")
    expect(chosen).to_have_value(re.compile(r"^prompts\.jsonl · "))
    expect(page.locator("#evaluate-said")).to_contain_text("prompts.csv: 1 row")
    page.click("#evaluate-remove")
    expect(chosen).to_have_value("Held-out rows")
    expect(page.locator("#evaluate-remove")).to_be_hidden()


def bring(page, name: str, text: str) -> None:
    """Upload a prompt file by mouse."""
    with page.expect_file_chooser() as chooser:
        page.click("#evaluate-upload")
    chooser.value.set_files({"name": name, "mimeType": "text/plain", "buffer": text.encode()})


def test_an_earlier_recipe_fills_the_form(app, shot):
    run = planted.finished(app.store, name=ATTACK[:60])
    page = app.open("?tab=runs")
    page.click(f"#runs-table tr[data-id='{run}']")
    expect(page.locator("#run-details")).to_contain_text(run)
    page.click("#runs-use")
    expect(page.locator("#new-run")).to_be_visible()
    app.unfold(page)
    expect(page.locator("#name textarea, #name input").first).to_have_value(ATTACK[:60])
    expect(page.locator("#finetune-max_steps input").first).to_have_value("60")
    expect(page.locator("#quantize-group_size input").first).to_have_value("32")
    expect(page.locator("#recipe")).to_contain_text("group_size: 32")
    shot(page, "again")
    assert page.evaluate("window.hacked") is None


def test_more_options_are_as_wide_as_their_words(app, shot):
    page = app.form()
    expect(page.locator("#recipe")).to_contain_text("travel.jsonl")
    for more in page.get_by_role("button", name="More options").all():
        if more.is_visible():
            more.click()
    expect(page.locator("#quantize-symmetric")).to_be_visible()
    shot(page, "more-options")
    narrow = """() => [...document.querySelectorAll("#new-run .fields .block")]
      .filter((e) => e.id && e.offsetParent && e.clientWidth < 200).map((e) => `${e.id} ${e.clientWidth}`)"""
    assert page.evaluate(narrow) == []
