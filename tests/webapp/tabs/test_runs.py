"""What the Runs tab's handlers answer, called as Gradio calls them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import gradio as gr
import pytest
import yaml

from pipeline.runs import disk
from pipeline.store.run import CANCELED
from tests.helpers import examples, planted
from webapp import app
from webapp.tabs import runs
from webapp.tabs.comparing import comparison
from webapp.ui import views

NOTHING = ("", "", None, None, "")


def event(**told):
    """The part of an event that the drawing sends."""
    return SimpleNamespace(_data=told)


def names(*asked):
    table, *_ = runs.listed(*asked)
    return [row[1] for row in table["rows"]]


def test_details_of_a_run_and_what_can_be_done(store):
    run = planted.running(store)
    panel, title, stages, recipe, stop, again, take, remove, back = runs.details(run)
    assert (panel["visible"], stop["interactive"], again["interactive"]) == (True, True, False)
    assert (take["interactive"], remove["interactive"], back["visible"]) == (False, False, False)
    done = runs.details(planted.finished(store))
    assert [update["interactive"] for update in (done[6], done[7])] == [True, True]
    assert run in title["text"]
    assert len(stages["rows"]) == 4
    assert yaml.safe_load(recipe)["name"] == "travel"


def test_cancel_and_retry_from_the_history(store):
    run = planted.queued(store)
    store.request_cancel(run)
    assert runs.listed(*NOTHING)[0]["rows"][0][0]["status"] == CANCELED
    assert [len(shown) for shown in runs.retry(run)] == [9]
    assert runs.listed(*NOTHING)[0]["rows"][0][0]["status"] == "queued"


def test_the_table_is_searched_and_says_why_it_is_empty(store):
    assert "No runs yet" in runs.listed(*NOTHING)[0]["empty"]
    one = planted.finished(store, "alps")
    planted.queued(store, "sea")
    store.annotate(one, notes="mountains", tags=["keep"])
    assert names(*NOTHING) == ["sea", "alps"]
    assert names("MOUNT", "", "", "", "") == names("", "done", "", "", "") == ["alps"]
    assert names("", "", "keep", "", "") == ["alps"]
    table, tags, owner = runs.listed("nothing", "", "", "", "")
    assert table["empty"] == runs.EMPTY
    assert tags["choices"] == [("All", ""), ("keep", "keep")]
    assert owner["visible"] is False
    assert runs.listed("", runs.DELETED, "", "", "")[0]["empty"] == runs.NONE_DELETED


def test_columns_for_owners_and_tags_are_there_where_they_say_something(store):
    recipe = store.get(planted.queued(store)).recipe
    assert not {"Owner", "Tags"} & set(views.history(store.list())["columns"])
    for owner in ("ada", "bob"):
        planted.plant(store, stages=[], owner=owner, **recipe)
    store.annotate(store.list()[0].id, tags=["b", "a"])
    table, _, owners = runs.listed("", "", "", "ada", "")
    assert owners["visible"] is True
    assert owners["choices"] == [("All", ""), ("ada", "ada"), ("bob", "bob")]
    assert len(table["rows"]) == 1
    whole = views.history(store.list())
    row = dict(zip(whole["columns"], whole["rows"][0], strict=True))
    assert (row["Owner"], row["Tags"]) == ("bob", "b, a")


def test_checks_stay_with_the_table_and_two_can_be_compared(store):
    assert runs.check(event(ids=["a"], ticks=1))[1]["interactive"] is False
    checked, button, ticks = runs.check(event(ids=["a", "b"], ticks=2))
    assert (checked, button["interactive"], button["value"]) == ("a,b", True, "Compare 2 runs")
    planted.queued(store)
    drawn, *_ = runs.listed("", "", "", "", checked, ticks)
    assert (drawn["checked"], drawn["ticks"]) == (["a", "b"], 2)


def test_the_verdict_stands_below_the_title(store):
    run = planted.finished(store, verdict={"outcome": "worse", "text": "Worse on all rows."})
    assert runs.details(run)[1]["note"] == "Worse on all rows."
    assert runs.details(planted.finished(store))[1]["note"] == ""


def test_a_verdict_leads_to_the_rows_that_are_worse(store):
    run = examples.measured(store, examples.rows(7))
    assert runs.details(run)[1]["action"] == "See the 2 rows it is worse on"
    assert runs.shown(run)[0] == run
    store.delete(run)
    assert "action" not in runs.details(run)[1], "the note says that it is deleted"
    one = examples.measured(store, examples.rows(3))
    assert runs.details(one)[1]["action"] == "See the row it is worse on"
    none = examples.measured(store, examples.rows(2))
    assert "action" not in runs.details(none)[1]


def test_a_run_with_an_evaluation_has_examples_and_every_run_a_report(store):
    run = examples.measured(store, examples.rows(2), [])
    assert runs.told(run) == ({"run": run, "exported": True}, {"run": run})
    first, second = runs.worse(run)[1], runs.worse(run)[1]
    assert {**first, "at": None} == {"run": run, "worse": True, "at": None}
    assert first != second, "Gradio draws only what has changed"
    other = planted.running(store)
    assert runs.worse(other) == runs.told(other)
    assert runs.told(other) == ({"run": other, "exported": False}, None)


def test_notes_and_tags_are_saved_or_refused_with_a_sentence(store):
    run = planted.queued(store)
    saved, problems = runs.save(run, "good", " keep,phi, ,")
    assert (saved["text"], problems) == ("Saved.", None)
    assert (store.get(run).notes, store.get(run).tags) == ("good", ("keep", "phi"))
    assert runs.save(run, "good", "keep, phi") == (gr.skip(), None)
    saved, problems = runs.save(run, "x" * 10_001, "keep")
    assert saved is None
    assert "allowed: 10,000" in problems["items"][0]
    assert store.get(run).notes == "good"
    *_, notes, tags, _, _ = runs.select(event(id=run))
    assert (notes, tags) == ("good", "keep, phi")


def test_a_run_is_deleted_after_a_question_and_taken_back(store):
    run = planted.finished(store)
    question = runs.ask_delete(run)
    assert question["id"] == run
    assert "will be freed a day from now" in question["notes"][0]
    notice, panel, checked, button = runs.delete(event(id=run), f"{run},other,third")
    assert (notice["action"], notice["id"], panel["visible"]) == ("Undo", run, False)
    assert (checked, button["value"]) == ("other,third", "Compare 2 runs")
    assert names(*NOTHING) == []
    assert names("", runs.DELETED, "", "", "") == ["travel"]
    shown = runs.details(run)
    assert "can be restored" in shown[1]["note"]
    assert (shown[7]["visible"], shown[8]["visible"]) == (False, True)
    assert runs.undo(event(id=run))[0]["text"] == "travel is back."
    assert names(*NOTHING) == ["travel"]


def test_a_run_that_goes_on_is_not_deleted(store):
    run = planted.running(store)
    notice, *_ = runs.delete(event(id=run), "")
    assert notice["kind"] == "bad"
    assert "cancel it before it is deleted" in notice["text"]
    assert store.get(run).deleted is None


def test_what_was_purged_cannot_be_restored(store):
    run = planted.finished(store)
    store.delete(run)
    assert disk.purge(store, older_than=0) == [run]
    assert "a day has passed" in runs.undo(event(id=run))[0]["text"]


def test_the_app_purges_once_an_hour_and_goes_on_if_it_cannot(store, home, monkeypatch):
    run = planted.finished(store)
    store.delete(run)
    day_later, purged, looks = time.time() + disk.DAY + 60, [], []

    async def release_idle():
        looks.append(0)
        if len(looks) > 9:
            raise asyncio.CancelledError

    def purge(of, real=disk.purge):
        purged.append(real(of))
        raise OSError("for once")

    monkeypatch.setattr(app, "TEND_SECONDS", 0)
    monkeypatch.setattr(app.chat_processes, "release_idle", release_idle)
    monkeypatch.setattr(disk, "purge", purge)
    monkeypatch.setattr(disk.time, "time", lambda: day_later)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(asyncio.wait_for(app._tend(home), 20))
    assert purged == [[run]]
    assert store.list(deleted=True) == []


def test_free_space_says_first_what_it_would_take(store, home, monkeypatch):
    monkeypatch.setattr(disk, "YOUNG", 0.0)
    planted.finished(store)
    question = runs.ask_free()
    assert (question["text"], question["yes"]) == ("There is nothing to free.", "")
    folder = home / "artifacts" / "quantize-0123456789abcdef"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 5000)
    data = home / "datasets" / ("a" * 64) / "towns.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    question = runs.ask_free()
    assert question["yes"] == "Free 5.0 kB"
    assert "towns.jsonl" in " ".join(question["notes"])
    assert folder.is_dir()
    assert runs.free()["text"] == "5.0 kB were freed: 2 folders that no run used."
    assert not folder.exists()


def test_a_full_disk_while_space_is_freed_is_a_sentence(store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "collect", full)
    assert runs.free() == {
        "text": "The disk is full; free some space in the home folder and retry.", "kind": "bad",
    }  # fmt: skip


class TestComparison:
    def test_runs_side_by_side(self, store):
        one, two = planted.finished(store, "one"), planted.running(store, "two", steps=10)
        *_, (drawn, problems) = comparison.compare(f"{one},{two}")
        assert (problems, drawn["runs"], drawn["asked"]) == (None, [one, two], True)
        assert drawn["differences"]["rows"] == []
        assert drawn["metrics"]["columns"] == ["Measured", f"one\n{one}", f"two\n{two}"]
        measured = {row[0]: row[1:] for row in drawn["metrics"]["rows"]}
        assert measured["finetune: eval loss after"] == ["1.42", ""]
        assert measured["quantize: size"] == ["123.5 MB", "123.5 MB"]
        assert [len(curve["training"][0]) for curve in drawn["curves"]] == [30, 10]
        assert [curve["held"][1] for curve in drawn["curves"]] == [[3.1], [3.1]]
        assert drawn["curves"][1]["name"] == f"two · {two[-6:]}"

    @pytest.mark.parametrize("checked", ["", "a", "a,a", ",".join("abcdefghi")])
    def test_two_to_eight_are_compared(self, store, checked):
        *_, (drawn, problems) = comparison.compare(checked)
        assert drawn is None
        assert "check 2 to 8" in problems["items"][0]

    def test_an_address_may_name_them(self, store):
        ids = [planted.queued(store), planted.queued(store)]

        def arrive(**query):
            return list(comparison.arrived(comparison.arrive(SimpleNamespace(query_params=query))))

        assert arrive() == [(gr.skip(), gr.skip())]
        assert arrive(compare=",".join(ids))[-1][0]["runs"] == ids
        assert "no such run" in arrive(compare=f"{ids[0]},<b>")[-1][1]["items"][0]
