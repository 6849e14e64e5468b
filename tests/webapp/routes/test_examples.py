"""Routes of a run's examples: for runs of this home, and for what they have."""

from __future__ import annotations

import pytest

from pipeline.store import Store
from tests.helpers import examples, planted


@pytest.fixture
def run(home):
    answers = [examples.answer("=2?", "It is 2.", "No.", "It is 2.")]
    return examples.measured(Store(home), [("=2?", "It is 2.", 3.0, 3.5), *examples.rows(3)], answers)


def test_a_page_and_one_example(client, run):
    found = client.get(f"/runs/{run}/examples.json").json()
    assert [row["line"] for row in found["rows"]] == [1, 4, 2, 3]
    found = client.get(f"/runs/{run}/examples.json", params={"worse": "true", "search": "IT IS 2"}).json()
    assert [row["adapter"]["text"] for row in found["rows"]] == ["It is 2."]
    assert client.get(f"/runs/{run}/examples/4.json").json()["prompt"] == "What is 3?"


def test_both_downloads(client, run):
    found = client.get(f"/runs/{run}/examples.csv")
    assert f'filename="{run}-examples.csv"' in found.headers["content-disposition"]
    assert "1,'=2?,,It is 2.,No.,It is 2.,,2,3.0,3.5,,0.5,,," in found.text.splitlines()
    assert len(client.get(f"/runs/{run}/examples.jsonl").text.splitlines()) == 4


@pytest.mark.parametrize(
    ("path", "code"),
    [("nope/examples.json", 404), ("RUN/examples.exe", 422), ("RUN/examples/99.json", 404),
     ("RUN/examples.json?sort=size", 422), ("RUN/examples.json?start=-1", 422), ("../examples.csv", 404),
     ("nope/examples.csv", 404), (f"RUN/examples/{'9' * 400}.json", 404)],
)  # fmt: skip
def test_nothing_else_is_served(client, run, path, code):
    assert client.get(f"/runs/{path.replace('RUN', run)}").status_code == code


def test_a_run_without_an_evaluation_has_none(client, home):
    found = client.get(f"/runs/{planted.running(Store(home))}/examples.json")
    assert (found.status_code, "no examples" in found.text) == (404, True)
