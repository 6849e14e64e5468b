from __future__ import annotations

import re

from starlette.testclient import TestClient

from pipeline import settings
from webapp.gradio_routes import script_mends

SCRIPT = re.compile(r"/assets/index-[\w-]+\.js")

with settings.gradio_without_stubs():
    import gradio as gr


def test_each_fault_is_found_once_and_served_no_more(client: TestClient) -> None:
    """A new release of Gradio may have mended it, or write it in another way: see whether the page hangs."""
    names = {*SCRIPT.findall(client.get("/").text.replace("./assets", "/assets"))}
    folder = settings.Path(gr.__file__).parent / "templates" / "frontend"
    originals = [(folder / name[1:]).read_bytes() for name in names]
    served = [client.get(name).content for name in names]
    for fault in script_mends.MENDS:
        assert sum(len(fault.findall(script)) for script in originals) == 1, fault.pattern
    assert (
        sum(script == original for script, original in zip(served, originals, strict=True)) == len(names) - 1
    )
    assert {*map(script_mends.mended, originals)} == {*served}
