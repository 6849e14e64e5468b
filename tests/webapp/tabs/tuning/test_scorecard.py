"""The scorecard's panel: what it starts, what it refuses, what it shows."""

from __future__ import annotations

import gradio as gr
import pytest

from pipeline import settings
from pipeline.runs.comparing import scorecard
from pipeline.stages import recipe
from pipeline.system import hardware
from tests.helpers import planted
from webapp.tabs.tuning import scorecard as panel


def reading(*changes: str):
    """What stands in for the form: the sample recipe with changes."""
    return lambda inputs, values: recipe.load(settings.SAMPLES / "travel.yaml", list(changes))


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr("pipeline.worker.loop.ensure", lambda home: None)
    monkeypatch.setattr(hardware, "gpus", lambda: 0)


def test_it_queues_a_run_for_each_way(store, quiet):
    first, *_, last = panel.measure(None, reading(), ["rtn", "awq"], "ann")
    assert first[0]["text"].startswith("Checking")
    notice, problems, picked, drawing = last
    assert (notice, problems) == (None, None)
    assert drawing == {"group": picked["value"]}
    assert [row.algorithm for row in scorecard.rows(store, picked["value"])] == ["rtn", "awq"]
    assert picked["choices"][0][0].endswith("starter · RTN, AWQ with GPTQ")


def test_what_is_refused_is_said(store, quiet):
    *_, last = panel.measure(None, reading(), ["rtn", "autoawq"], "ann")
    assert last[1]["title"] == "Some are left out"
    assert "AWQ by AutoAWQ: quantize.engine: 'autoawq' needs an NVIDIA GPU" in last[1]["items"][0]
    *_, last = panel.measure(None, reading("quantize.group_size=128"), ["rtn"], "ann")
    assert last[1]["title"] == "Nothing was started"
    assert "128 does not divide" in last[1]["items"][0]
    *_, last = panel.measure(None, reading(), [], "ann")
    assert "algorithms: none is given" in last[1]["items"][0]
    assert [run.owner for run in store.list()] == ["ann"]


def test_the_newest_is_shown_first_and_a_choice_stays(store, quiet):
    assert panel.arrive(None) == (gr.update(choices=[], value=None), None)
    older = planted.scorecard(store)
    *_, last = panel.measure(None, reading(), ["awq"], "ann")
    newer = last[2]["value"]
    assert panel.arrive(None)[1] == {"group": newer}
    assert panel.arrive(older)[1] == {"group": older}
    assert panel.show(older) == {"group": older}
    assert panel.show(None) is None


def test_all_scorecards_take_one_look_at_the_runs(store, monkeypatch):
    for group in ("scorecard-1", "scorecard-2", "scorecard-3"):
        planted.plant(store, group=group)
    looks = []
    listed = type(store).list
    monkeypatch.setattr(
        type(store), "list", lambda *given, **which: looks.append(1) or listed(*given, **which)
    )
    assert len(panel.listed()) == 3
    assert looks == [1]
