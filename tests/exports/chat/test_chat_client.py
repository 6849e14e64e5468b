"""Talking to the inference process, whose place a small script takes here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.errors import InputError, LabError
from pipeline.exports import generation
from pipeline.exports.chat import chat_client, chat_processes, sources
from pipeline.exports.chat.sources import Source
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers import exports
from tests.helpers.inference import ask, pieces
from tests.helpers.lab import cli, processes, until
from tests.helpers.planted import plant


def test_both_sides_are_answered_from_one_process_that_stays(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    first, second = ask(home, finished, "a", "a")
    assert [(p["side"], p.get("done", False)) for p in first] == [
        ("base", False), ("base", True), ("adapter", False), ("adapter", True),
    ]  # fmt: skip
    assert first[0]["text"] == second[0]["text"]  # the same process
    assert first[1] == {
        "side": "base", "done": True, "tokens": 2, "tokens_per_second": 1.5, "first_token_seconds": 0.1,
    }  # fmt: skip
    until(lambda: not processes(home), "the end of the process")


def test_prompts_asked_at_once_get_their_own_answers(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    async def at_once() -> list[list[dict[str, Any]]]:
        asked = await asyncio.gather(*(pieces(home, finished, prompt) for prompt in "abc"))
        await chat_processes.shutdown()
        return asked

    assert [answer[0]["text"][0] for answer in asyncio.run(at_once())] == ["a", "b", "c"]


def test_a_refusal_is_told_and_the_process_stays(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    async def refused_then_good() -> list[dict[str, Any]]:
        with pytest.raises(LabError, match="The prompt is too long"):
            await pieces(home, finished, "refuse")
        good = await pieces(home, finished, "a")
        await chat_processes.shutdown()
        return good

    assert len(asyncio.run(refused_then_good())) == 4


@pytest.mark.parametrize("prompt", ["die", "nonsense", "endless"])
def test_a_process_that_ends_is_told_to_all_who_wait_and_replaced(
    home: Path, finished: Run, process: Callable[[str], None], prompt: str
) -> None:
    async def dies_then_good() -> list[dict[str, Any]]:
        waiting = asyncio.create_task(pieces(home, finished, "wait"))
        await asyncio.sleep(0)
        with pytest.raises(LabError, match="The inference process ended"):
            await asyncio.wait_for(pieces(home, finished, prompt), 60)
        with pytest.raises(LabError, match="The inference process ended"):
            await asyncio.wait_for(waiting, 60)
        good = await asyncio.wait_for(pieces(home, finished, "a"), 60)
        await chat_processes.shutdown()
        return good

    assert len(asyncio.run(dies_then_good())) == 4


@pytest.mark.parametrize("start", ["print('x' * (8 << 20), flush=True)", "print('no JSON', flush=True)"])
def test_a_process_that_starts_with_what_cannot_be_read_is_told_to_all_who_wait(
    home: Path, finished: Run, process: Callable[[str], None], start: str
) -> None:
    """One tries it; who came meanwhile learns why it failed, and does not start it again."""
    process(f"open(os.environ['OLIVE_LAB_HOME'] + '/starts', 'a').write('x'); {start}")

    async def at_once() -> list[Any]:
        asked = [asyncio.create_task(pieces(home, finished, "a")) for _ in range(4)]
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)

    errors = asyncio.run(at_once())
    assert [(type(error), str(error)) for error in errors] == [(LabError, chat_processes.UNREADABLE)] * 4
    assert (home / "starts").read_text() == "x"
    until(lambda: not processes(home), "the end of the process")


def test_closing_the_stream_cancels_the_answer(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    async def stop_early() -> None:
        stream = chat_client.stream(home, sources.of_run(finished), "wait")
        assert (await anext(stream))["text"].startswith("wait")
        await stream.aclose()
        while not (home / "canceled").exists():
            await asyncio.sleep(0.01)
        await chat_processes.shutdown()

    asyncio.run(asyncio.wait_for(stop_early(), 60))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ('say(error="The model could not be loaded: no such file"); sys.exit(1)', "no such file"),
        ("sys.exit(1)", "The inference process ended while it loaded the model"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_plain_error(
    home: Path, finished: Run, process: Callable[[str], None], start: str, reason: str
) -> None:
    process(start)
    with pytest.raises(LabError, match=reason):
        ask(home, finished, "a")


def test_a_model_that_loads_for_ever_is_given_up(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    process("signal.pause()")
    monkeypatch.setattr(chat_processes, "START_SECONDS", 0.2)
    with pytest.raises(LabError, match="did not load within"):
        ask(home, finished, "a")
    until(lambda: not processes(home), "the end of the process")


def test_the_real_process_answers_from_a_real_export(
    home: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    (said,) = ask(home, finished, "Hello")
    text = {
        side: "".join(piece.get("text", "") for piece in said if piece["side"] == side)
        for side in sources.SIDES
    }
    assert text["base"]
    assert text["adapter"]
    assert text["base"] != text["adapter"]


def test_a_prompt_that_is_too_long_and_an_answer_of_8_000_tokens(
    home: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is refused in a sentence, the second arrives whole and can be ended at any time, and neither
    keeps anything of memory, or the process from answering the next one."""
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    source = long_context(sources.of_run(finished), 10_000)

    async def asked(prompt: str, tokens: int) -> tuple[str, dict[str, Any]]:
        text, facts = "", {}
        stream = chat_client.stream(home, source, prompt, ("base",), max_new_tokens=tokens)
        async for piece in stream:
            text += piece.get("text", "")
            facts = piece
        return text, facts

    async def scenario() -> None:
        with pytest.raises(
            LabError, match=r"The prompt has 2\d{4} tokens; this model reads 10000, answer incl"
        ):
            await asked("x" * 20_000, 5)
        await asked("Hello", 50)
        (server,) = chat_processes._servers.values()
        before = psutil.Process(server.process.pid).memory_info().rss
        text, facts = await asked("Hello", 8000)
        assert (facts["tokens"], facts["cut"]) == (8000, True)
        assert len(text) >= 1000
        assert psutil.Process(server.process.pid).memory_info().rss - before < 64 << 20
        stream = chat_client.stream(home, source, "Hello", ("base",), max_new_tokens=8000)
        async for piece in stream:
            if piece.get("text"):
                break
        await stream.aclose()
        assert (await asked("Hello", 5))[1]["tokens"] == 5
        assert len(chat_processes._servers) == 1
        await chat_processes.shutdown()

    try:
        asyncio.run(asyncio.wait_for(scenario(), 60))
    finally:
        until(lambda: not processes(home), "the end of the process")


def long_context(source: Source, tokens: int) -> Source:
    """The export, as one of a model that reads so many tokens."""
    file = source.folder / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["context_length"] = config["search"]["max_length"] = tokens
    file.write_text(json.dumps(config))
    checksums.write(source.folder)
    return source


def test_an_adapter_of_another_graph_is_told_before_the_model_is_loaded(
    home: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    file = Path(str(finished.artifact("onnx_adapter")))
    exports.write_adapter(file, {"layers.0.lora_A": exports.random(16, 4)})
    with pytest.raises(LabError) as raised:
        ask(home, finished, "Hello")
    assert str(raised.value) == (
        f"The model could not be loaded: its files in {file.parent} are not good: adapter {file.name}:"
        f" {file.name} belongs to another graph: layers.0.lora_A is not an input of the graph;"
        " use the adapter exported with this model."
    )


def test_an_adapter_of_another_graph_from_elsewhere_is_refused_too(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processes, "_servers", {})
    monkeypatch.setattr(chat_processes, "_starting", asyncio.Lock())
    folder = exports.write(tmp_path / "export")
    elsewhere = tmp_path / "other.onnx_adapter"
    exports.write_adapter(elsewhere, {"layers.0.lora_A": exports.random(16, 4)})
    code, _, err = cli(capsys, "chat", folder, "Hello", "--adapter", elsewhere)
    assert code == 1
    assert "other.onnx_adapter belongs to another graph: layers.0.lora_A is not an input of the graph;" in err


def test_what_cannot_answer_is_refused(home: Path, store: Store, finished: Run) -> None:
    queued = store.get(plant(store))
    with pytest.raises(
        LabError, match=f"Run {queued.id} is queued; it can answer once its optimize stage is done"
    ):
        ask(home, queued, "a")
    with pytest.raises(InputError, match="The prompt is empty"):
        ask(home, finished, " \n")
    Path(str(finished.artifact("onnx"))).rename(home / "elsewhere")
    with pytest.raises(LabError, match="has no exported model"):
        ask(home, finished, "a")


@pytest.mark.parametrize(
    ("change", "heard"),
    [
        ("", "<|im_start|>system\nBe brief.<|im_end|>"),
        ("{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}", None),
    ],
)
def test_a_system_text_stands_before_the_prompt(
    home: Path, export: Path, monkeypatch: pytest.MonkeyPatch, change: str, heard: str | None
) -> None:
    """It is asked of the real process; a template that takes none makes it a sentence."""
    template = exports.CHAT.replace("%}", "%}" + change, 1)
    (export / "chat_template.jinja").write_text(template)
    source = sources.of_folder(export, "model x")
    model = generation.load(export)
    assert ("system" in model.reader.optional) == (heard is not None)

    async def answer() -> list[dict[str, Any]]:
        try:
            asked = chat_client.stream(
                home, source, "Hello", ("base",), max_new_tokens=4, system=" Be brief. "
            )
            return [piece async for piece in asked]
        finally:
            await chat_processes.shutdown()

    if heard is None:
        with pytest.raises(LabError, match="have no system text; leave it empty"):
            asyncio.run(answer())
        return
    assert heard in model.reader.text({"prompt": "Hello", "system": "Be brief."})
    row = {"prompt": "Hello", "system": "Be brief."}
    expected = generation.stream(model, model.template.prompt(row), max_new_tokens=4)
    assert "".join(piece.get("text", "") for piece in asyncio.run(answer())) == "".join(expected)


def test_a_workflow_cannot_answer(home: Path, store: Store, finished: Run) -> None:
    kinds = {"workflow": "/x/workflow.json"}
    run: Any = SimpleNamespace(id="r1", status="done", artifact=kinds.get)
    with pytest.raises(LabError, match="r1 has a workflow and no model: its export is not run here"):
        ask(home, run, "a")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.5),
        ("seed", -1),
        ("seed", 2**40),
        ("max_new_tokens", 0),
        ("max_new_tokens", 10**9),
    ],
)
def test_a_number_out_of_bounds_is_named(home: Path, name: str, value: float) -> None:
    stream = chat_client.stream(home, Source("a", home, None, False), "Hi", **{name: value})
    with pytest.raises(InputError, match=f"^{name}: .* is not allowed; allowed: a"):
        asyncio.run(anext(stream))
