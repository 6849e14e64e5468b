"""A report as HTML: nothing that users, data or models wrote is more than text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from pipeline.publish.report import as_html
from pipeline.publish.report.content import Chart, Code, Report, Section, Table, Text

BAD = '<img src=x onerror="alert(1)"></style><script>alert(1)</script>[x](javascript:alert)`|\n# Head\u202e'
REPORT = Report(
    BAD,
    [
        Section(BAD, [Text(BAD), Code(BAD), Table((BAD, "b"), [(BAD, "2")])]),
        Section("Curves", [Chart(BAD, [(BAD, [1, 2, 3], [3.0, float("nan"), 1.0]), ("held", [2], [2.0])])]),
    ],
)


class Seen(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}


def test_a_page_of_html_has_only_our_tags_and_asks_for_nothing() -> None:
    page = as_html.page(REPORT)
    seen = Seen()
    seen.feed(page)
    assert not {"script", "img", "link", "iframe", "object", "base", "form", "a"} & set(seen.tags)
    assert not {"src", "href", "style"} & seen.names
    assert not [name for name in seen.names if name.startswith("on")]
    assert page.count("<style>") == 1
    assert "default-src &#x27;none&#x27;; style-src &#x27;sha256-" in page
    assert "\u202e" not in page
    assert seen.tags.count("polyline") == 2
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)


def test_a_chart_of_nothing_is_left_out() -> None:
    empty = Chart("Loss", [("training", [1], [float("inf")])])
    assert "<svg" not in as_html.page(Report("x", [Section("Curves", [empty])]))
