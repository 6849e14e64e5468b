"""Hostile files, `FUZZ_CASES` of them: recognised, mapped, checked, rendered, looked through, shown.

No crash, no hang, every refusal with its line and a reason. In CI the cases are the same each time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gzip
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.inputs.data import datasets, one_row, paging
from pipeline.inputs.data.card import leaving_out, making
from pipeline.inputs.data.card.findings import NAMES as FINDINGS
from pipeline.inputs.data.formats import columns, containers, convert, make
from pipeline.inputs.prompts import templates
from tests.helpers import formats, talks

CASES = int(os.environ.get("FUZZ_CASES", "500"))
IN_CI = "FUZZ_CASES" not in os.environ
HANG_SECONDS = 5.0  # of processor time; a case takes milliseconds
STUCK_SECONDS = 900  # where not even the alarm comes through: the test ends with a traceback
ENOUGH = settings(
    deadline=None,
    derandomize=IN_CI,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate] if IN_CI else [Phase.explicit, Phase.generate, Phase.shrink],
)
ODD = [
    "", " ", "a", "é", "\U0001f600", "\0", "\x1b[31m", "\u2028", "\ufeff", '"', "'", ",", ";", "\t", "\\",
    "{", "[", "\n", "\r\n", "\r", "\u202e", "\ud800", "\u0300", "]", "}", "https://a.b/?k=secret",
    "password: hunter22", "0" * 19, "+1 212 555 0123", "{{ x }}", "{% for %}", "<|im_end|>", "=SUM(A1)",
    "NaN", "[{", '[{"role": "user"}]', "QZ7QZ7",
]  # fmt: skip
NAMES = [
    "prompt", "response", "system", "question", "answer", "instruction", "input", "output", "text",
    "messages", "conversations", "tools", "", " prompt ", "Prompt", "x", "prompt,response", "id",
    "\u0301prompt", "__class__",
]  # fmt: skip
STYLES = ("qwen2.5", "forgets", "strict")

texts = st.one_of(
    st.lists(st.sampled_from(ODD), max_size=6).map("".join),
    st.text(max_size=12),
    st.builds(lambda text, times: text * times, st.sampled_from(ODD), st.sampled_from([2, 300, 4000])),
)
plain = st.one_of(
    texts,
    st.sampled_from([None, True, False, 0, 7, -0.0, 1e308, 10**30, float("nan"), float("inf")]),
    st.integers(),
    st.floats(),
)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["role", "from", "content", "value", "x", ""]), inner, max_size=3),
    ),
    max_leaves=5,
)
names = st.one_of(st.sampled_from(NAMES), texts)


def odd_or(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """As a rule what belongs there."""
    return st.integers(0, 9).flatmap(lambda number: usual if number else values)


said = st.builds(" ".join, st.lists(st.sampled_from(["where", "is", "Rome", *ODD]), min_size=1, max_size=5))
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "robot"])
message = odd_or(st.fixed_dictionaries({"role": odd_or(roles), "content": odd_or(said)}))
turn = odd_or(st.fixed_dictionaries({"from": odd_or(roles), "value": odd_or(said)}))
talk = st.lists(said, min_size=2, max_size=6).map(lambda texts: talks.talk(*texts)["messages"])


marked = st.sampled_from([
    "### Instruction:\n", "### Input:", "\n### Response:\n", "### Human:", "### Assistant:",
    "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n",
    "<|start_header_id|>user<|end_header_id|>",
    "<|start_header_id|>assistant<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]",
    "<<SYS>>", "<</SYS>>", "<|user|>", "<|assistant|>", "Below is an instruction",
])  # fmt: skip


def row_of(*fields: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field: odd_or(said) for field in fields})


SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "prompt/response": row_of("prompt", "response"),
    "question/answer": row_of("Question", "Answer"),
    "alpaca": row_of("instruction", "input", "output"),
    "messages": st.fixed_dictionaries(
        {"messages": odd_or(st.one_of(talk, st.lists(message, max_size=4)))}, optional={"tools": values}
    ),
    "sharegpt": st.fixed_dictionaries({"conversations": odd_or(st.lists(turn, max_size=4))}),
    "plain text": row_of("text"),
    "marked": st.fixed_dictionaries({"text": odd_or(st.lists(marked | said, max_size=6).map("".join))}),
}
any_row = st.dictionaries(names, values, max_size=4)


@dataclass(frozen=True)
class Case:
    """A file, and what it is read with."""

    name: str
    data: bytes
    chosen: columns.Columns | None
    fields: frozenset[str] | None
    style: str


@st.composite
def rows(draw: st.DrawFn) -> list[Any]:
    shape = draw(st.sampled_from([*SHAPES, ""]))
    found = draw(st.lists(SHAPES.get(shape, any_row), max_size=5))
    if draw(st.integers(0, 4)) == 0:
        found.insert(draw(st.integers(0, len(found))), draw(st.one_of(any_row, values)))
    return found * draw(st.sampled_from([1, 1, 1, 30]))


ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")


def written(draw: st.DrawFn, kind: str) -> bytes:
    """Rows as a file of a kind."""
    found = draw(rows())
    if kind == "parquet":
        return as_parquet(found)
    if kind == "txt" and draw(st.booleans()):
        texts = [str(row.get("text", row)) if isinstance(row, dict) else str(row) for row in found]
        text = draw(st.sampled_from(["\n", "\n\n", "\r\n\r\n"])).join(texts)
    elif kind in ("csv", "tsv", "txt"):
        objects = [row for row in found if isinstance(row, dict) and row] or [{"a": 1}]
        head = {name: None for row in objects for name in row}
        cells = [{**head, **row} for row in objects]
        separator = draw(st.sampled_from(",;\t|"))
        first = draw(st.sampled_from(["", "", "", f"sep={separator}\n"]))
        text = first + formats.table(cells, separator, draw(st.sampled_from(["\n", "\r\n", "\r"])))
    elif kind == "json":
        text = json.dumps(found, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    else:
        text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(json.dumps(row) for row in found)
    return text.encode(draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(["replace", "ignore"])))


def as_parquet(found: list[Any]) -> bytes:
    """As the values are, where Arrow has them so, else as texts."""
    import pyarrow as arrow

    objects = [row for row in found if isinstance(row, dict) and row] or [{"prompt": "a"}]
    with contextlib.suppress(arrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return formats.parquet(objects)
    plain = [{clean(name): clean(str(cell)) for name, cell in row.items()} for row in objects]
    return formats.parquet(plain)


def clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file with bytes changed, left out or twice; as a rule as it is."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2, 8]))):
        at = draw(st.integers(0, len(data)))
        to = at + draw(st.sampled_from([0, 1, 50]))
        instead = draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=2), st.just(data[at:to] * 2)))
        data = data[:at] + instead + data[to:]
    return data


@st.composite
def cases(draw: st.DrawFn, kind: str) -> Case:
    data = draw(damaged(written(draw, kind)))
    if draw(st.integers(0, 6)) == 0:
        data = draw(damaged(gzip.compress(data, mtime=0)))
        kind += ".gz"
    return Case(f"case.{kind}", data, draw(choices), draw(fields), draw(st.sampled_from(STYLES)))


choices = st.sampled_from(
    [None, None, None, columns.SAME, columns.Columns(("x", "Question"), ("Answer",), ("system",))]
)
fields = st.sampled_from([None, None, None, frozenset(("x", "text")), frozenset(("prompt", "response"))])


@contextmanager
def watched(case: Case, path: Path) -> Iterator[None]:
    """A case that takes far longer than any may is kept, and named."""

    def hangs(*_: object) -> None:
        kept = Path(tempfile.mkdtemp(prefix="hangs-")) / path.name
        kept.write_bytes(case.data)
        raise AssertionError(f"{kept} takes more than {HANG_SECONDS} seconds of processor time: {case}")

    before = signal.signal(signal.SIGVTALRM, hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
    faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def is_reason(problem: str) -> bool:
    return bool(problem.strip()) and problem.isprintable() and len(problem) < 2000


def made(case: Case, path: Path) -> Path:
    """Recognise and map a file as `make` does it, in this process; the JSON lines that come of it."""
    out = io.BytesIO()
    making = make.Making(out, case.chosen, case.fields)
    assert all(is_reason(step) for step in making.add(path, path.parent))
    found = json.loads(json.dumps(making.found()))
    assert all(number >= 1 and is_reason(problem) for number, problem in found["problems"])
    lines = out.getvalue().split(b"\n")
    objects = [json.loads(line) for line in lines if line]
    assert len(objects) == found["rows"]
    assert len(lines) - 1 <= making.number
    if making.applied:
        assert all(set(row) <= {"prompt", "response", "system"} for row in objects)
    facts = {**found, "path": str(path), "sources": [str(path)]}
    assert facts == json.loads(json.dumps(convert.facts(convert.from_facts(facts))))
    kept = path.with_name("made.jsonl")
    kept.write_bytes(out.getvalue())
    return kept


def looked_at(path: Path, template: str, style: str) -> None:
    """Check, render, look through and show JSON lines as the lab does."""
    chat = talks.chat(style)
    report = datasets.check(path, template, chat)
    begins = f"{path}:"
    for problem in report.problems:
        line, _, reason = problem.removeprefix(begins).partition(": ")
        assert problem.startswith(begins)
        assert line.isdecimal()
        assert is_reason(reason)
    assert report.rows or report.problems
    parsed = templates.parse(template, chat)
    card = making.of(datasets.readable(path), parsed)
    assert json.dumps(card.to_json(), allow_nan=False)
    page = json.loads(json.dumps(card.to_page(), allow_nan=False))
    assert card.rows >= report.rows - len(report.problems) - report.more
    count = path.read_bytes().count(b"\n") + 1
    assert all(1 <= line <= count for finding in page["findings"] for line in finding["first"])
    copy = path.with_name("left_out.jsonl")
    gone = leaving_out.write(path, copy, card.found.lines_with(FINDINGS))
    assert copy.read_bytes().count(b"\n") + 1 == count
    copy.unlink()
    assert gone <= card.rows
    for search in ("", "rome"):
        shown = paging.page(path, paging.Place(), search=search)
        assert json.dumps(shown.rows).isascii()
    for where in one_row.WHERE:
        with contextlib.suppress(InputError):
            line, row = one_row.find(path, parsed, where, 1)
            assert 1 <= line <= count
            assert all(
                isinstance(text, templates.Rendered) or is_reason(text)
                for text in templates.each(parsed, [row])
            )


def read(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / case.name
        path.write_bytes(case.data)
        with watched(case, path):
            kept = made(case, path)
            looked_at(kept, "chat", case.style)
            looked_at(kept, "{prompt} {response}", case.style)
            looked_at(kept, templates.CONTINUED, case.style)
            if isinstance(containers.recognised(path), str) or not case.name.endswith(".gz"):
                looked_at(path, "chat", case.style)  # whatever somebody calls JSON lines


KINDS = ("jsonl", "json", "csv", "tsv", "txt", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_read_or_refused_by_line(kind: str) -> None:
    settings(ENOUGH, max_examples=CASES // len(KINDS) + 1)(given(cases(kind))(read))()


@settings(ENOUGH, max_examples=CASES // 5)
@given(st.one_of(values, texts, st.dictionaries(st.one_of(st.sampled_from(columns.PARTS), names), values)))
@example({"prompt": ["a"], "response": ["a"]})
@example({"prompt": ["a"] * 21, "response": "b"})
def test_hostile_choices_are_refused_by_key(chosen: Any) -> None:
    try:
        found = columns.parse(chosen)
    except InputError as error:
        said = error.problems[0]
        assert said.startswith("columns")
        assert is_reason(said)
    else:
        assert columns.parse(found.to_dict()) == found
