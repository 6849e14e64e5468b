"""Talking to the inference process, whose place a small script takes here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline.errors import InputError, LabError
from pipeline.exports import chat_client, contract, generation
from pipeline.exports.chat_client import Source
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system import checksums
from tests.helpers import exports
from tests.helpers.lab import cli, processes, until
from tests.helpers.planted import plant

SCRIPT = """#!{python}
import json, os, signal, sys
signal.alarm(200)
def say(**answer):
    print(json.dumps(answer), flush=True)
{start}
for line in sys.stdin:
    request = json.loads(line)
    if "cancel" in request:
        open(os.environ["OLIVE_LAB_HOME"] + "/canceled", "w").write(str(request["cancel"]))
        continue
    n, prompt = request["id"], request["prompt"]
    if prompt == "die":
        os._exit(1)
    if prompt == "nonsense":
        say(error="no id here")
        os._exit(1)
    if prompt == "endless":
        print("x" * (32 << 20), flush=True)
        continue
    if prompt == "refuse":
        say(id=n, error="The prompt is too long.")
        continue
    for side in request["sides"]:
        say(id=n, side=side, text=prompt + str(os.getpid()))
        if prompt == "wait":
            break
        say(id=n, side=side, done=True, tokens=2, tokens_per_second=1.5, first_token_seconds=0.1)
    else:
        say(id=n, end=True)
"""


@pytest.fixture
def process(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(start: str = "say(ready=True)") -> None:
        script = tmp_path / "process"
        script.write_text(SCRIPT.format(python=sys.executable, start=start))
        script.chmod(0o700)
        monkeypatch.setattr("pipeline.settings.python", lambda: str(script))

    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
    install()
    return install


async def pieces(
    home: Path, run: Run, prompt: str, sides: tuple[str, ...] | None = None
) -> list[dict[str, Any]]:
    return [piece async for piece in chat_client.stream(home, chat_client.of_run(run), prompt, sides)]


def ask(home: Path, run: Run, *prompts: str) -> list[list[dict[str, Any]]]:
    """Answers to prompts asked one after the other of one process."""

    async def all_of_them() -> list[list[dict[str, Any]]]:
        try:
            return [await pieces(home, run, prompt) for prompt in prompts]
        finally:
            await chat_client.shutdown()

    return asyncio.run(all_of_them())


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
        await chat_client.shutdown()
        return asked

    assert [answer[0]["text"][0] for answer in asyncio.run(at_once())] == ["a", "b", "c"]


def test_a_refusal_is_told_and_the_process_stays(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    async def refused_then_good() -> list[dict[str, Any]]:
        with pytest.raises(LabError, match="The prompt is too long"):
            await pieces(home, finished, "refuse")
        good = await pieces(home, finished, "a")
        await chat_client.shutdown()
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
        await chat_client.shutdown()
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
    assert [(type(error), str(error)) for error in errors] == [(LabError, chat_client.UNREADABLE)] * 4
    assert (home / "starts").read_text() == "x"
    until(lambda: not processes(home), "the end of the process")


def test_a_folder_of_very_many_adapters_is_not_offered(export: Path) -> None:
    for number in range(2000):
        os.link(export / exports.ADAPTER, export / f"{number}.onnx_adapter")
    with pytest.raises(InputError, match="has more than 64 adapters; move some elsewhere"):
        chat_client.of_folder(export, "model x")


def test_closing_the_stream_cancels_the_answer(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    async def stop_early() -> None:
        stream = chat_client.stream(home, chat_client.of_run(finished), "wait")
        assert (await anext(stream))["text"].startswith("wait")
        await stream.aclose()
        while not (home / "canceled").exists():
            await asyncio.sleep(0.01)
        await chat_client.shutdown()

    asyncio.run(asyncio.wait_for(stop_early(), 60))


def test_only_so_many_models_are_kept_loaded(
    home: Path, store: Store, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "MOST_PROCESSES", 1)
    second = home / "artifacts" / "second"
    second.mkdir()
    other = store.get(plant(store, "other"))
    monkeypatch.setattr(
        Run, "artifact", lambda run, kind: str(second) if run.id == other.id else str(second.parent)
    )

    async def one_then_the_other() -> int:
        await pieces(home, finished, "a")
        await pieces(home, other, "a")
        running = len(processes(home))
        await chat_client.shutdown()
        return running

    assert asyncio.run(one_then_the_other()) == 1


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
    monkeypatch.setattr(chat_client, "START_SECONDS", 0.2)
    with pytest.raises(LabError, match="did not load within"):
        ask(home, finished, "a")
    until(lambda: not processes(home), "the end of the process")


def test_the_real_process_answers_from_a_real_export(
    home: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
    (said,) = ask(home, finished, "Hello")
    text = {
        side: "".join(piece.get("text", "") for piece in said if piece["side"] == side)
        for side in chat_client.SIDES
    }
    assert text["base"]
    assert text["adapter"]
    assert text["base"] != text["adapter"]


def test_a_prompt_that_is_too_long_and_an_answer_of_8_000_tokens(
    home: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is refused in a sentence, the second arrives whole and can be ended at any time, and neither
    keeps anything of memory, or the process from answering the next one."""
    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
    source = long_context(chat_client.of_run(finished), 10_000)

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
        (server,) = chat_client._servers.values()
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
        assert len(chat_client._servers) == 1
        await chat_client.shutdown()

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
    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
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
    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
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
    ("kinds", "sides", "said"),
    [
        (("onnx", "onnx_adapter"), ("base", "adapter"), None),
        (("onnx",), ("base",), "There is no adapter in run r; its base answers alone."),
        (("onnx", "merged"), ("adapter",), "merged into its weights; there is no base to compare with"),
    ],
)
def test_the_sides_of_a_run(
    tmp_path: Path, kinds: tuple[str, ...], sides: tuple[str, ...], said: str | None
) -> None:
    run: Any = SimpleNamespace(
        id="r", status="done", artifact=lambda kind: str(tmp_path) if kind in kinds else None
    )
    source = chat_client.of_run(run)
    assert source.sides == sides
    assert source.missing_side is None if said is None else said in str(source.missing_side)


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
    source = chat_client.of_folder(export, "model x")
    model = generation.load(export)
    assert ("system" in model.reader.optional) == (heard is not None)

    async def answer() -> list[dict[str, Any]]:
        try:
            asked = chat_client.stream(
                home, source, "Hello", ("base",), max_new_tokens=4, system=" Be brief. "
            )
            return [piece async for piece in asked]
        finally:
            await chat_client.shutdown()

    if heard is None:
        with pytest.raises(LabError, match="have no system text; leave it empty"):
            asyncio.run(answer())
        return
    assert heard in model.reader.text({"prompt": "Hello", "system": "Be brief."})
    row = {"prompt": "Hello", "system": "Be brief."}
    expected = generation.stream(model, model.template.prompt(row), max_new_tokens=4)
    assert "".join(piece.get("text", "") for piece in asyncio.run(answer())) == "".join(expected)


def test_the_sides_of_a_folder_are_read_from_its_files(tmp_path: Path) -> None:
    def sides() -> tuple[str, ...]:
        return chat_client.of_folder(tmp_path, "x").sides

    assert sides() == ("base",)
    (tmp_path / "a.onnx_adapter").touch()
    assert chat_client.of_folder(tmp_path, "x").adapter == tmp_path / "a.onnx_adapter"
    (tmp_path / contract.ADAPTER).touch()
    assert chat_client.of_folder(tmp_path, "x").adapter == tmp_path / contract.ADAPTER
    assert sides() == chat_client.SIDES
    (tmp_path / contract.MERGED).touch()
    assert sides() == ("adapter",)
    with pytest.raises(InputError, match="no such folder"):
        chat_client.of_folder(tmp_path / "missing", "x")


def test_another_adapter_of_a_folder_can_be_asked(tmp_path: Path) -> None:
    for name in (contract.ADAPTER, "formal.onnx_adapter"):
        (tmp_path / name).touch()
    source = chat_client.of_folder(tmp_path, "folder x")
    elsewhere = tmp_path / "deep" / "mine.onnx_adapter"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    for given, expected in {
        "formal": tmp_path / "formal.onnx_adapter",
        "formal.onnx_adapter": tmp_path / "formal.onnx_adapter",
        str(elsewhere): elsewhere,
    }.items():
        assert chat_client.with_adapter(source, given) == replace(source, adapter=expected)
    with pytest.raises(InputError, match=r"there are adapter_weights\.onnx_adapter, formal\.onnx_adapter"):
        chat_client.with_adapter(source, "casual")
    with pytest.raises(InputError, match="is merged into its weights"):
        chat_client.with_adapter(replace(source, merged=True), "formal")


def test_a_workflow_cannot_answer(home: Path, store: Store, finished: Run) -> None:
    kinds = {"workflow": "/x/workflow.json"}
    run: Any = SimpleNamespace(id="r1", status="done", artifact=kinds.get)
    with pytest.raises(LabError, match="r1 has a workflow and no model: its export is not run here"):
        ask(home, run, "a")


def test_a_loaded_model_answers_while_another_loads(
    home: Path, finished: Run, process: Callable[[str], None]
) -> None:
    process(
        "if 'slow' in sys.argv:\n"
        "    open(os.environ['OLIVE_LAB_HOME'] + '/loading', 'w')\n"
        "    signal.pause()\n"
        "say(ready=True)"
    )

    async def scenario() -> list[int]:
        await pieces(home, finished, "a")
        slow = asyncio.create_task(anext(chat_client.stream(home, Source("slow", home, None, False), "a")))
        while not (home / "loading").exists():
            await asyncio.sleep(0.01)
        answer = await asyncio.wait_for(pieces(home, finished, "b"), 60)
        await asyncio.wait_for(chat_client.release_idle(-1), 60)
        kept = len(chat_client._servers)
        slow.cancel()
        await asyncio.wait([slow])
        return [len(answer), kept]

    assert asyncio.run(scenario()) == [4, 0]
    until(lambda: not processes(home), "the end of the processes")


def test_room_is_made_of_those_that_answer_nobody(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "OLD_SECONDS", 1e9)
    monkeypatch.setattr(chat_client, "TURN_SECONDS", 1e9)

    async def scenario() -> None:
        answering = [chat_client.stream(home, Source(name, home, None, False), "wait") for name in "ab"]
        for stream in answering:
            await anext(stream)
        third = asyncio.create_task(pieces(home, finished, "a"))
        while not chat_client._starting.locked():
            await asyncio.sleep(0)
        assert not third.done()
        await answering.pop().aclose()
        assert len(await third) == 4
        assert [key.name for key in chat_client._servers] == ["a", f"run {finished.id}"]
        await answering.pop().aclose()
        await chat_client.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_model_asked_too_much_ends_the_oldest_answer_once_it_is_old(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_client, "MOST_ASKED", 2)
    monkeypatch.setattr(chat_client, "OLD_SECONDS", 1e9)
    source = chat_client.of_run(finished)

    async def scenario() -> None:
        answering = [chat_client.stream(home, source, "wait") for _ in range(2)]
        for stream in answering:
            await anext(stream)
        with pytest.raises(LabError, match="Many others are being answered"):
            await pieces(home, finished, "a")
        monkeypatch.setattr(chat_client, "OLD_SECONDS", 0)
        assert len(await pieces(home, finished, "a")) == 4
        with pytest.raises(LabError, match="Others wait to be answered"):
            await anext(answering[0])
        (kept,) = chat_client._servers[source].answers.values()
        assert kept.answer.empty(), "the younger one goes on"
        while not (home / "canceled").exists():  # the process is told, too
            await asyncio.sleep(0.01)
        await answering[1].aclose()
        await chat_client.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("limit", ["OLD_SECONDS", "TURN_SECONDS"])
def test_a_model_that_has_had_its_time_makes_room_for_another_model(
    home: Path, finished: Run, process: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """So those who ask one again and again do not keep others away."""
    monkeypatch.setattr(chat_client, "OLD_SECONDS", 1e9)
    monkeypatch.setattr(chat_client, "TURN_SECONDS", 1e9)
    monkeypatch.setattr(chat_client, "MOST_PROCESSES", 1)

    async def scenario() -> None:
        stream = chat_client.stream(home, Source("a", home, None, False), "wait")
        await anext(stream)
        monkeypatch.setattr(chat_client, limit, 0)
        assert len(await pieces(home, finished, "a")) == 4
        with pytest.raises(LabError, match="Others wait to be answered"):
            await anext(stream)
        await chat_client.shutdown()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_process_nobody_asks_is_ended(home: Path, finished: Run, process: Callable[[str], None]) -> None:
    async def scenario() -> list[int]:
        await pieces(home, finished, "Hi")
        await chat_client.release_idle(3600)
        kept = len(chat_client._servers)
        await chat_client.release_idle(-1)
        return [kept, len(chat_client._servers)]

    assert asyncio.run(scenario()) == [1, 0]


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


def test_those_that_wait_for_a_model_that_does_not_load_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would load it once more, and whoever asks another model would wait for all of them."""
    monkeypatch.setattr(chat_client, "_servers", {})
    monkeypatch.setattr(chat_client, "_failed", {})
    monkeypatch.setattr(chat_client, "_starting", asyncio.Lock())
    loads = []

    async def start(home: Path, source: Source) -> Any:
        loads.append(source.name)
        await asyncio.sleep(0.01)
        raise LabError("It does not load.")

    async def ask() -> list[Any]:
        asked = [chat_client._server(tmp_path, Source("a", tmp_path, None, False)) for _ in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(LabError):  # who comes later has it tried again
            await chat_client._server(tmp_path, Source("a", tmp_path, None, False))
        return told

    monkeypatch.setattr(chat_client, "_start", start)
    assert [str(error) for error in asyncio.run(ask())] == ["It does not load."] * 3
    assert loads == ["a", "a"]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are parsed as JSON from now on."""
    texts: list[str] = []
    loads = json.loads

    def counted(text: Any, **how: Any) -> Any:
        texts.append(text)
        return loads(text, **how)

    monkeypatch.setattr(json, "loads", counted)
    return texts


def test_what_a_folder_says_of_its_prompts_is_parsed_once_until_it_changes(
    tmp_path: Path, parsed: list[str]
) -> None:
    source = Source("model", tmp_path, None, False)
    (tmp_path / "lab.json").write_text('{"template": "chat", "fields": ["a", "b"]}')
    for _ in range(20):
        assert chat_client.prompt_fields(source) == ("a", "b")
        assert chat_client.takes_system(source)
    assert len(parsed) == 1
    (tmp_path / "lab.json").write_text('{"template": "{other}", "fields": ["other"]}')
    assert (chat_client.prompt_fields(source), chat_client.takes_system(source)) == (("other",), False)
    assert len(parsed) == 2


def test_a_lab_json_beyond_real_ones_is_not_parsed(tmp_path: Path, parsed: list[str]) -> None:
    source = Source("model", tmp_path, None, False)
    start = '{"template": "chat", "fields": ["a"], "more": '
    for more in (
        f"[{'[],' * chat_client.MOST_PARTS}[]]}}",
        f'"{"x" * chat_client.LARGEST_LAB}"}}',
        "[" * (chat_client.MOST_PARTS + 1),
    ):
        (tmp_path / "lab.json").write_text(start + more)
        assert chat_client.prompt_fields(source) == ("prompt",)
    assert parsed == []
    (tmp_path / "lab.json").write_text(start + "[" * 9000 + "]" * 9000 + "}")  # deeper than Python reads
    assert chat_client.prompt_fields(source) == ("prompt",)
    (tmp_path / "lab.json").unlink()
    os.mkfifo(tmp_path / "lab.json")
    assert chat_client.prompt_fields(source) == ("prompt",)


def test_a_lab_json_with_as_many_added_tokens_as_gemma_3_is_read(tmp_path: Path) -> None:
    special = [[f"<unused{at}>", at, ""] for at in range(6_415)]
    lab = {"template": "chat", "fields": ["a", "b"], "reading": {"special": special}}
    (tmp_path / "lab.json").write_text(json.dumps(lab, indent=1))
    assert chat_client.prompt_fields(Source("model", tmp_path, None, False)) == ("a", "b")
