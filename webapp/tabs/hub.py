"""The Hugging Face Hub as a place to publish to: the login, a version's name, the dry run, what is there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.errors import LabError, sentence
from pipeline.publish import targets
from pipeline.publish.hub import ask
from webapp.handler_values import picked
from webapp.home import store
from webapp.tabs import publishing
from webapp.ui import check_turns, form, parts, views

TO = "huggingface"
ASKING = {"text": "Asking the hub… you can keep working meanwhile."}
LOGIN = (
    "The lab uses the login of `hf auth login` on this machine, or HF_TOKEN. It never asks for a token and"
    " stores none. What is published is private unless you say otherwise."
)
AGAIN = "Publish again when you like: files already on the hub are not sent again."
NONE = "Nothing was published there yet."
COLUMNS = ["Verified", "Name", "Version", "Published", "Run", "Who sees it", "Size", "Address"]
# At most this many threads of the page wait for the hub.
ASKS: dict[str, Any] = {**parts.QUEUED, "concurrency_limit": 4, "concurrency_id": "hub"}


class Hub(NamedTuple):
    """Components that the Publish tab connects."""

    column: gr.Column
    inputs: form.Form
    check: gr.Button
    go: gr.Button


class Published(NamedTuple):
    """Components of the list of published versions."""

    column: gr.Column
    shown: list[gr.HTML]


def whoami() -> Iterator[tuple[Any, ...]]:
    """Who is logged in: a notice, and facts."""
    yield ASKING, None
    try:
        found = yield from check_turns.steps(
            lambda tell: ask.whoami(store().home), lambda text: (ASKING, None)
        )
    except (LabError, OSError) as error:
        yield {"text": sentence(error), "kind": "bad"}, None
        return
    if found["role"] == "read":
        note = {"text": "This token may only read; log in with one that may write.", "kind": "bad"}
    else:
        note = {"text": f"Logged in as {found['name']}.", "kind": "good"}
    yield note, who(found)


def who(found: dict[str, Any]) -> list[list[str]]:
    """The facts of a login."""
    rows = [["Account", found["name"]], ["Organisations", ", ".join(found["organisations"]) or "none"]]
    return [*rows, ["Token", f"{found['token']} ({found['role']})"]] if found["token"] else rows


def check(inputs: form.Form, run: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The dry run: see `publishing.check`."""

    def found(of: str, given: dict[str, Any]) -> dict[str, Any]:
        return ask.preflight(store().home, of, given)

    yield from publishing.check(TO, ASKING, found, inputs, run, *values)


def publish(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """Queue the publishing: see `publishing.publish`."""
    return publishing.publish(TO, inputs, run, *values, again=AGAIN)


def listed() -> tuple[Any, ...]:
    """Versions that this lab published on the hub, according to its runs. Does not ask the hub."""
    found = targets.PUBLISHERS[TO].versions(store().home)
    rows = [
        [
            {"status": "done", "word": "Yes"} if version["verified"] else {"status": "failed", "word": "No"},
            version["name"],
            version["version"],
            display.moment(version["created"]),
            version["run"],
            "You" if version["private"] else "Everybody",
            display.size(version["bytes"]),
            version["path"],
        ]
        for version in found
    ]
    table = views.table(COLUMNS, rows, empty=NONE, caption="Published from this lab")
    return {**table, "ids": [version["path"] for version in found]}, None, None


def select(event: gr.EventData) -> tuple[Any, Any]:
    """The title and link of the selected version."""
    page = picked(event)
    for version in targets.PUBLISHERS[TO].versions(store().home):
        if version["path"] == page:
            text = f"{version['name']}, version {version['version']}"
            return {"text": text}, {"text": "Open on the Hugging Face Hub", "href": page}
    return None, None


def build() -> Hub:
    """Lay out the part of the tab that is about the hub."""
    inputs = form.Form()
    column: gr.Column
    with gr.Column(visible=False) as column:
        gr.Markdown(LOGIN)
        with gr.Row(elem_classes="bar"):
            me = gr.Button("Who am I", size="sm", scale=0, min_width=130, elem_id="hub-whoami")
        notice = parts.drawn("notice", elem_id="hub-notice")
        facts = parts.drawn("facts", elem_id="hub-who")
        inputs.fields(TO, targets.PUBLISHERS[TO].Options)
        with gr.Row():
            dry = gr.Button("Check first (dry run)", elem_id="hub-check")
            go = gr.Button("Publish", variant="primary", elem_id="hub-go")
    me.click(whoami, None, [notice, facts], **ASKS)
    return Hub(column, inputs, dry, go)


def published() -> Published:
    """Lay out what was published from this lab."""
    column: gr.Column
    with gr.Column(visible=False) as column:
        versions = parts.drawn("table", elem_id="hub-versions")
        title = parts.drawn("notice", elem_id="hub-title")
        link = parts.drawn("link", elem_id="hub-link")
    versions.select(select, None, [title, link], trigger_mode="multiple", **parts.QUICK)
    return Published(column, [versions, title, link])


def connect(made: Hub, run: Any, said: list[Any], progress: Any) -> None:
    """Connect the buttons with the tab's outputs: problems, summary, findings, files."""
    given = [run, *made.inputs.inputs]
    made.check.click(partial(check, made.inputs), given, said, **ASKS)
    made.go.click(partial(publish, made.inputs), given, [*said, progress], **ASKS)
