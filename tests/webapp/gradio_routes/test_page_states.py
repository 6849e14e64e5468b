from __future__ import annotations

import json
from typing import Any

import gradio as gr
import pytest
from gradio.blocks import BlocksConfig
from starlette.testclient import TestClient

from tests.helpers.handlers import GOOD, gradio, handlers
from webapp.app import SESSIONS
from webapp.gradio_routes import page_states


def test_a_session_has_nothing_described(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may send any number of names."""

    def described(*_: Any, **__: Any) -> None:
        raise AssertionError("described")

    monkeypatch.setattr(BlocksConfig, "config_for_block", described)
    quick = next(found for found in handlers(client) if not found.queued and not found.kinds)
    for number in range(3):
        body = {"data": [], "fn_index": quick.id, "session_hash": f"s{number}"}
        reply = client.post("/gradio_api/run/predict", json=body)
        assert reply.status_code == GOOD, reply.text
    assert len(gradio(client).state_holder.session_data) == 3


def test_few_sessions_are_kept(client: TestClient) -> None:
    holder = gradio(client).state_holder
    assert isinstance(holder, page_states.PageStates)
    for number in range(SESSIONS + 5):
        assert holder[f"s{number}"].blocks_config.blocks
    assert len(holder.session_data) == SESSIONS
    assert len(holder.time_last_used) == SESSIONS


def test_what_a_handler_changed_is_known_at_the_next_call_of_its_page_only() -> None:
    with gr.Blocks() as blocks:
        choice = gr.Dropdown(["a"])
        text = gr.Textbox()
        gr.Button().click(lambda: gr.update(choices=["b"]), None, choice, queue=False)
        gr.Button().click(lambda chosen: f"chose {chosen}", choice, text, queue=False)
    app = gr.routes.App.create_app(blocks)
    page_states.keep(app)
    client = TestClient(app)

    def call(number: int, session: str, *values: Any) -> tuple[int, str]:
        body = {"data": values, "fn_index": number, "session_hash": session}
        reply = client.post("/gradio_api/run/predict", json=body)
        return reply.status_code, reply.text

    first, second = blocks.fns
    assert call(first, "one")[0] == GOOD
    status, answer = call(second, "one", "b")
    assert (status, json.loads(answer)["data"]) == (GOOD, ["chose b"])
    assert "not in the list of choices" in call(second, "other", "b")[1]
