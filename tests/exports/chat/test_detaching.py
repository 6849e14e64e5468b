"""Adapters that are taken off, and files that are swapped, with an export that really computes."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.exports.chat import chat_client, chat_processes, detaching
from pipeline.exports.chat.loaded_files import CHANGED
from pipeline.exports.chat.sources import Source
from tests.helpers import exports

HELD: dict[str, Any] = {
    "adapter": "a" * 64,
    "adapter_now": "a" * 64,
    "on": "1",
    "off": "2",
    "graph": {"g": "3"},
}
FRESH: dict[str, Any] = {**HELD, "adapter": None, "adapter_now": None, "on": "2"}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def asked(home: Path, source: Source) -> dict[str, dict[str, Any]]:
    """The last piece of each side's answer."""
    pieces = chat_client.stream(home, source, "Hi", max_new_tokens=2)
    return {piece["side"]: piece async for piece in pieces if piece.get("done")}


def test_answers_name_their_files_and_swapped_adapters_are_caught(home: Path, export: Path) -> None:
    one, other = export / exports.ADAPTER, export / "other.onnx_adapter"
    exports.write_adapter(
        other, {"a": exports.random(exports.WIDTH, 2), "b": exports.random(2, exports.WIDTH)}
    )
    source = Source("x", export, one, merged=False)
    sums = {file: digest(file) for file in (one, other)}

    async def steps() -> None:
        try:
            before = await asked(home, source)
            assert (before["base"]["adapter"], before["adapter"]["adapter"]) == (None, sums[one])
            graph = {name: digest(export / name) for name in ("model.onnx", "model.onnx.data")}
            assert before["base"]["graph"] == before["adapter"]["graph"] == graph
            good, others = await asyncio.gather(detaching.probe(home, source), asked(home, source))
            assert others["adapter"]["done"]  # somebody else's question is answered meanwhile
            assert good.good, good.text
            assert sums[one][:12] in good.text
            assert list(chat_processes._servers) == [source]  # the fresh process has ended
            shutil.copy(one, export / "kept")
            other.replace(one)
            (export / "kept").rename(other)
            still = await asked(home, source)  # what is loaded did not change
            assert still["adapter"]["adapter"] == sums[one]
            caught = await detaching.probe(home, source)
            assert (caught.good, sums[other][:12] in caught.text) == (False, True)
            await chat_processes.shutdown()
            after = await asked(home, source)
            assert after["adapter"]["adapter"] == sums[other]
            caught = await detaching.probe(home, source)
            assert not caught.good
            assert "not the adapter that was exported" in caught.text
        finally:
            await chat_processes.shutdown()

    asyncio.run(asyncio.wait_for(steps(), 300))


@pytest.mark.parametrize(
    ("held", "fresh", "words"),
    [
        ({}, {}, "equal bit for bit"),
        ({"off": "9"}, {}, "computes something else"),
        ({"on": "2"}, {}, "changes nothing"),
        ({}, {"graph": {"g": "9"}}, "graph's files have changed"),
        ({"graph": {"g": CHANGED}}, {"graph": {"g": CHANGED}}, "graph's files have changed"),
        ({"adapter_now": None}, {}, "it is gone now"),
    ],
)
def test_each_finding_has_its_sentence(
    export: Path, held: dict[str, Any], fresh: dict[str, Any], words: str
) -> None:
    source = Source("x", export, Path("/elsewhere/adapter.onnx_adapter"), merged=False)
    found = detaching.judge(source, {**HELD, **held}, {**FRESH, "off": "2", **fresh})
    assert words in found.text
    assert found.good == (words == "equal bit for bit")


def test_what_has_no_adapter_to_take_off_is_not_probed(home: Path, export: Path) -> None:
    bare = Source("x", export, None, merged=False)
    for source in (bare, dataclasses.replace(bare, merged=True)):
        with pytest.raises(LabError, match=r"no adapter in x|merged into its weights"):
            asyncio.run(detaching.probe(home, source))


def test_one_probe_at_a_time(home: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("x", export, export / exports.ADAPTER, merged=False)

    async def both() -> list[Any]:
        waits = asyncio.Event()

        async def held(*_: Any) -> dict[str, Any]:
            await waits.wait()
            return HELD

        monkeypatch.setattr(chat_client, "probe", held)
        first = asyncio.create_task(detaching.probe(home, source))
        await asyncio.sleep(0)
        with pytest.raises(LabError, match="Another probe is running"):
            await detaching.probe(home, source)
        waits.set()
        return [await first]

    assert asyncio.run(asyncio.wait_for(both(), 60))[0].good is False
