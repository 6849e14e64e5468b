"""The process that answers, with a model whose answers are given here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import settings
from pipeline.exports.chat import chat_server
from pipeline.exports.chat.chat_processes import LINE_LIMIT
from pipeline.exports.chat.sources import SIDES, Source
from pipeline.inputs.prompts import templates
from pipeline.system import own_process
from tests.helpers import talks
from tests.helpers.lab import has_landlock, until

GRAPH = {"graph": {"model.onnx": "bb"}}


class Answer:
    """As `generation.stream` gives it."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __iter__(self) -> Any:
        return iter(self.words)

    def facts(self) -> dict[str, Any]:
        return {"text": "".join(self.words), "tokens": len(self.words)}


def serve(
    monkeypatch: pytest.MonkeyPatch,
    requests: list[dict[str, Any]],
    stream: Callable[..., Any],
    adapter: Path | None = Path("/x/adapter"),
    merged: bool = False,
    model: tuple[Any, Any] | None = None,
    memory: Callable[..., int] = lambda *_: 1,
) -> list[dict[str, Any]]:
    """What the process says to these requests, which have all come; `model` is its (template, reader)."""
    said: list[dict[str, Any]] = []
    template = SimpleNamespace(fields=("prompt", "response"))
    reader = SimpleNamespace(optional=[], text=lambda row: f"<{row['prompt']}>")
    template, reader = model or (template, reader)
    monkeypatch.setattr("pipeline.exports.verify.static", lambda folder, adapter: [])
    names = frozenset({"adapter"} if adapter else ())

    def load(source: Source) -> Any:
        held = SimpleNamespace(template=template, reader=reader, names=names)
        sums = {"adapter": "aa" if adapter else None, "graph": lambda: {"model.onnx": "bb"}}
        return SimpleNamespace(model=held, source=source, is_summed=lambda _: True, **sums)

    monkeypatch.setattr("pipeline.exports.chat.loaded_files.load", load)
    monkeypatch.setattr("pipeline.exports.generation.stream", stream)
    monkeypatch.setattr("pipeline.exports.generation.memory", memory)
    monkeypatch.setattr(sys, "stdin", [json.dumps(request) for request in requests])
    monkeypatch.setattr(chat_server, "_say", said.append)
    monkeypatch.setattr(chat_server, "_limit_log", lambda: None)  # it would hold for all tests after this
    take = chat_server._Inbox.take

    def all_at_once(inbox: Any, *, wait: bool) -> list[dict[str, Any]]:
        until(lambda: (inbox._came.queue and inbox._came.queue[-1] is None) or inbox.closed, "the end")
        return take(inbox, wait=wait)

    monkeypatch.setattr(chat_server._Inbox, "take", all_at_once)
    chat_server._serve(Source("model x", Path("/x"), adapter, merged))
    return said


def request(number: int = 1, sides: tuple[str, ...] = SIDES) -> dict[str, Any]:
    return {
        "id": number,
        "prompt": "Hi",
        "sides": list(sides),
        "seed": 3,
        "max_new_tokens": 8,
        "temperature": 0.5,
    }


def gathering(monkeypatch: pytest.MonkeyPatch, stream: Callable[..., Any]) -> list[dict[str, Any]]:
    """What is said of two sides in gathered pieces, where each look at the clock is 0.01 s later."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr(chat_server.time, "perf_counter", lambda: next(clock) / 100)
    return serve(monkeypatch, [{**request(), "gather_seconds": 0.5}], stream)[1:]


def test_tokens_are_gathered_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each side comes at once; each line wakes the page, which takes time from the model."""
    words = [f"{number} " for number in range(200)]
    said = gathering(monkeypatch, lambda *given, **options: Answer(words))
    for side in SIDES:
        texts = [one["text"] for one in said if one.get("side") == side and "text" in one]
        assert "".join(texts) == "".join(words)
        assert texts[0] == "0 "
        assert len(texts) < 30
    assert [one.get("done") for one in said][-3:] == [True, True, None], "what was held comes with the facts"


def test_what_was_gathered_comes_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*given: Any, **options: Any) -> Answer:
        answer = Answer(["a", "b", "c"])
        answer.facts = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
        return answer

    said = gathering(monkeypatch, stream)
    texts = ["".join(one["text"] for one in said if one.get("side") == side) for side in SIDES]
    assert texts == ["abc", "abc"]
    assert "error" in said[-1]


def test_the_sides_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def stream(model: Any, prompt: str, adapter: str | None = None, **options: Any) -> Answer:
        asked.append((prompt, adapter, options))
        return Answer(["a", "b"] if adapter else ["c"])

    said = serve(monkeypatch, [request()], stream)
    options = {"seed": 3, "max_new_tokens": 8, "temperature": 0.5}
    assert asked == [("<Hi>", None, options), ("<Hi>", "adapter", options)]
    assert said == [
        {"ready": True},
        {"id": 1, "side": "base", "text": "c"},
        {"id": 1, "side": "adapter", "text": "a"},
        {"id": 1, "side": "base", "done": True, "tokens": 1, "adapter": None, **GRAPH},
        {"id": 1, "side": "adapter", "text": "b"},
        {"id": 1, "side": "adapter", "done": True, "tokens": 2, "adapter": "aa", **GRAPH},
        {"id": 1, "end": True},
    ]


def test_a_merged_adapter_is_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(model: Any, prompt: str, adapter: str | None = None, **_: Any) -> Answer:
        return Answer([f"with {adapter}"])

    asked = [request(1, ("adapter",)), request(2)]
    said = serve(monkeypatch, asked, stream, adapter=None, merged=True)
    assert said[1]["error"] == "The adapter is merged into the weights; ask the adapter side only."
    assert said[2] == {"id": 1, "side": "adapter", "text": "with None"}
    said = serve(monkeypatch, asked[:1], stream, adapter=None)
    assert said[-1]["error"] == "There is no adapter; ask the base side only."


def test_a_conversation_is_asked_whole_with_a_system_text_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(model: Any, prompt: str, adapter: str | None = None, **_: Any) -> Answer:
        return Answer([prompt])

    template = templates.parse("chat", talks.chat("qwen2.5"))
    reader = SimpleNamespace(optional=["system"], text=template.prompt)
    asked = {**request(1, ("base",)), "prompt": templates.question(template, talks.TALK)}
    broken = {**asked, "prompt": json.dumps({"messages": [{"role": "robot", "content": "x"}]})}
    requests = [asked, {**asked, "system": "Be brief."}, broken]
    said = serve(monkeypatch, requests, stream, model=(template, reader))
    texts = [piece["text"] for piece in said if "text" in piece]
    assert texts == [template.prompt(talks.TALK), f"<|im_start|>system\nBe brief.<|im_end|>\n{texts[0]}"]
    (refused,) = (piece["error"] for piece in said if "error" in piece)
    assert refused.startswith("Message 1 has the role 'robot'")


def test_an_answer_of_endless_tokens_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token may have megabytes; how many tokens there are says little."""
    monkeypatch.setattr(chat_server, "MOST_LETTERS", 10)

    def stream(model: Any, prompt: str, adapter: str | None = None, **_: Any) -> Answer:
        return Answer(["x" * 8, "y" * 8, "z"] if adapter else ["short", "ness"])

    said = serve(monkeypatch, [request()], stream)
    texts = {
        side: "".join(one["text"] for one in said if one.get("side") == side and "text" in one)
        for side in SIDES
    }
    assert texts == {"base": "shortness", "adapter": "x" * 8 + "yy"}
    assert {one["side"]: one.get("cut") for one in said if one.get("done")} == {"base": None, "adapter": True}


def test_earlier_turns_go_before_the_question_each_side_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(model: Any, prompt: str, adapter: str | None = None, **_: Any) -> Answer:
        return Answer([prompt])

    template = templates.parse("chat", talks.chat("qwen2.5"))
    reader = SimpleNamespace(optional=["system"], text=template.prompt)
    turns = {"base": [["One?", "First."]], "adapter": [["One?", "Second."]]}
    asked = {**request(1), "turns": turns, "system": "Be brief."}
    said = serve(monkeypatch, [asked], stream, model=(template, reader))
    texts = {piece["side"]: piece["text"] for piece in said if "text" in piece}
    for side, earlier in (("base", "First."), ("adapter", "Second.")):
        messages = [
            ("system", "Be brief."),
            ("user", "One?"),
            ("assistant", earlier),
            ("user", asked["prompt"]),
        ]
        whole = {"messages": [{"role": role, "content": text} for role, text in messages]}
        assert texts[side] == template.prompt(whole)
    text = templates.parse("{prompt}\n{response}", None)
    said = serve(
        monkeypatch, [asked], stream, model=(text, SimpleNamespace(optional=["system"], text=text.prompt))
    )
    assert said[1]["error"] == "This model's template knows no earlier turns; ask without them."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ValueError("the prompt has 9000 tokens"),
            {"error": "The prompt has 9000 tokens.", "refused": True},
        ),
        (
            RuntimeError("onnx broke"),
            {"error": "This failed (RuntimeError: onnx broke); try again; if it fails again, report it."},
        ),
    ],
)
def test_one_failed_answer_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: dict[str, Any]
) -> None:
    def stream(*_: Any, **options: Any) -> Answer:
        if options["seed"] == 0:
            raise error
        return Answer(["fine"])

    said = serve(monkeypatch, [{**request(1), "seed": 0}, request(2)], stream)
    assert said[1] == {"id": 1, **expected}
    assert said[-1] == {"id": 2, "end": True}


def test_whoever_has_had_the_least_time_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word takes a second of this clock; a question that comes later does not wait for a long answer."""
    now = iter(range(1000))
    monkeypatch.setattr(chat_server, "time", SimpleNamespace(perf_counter=lambda: next(now)))

    def stream(model: Any, prompt: str, adapter: str | None = None, **_: Any) -> Answer:
        return Answer(["", *"abc"] if prompt == "<long>" else ["x"])

    asked = [{**request(number, ("base",)), "prompt": "long"} for number in (1, 2)]
    said = serve(monkeypatch, [*asked, request(3, ("base",))], stream)
    order = [(piece["id"], piece.get("text", "end")) for piece in said[1:] if not piece.get("done")]
    assert order == [
        (3, "x"), (2, "a"), (1, "a"), (3, "end"),
        (2, "b"), (1, "b"), (2, "c"), (1, "c"), (2, "end"), (1, "end"),
    ]  # fmt: skip


def test_answers_that_do_not_fit_into_memory_together_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*_: Any, **__: Any) -> Answer:
        return Answer(["a", "b"])

    def order(*sizes: int) -> list[int]:
        asked = [{**request(number, ("base",)), "max_new_tokens": size} for number, size in enumerate(sizes)]
        said = serve(monkeypatch, asked, stream, memory=lambda model, text, size: size)[1:]
        return [piece["id"] for piece in said if "text" in piece]

    most = chat_server.MEMORY
    assert order(most // 2 + 1, most // 2 + 1) == order(most * 9, most * 9) == [0, 0, 1, 1]
    assert order(most // 2, most // 2)[:2] == [1, 0], "these are answered together"
    assert order(most // 2, most, most // 2)[-2:] == [1, 1], "whoever is too large lets others pass"


def test_requests_are_read_ahead_so_that_a_cancel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter(range(10**9))

    def stream(model: Any, prompt: str, *_: Any, **__: Any) -> Answer:
        return Answer(words if prompt == "<endless>" else ["x"])  # type: ignore[arg-type]

    endless = {**request(1, ("base",)), "prompt": "endless"}
    said = serve(monkeypatch, [endless, {"cancel": 1}, request(2, ("base",))], stream)
    assert {piece["id"] for piece in said[1:]} == {2}


def test_a_source_comes_through_the_command_line_as_it_was(tmp_path: Path) -> None:
    for source in (
        Source("run r", tmp_path, tmp_path / "a.onnx_adapter", False),
        Source("a name of words", tmp_path, None, True),
        Source(
            "several", tmp_path, None, False, (tmp_path / "a.onnx_adapter", tmp_path / "b c.onnx_adapter")
        ),
    ):
        assert Source.from_words(*source.words()) == source


def conversation(number: int, *messages: tuple[str, str], **given: Any) -> dict[str, Any]:
    options = {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "schema": ""}
    said = [{"role": role, "content": text} for role, text in messages]
    return {"id": number, "messages": said, "adapter": None, **options, **given}


class Continued(Answer):
    """As `generation.stream` gives it, with the tokens of a prompt."""

    prompt_tokens, cut = 7, False

    @property
    def tokens(self) -> int:
        return len(self.words)


def test_a_conversation_is_rendered_by_the_models_own_template(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []

    def stream(model: Any, prompt: str, adapter: str | None = None, **options: Any) -> Continued:
        given.append((adapter, options))
        return Continued([prompt])

    template = templates.parse("chat", talks.chat("qwen2.5"))
    reader = SimpleNamespace(optional=["system"], text=template.prompt)
    turns = [("system", "Be brief."), ("user", "One?"), ("assistant", "First."), ("user", "Two?")]
    asked = [conversation(1, *turns, adapter="adapter"), conversation(2, *turns[:2])]
    said = serve(monkeypatch, asked, stream, model=(template, reader))
    messages = [{"role": role, "content": text} for role, text in turns]
    assert [piece for piece in said if piece.get("id") == 1] == [
        {"id": 1, "prompt_tokens": 7},
        {"id": 1, "text": template.prompt({"messages": messages})},
        {"id": 1, "done": True, "tokens": 1, "cut": False},
        {"id": 1, "end": True},
    ]
    (text,) = (piece["text"] for piece in said if piece.get("id") == 2 and "text" in piece)
    assert text == template.prompt({"messages": messages[:2]})
    options = {key: asked[0][key] for key in given[0][1]}
    assert options.keys() == {"max_new_tokens", "temperature", "top_p", "seed", "stop", "schema"}
    assert sorted(given, key=str) == sorted([("adapter", options), (None, options)], key=str)


def test_a_conversation_that_the_template_lacks_words_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = templates.parse("{prompt}\n{response}", None)
    reader = SimpleNamespace(optional=[], text=text.prompt)
    asked = [
        conversation(1, ("system", "Be brief."), ("user", "One?")),
        conversation(2, ("user", "One?"), adapter="none"),
        conversation(3, ("user", "One?")),
    ]
    said = serve(monkeypatch, asked, lambda *given, **_: Continued([given[1]]), model=(text, reader))
    refused = {piece["id"]: piece["error"] for piece in said if piece.get("refused")}
    assert refused == {
        1: "This model's template takes one question: send a single user message, without a system text.",
        2: "There is no adapter of this name.",
    }
    assert {"id": 3, "text": "One?\n"} in said
    chat = templates.parse("chat", talks.chat("qwen2.5"))
    model = (chat, SimpleNamespace(optional=[], text=chat.prompt))
    said = serve(monkeypatch, asked[:1], lambda *_, **__: Continued([]), model=model)
    assert said[1]["error"] == "The prompts of this model have no system text; leave it out."


def test_a_conversations_answer_of_endless_letters_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "MOST_LETTERS", 10)
    said = serve(
        monkeypatch, [conversation(1, ("user", "Hi"))], lambda *_, **__: Continued(["x" * 8, "y" * 8, "z"])
    )
    assert "".join(piece.get("text", "") for piece in said) == "x" * 8 + "yy"
    assert said[-2] == {"id": 1, "done": True, "tokens": 3, "cut": True}


@pytest.mark.parametrize("about", [{"id": 7}, {}])
def test_a_line_that_the_client_could_not_read_is_an_error(
    capsys: pytest.CaptureFixture[str], about: dict[str, int]
) -> None:
    chat_server._say({**about, "text": "\U0001f600" * chat_server.MOST_LETTERS})  # the longest piece
    assert len(capsys.readouterr().out) < LINE_LIMIT
    chat_server._say({**about, "error": "x" * LINE_LIMIT})
    said = capsys.readouterr().out
    assert json.loads(said) == {**about, "error": chat_server.TOO_LONG}


def test_a_fault_of_a_folder_is_told_in_few_words(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server._told(3):
        raise ValueError("the name " + "n" * (8 << 20))
    said = json.loads(capsys.readouterr().out)
    assert said["error"].startswith("The name nnn")
    assert len(said["error"]) < 2100


def test_a_message_of_the_runtime_is_kept_in_the_log_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server._told(3):
        raise RuntimeError("the node " + "n" * (8 << 20))
    kept = capsys.readouterr().err
    assert "RuntimeError: the node nnn" in kept
    assert len(kept) <= chat_server.LONGEST_TRACE + 1


FILLS = """
import sys
from pathlib import Path
from pipeline.exports.chat import chat_server
from pipeline.exports.chat.sources import Source

def load(source):
    Path(sys.argv[2], "adapter").write_bytes(bytes(10 << 20))

def fill(inbox, wait):
    for _ in range(40):  # as a runtime does, with no error if it cannot
        with open(Path(sys.argv[2], "log"), "ab") as log:
            try:
                log.write(b"x" * 1_000_000); log.flush()
            except OSError:
                log.raw.close()
    raise RuntimeError("/etc/hostname: does not exist")

chat_server.verify.static = lambda folder, adapter: []
chat_server.loaded_files.load = load
chat_server._Inbox.take = fill
sys.exit(chat_server._main(Source("m", Path(sys.argv[1]), None, False)))
"""


def test_a_runtime_fills_no_disk_and_says_of_no_file_whether_it_is_there(tmp_path: Path) -> None:
    words = ["-c", FILLS, str(tmp_path), str(tmp_path)]
    done = own_process.run(words, 60, settings.local_environment())
    assert 7 << 20 < (tmp_path / "log").stat().st_size <= chat_server.LARGEST_LOG, done.stderr[-2000:]
    assert (tmp_path / "adapter").stat().st_size > chat_server.LARGEST_LOG, "an adapter is copied whole"
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said == [{"ready": True}, {"error": f"The model could not be loaded: {chat_server.UNREAD}"}]


READS = """
import sys
from pathlib import Path
from pipeline.exports.chat import chat_server
from pipeline.exports.chat.sources import Source

def read(source):
    for path in (source.folder / "own", source.adapter, Path(sys.argv[3])):
        print("read", path.read_text(), file=sys.stderr, flush=True)

chat_server._serve = read
sys.exit(chat_server._main(Source("m", Path(sys.argv[1]), Path(sys.argv[2]), False)))
"""


def test_a_model_that_was_brought_opens_no_files_but_its_own(home: Path, tmp_path: Path) -> None:
    if not has_landlock():
        pytest.skip("this system has no Landlock")
    (tmp_path / "export").mkdir()
    for file, text in (("export/own", "graph"), ("adapter", "adapter"), ("private", "secret")):
        (tmp_path / file).write_text(text)
    words = ["-c", READS, *(str(tmp_path / name) for name in ("export", "adapter", "private"))]
    done = own_process.run(words, 60, settings.local_environment())
    assert done.stderr.startswith("read graph\nread adapter\n"), done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "ermission denied" in json.loads(done.stdout)["error"]
