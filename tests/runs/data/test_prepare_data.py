"""prepare_data: the app's processes find the same as this one, for every kind of answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.models import base_models
from pipeline.runs import check_pool
from pipeline.runs.data import prepare_data

GOOD = '{"prompt": "a", "response": "b", "x": 1e999}\n{"prompt": "c", "response": "d"}\n'
LONG_ROW = json.dumps({"prompt": "a" * 3000, "response": "b"}) + "\n"


@pytest.fixture
def closed() -> Iterator[None]:
    yield
    check_pool.close()


def found(path: Path, home: Path, template: str, model: base_models.Model | None = None) -> datasets.Report:
    with prepare_data.work_folder(home) as work:
        return telling.ended(prepare_data.checking([path], work, template, model, 0.1, 0, 32)).report


@pytest.mark.parametrize(
    ("content", "template"),
    [
        (GOOD, "{prompt} {response}"),
        ('{"a": 1}\n' * 30 + GOOD, "{prompt} {response}"),
        (GOOD + "{\nnull\n" + GOOD, "chat"),
        (GOOD + LONG_ROW * 2, "chat"),
    ],
    ids=["good", "misfits", "broken", "long"],
)
def test_a_process_finds_the_same(
    home: Path, tmp_path: Path, model_folder: Path, bytes_as_tokens: Path, closed: None, content: str,
    template: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    model = base_models.resolve(str(model_folder)) if LONG_ROW in content else None
    here = found(path, home, template, model)
    check_pool.open_up()
    monkeypatch.setattr(prepare_data, "answer", None)  # it would be used here
    assert found(path, home, template, model) == here
    assert len(here.notes) == 3 * (LONG_ROW in content)


@pytest.mark.parametrize(
    ("path", "template"),
    [("/none.jsonl", "chat"), ("/proc/self/mem", "chat"), (__file__, "{"), ("/a\udcff", "chat")],
)
def test_what_is_wrong_comes_through(home: Path, closed: None, path: str, template: str) -> None:
    raised = []
    for prepare in (lambda: None, check_pool.open_up):
        prepare()
        with pytest.raises((InputError, OSError)) as caught:
            found(Path(path), home, template)
        raised.append((type(caught.value), caught.value.args, getattr(caught.value, "problems", None)))
    assert raised[0] == raised[1]
