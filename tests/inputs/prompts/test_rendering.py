"""rendering and sandbox: templates that attack, freeze or flood get a sentence, and the next is rendered."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.prompts import rendering
from pipeline.inputs.prompts.rendering import OTHER, Job, Program, Refused
from pipeline.inputs.prompts.templates import Chat, Rendered, each, parse
from tests.helpers.lab import alive, cli, until

GOOD = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
ROW = {"prompt": "Where?", "response": "There."}
JOB: Job = ([{"role": "user", "content": "Where?"}], True)
PROCESS = "one process that renders"


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """The limit of time is far away, so that none is ended by it where another limit is tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "SECONDS", 60.0)
        rendering.close()
        yield
    rendering.close()


@pytest.fixture
def fresh() -> Iterator[None]:
    """No process of another test."""
    rendering.close()
    yield
    rendering.close()


@pytest.fixture
def soon(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of time is reached soon."""
    monkeypatch.setattr(rendering, "SECONDS", 0.3)


def text(source: str) -> str:
    """What a template writes, or the sentence that refuses it."""
    found = next(Program(source, {}).texts([JOB]))
    return found.sentence if isinstance(found, Refused) else found


def pid() -> int:
    """The only process that renders."""
    (process,) = rendering._pool._processes
    return process._process.pid


def refusal(sentence: str) -> None:
    """Fail unless it is one sentence that fits on a page."""
    assert sentence.startswith("template: the model's chat template ")
    assert len(sentence) <= 320
    assert sentence.isprintable()
    assert "Traceback" not in sentence


# Names of Python's own that must never be seen in what an attack writes.
INNER = ("<class", "<function", "<module", "<built-in", "<slot", "mappingproxy", "__subclasses__", "posix")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ messages.__class__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ ''|attr('__cl' ~ 'ass__')|attr('__mro__') }}",
        "{{ ['']|map(attribute='__class__')|list }}",
        "{{ ['']|map('attr', '__class__')|list }}",
        "{{ ['']|groupby('__class__')|list }}",
        "{{ [dict(a=1)]|sum(attribute='__class__') }}",
        "{{ ['']|selectattr('__class__')|list }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ lipsum|attr('__globals__') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ dict.fromkeys }}",
        "{{ dict().__class__.fromkeys }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0.__class__.__mro__}'.format_map({'0': ''}) }}",
        "{{ '{a.__class__}'.format_map(dict(a='')) }}",
        "{{ ('{0.__class__}'|safe).format('') }}",
        "{{ ('{0.__class__}'|e).format('') }}",
        "{{ '%s'|format(lipsum.__globals__) }}",
        "{% set n = namespace(f='{0.__class__}'.format) %}{{ n.f('') }}",
        "{{ ['{0.__class__}']|map('format', '')|list }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% set n = namespace() %}{% set n._Namespace__attrs = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ namespace({'__getattribute__': 1}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{% block b %}{{ self.b.__globals__ }}{% endblock %}",
        "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
        "{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
        "{{ (messages|map('upper')).gi_frame.f_globals }}",
        "{% include '/etc/passwd' %}",
        "{% include ['/etc/passwd', 'x'] %}",
        "{% import 'os' as o %}{{ o }}",
        "{% from 'os' import system %}{{ system }}",
        "{% extends '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages.clear() }}",
        "{% do messages.pop() %}",
        "{{ strftime_now.__self__ }}",
        "{{ undefined_name.__class__ }}",
        "{{ undefined_name._fail_with_undefined_error.__globals__ }}",
        "{{ ().__getattribute__('__class__') }}",
        "{{ range.__class__ }}",
        "{{ messages|tojson(cls=namespace) }}",
        "{% generation %}{{ ''.__class__ }}{% endgeneration %}",
        "{{ context }}{{ environment }}{{ resolve }}{{ __builtins__ }}{{ open }}",
        "{{ get_flashed_messages.__globals__ }}{{ url_for.__globals__ }}{{ config }}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    found = text(source)
    assert not any(name in found for name in INNER)
    assert "root:" not in found
    if found.startswith("template: "):
        refusal(found)
    else:
        assert found in ("", "[]", "[Undefined]", "[('', [''])]", "[(Undefined, [''])]")
    assert text(GOOD) == "<user>Where?"


def test_a_template_that_gets_out_finds_nothing_to_use(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OLIVE_LAB_HOME", "/somewhere")
    text(GOOD)
    environment = Path(f"/proc/{pid()}/environ").read_bytes()
    assert b"secret" not in environment
    assert b"OLIVE_LAB" not in environment
    limits = {
        line[:26].strip(): line[26:].split()[:2]
        for line in Path(f"/proc/{pid()}/limits").read_text().splitlines()
    }
    for closed in ("Max core file size", "Max file size", "Max processes"):
        assert limits[closed] == ["0", "0"]
    descriptors = sorted(int(link.name) for link in Path(f"/proc/{pid()}/fd").iterdir())
    assert descriptors == [0, 1, 2]
    assert limits["Max open files"] == ["3", "3"]
    assert int(limits["Max address space"][1]) < rendering.MEMORY + (128 << 20)


def test_all_that_jinja_offers_works_where_no_file_can_be_opened() -> None:
    given = {"batch": "2", "slice": "2", "format": "1", "replace": "'a', 'b'", "map": "'string'"}
    import jinja2.filters

    for name in jinja2.filters.FILTERS:
        found = text(f"{{{{ messages|{name}({given.get(name, '')}) }}}}{{{{ 'a & <b> b'|{name} }}}}")
        for unreadable in ("Errno", "No module", "open files", "encodings"):
            assert unreadable not in found, (name, found)


TIME = f"cannot be rendered: it takes more than 0.3 seconds; {OTHER}"
MEMORY = f"cannot be rendered: it needs more than 256 MB of memory; {OTHER}"
OUTPUT = f"cannot be rendered: it writes more than 4,194,304 characters; {OTHER}"
DEEP = f"it is nested too deeply or calls itself endlessly; {OTHER}"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ENDLESS, TIME),
        ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ (messages|length + 9) ** (10 ** 9) }}", TIME),  # in one operation, not in a loop
        ("{{ 7 ** (10 ** 9) }}", TIME),  # while it is compiled
        ("{% for a in range(100000) %}{{ 'a' * 10000 }}{% endfor %}", OUTPUT),
        ("{{ 'a' * (4 * 1024 * 1024 + 1) }}", OUTPUT),
        ("{% block a %}{% for a in range(100000) %}{{ 'a' * 10000 }}{% endfor %}{% endblock %}", OUTPUT),
        ("{% set x %}{% for a in range(100000) %}{{ 'a' * 100000 }}{% endfor %}{% endset %}{{ x }}", MEMORY),
        ("{{ messages|tojson(indent=10 ** 9) }}", MEMORY),
        ("{{ 'a' * 10 ** 10 }}", MEMORY),
        ("{{ [1] * 10 ** 9 }}", MEMORY),
        ("{{ '%999999999d' % 1 }}", MEMORY),
        ("{{ 'a'|center(10 ** 9) }}", MEMORY),
        ("{{ ('a' * 10 ** 6)|replace('a', 'b' * 10 ** 5) }}", MEMORY),
        (
            "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            MEMORY,
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", f"cannot be rendered: {DEEP}"),
        ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", f"cannot be rendered: {DEEP}"),
        ("{% block a %}{{ self.a() }}{% endblock %}", f"cannot be rendered: {DEEP}"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, f"is faulty: {DEEP}"),
        ("{{ " + "(" * 90000 + "1" + ")" * 90000 + " }}", f"is faulty: {DEEP}"),
        ("{{ " + "not " * 50000 + "1 }}", f"is faulty: {DEEP}"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "is faulty: too many statically nested blocks"),
        ("{% set x = [] %}{% for a in range(9) %}{{ x.append(a) }}{% endfor %}", "'append' of 'list' object"),
        ("{{ raise_exception('no\x1b[31m \n' * 10 ** 5) }}", "cannot be rendered: no"),
        ("{% for %}", "is faulty: "),
    ],
)
def test_a_template_that_would_freeze_the_app_gets_a_sentence(
    source: str, reason: str, request: pytest.FixtureRequest
) -> None:
    if reason == TIME:
        request.getfixturevalue("soon")
    found = text(source)
    refusal(found)
    assert reason in found
    assert text(GOOD) == "<user>Where?"


def test_the_row_that_did_it_is_found_and_later_ones_cost_nothing(
    soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = rendering._Process.ask
    monkeypatch.setattr(
        rendering._Process, "ask", lambda self, given: (asked.append(len(given["jobs"])), ask(self, given))[1]
    )
    source = (
        "{% for m in messages %}{% if m.content == 'bad' %}"
        + ENDLESS
        + "{% endif %}{{ m.content }}{% endfor %}"
    )
    rows = [{**ROW, "prompt": "bad" if i in (70, 80) else f"Where is {i}?"} for i in range(1000)]
    found = list(each(parse("chat", Chat(source)), rows))
    assert found[:70] == [Rendered(f"Where is {i}?", f"Where is {i}?There.") for i in range(70)]
    assert all(isinstance(one, str) and TIME in one for one in found[70:])
    assert len(found) == 1000
    assert len(asked) <= 3


def test_many_rows_go_into_few_messages_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = rendering._Process.ask
    monkeypatch.setattr(
        rendering._Process, "ask", lambda self, given: (asked.append(len(given["jobs"])), ask(self, given))[1]
    )
    picky = "{% if messages[0].content == '7' %}{{ raise_exception('not seven') }}{% endif %}" + GOOD
    rows = [{"prompt": str(i), "response": "x" * i} for i in range(1000)]
    found = list(each(parse("chat", Chat(picky)), rows))
    assert found[7] == "template: the model's chat template cannot be rendered: not seven"
    assert [one for i, one in enumerate(found) if i != 7] == [
        Rendered(f"<user>{i}", f"<user>{i}<assistant>{'x' * i}") for i in range(1000) if i != 7
    ]
    assert len(asked) < 50


def test_answers_written_differently_are_put_together_in_batches_too() -> None:
    source = GOOD + "{% if add_generation_prompt %}<assistant>{% else %}[end]{% endif %}"
    thinking = source.replace("<assistant>", "<assistant><think>")
    template = parse("chat", Chat(thinking))
    rows = [{"prompt": str(i), "response": "x"} for i in range(600)]
    assert [one.full for one in each(template, rows) if isinstance(one, Rendered)] == [
        f"<user>{i}<assistant><think>x[end]" for i in range(600)
    ]
    assert template.full(rows[5]) == "<user>5<assistant><think>x[end]"


def test_too_slow_on_average_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(rendering, "ROW_SECONDS", 1e-9)
    found = list(each(parse("chat", Chat(GOOD)), [ROW] * 1000))
    assert isinstance(found[0], Rendered)
    assert isinstance(found[-1], str)
    assert "a text; write a template of your own" in found[-1]


def test_adding_much_to_every_text_ends_it() -> None:
    found = list(each(parse("chat", Chat(GOOD + "{{ 'x' * 2_000_000 }}")), [ROW] * 100))
    assert isinstance(found[0], Rendered)
    assert isinstance(found[-1], str)
    assert "it adds more than 32,768 characters to a text; write a template of your own" in found[-1]
    assert sum(isinstance(one, Rendered) for one in found) < 20


def test_long_rows_are_not_what_a_template_adds() -> None:
    rows = [{"prompt": "x" * 1_500_000, "response": "y"}] * 30
    assert all(isinstance(one, Rendered) for one in each(parse("chat", Chat(GOOD)), rows))


def test_hostile_templates_from_all_sides_do_not_delay_a_good_one(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 600.0)
    good = parse("chat", Chat(GOOD))
    assert good.prompt(ROW) == "<user>Where?"
    monkeypatch.setattr(rendering, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(rendering, "BRIEF_SECONDS", 0.1)
    ends: list[str] = []

    def attack(number: int) -> None:
        hostile = parse("chat", Chat(ENDLESS + str(number)))
        try:
            ends.append(str(next(iter(each(hostile, [ROW])))))
        except LabError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(44)]
    for thread in threads:
        thread.start()
    until(lambda: len(ends) == 44 - (rendering.PROCESSES - 1), "the refusal of those that find no process")
    assert all(end.endswith("try again in a minute") for end in ends)
    assert good.prompt(ROW) == "<user>Where?"  # the others are still rendered
    assert len(rendering._pool._processes) == rendering.PROCESSES
    rendering.close()
    for thread in threads:
        thread.join(60)
    assert len(ends) == 44


def test_it_ends_when_it_is_idle_and_comes_back(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "IDLE_SECONDS", 0.2)  # else it may end before it is asked
    assert text(GOOD) == "<user>Where?"
    first = pid()
    until(lambda: not alive(first), "the end of an idle process")
    assert text(GOOD) == "<user>Where?"
    second = pid()
    until(lambda: not alive(second), "the end of another")
    lies = iter([True])  # it ends just after we have looked
    monkeypatch.setattr(
        rendering._Process, "living", property(lambda self: next(lies, self._process.poll() is None))
    )
    assert text(GOOD) == "<user>Where?"


def test_one_that_is_stuck_is_ended(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text(GOOD)
    os.kill(pid(), signal.SIGSTOP)
    channel = rendering._pool._processes[0]._channel
    assert channel.gettimeout() == rendering.STUCK_SECONDS
    channel.settimeout(0.1)
    assert "there was no answer for" in text(GOOD)
    assert text(GOOD) == "<user>Where?"


def test_one_that_is_killed_is_not_the_next_ones_fault(fresh: None) -> None:
    text(GOOD)
    os.kill(pid(), signal.SIGKILL)
    until(lambda: not alive(pid()), "its end")
    assert text(GOOD) == "<user>Where?"


def test_one_that_cannot_start_is_a_sentence(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "python", lambda: "false")
    with pytest.raises(LabError, match="does not start"):
        text(GOOD)


def test_a_fork_has_processes_of_its_own(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    text(GOOD)
    fork = multiprocessing.get_context("fork")
    results: Any = fork.SimpleQueue()
    ours = pid()

    def render() -> None:
        results.put((text(GOOD), pid()))

    monkeypatch.setattr(rendering._pool, "_busy", rendering.PROCESSES)  # by threads that the fork lacks
    process = fork.Process(target=render)
    process.start()
    process.join(60)
    monkeypatch.undo()
    assert process.exitcode == 0
    found, theirs = results.get()
    assert found == "<user>Where?"
    assert theirs != ours
    until(lambda: not alive(theirs), "the end of the fork's process")
    assert text(GOOD) == "<user>Where?"
    assert pid() == ours


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=settings.ROOT, env=settings.child_environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_it_ends_with_a_parent_that_is_killed() -> None:
    parent = python(
        "import sys, threading; from pipeline.inputs.prompts import rendering\n"
        "from pipeline.inputs.prompts.templates import *\n"
        f"parse('chat', Chat({GOOD!r})).prompt({ROW!r})\n"
        "print(rendering._pool._processes[0]._process.pid, flush=True)\n"
        "threading.Event().wait()"
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.communicate()
    until(lambda: not alive(child), "the end of the process that renders")


def test_a_process_that_is_to_end_does_not_render_on() -> None:
    """As when the app gets SIGTERM while a thread checks a dataset: the interpreter waits for its threads."""
    parent = python(
        "import itertools, threading; from pipeline.inputs.prompts.templates import *\n"
        "started = threading.Event()\n"
        "def check():\n"
        f"    for one in each(parse('chat', Chat({GOOD!r})), itertools.repeat({ROW!r})):\n"
        "        started.set()\n"
        "threading.excepthook = lambda given: print(given.exc_value)\n"
        "threading.Thread(target=check).start()\n"
        "started.wait()"
    )
    assert parent.communicate(timeout=60)[0] == "This process is about to end.\n"


def test_closing_ends_what_threads_render(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the app gets SIGTERM: those that render and those that wait for a process end at once."""
    monkeypatch.setattr(rendering, "SECONDS", 600.0)
    monkeypatch.setattr(rendering, "WAIT_SECONDS", 600.0)
    ends: list[str] = []

    def check(number: int) -> None:
        try:
            text(ENDLESS + str(number))
        except LabError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=check, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(rendering._pool._processes) == rendering.PROCESSES - 1, "the start of both")
    rendering.close()
    for thread in threads:
        thread.join(60)
    assert ends == ["This process is about to end."] * 6
    assert text(GOOD) == "<user>Where?"


def test_the_command_line_says_it_in_one_line(
    home: Path, model_folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_folder / "chat_template.jinja").write_text("{{ messages|tojson(indent=10 ** 9) }}")
    code, out, err = cli(capsys, "check", dataset, "--model", model_folder)
    assert code != 0
    assert out == ""
    assert MEMORY in err
    assert "Traceback" not in err
    assert all(line.count(MEMORY) == 1 for line in err.splitlines() if "chat template" in line)


def test_half_a_character_is_no_text() -> None:
    template = parse("chat", Chat("{{ '\\ud800' }}{{ messages[0].content }}"))
    (found,) = each(template, [{"prompt": "a", "response": "b"}])
    assert isinstance(found, str)
    assert "writes half of a character" in found


def test_a_process_that_hangs_is_ended_by_the_kernel() -> None:
    limits = {
        "seconds": 2.0,
        "memory": 1 << 28,
        "characters": 1000,
        "idle_seconds": 600.0,
        "most_seconds": 1.0,
    }
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "pipeline.inputs.prompts.sandbox", json.dumps(limits)]
        process = subprocess.Popen(command, stdin=theirs, cwd=settings.ROOT, env=settings.bare_environment())
        assert process.wait(60) == -signal.SIGALRM
