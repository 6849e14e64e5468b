"""The page in a real browser. Every wait is for a condition and has a limit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.store.run import CANCELED, DONE, FAILED
from tests.browser.axe import faults
from tests.helpers import planted
from tests.helpers.lab import until
from tests.helpers.page import ATTACK, tab, upload
from webapp import talks
from webapp.talks import Answer, Talk, Turn

pytestmark = pytest.mark.browser

CHECKS = Path(__file__).parent / "checks.js"


def test_an_empty_home_welcomes_and_says_what_to_do(app, shot):
    page = app.open()
    expect(page.locator("#run-sample")).to_be_visible()
    expect(page.locator("#data-summary")).to_contain_text("144 rows")
    shot(page, "empty")
    tab(page, "runs")
    expect(page.locator("#runs-table")).to_contain_text("No runs yet")
    tab(page, "compare")
    expect(page.locator("#compare-notice")).to_contain_text("No finished run yet")
    tab(page, "publish")
    expect(page.locator("#publish-versions")).to_contain_text("Nothing is published yet")
    tab(page, "lab")
    shot(page, "lab")
    page.get_by_role("button", name="Recipe and command").click()
    expect(page.locator("#command")).to_contain_text("python -m pipeline run run.yaml")


TURNED = """() => [...document.querySelectorAll("body *")].filter((node) => {
  const { unicodeBidi, display } = getComputedStyle(node);
  const text = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
  return text && !["isolate", "plaintext"].includes(unicodeBidi) && !["none", "contents"].includes(display);
}).map((node) => node.outerHTML.slice(0, 200))"""


def test_no_text_turns_what_stands_beside_it(app):
    """A character such as U+202E in one has no effect outside its own element."""
    turned = "\u202eturned"
    answer = {"prompt": turned, "expected": turned, "base": {"text": turned}, "adapter": {"text": turned}}
    run = planted.finished(app.store, answers=[answer])
    planted.log(app.store, run, "evaluate", f"{turned} \x1b[31mred\x1b[0m\n")
    page = app.open(f"?tab=lab&run={run}")
    shows = {"lab": ".lab-lines", "compare": "#compare-recorded", "runs": "#runs-table"}
    for name, place in shows.items():
        tab(page, name)
        expect(page.locator(place)).to_contain_text("travel" if name == "runs" else "turned")
        assert page.evaluate(TURNED) == []


def test_a_running_run_is_shown_live_and_again_after_a_reload(app, shot):
    run = planted.running(app.store)
    page = app.open()
    expect(page.locator(".lab-stages li.is-shown")).to_contain_text("finetune", ignore_case=True)
    expect(page.locator(".lab-lines")).to_contain_text("line 29: step 29 of 60")
    expect(page.locator("[data-chart=loss] .scatterlayer .trace")).to_have_count(2)
    expect(page.locator(".lab-now")).to_contain_text("step 30 of 60")
    assert page.evaluate("document.querySelector('.lab-stages li.is-shown progress').value") == 0.5
    until(lambda: page.title() == "37% finetune · at least 40 s left · travel – Olive Lab", "the title")
    shot(page, "run")

    planted.log(app.store, run, "finetune", f"{ATTACK}\n\r 10%\r 55%")
    planted.event(app.store, run, "finetune", step=31, total_steps=60, progress=31 / 60, loss=0.5)
    expect(page.locator(".lab-lines")).to_contain_text(ATTACK)
    expect(page.locator(".lab-lines")).to_contain_text("10%")
    expect(page.locator(".lab-now")).to_contain_text("step 31 of 60")
    assert page.evaluate("window.hacked") is None

    assert f"run={run}" in page.url
    page.reload()
    expect(page.locator(".lab-lines")).to_contain_text(ATTACK)
    other = app.open(f"?run={run}", dark=True)
    expect(other.locator(".lab-lines")).to_contain_text("line 29")
    expect(other.locator("[data-chart=loss] .scatterlayer .trace")).to_have_count(2)
    shot(other, "run-dark")


def test_a_progress_bar_stays_one_line_and_the_next_stage_takes_over(app):
    run = planted.running(app.store)
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-lines")).to_contain_text("line 29")
    height = "document.querySelector('.lab-space').clientHeight"
    lines = page.evaluate(height)
    for percent in range(0, 100, 10):
        planted.log(app.store, run, "finetune", f"\r{percent}%")
    planted.log(app.store, run, "finetune", "\r100%\r\nnext\n")
    expect(page.locator(".lab-lines")).to_contain_text("next")
    assert (page.evaluate(height) - lines) / 19 <= 3
    assert "50%" not in page.locator(".lab-lines").inner_text()

    app.store.finish(run, "finetune", DONE, seconds=60)
    app.store.claim_next(run, "cpu")
    planted.log(app.store, run, "optimize", "building the graph\n")
    expect(page.locator(".lab-lines")).to_contain_text("building the graph")
    page.click(".lab-stages li >> nth=0 >> button")
    expect(page.locator(".lab-lines")).to_contain_text("Quantizing 210 layers")
    app.store.finish(run, "optimize", FAILED, error=f"It broke {ATTACK}")
    expect(page.locator(".lab-stages")).to_contain_text(ATTACK)
    expect(page.locator("#run-retry")).to_be_visible()
    page.click("#run-retry")
    expect(page.locator("#run-cancel")).to_be_visible()
    assert app.store.get(run).status == "queued"


def test_cancel_asks_first(app):
    run = planted.queued(app.store)
    page = app.open(f"?run={run}")
    page.click("#run-cancel")
    page.keyboard.press("Escape")
    assert app.store.get(run).status == "queued"
    page.click("#run-cancel")
    page.click("#cancel-yes")
    expect(page.locator(".lab-head .lab-status")).to_have_text("Canceled")
    assert app.store.get(run).status == CANCELED


def test_the_history_shows_the_end_of_a_run_that_was_canceled_while_it_ran(app):
    run = planted.running(app.store)
    page = app.open("?tab=runs")
    page.click(f"#runs-table tr[data-id='{run}']")
    expect(page.locator("#run-details")).to_contain_text(run)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#runs-cancel")
    expect(page.locator("#runs-table tr >> nth=1")).to_contain_text("Canceling…")
    app.store.finish(run, "finetune", CANCELED)  # as the worker does a moment later
    expect(page.locator("#runs-table tr >> nth=1")).to_contain_text("Canceled")
    expect(page.locator("#runs-cancel")).to_be_disabled()


def test_a_restart_of_the_server_loses_nothing(app):
    run = planted.running(app.store)
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-lines")).to_contain_text("line 29")
    app.settle(page)  # else Gradio reloads the page, see the next test
    page.evaluate("window.kept = true")
    app.stop()
    expect(page.locator(".lab-trouble")).to_contain_text("Connection lost, retrying")
    planted.log(app.store, run, "finetune", "written meanwhile\n")
    app.start()
    expect(page.locator(".lab-lines")).to_contain_text("written meanwhile")
    expect(page.locator(".lab-trouble")).to_have_text("")
    assert page.locator(".lab-lines").inner_text().count("line 29") == 1
    assert page.evaluate("window.kept") is True, "the page was loaded anew"
    tab(page, "runs")
    expect(page.locator("#runs-table")).to_contain_text(run)


def test_a_long_log_is_shown_from_its_end_in_a_ring(app):
    run = planted.running(app.store)
    planted.log(app.store, run, "finetune", "".join(f"early {n}\n" for n in range(60_000)))
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-lines")).to_contain_text("early 59999")
    planted.log(app.store, run, "finetune", "".join(f"late {n}\n" for n in range(9_000)))
    expect(page.locator(".lab-lines")).to_contain_text("late 8999")
    assert page.locator(".lab-lines > div").count() <= 5000
    assert page.locator("#log-follow").is_checked()


def test_the_history_and_a_run_in_detail(app, shot):
    run = planted.finished(app.store, name=ATTACK[:60])
    planted.queued(app.store, "later")
    page = app.open("?tab=runs")
    expect(page.locator("#runs-table tbody tr")).to_have_count(2)
    page.click(f"#runs-table tr[data-id='{run}']")
    expect(page.locator("#run-details")).to_contain_text("eval loss after: 1.42")
    shot(page, "runs")
    with page.expect_download() as taken:
        page.click("#runs-download")
    assert taken.value.suggested_filename.endswith(f"-{run}.zip")
    with zipfile.ZipFile(taken.value.path()) as archive:
        assert archive.namelist()[0] == "README.md"
    answers, asked = ["dismiss", "accept"], []
    page.on("dialog", lambda dialog: (asked.append(dialog), getattr(dialog, answers[len(asked) - 1])()))
    page.click("#runs-table tr >> nth=1")
    expect(page.locator("#run-details")).to_contain_text("later")
    page.click("#runs-cancel")
    until(lambda: page.evaluate("1") and asked, "the question")
    assert app.store.list()[0].status == "queued"
    page.click("#runs-cancel")
    expect(page.locator("#runs-table tr >> nth=1")).to_contain_text("Canceled")
    app.settle(page)  # the details of the one that was canceled are read once more
    page.click(f"#runs-table tr[data-id='{run}']")
    expect(page.locator("#run-details")).to_contain_text(run)
    page.click("#runs-open")
    expect(page.locator(".lab-run h2")).to_have_text(ATTACK[:60])
    expect(page.locator("#run-compare")).to_be_visible()
    with page.expect_download() as taken:
        page.click("#run-download")
    assert zipfile.is_zipfile(taken.value.path())
    assert page.evaluate("window.hacked") is None


NOTE_BUSY = """(id) => {
  const button = document.getElementById(id);
  new MutationObserver(() => { window.wasBusy ||= button.disabled; }).observe(button, { attributes: true });
}"""


def test_compare_offers_held_out_prompts(app, shot):
    planted.finished(app.store, answers=[{**planted.ANSWERS[0], "expected": ATTACK}, *planted.ANSWERS[1:]])
    page = app.open("?tab=compare")
    expect(page.locator("#compare-prompt textarea")).to_have_value("What should I see in Lindenhafen?")
    expect(page.locator("#compare-recorded")).to_contain_text(ATTACK)
    shot(page, "compare")
    page.fill("#compare-prompt textarea", "What should I eat there?")
    page.click("#compare-picker input")
    page.keyboard.press("Escape")
    page.click("#compare-run input")
    page.keyboard.press("Escape")
    page.focus("#compare-prompt textarea")
    app.settle(page)
    expect(page.locator("#compare-prompt textarea")).to_have_value("What should I eat there?")
    expect(page.locator("#compare-picker input")).to_have_value("")
    page.fill("#compare-prompt textarea", "What should I see in Lindenhafen?")
    expect(page.locator("#compare-picker input")).to_have_value("What should I see in Lindenhafen?")
    page.click("#compare-picker input")
    page.get_by_role("option", name="What should I see in Lindenhafen?").click()
    expect(page.locator("#compare-prompt textarea")).to_have_value("What should I see in Lindenhafen?")
    other = planted.ANSWERS[1]["prompt"]
    page.fill("#compare-picker input", other)  # by keyboard
    page.keyboard.press("Enter")
    expect(page.locator("#compare-prompt textarea")).to_have_value(other)
    page.evaluate(NOTE_BUSY, "compare-go")
    page.click("#compare-go")
    expect(page.locator("#compare-notice")).to_contain_text("not good")
    expect(page.locator("#compare-go")).to_be_enabled()
    assert page.evaluate("window.wasBusy") is True
    assert page.evaluate("window.hacked") is None


def test_a_conversation_is_there_after_a_reload(app, shot):
    run, other = planted.finished(app.store), planted.finished(app.store, name="other")
    said = [
        Turn(
            prompt,
            "",
            tuple(Answer(f"{side}@{run}", f"{side}: {ATTACK}", []) for side in ("base", "adapter")),
        )
        for prompt in ("One?", "Two?")
    ]
    talks.save(app.home, "a-name-of-22-letters-x", Talk(run, (f"base@{other}",), tuple(said)))
    page = app.open("?tab=compare")
    page.evaluate("localStorage.setItem('olive-lab-talk', 'a-name-of-22-letters-x')")
    page.reload()
    expect(page.locator("#compare-prompt textarea")).to_have_value("Two?")
    expect(page.locator("#answer-adapter textarea")).to_have_value(f"adapter: {ATTACK}")
    expect(page.locator(".lab-turns").first).to_contain_text("One?")
    expect(page.locator("#answer-also-1")).to_be_visible()
    expect(page.locator("#answer-also-2")).to_be_hidden()
    shot(page, "conversation")
    page.click("#compare-mark")
    expect(page.locator("#compare-marks del")).to_have_text("base")
    expect(page.locator("#compare-marks ins")).to_have_text("adapter")
    page.click("#compare-edit")
    expect(page.locator("#compare-notice")).to_contain_text("take the place of the last ones")
    page.locator("#compare-prompt textarea").press_sequentially(" And then?")
    app.settle(page)
    page.reload()
    expect(page.locator("#compare-prompt textarea")).to_have_value("Two? And then?")
    assert page.evaluate("window.hacked") is None


def test_a_dry_run_and_publishing(app, shot):
    run = planted.finished(app.store)
    page = app.open("?tab=publish")
    expect(page.locator("#publish-run input")).not_to_have_value("")
    page.click("#publish-check")
    expect(page.locator("#publish-problems")).to_contain_text("name: ''")
    page.fill("#publish-name input, #publish-name textarea", "travel")
    page.click("#publish-check")
    expect(page.locator("#tabs")).to_contain_text("Version 1 of travel: 1 files")
    page.click("#publish-go")
    expect(page.locator("#publish-progress")).to_contain_text("Waiting")
    shot(page, "publish")
    app.store.claim_publish()
    planted.event(app.store, run, "publish", message="Copying model.onnx", progress=0.4)
    expect(page.locator("#publish-progress")).to_contain_text("Copying model.onnx")
    folder = app.home / "registry" / "travel" / "1"
    folder.mkdir(parents=True)
    facts = {"run": run, "created": 1.0, "description": "", "bytes": 2048}
    Path(folder, "published.json").write_text(json.dumps(facts))
    app.store.finish(run, "publish", DONE, seconds=1)
    expect(page.locator("#publish-versions")).to_contain_text(str(folder))


def test_what_is_there_for_events_alone_is_never_seen(app):
    planted.finished(app.store)
    page = app.open("?tab=publish")
    expect(page.locator("#publish-run input")).not_to_have_value("")
    for place in ("Azure AI", "Hugging Face Hub", "This lab"):
        page.get_by_label(place, exact=True).check()
        app.settle(page)
        assert page.locator(".lab-hidden").count() > 2
        expect(page.locator(".lab-hidden >> visible=true")).to_have_count(0)


def test_what_is_followed_and_is_gone_is_not_asked_for_again(app):
    page = app.open()
    said = page.evaluate(
        """async () => {
          const { draw } = await import("/lab/draw.js");
          const asks = [["stage", { run: "gone", stage: "publish" }], ["stage", { pulled: "gone" }],
                        ["scorecard", { group: "scorecard-gone" }]];
          const roots = asks.map(([kind, value]) => {
            const root = document.createElement("div");
            draw[kind](root, value, () => {});
            return root;
          });
          const isDone = () => roots.every((root) => root.textContent.includes("no longer exists"));
          for (let n = 0; n < 200 && !isDone(); n++) await new Promise((done) => setTimeout(done, 50));
          return roots.map((root) => root.textContent);
        }"""
    )
    assert all("no longer exists in this home" in text for text in said), said


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_fit_for_everyone(app, dark, shot):
    name = "A name that says all that one would like to know of a run, and more"
    planted.finished(app.store, name, model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
    planted.running(app.store)
    page = app.open(dark=dark)
    page.evaluate(CHECKS.read_text())
    expect(page.locator(".lab-lines")).to_contain_text("line 29")
    for name in TABS:
        tab(page, name)
        expect(page.locator(f"#tab-{name}-button")).to_have_attribute("aria-selected", "true")
        open_up(app, page, name)
        app.settle(page)
        assert page.locator("h1").count() == 1
        assert faults(page) == []
        assert page.evaluate("checks.faint()") == []
        assert page.evaluate("checks.faintControls()") == []
        assert page.evaluate(CUT_OFF) == []
        shot(page, f"fit-{name}{'-dark' if dark else ''}")


TABS = ("data", "lab", "tune", "compare", "runs", "publish")


# Tables that are wider than their place.
CUT_OFF = """() => [...document.querySelectorAll(".lab-scroll")]
  .filter((box) => box.offsetParent && box.scrollWidth > box.clientWidth).map((box) => box.ariaLabel)"""


def open_up(app, page, name: str) -> None:
    """Show what a tab has on demand."""
    if name == "data":
        expect(page.locator("#data-example")).to_contain_text("as the model reads it")
        expect(page.locator("#data-use")).to_be_enabled()
        assert faults(page) == []
        upload(page, "bad.jsonl", b'["no"]\n')
        expect(page.locator("#data-problems")).to_contain_text("Row 1")
    elif name == "lab":
        page.click("#new-run button >> nth=0")
        expect(page.locator("#launch")).to_be_visible()
        app.unfold(page)
        page.get_by_role("button", name="More options").first.click()
    elif name == "runs":
        page.click("#runs-table tr >> nth=2")
        expect(page.locator("#run-details")).to_contain_text("eval loss after")


def test_a_narrow_page_opens_the_tab_of_its_address(app, shot):
    planted.finished(app.store)
    pages = [
        (390, "runs", "#runs-table tbody tr"),
        (390, "publish", "#publish-run"),
        (300, "publish", "#publish-run"),
    ]  # of which the last has tabs in a menu
    for width, name, place in pages:
        page = app.open(f"?tab={name}", width=width)
        expect(page.locator(place).first).to_be_visible()
        assert f"tab={name}" in page.url
        page.reload()
        expect(page.locator(place).first).to_be_visible()
        assert page.get_by_label("More tabs").is_visible() == (width == 300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot(page, f"{name}-{width}")
