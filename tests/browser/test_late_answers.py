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
