"""The handlers of the running page, as anybody finds and calls them."""

from __future__ import annotations

import json
from typing import Any

from starlette.routing import Mount
from starlette.testclient import TestClient

from pipeline.errors import InputError
from webapp import handler_values
from webapp.gradio_routes import gradio_requests

GOOD, REFUSED = 200, 422
JSON = {"Content-Type": "application/json"}


def door(client: TestClient) -> gradio_requests.Door:
    mounts = [route.app for route in client.app.routes if isinstance(route, Mount)]
    return next(mounted for mounted in mounts if isinstance(mounted, gradio_requests.Door))


def gradio(client: TestClient) -> Any:
    """Gradio's own app behind our door."""
    return door(client).app


class Handler:
    """One dependency of the page, as `/config` tells it to everybody."""

    def __init__(self, client: TestClient, facts: dict[str, Any], components: dict[int, dict[str, Any]]):
        self.client = client
        self.id = facts["id"]
        self.inputs = gradio(client).get_blocks().fns[self.id].inputs
        self.queued = facts["queue"] is not False
        self.kinds = [components[number]["type"] for number in facts["inputs"]]
        self.values = [components[number]["props"].get("value") for number in facts["inputs"]]

    def given(self, kinds: set[str], value: Any) -> list[Any]:
        """Its values as they are on the page, with another one wherever there is one of these kinds."""
        pairs = zip(self.kinds, self.values, strict=True)
        return [value if kind in kinds else now for kind, now in pairs]

    def fits(self, values: list[Any]) -> bool:
        """Whether these get as far as the handler: what the page refuses is the same sentence everywhere."""
        try:
            handler_values.fitting(self.inputs, values)
        except InputError:
            return False
        return True

    def call(self, values: Any, event: Any = None) -> tuple[int, str]:
        """The status and the answer, of the queue too."""
        body = json.dumps({"data": values, "event_data": event, "fn_index": self.id, "session_hash": "s"})
        if not self.queued:
            reply = self.client.post("/gradio_api/run/predict", content=body, headers=JSON)
            return reply.status_code, reply.text
        joined = self.client.post("/gradio_api/queue/join", content=body, headers=JSON)
        if joined.status_code != GOOD:
            return joined.status_code, joined.text
        told = self.client.get("/gradio_api/queue/data", params={"session_hash": "s"}).text
        messages = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        done = [message for message in messages if message["msg"] == "process_completed"]
        return (GOOD if done and done[-1]["success"] else REFUSED), told


def handlers(client: TestClient) -> list[Handler]:
    config = client.get("/config").json()
    components = {component["id"]: component for component in config["components"]}
    return [Handler(client, facts, components) for facts in config["dependencies"]]


def file(path: object, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "rows.jsonl", **more}
