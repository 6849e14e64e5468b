"""Whether a model is its base again once its adapter is taken off: the sentence about a probe.

A probe asks two processes for the logits of the same text: one that holds the model with its adapter, which
it activates and takes off, and a fresh one that never loaded an adapter.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import LabError
from pipeline.exports.chat import chat_client
from pipeline.exports.chat.loaded_files import CHANGED
from pipeline.exports.chat.sources import Source
from pipeline.system import checksums

DIGITS = 12  # of a checksum that is shown
MOST_SECONDS = 300.0
OTHERS = "Another probe is running just now; try again in a minute."
TEXT = "The quick brown fox jumps over the lazy dog."


_one = asyncio.Lock()  # a probe loads the model once more
_threads = ThreadPoolExecutor(1, "probe")


@dataclass(frozen=True)
class Probed:
    """What a probe found, in a sentence."""

    good: bool
    text: str


async def probe(home: Path, source: Source) -> Probed:
    """Probe a source that has an adapter. Raises LabError if it has none to take off, or if others probe."""
    if source.missing_side:
        raise LabError(source.missing_side)
    if _one.locked():
        raise LabError(OTHERS)
    async with _one:
        try:
            async with asyncio.timeout(MOST_SECONDS):
                held = await chat_client.probe(home, source)
                fresh = await chat_client.probe(home, replace(source, adapter=None))
        except TimeoutError:
            raise LabError(f"The probe took longer than {MOST_SECONDS:.0f} seconds; try again.") from None
    # It reads files that somebody may have made; and asyncio's own threads are for everything.
    return await asyncio.wrap_future(_threads.submit(judge, source, held, fresh))


def judge(source: Source, held: dict[str, Any], fresh: dict[str, Any]) -> Probed:
    """What both processes said: {off, on: SHA-256 of logits, adapter, adapter_now, graph: of files}."""
    wrong = _swapped(source, held) or _unlike(held, fresh)
    if wrong:
        return Probed(False, wrong)
    said = (
        f"With the adapter {short(held['adapter'])} the logits differ; with it taken off, they equal bit for"
    )
    return Probed(True, f"{said} bit those of a fresh process that never loaded an adapter.")


def _swapped(source: Source, held: dict[str, Any]) -> str:
    """Why the adapter is not the one that it seems to be; "" if it is."""
    loaded, now, recorded = held["adapter"], held["adapter_now"], _recorded(source)
    if now != loaded:
        there = f"{short(now)} is there now" if now else "it is gone now"
        return f"The adapter's file has changed: {short(loaded)} was loaded, and {there}."
    if recorded not in (None, loaded):
        return (
            f"This is not the adapter that was exported: {short(recorded)} was, and this is {short(loaded)}."
        )
    return ""


def _unlike(held: dict[str, Any], fresh: dict[str, Any]) -> str:
    """Why the base is not what it is without the adapter; "" if it is."""
    if held["graph"] != fresh["graph"] or CHANGED in held["graph"].values():
        return "The graph's files have changed since the model was loaded."
    if held["off"] != fresh["off"]:
        return "With the adapter taken off, the model computes something else than one that never loaded it."
    if held["on"] == held["off"]:
        return f"The adapter {short(held['adapter'])} changes nothing: the logits are the same without it."
    return ""


def short(digest: object) -> str:
    """A checksum as it is shown."""
    return str(digest)[:DIGITS]


def _recorded(source: Source) -> str | None:
    """The adapter's checksum as the export wrote it down, if it did."""
    with suppress(OSError, ValueError):
        if source.adapter and source.adapter.parent == source.folder:
            return checksums.read(source.folder).get(source.adapter.name)
    return None
