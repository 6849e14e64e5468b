"""The live page in a real browser: the log, the charts, and coming back after anything."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from pipeline.store.run import DONE, FAILED, PROCESS
from pipeline.system import clock
from tests.helpers import examples, planted
from tests.helpers.lab import until

pytestmark = pytest.mark.browser

LINE_PX = 19
# The lines of the log as one reads them by scrolling from its beginning to its end, those seen twice once.
READ = """async () => {
  const view = document.querySelector(".lab-lines"), found = new Map();
  for (let top = 0; ; top += view.clientHeight / 2) {
    view.scrollTop = top;
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    for (const row of view.querySelectorAll(".lab-line")) found.set(parseInt(row.style.top), row.textContent);
    if (top >= view.scrollHeight) return [...found].sort(([a], [b]) => a - b).map(([, text]) => text);
  }
}"""
# A key scrolls smoothly; wait until that has come to its end.
SETTLED = """async () => {
  const view = document.querySelector(".lab-lines");
  for (let top = null, still = 0; still < 10; top = view.scrollTop) {
    await new Promise(requestAnimationFrame);
    still = view.scrollTop === top ? still + 1 : 0;
  }
}"""
# Whether the end of the log is out of sight, by so many pixels.
AWAY = """(px) => {
  const view = document.querySelector(".lab-lines");
  return view.scrollTop < view.scrollHeight - view.clientHeight - (px ?? 1000);
}"""
SCROLL = "top => { document.querySelector('.lab-lines').scrollTop = top }"
# The first line that can be seen.
FIRST = """() => {
  const view = document.querySelector(".lab-lines").getBoundingClientRect();
  const rows = [...document.querySelectorAll(".lab-line")];
  return rows.find((row) => row.getBoundingClientRect().top >= view.top)?.textContent;
}"""
MATCH_IN_SIGHT = """() => {
  const view = document.querySelector(".lab-lines").getBoundingClientRect();
  const mark = document.querySelector(".is-current mark")?.getBoundingClientRect();
  return Boolean(mark) && mark.top >= view.top && mark.bottom <= view.bottom && mark.right <= view.right;
}"""


def lines(page) -> int:
    return page.evaluate("document.querySelector('.lab-space').clientHeight") // LINE_PX


def write(app, run, first: int, last: int, text: str = "number") -> None:
    planted.log(app.store, run, "finetune", "".join(f"{text} {n}\n" for n in range(first, last)))


def opened(app, run):
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-lines")).to_contain_text("line 29")
    return page


def test_the_verdict_stands_at_the_evaluation(app):
    said = "Better: 62 % less loss on your held-out answers (58–65), 14 of 14 rows."
    run = planted.finished(app.store, verdict={"outcome": "better", "text": said})
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-verdict:visible")).to_have_text([f"{said} "])


def test_a_verdict_leads_to_the_rows_that_are_worse(app):
    run = examples.measured(app.store, examples.rows(24))
    page = app.open(f"?run={run}")
    page.get_by_role("button", name="See the 8 rows it is worse on").click()
    table = page.locator("#runs-examples")
    expect(table.locator("tbody tr")).to_have_count(8)
    expect(table.get_by_label("Adapter worse")).to_be_checked()
    expect(table.locator("tbody tr").first).to_contain_text("+0.24")
    expect(table).to_be_in_viewport()
    table.get_by_label("Adapter worse").uncheck()
    expect(table.locator("tbody tr")).to_have_count(20)
    page.locator("#run-details").get_by_role("button", name="See the 8 rows it is worse on").click()
    expect(table.locator("tbody tr")).to_have_count(8)


def test_scrolling_up_holds_the_log_and_its_end_takes_hold_again(app):
    run = planted.running(app.store)
    page = opened(app, run)
    write(app, run, 0, 2000)
    expect(page.locator(".lab-lines")).to_contain_text("number 1999")
    page.locator(".lab-lines").hover()
    page.mouse.wheel(0, -3000)
    expect(page.locator("#log-follow")).not_to_be_checked()
    page.wait_for_function(AWAY)  # the wheel has turned, but the rows may not have moved yet
    page.evaluate(SETTLED)
    held = page.evaluate(FIRST)
    write(app, run, 2000, 4000)
    until(lambda: lines(page) == 4030, "the new lines")
    assert page.evaluate(FIRST) == held
    page.locator(".lab-lines").focus()
    page.keyboard.press("End")
    expect(page.locator("#log-follow")).to_be_checked()
    expect(page.locator(".lab-lines")).to_contain_text("number 3999")
    page.keyboard.press("PageUp")
    expect(page.locator("#log-follow")).not_to_be_checked()
    page.wait_for_function(f"({AWAY})(30)")
    page.evaluate(SETTLED)
    page.check("#log-follow")
    write(app, run, 4000, 4001)
    expect(page.locator(".lab-lines")).to_contain_text("number 4000")


def test_200_000_lines_are_a_handful_of_rows_and_can_be_searched(app, shot):
    run = planted.running(app.store)
    page = opened(app, run)
    for first in range(0, 200_000, 20_000):
        write(app, run, first, first + 20_000)
    until(lambda: lines(page) == 200_030, "all lines", 60)
    assert page.locator(".lab-line").count() < 60
    page.evaluate(SCROLL, 100_000 * LINE_PX)
    until(lambda: page.evaluate(FIRST) == "number 99970", "the middle")
    assert page.locator(".lab-line").count() < 60

    page.fill(".lab-find input", "Number 1000")  # 1000, 10000 to 10009, 100000 to 100099
    expect(page.locator(".lab-count")).to_have_text("12 of 111")
    expect(page.locator(".is-current")).to_have_text("number 100000")
    page.press(".lab-find input", "Shift+Enter")
    expect(page.locator(".lab-count")).to_have_text("11 of 111")
    expect(page.locator(".is-current")).to_have_text("number 10009")
    assert page.evaluate(MATCH_IN_SIGHT)
    page.get_by_role("button", name="Next match").click()
    expect(page.locator(".is-current")).to_have_text("number 100000")
    expect(page.locator("#log-follow")).not_to_be_checked()
    shot(page, "find")
    write(app, run, 0, 1, "number 1000 again")
    expect(page.locator(".lab-count")).to_have_text("12 of 112")
    page.fill(".lab-find input", "(nowhere")
    expect(page.locator(".lab-count")).to_have_text("No match")
    page.fill(".lab-find input", "")
    expect(page.locator(".lab-line mark")).to_have_count(0)


def test_earlier_lines_are_loaded_and_what_is_in_sight_stays(app):
    run = planted.running(app.store)
    write(app, run, 0, 60_000)
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-lines")).to_contain_text("number 59999")
    assert lines(page) < 30_000

    def at_the_top() -> bool:
        # Set again: what arrives at this moment is followed, as no wheel was turned. Drawn a frame later.
        page.evaluate(SCROLL, 0)
        return int(page.evaluate(FIRST).split()[1]) < 45_000

    until(at_the_top, "the rows at the top")
    expect(page.locator(".lab-earlier")).to_contain_text("kB before these lines")
    first = page.evaluate(FIRST)
    page.get_by_role("button", name="Load earlier").click()
    expect(page.locator(".lab-earlier")).to_be_hidden()
    assert lines(page) == 60_030
    until(lambda: page.evaluate(FIRST) == first, "the same row in sight")
    page.locator(".lab-lines").focus()
    page.keyboard.press("Home")
    until(lambda: page.evaluate(FIRST) == "line 0: step 0 of 60", "the first line")


def test_colours_are_shown_and_other_sequences_dropped(app, shot):
    run = planted.running(app.store)
    page = opened(app, run)
    attack = "<b onclick=x>bold</b>"
    planted.log(
        app.store, run, "finetune",
        f"\x1b]0;title\x07\x1b[31mred {attack}\x1b[0m plain \x1b[1;38;5;2mstrong\x1b[22m green\n"
        "still green\x1b[m \x1b[2K\x1b[1Aas it was\x08\n"
        "\x1b[38;2;1;2;3mother\x1b[0m \x1b[97;44mon blue\x1b[0m\n",
    )  # fmt: skip
    rows = page.locator(".lab-line")
    expect(rows.nth(-3)).to_have_text(f"red {attack} plain strong green")
    assert page.locator(".lab-line .ansi-1").inner_text() == f"red {attack}"
    assert page.locator(".lab-line b").count() == 0
    expect(page.locator(".ansi-bold")).to_have_text("strong")
    assert [rows.nth(-2).inner_text(), rows.nth(-1).inner_text()] == [
        "still green as it was",
        "other on blue",
    ]
    expect(rows.nth(-2).locator(".ansi-2")).to_have_text("still green")
    assert page.locator(".ansi-1").evaluate("node => getComputedStyle(node).color") == "rgb(180, 35, 24)"
    page.fill(".lab-find input", "plain strong g")
    expect(page.locator(".is-current mark.ansi-bold")).to_have_text("strong")
    shot(page, "ansi")


def test_a_log_reads_the_same_however_it_is_cut_into_pieces(app):
    """At the ends of lines, as the server cuts it: carriage returns, and those that end with a line feed."""
    page = app.open()
    found = page.evaluate(
        r"""async () => {
          const { Lines, textOf } = await import("/lab/lines.js");
          const some = "a\r\n 10%\r 20%\r\x1b[32m 30%\nb\x1b[0m\n\r 5%\r\r\n\nlast\r 1%\r\n";
          const text = some.repeat(3) + "open";
          const cuts = [...text.matchAll(/\r|\n/g)].map((match) => match.index + 1);
          const read = (places) => {
            const lines = new Lines(100);
            [0, ...places].forEach((at, i) => lines.add(text.slice(at, places[i] ?? text.length), at));
            return lines.lines.map(textOf);
          };
          const whole = read([]);
          const differ = [];
          for (let n = 0; n < 500; n++) {
            const places = cuts.filter((_, i) => (n * 2654435761 >> (i % 31)) & 1);
            if (read(places).join("|") !== whole.join("|")) differ.push(places);
          }
          return { whole: whole.slice(0, 6), differ };
        }"""
    )
    assert found == {"whole": ["a", " 30%", "b", " 5%", "", " 1%"], "differ": []}


def test_a_ring_drops_whole_pieces_and_knows_where_it_begins(app):
    page = app.open()
    found = page.evaluate(
        r"""async () => {
          const { Lines } = await import("/lab/lines.js");
          const lines = new Lines(1000);
          let text = "", gone = 0;
          for (let n = 0; n < 5000; n += 100) {
            const piece = Array.from({ length: 100 }, (_, i) => `line ${n + i}\n`).join("");
            lines.add(piece, text.length);
            text += piece;
            gone += lines.trim();
          }
          const first = lines.at(lines.first);
          const isRight = text.slice(lines.start).startsWith(first + "\n");
          return { kept: lines.lines.length, first, gone, isRight, numbers: [lines.first, lines.end] };
        }"""
    )
    kept = {"kept": 1000, "first": "line 4000", "gone": 4000, "isRight": True, "numbers": [4000, 5000]}
    assert found == kept


def test_a_zoom_stays_while_points_arrive_and_are_thinned(app, shot):
    run = planted.running(app.store)
    page = opened(app, run)
    plot = "document.querySelector('[data-chart=loss] .lab-plot')"
    until(lambda: page.evaluate(f"{plot}.data?.[0]?.x.length") == 30, "the chart")
    page.evaluate(
        f"window.node = {plot}.querySelector('.plot'); Plotly.relayout({plot}, {{'xaxis.range': [5, 10]}})"
    )
    for step in range(31, 60):
        planted.event(app.store, run, "finetune", step=step, loss=1.0, learning_rate=1e-4, eval_loss=1.2)
    until(lambda: page.evaluate(f"{plot}.data[0].x.length") == 59, "more points")
    assert page.evaluate(f"{plot}.layout.xaxis.range") == [5, 10]
    assert page.evaluate(f"window.node === {plot}.querySelector('.plot')"), "the chart was drawn anew"
    path = app.store.folder(run, "finetune") / "events.jsonl"
    with path.open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(60, 5000))
    until(lambda: page.evaluate(f"Math.max(...{plot}.data[0].x)") > 4990, "thousands of points")
    assert page.evaluate(f"{plot}.data[0].x.length") <= 2000
    assert page.evaluate(f"{plot}.layout.xaxis.range") == [5, 10]
    assert page.evaluate(f"{plot}.data[1].x.length") == 30
    expect(page.locator("[data-chart=rate] .scatterlayer .trace")).to_have_count(1)
    shot(page, "charts")


def test_a_retry_keeps_the_part_of_the_charts_before_its_checkpoint(app):
    run = planted.running(app.store, steps=11)
    page = app.open(f"?run={run}")
    plot = "document.querySelector('[data-chart=loss] .lab-plot')"
    steps = f"JSON.stringify({plot}?.data?.map((line) => line.x))"
    until(lambda: page.evaluate(steps) == json.dumps([[*range(1, 12)], [0]], separators=(",", ":")), "charts")
    planted.event(app.store, run, "finetune", attempt=True, message="Starting")
    planted.event(app.store, run, "finetune", step=0, eval_loss=3.1)
    planted.event(app.store, run, "finetune", resumed=10)
    for step in range(11, 14):
        planted.event(app.store, run, "finetune", step=step, loss=1.0, tokens_per_second=400.0)
    resumed = json.dumps([[*range(1, 14)], [0]], separators=(",", ":"))
    until(lambda: page.evaluate(steps) == resumed, "the resumed curve")
    planted.event(app.store, run, "finetune", attempt=True, message="Starting")
    planted.event(app.store, run, "finetune", step=0, eval_loss=3.2)
    planted.event(app.store, run, "finetune", step=1, loss=2.0)
    until(lambda: page.evaluate(steps) == "[[1],[0]]", "the curve of another training")


def test_what_a_stage_takes_of_the_machine_is_charted_for_every_stage(app, shot):
    run = planted.running(app.store)
    for stage in ("quantize", "finetune"):
        for n in range(1, 90):
            facts = {"memory_bytes": 2e9 + n * 1e7, "host_memory_bytes": 9e9, "gpu_memory_used_bytes": 3e10}
            planted.event(app.store, run, stage, elapsed=2.0 * n, gpu_utilization=80 + n % 7, **facts)
    page = opened(app, run)
    page.locator("[data-chart=memory]").scroll_into_view_if_needed()  # only charts in sight are drawn
    expect(page.locator("[data-chart=memory] .scatterlayer .trace")).to_have_count(3)
    expect(page.locator("[data-chart=gpu] .scatterlayer .trace")).to_have_count(1)
    expect(page.locator("[data-chart=loss]")).to_be_visible()
    page.click(".lab-stages li >> nth=0 >> button")
    expect(page.locator(".lab-lines")).to_contain_text("Quantizing 210 layers")
    page.locator("[data-chart=memory]").scroll_into_view_if_needed()
    expect(page.locator("[data-chart=memory] .scatterlayer .trace")).to_have_count(3)
    assert page.evaluate("document.querySelector('[data-chart=memory] .lab-plot').data[0].y.at(-1)") == 2.89
    expect(page.locator("[data-chart=loss]")).to_be_visible()  # of the stage that trains
    shot(page, "resources")


def test_the_page_and_its_title_say_how_long_the_run_still_takes(app):
    planted.finished(app.store, "earlier", reused=False)  # optimize 9 s, evaluate 20 s
    run = planted.running(app.store)  # finetune says 42 s
    mark = clock.mark()
    mark["monotonic"] -= 75
    (app.store.folder(run, "finetune") / PROCESS).write_text(json.dumps(mark))
    page = app.open(f"?run={run}")
    expect(page.locator(".lab-whole")).to_contain_text("about 1 min left")
    time = re.compile(r"[12] min \d\d s · about 40 s left")
    expect(page.locator(".lab-stages li.is-shown .lab-time")).to_have_text(time)
    until(lambda: page.title().endswith("% finetune · about 1 min left · travel – Olive Lab"), "the title")
    app.store.finish(run, "finetune", FAILED, error="It broke.", seconds=80.0)
    expect(page.locator(".lab-whole")).to_be_hidden()
    until(lambda: page.title() == "failed · travel – Olive Lab", "the title of its end")
    expect(page.locator(".lab-about")).to_contain_text("1 min 33 s")  # 12.5 and 80 s, as stages measured


def test_two_browsers_lose_no_line_while_the_server_restarts(app):
    run = planted.running(app.store)
    pages = [opened(app, run), opened(app, run)]
    write(app, run, 0, 500)
    for page in pages:
        app.settle(page)  # else Gradio reloads the page
    app.stop()
    for page in pages:
        expect(page.locator(".lab-trouble")).to_contain_text("Connection lost, retrying")
        expect(page.locator(".lab-trouble")).to_have_text(re.compile(r"Last update: \d+ s ago\.$"))
    write(app, run, 500, 1000)
    app.start()
    write(app, run, 1000, 1500)
    wanted = [f"line {n}: step {n} of 60" for n in range(30)] + [f"number {n}" for n in range(1500)]
    for page in pages:
        expect(page.locator(".lab-lines")).to_contain_text("number 1499")
        expect(page.locator(".lab-trouble")).to_have_text("")
        assert page.evaluate(READ) == wanted


def test_a_dropped_tunnel_is_told_and_its_end_noticed_at_once(app):
    run = planted.running(app.store)
    page = opened(app, run)
    page.route("**/live?*", lambda route: None)  # nothing ever answers, as when packets vanish
    expect(page.locator(".lab-trouble")).to_contain_text("Connection lost, retrying")
    write(app, run, 0, 10)
    page.unroute("**/live?*")
    page.evaluate("dispatchEvent(new Event('online'))")
    # The question that is stuck would be given up by itself only after ten more seconds.
    expect(page.locator(".lab-lines")).to_contain_text("number 9", timeout=9000)
    expect(page.locator(".lab-trouble")).to_have_text("")


def test_a_page_that_slept_catches_up(app):
    run = planted.running(app.store)
    page = opened(app, run)
    session = page.context.new_cdp_session(page)
    session.send("Page.enable")
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    write(app, run, 0, 20_000)
    session.send("Page.setWebLifecycleState", {"state": "active"})
    expect(page.locator(".lab-lines")).to_contain_text("number 19999")
    assert lines(page) == 20_030


def test_a_toast_tells_on_any_tab_that_a_run_has_ended(app, shot):
    ended = planted.finished(app.store, "old")
    run = planted.running(app.store, "trip <b>")
    other = planted.queued(app.store, "other")
    page = app.open("?tab=runs")
    known = "JSON.parse(sessionStorage.getItem('lab-activity') ?? '{}').active"
    until(lambda: run in (page.evaluate(known) or []), "the first look")
    app.store.finish(run, "finetune", FAILED, error="It broke.")
    app.store.request_cancel(other)
    toasts = page.locator(".lab-toast")
    expect(toasts).to_have_count(2)
    for toast in toasts.all():  # somebody reads them: they stay
        toast.dispatch_event("mouseenter")
    expect(toasts.nth(0)).to_contain_text("trip <b> failed")
    assert page.get_by_role("status", name="Runs that have ended").locator(".lab-toast").count() == 2
    shot(page, "toast")
    toasts.nth(1).get_by_role("button", name="Close").click()
    expect(toasts).to_have_count(1)
    toasts.nth(0).get_by_role("link").click()
    expect(page.locator(".lab-run h2")).to_have_text("trip <b>")
    assert f"run={run}" in page.url
    expect(toasts).to_have_count(0)

    app.store.retry(run)
    until(lambda: run in page.evaluate(known), "the retry")
    app.store.request_cancel(run)
    page.reload()  # what ended meanwhile is told after a reload, and only once
    expect(toasts).to_contain_text("trip <b> was canceled")
    with page.expect_response("**/activity.json*"):
        page.reload()
    app.settle(page)
    assert toasts.count() == 0
    assert ended


def test_notifications_are_asked_for_by_a_click_and_remembered(app):
    run = planted.running(app.store)
    page = app.open(f"?run={run}", permissions=["notifications"])
    button = page.locator("#run-notify")
    expect(button).to_have_text("Notify me")
    button.click()
    expect(button).to_have_text("Notifications on")
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(button).to_have_text("Notify me")
    app.store.finish(run, "finetune", DONE, seconds=1)
