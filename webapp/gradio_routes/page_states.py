"""What the app keeps of each open page: its components as they are now, without descriptions of them.

Gradio describes all components of the page for each session, and again whenever one changes, for links to a
page's state, which are off. That took 50 ms of the event loop and a megabyte for each new name of a session,
and anybody may make up names.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import gradio as gr
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder


class PageState(SessionState):
    """The components of one page."""

    def __init__(self, blocks: gr.Blocks) -> None:
        undescribed = SimpleNamespace(default_config=blocks.default_config, blocks={})
        super().__init__(cast(gr.Blocks, undescribed))

    def __setitem__(self, key: int, value: Any) -> None:
        self.blocks_config.blocks[key] = value

    def _update_config(self, key: int) -> None:
        """Describe nothing."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Describe nothing."""


class PageStates(StateHolder):
    """The states of the newest sessions, as many as `Blocks.state_session_capacity`."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = PageState(self.blocks)
        return super().__getitem__(session_id)


def keep(app: App) -> None:
    """Have an app keep these."""
    app.state_holder = PageStates()  # type: ignore[no-untyped-call]
    app.state_holder.set_blocks(app.get_blocks())
