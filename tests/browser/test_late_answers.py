"""What was chosen meanwhile stays, however late the page is answered what it asked for before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.helpers.page import upload

pytestmark = pytest.mark.browser

SAMPLE, MINE = "travel.jsonl", "mine.jsonl: 12 rows"
CHECKED_MS = 2_000  # longer than a small upload takes to be checked, where nothing is waited for


def rows(count: int) -> bytes:
    return b"".join(
        json.dumps({"prompt": f"{n}?", "response": f"It is {n}."}).encode() + b"\n" for n in range(count)
    )


@contextmanager
def held(page: Any, path: str, late: Callable[[str], bool]) -> Iterator[list[Any]]:
    """Until the end, the page is not given answers that are `late`: those of which the text is."""
    kept: list[Any] = []

    def answer(route: Any) -> None:
        reply = route.fetch()
        if late(reply.text()):
            kept.append((route, reply))
        else:
            route.fulfill(response=reply)

    page.route(path, answer)
    yield kept
    for route, reply in kept:
        route.fulfill(response=reply)
    page.unroute(path)


def until_held(page: Any, kept: list[Any]) -> None:
    while not kept:  # its own time limit ends the test
        page.wait_for_timeout(50)


def shown(page: Any) -> None:
    """The upload is what is shown everywhere, also once all has come to rest."""
    expect(page.locator("#data-summary")).to_contain_text(MINE)
    expect(page.locator("#data-card")).to_contain_text("12 rows. Tokens a row")
    assert page.locator("#data-pick input").input_value().startswith("mine.jsonl")


def test_an_upload_stays_when_what_the_page_shows_at_first_comes_after_it(app):
    page = app.open("lab/olive.svg")
    with held(page, "**/run/predict*", lambda text: "144 rows" in text) as kept:
        page.goto(app.url + "?tab=data")
        until_held(page, kept)
        upload(page, "mine.jsonl", rows(12))
        page.wait_for_timeout(CHECKED_MS)
    app.settle(page)
    shown(page)


def test_an_upload_stays_when_the_list_of_datasets_comes_after_it(app):
    page = app.open("?tab=data")
    expect(page.locator("#data-card")).to_contain_text("144 rows. Tokens")
    page.get_by_role("tab", name="Runs").click()
    app.settle(page)
    with held(page, "**/run/predict*", lambda text: SAMPLE in text) as kept:
        page.get_by_role("tab", name="Data").click()
        until_held(page, kept)
        upload(page, "mine.jsonl", rows(12))
        expect(page.locator("#data-summary")).to_contain_text(MINE)
    app.settle(page)
    shown(page)


def test_the_dataset_chosen_last_is_shown_when_the_check_of_another_has_not_ended(app):
    page = app.open("?tab=data")
    expect(page.locator("#data-summary")).to_contain_text("144 rows")
    upload(page, "mine.jsonl", rows(12))
    expect(page.locator("#data-card")).to_contain_text("12 rows. Tokens a row")

    def choose(name: str) -> None:
        page.click("#data-pick input")
        page.get_by_role("option", name=name).click()

    with held(page, "**/queue/join*", lambda text: True) as kept:
        choose("travel.jsonl")
        until_held(page, kept)
        choose("mine.jsonl")
        page.wait_for_timeout(CHECKED_MS)
    app.settle(page)
    shown(page)


def test_the_file_box_is_named_by_its_text_also_when_it_comes_last(app):
    page = app.open("?tab=data")
    expect(page.locator("#data-upload button.upload-container")).to_be_visible()
    expect(page.locator("#data-upload button.upload-container[aria-label]")).to_have_count(0)
    page.evaluate("""async () => {
      const { nameUpload } = await import(new URL("lab/page.js", document.baseURI));
      const column = document.body.appendChild(document.createElement("div"));
      column.className = "column";
      nameUpload(column.appendChild(document.createElement("i")), "later");
      column.insertAdjacentHTML("beforeend",
        "<div id=later><button class=upload-container aria-label=x>Drop</button></div>");
    }""")
    expect(page.locator("#later button")).not_to_have_attribute("aria-label", "x")


# Streams of answers reach the page when `release` is called, and `ended` says how many are at their end.
LATE_STREAMS = """
const real = window.fetch;
window.ended = 0;
window.hold = () => { window.gate = new Promise((free) => { window.release = free; }); };
window.fetch = async (...given) => {
  const reply = await real(...given);
  if (!reply.url.includes("queue/data")) return reply;
  const reader = reply.body.getReader();
  const pass = async (out) => {
    let earlier = Promise.resolve();
    for (let read = {}; !read.done;) {
      const now = read = await reader.read();
      window.ended += now.done;
      earlier = earlier.then(() => window.gate).then(() => now.done ? out.close() : out.enqueue(now.value))
        .catch(() => {});  // the page reads it no more
    }
  };
  const late = new ReadableStream({ start: (out) => { pass(out).catch(() => {}); } });
  return new Response(late, { headers: reply.headers });
};
"""


def test_a_call_that_was_taken_after_the_last_answer_and_known_before_it_is_answered(app):
    page = app.open("lab/olive.svg")
    page.add_init_script(LATE_STREAMS)
    page.goto(app.url + "?tab=data")
    page.get_by_role("button", name="What it learns").click()
    expect(page.locator("#data-card")).to_contain_text("144 rows. Tokens")
    app.settle(page)
    page.evaluate("window.hold(), window.ended = 0")
    learned = page.locator("#data-learned")
    learned.get_by_role("button", name="Longest").click()
    page.wait_for_function("window.ended")
    with page.expect_response("**/queue/join*"):
        learned.get_by_role("button", name="Next").click()
    page.wait_for_timeout(CHECKED_MS)
    page.evaluate("window.release()")
    expect(page.locator("#data-line input")).to_have_value("2")


def test_a_stream_that_ends_in_order_without_its_answers_is_read_again(app):
    """As a proxy ends it where the app was away; the button would do nothing for good."""
    page = app.open("?tab=data")
    page.get_by_role("button", name="What it learns").click()
    expect(page.locator("#data-card")).to_contain_text("144 rows. Tokens")
    app.settle(page)
    page.route(
        "**/queue/data*",
        lambda route: route.fulfill(status=200, content_type="text/event-stream", body=""),
        times=1,
    )
    page.locator("#data-learned").get_by_role("button", name="Next").click()
    expect(page.locator("#data-line input")).to_have_value("2")
