"""Pieces of the page: places where our JavaScript draws, and how events are wired.

No template of `gr.HTML` contains a value. Gradio compiles the template as a JavaScript string, so text from a
log or a dataset would run as code, even in `{{value}}`, which only escapes HTML.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from webapp.ui import check_turns

# Events that answer at once; without the queue they need no stream for the answer.
QUICK: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
# Events that may take a while, or send several answers. Each group has a share of the page's 40 threads, so
# that a few slow events don't keep everybody waiting: those that read a dataset or a model,
QUEUED: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
CHECKS: dict[str, Any] = {**QUEUED, "concurrency_limit": check_turns.PLACES, "concurrency_id": "checks"}
# and those that look through the home.
LOOKS: dict[str, Any] = {**QUEUED, "concurrency_limit": 4, "concurrency_id": "home"}
# Events the browser carries out alone.
IN_PAGE: dict[str, Any] = {"api_visibility": "private"}

# The class of components that exist only for events: an update would show one with `visible="hidden"`.
HIDDEN = "lab-hidden"

_DRAW = """
const root = element.firstElementChild;
import(new URL(`lab/${root.dataset.module}`, document.baseURI)).then((lab) => {
  const draw = () => lab.draw[root.dataset.kind](root, props.value, trigger);
  draw();
  watch("value", draw);
});
// Events it may send: "select", "check"
"""


def drawn(kind: str, value: Any = None, module: str = "draw.js", **kwargs: Any) -> gr.HTML:
    """A place where our JavaScript draws `value`: kinds are the functions of `draw` in the module."""
    html = f'<div class="lab-{kind}" data-kind="{kind}" data-module="{module}"></div>'
    return fixed(html, value=value, js_on_load=_DRAW, **kwargs)


def fixed(html: str, **kwargs: Any) -> gr.HTML:
    """Constant HTML without any value."""
    given = {"js_on_load": None, **kwargs}
    return gr.HTML(html_template=html, apply_default_css=False, elem_classes="lab-fixed", **given)


def live(function: str, module: str = "page.js") -> str:
    """JavaScript for an event: call an exported function of a module with the event's inputs."""
    load = f'import(new URL("lab/{module}", document.baseURI))'
    return f"async (...given) => (await {load}).{function}(...given)"
