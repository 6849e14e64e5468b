"""Finding runs, telling them apart, and what people write on them."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import InputError, LabError
from pipeline.runs import history
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.store.run import DONE, FAILED, QUEUED, StageRun
from tests.helpers.planted import STAGES, finish_all, plant


def add(store: Store, name: str = "trip", owner: str = "", **changes: Any) -> str:
    """A queued run of a whole recipe."""
    given = recipe.from_dict({"name": name, "data": "/d/travel.jsonl", **changes}).to_dict()
    return plant(store, stages=[stage for stage in STAGES if given[stage] is not None], owner=owner, **given)


class TestSearch:
    @pytest.fixture
    def three(self, store: Store) -> dict[str, str]:
        ids = {
            "alps": add(store, "Alps Tour", owner="zoe", model="org/Phi-small"),
            "sea": add(store, "Seaside", owner="bob", group="sweep-1"),
            "city": plant(store, "city", [], data="/h/b/Towns.jsonl"),
        }
        store.annotate(ids["alps"], notes="Learns MOUNTAINS by heart", tags=["keep", "été"])
        store.annotate(ids["sea"], tags=["keep"])
        return ids

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("", ["city", "sea", "alps"]),
            ("alps", ["alps"]),
            ("phi", ["alps"]),
            ("mountains", ["alps"]),
            ("ÉTÉ", ["alps"]),
            ("zoe", ["alps"]),
            ("towns", ["city"]),
            ("keep seaside", ["sea"]),
            ("keep towns", []),
            ("  ", ["city", "sea", "alps"]),
            ("%", []),
        ],
    )
    def test_every_word_must_stand_somewhere(
        self, store: Store, three: dict[str, str], text: str, found: list[str]
    ) -> None:
        assert [run.id for run in history.search(store.list(), text)] == [three[name] for name in found]

    def test_an_id_or_its_end_is_found(self, store: Store, three: dict[str, str]) -> None:
        assert [run.id for run in history.search(store.list(), three["sea"][-6:])] == [three["sea"]]

    def test_status_tag_owner_and_group_narrow_it(self, store: Store, three: dict[str, str]) -> None:
        store.request_cancel(three["sea"])

        def ask(**wanted: str) -> list[str]:
            return [run.name for run in history.search(store.list(), **wanted)]

        assert ask(status="canceled") == ["Seaside"]
        assert ask(status=QUEUED) == ["city", "Alps Tour"]
        assert ask(tag="keep") == ["Seaside", "Alps Tour"]
        assert ask(tag="kee") == []
        assert ask(owner="zoe") == ["Alps Tour"]
        assert ask(group="sweep-1") == ["Seaside"]
        assert ask(tag="keep", owner="bob", status=QUEUED) == []

    def test_what_there_is_to_ask_for(self, store: Store, three: dict[str, str]) -> None:
        assert history.tags(store.list()) == ["keep", "été"]
        assert history.owners(store.list()) == ["bob", "zoe"]


class TestAnnotate:
    def test_notes_and_tags_are_kept_apart(self, store: Store) -> None:
        run = add(store)
        history.annotate(store, run, notes="as\ntyped ")
        history.annotate(store, run, tags=[" b", "a", "b", ""])
        assert (store.get(run).notes, store.get(run).tags) == ("as\ntyped ", ("b", "a"))
        history.annotate(store, run, notes="", tags=[])
        assert (store.get(run).notes, store.get(run).tags) == ("", ())

    def test_the_limits_are_allowed(self, store: Store) -> None:
        run = add(store)
        tags = [f"{n:040}" for n in range(20)]
        history.annotate(store, run, notes="x" * 10_000, tags=tags)
        assert (len(store.get(run).notes), store.get(run).tags) == (10_000, tuple(tags))

    def test_all_that_is_wrong_is_told_and_nothing_is_kept(self, store: Store) -> None:
        run = add(store)
        tags = ["x" * 41, "two\nlines", "a,b", "\ud800", *map(str, range(16))]
        with pytest.raises(InputError) as caught:
            history.annotate(store, run, notes="x" * 10_000 + "\ud800", tags=tags)
        problems = caught.value.problems
        assert problems[0].startswith("notes: 10,001 characters are too many; allowed: 10,000")
        assert "surrogate" in problems[1]
        assert [p.startswith("tags: '") for p in problems[2:6]] == [True] * 4
        assert len(problems) == 6
        assert (store.get(run).notes, store.get(run).tags) == ("", ())

    def test_too_many_tags_are_not_looked_at(self, store: Store) -> None:
        with pytest.raises(InputError) as caught:
            history.annotate(store, add(store), tags=[chr(0xF0000 + n) for n in range(32_000)])
        assert caught.value.problems == ["tags: 32000 are too many; allowed: 20 on a run"]


class TestDifferences:
    def test_keys_that_differ_with_a_value_for_each_run(self, store: Store) -> None:
        ids = [
            add(store, "one"),
            add(store, "two", finetune={"r": 8}, seed=3),
            add(store, "three", finetune=None, group="sweep-1"),
        ]
        rows = history.differences([store.get(run) for run in ids])
        assert {row.key: row.values for row in rows} == {
            "seed": (0, 3, 0),
            "finetune": ("on", "on", "off"),
            "finetune.r": (16, 8, None),
        }

    def test_options_that_came_later_have_their_defaults(self, store: Store) -> None:
        old = store.get(add(store, "old"))
        del old.recipe["finetune"]["packing"], old.recipe["seed"]
        assert history.differences([old, store.get(add(store, "new"))]) == []

    def test_data_of_one_name_is_told_apart_by_content(self, store: Store) -> None:
        runs = [
            plant(store, stages=[], data="/x", copy=store.home / "datasets" / (c * 64) / "t.jsonl")
            for c in "ab"
        ]
        rows = history.differences([store.get(run) for run in runs])
        assert rows == [history.Row("data", ("t.jsonl (aaaaaaaa)", "t.jsonl (bbbbbbbb)"))]


def test_what_was_measured_stands_in_order_and_only_what_any_run_has(store: Store) -> None:
    results = {
        "quantize": {"metrics": {"olive_seconds": 12.5, "peak_memory_bytes": 5, "layers": 210, "x": "y"}},
        "finetune": {"metrics": {"eval_loss_before": 3.0, "eval_loss_after": 1.5, "tokens_per_second": 9.0}},
        "optimize": {
            "reused": True,
            "metrics": {"exported_perplexity": 9.5, "ok": True},
            "artifacts": [{"name": "m", "kind": "onnx", "path": "/a/m", "bytes": 7}],
        },
    }
    whole = finish_all(store, plant(store), results)
    begun = plant(store)
    store.claim("cpu")
    store.finish(begun, "quantize", FAILED, metrics={"peak_memory_bytes": 9})
    rows = history.metrics([whole, store.get(begun)])
    assert [(row.key, row.values) for row in rows] == [
        ("finetune.eval_loss_before", (3.0, None)),
        ("finetune.eval_loss_after", (1.5, None)),
        ("optimize.exported_perplexity", (9.5, None)),
        ("optimize.size_bytes", (7, None)),
        ("quantize.seconds", (12.5, None)),
        ("finetune.seconds", (1.5, None)),
        ("evaluate.seconds", (1.5, None)),
        ("finetune.tokens_per_second", (9.0, None)),
        ("quantize.peak_memory_bytes", (5, None)),
    ]


class TestDeletion:
    def test_a_deleted_run_is_listed_apart_and_comes_back(self, store: Store) -> None:
        run, other = finish_all(store, plant(store)).id, plant(store)
        store.delete(run)
        assert [r.id for r in store.list()] == [other]
        assert [r.id for r in store.list(deleted=True)] == [run]
        with pytest.raises(InputError, match="no such run"):
            store.get(run[-6:])
        store.restore(run)
        assert [r.id for r in store.list()] == [other, run]
        assert store.get(run).status == DONE

    def test_what_is_to_come_or_runs_is_refused(self, store: Store) -> None:
        run = plant(store)
        for status in ("queued", "running"):
            with pytest.raises(LabError, match=f"is {status}; cancel it before it is deleted"):
                store.delete(run)
            store.claim("cpu")
        done = finish_all(store, plant(store)).id
        store.add_publish(done, {})
        for _ in range(2):
            with pytest.raises(LabError, match="is being published"):
                store.delete(done)
            store.claim_publish()
        assert store.list(deleted=True) == []

    def test_it_is_never_older_than_what_is_recorded(self, store: Store, monkeypatch: Any) -> None:
        run = finish_all(store, plant(store))
        monkeypatch.setattr("pipeline.store.history.time.time", lambda: 1000.0)  # a clock not yet set
        store.delete(run.id)
        deleted = store.get(run.id).deleted
        assert deleted is not None
        assert deleted >= max(run.created, *(stage.finished or 0 for stage in run.stages))

    def test_only_what_was_deleted_before_is_forgotten(self, store: Store) -> None:
        run = finish_all(store, plant(store)).id
        assert not store.forget(run, before=1e12)
        store.delete(run)
        deleted = store.get(run).deleted
        assert deleted is not None
        assert not store.forget(run, before=deleted - 1)
        store.restore(run)
        assert not store.forget(run, before=deleted)
        store.delete(run)
        assert store.forget(run, before=1e12)
        with pytest.raises(InputError, match="no such run"):
            store.get(run)


def test_a_search_has_an_end(store: Store) -> None:
    run = store.get(plant(store, name="trip"))
    assert history.search([run], "trip " * 40 + "elsewhere") == [run]
    assert history.search([run], "trip elsewhere") == []


def test_how_near_answers_are_is_told_for_the_sides_there_are() -> None:
    answers = {
        "token_f1": {"base": 0.25, "adapter": 0.5},
        "exact_match": {"adapter": 1},
        "tokens": {"base": 3.0},
    }
    told = StageRun("evaluate", DONE, metrics={"answers": answers})
    assert history.nearness(told) == "exact match 1.00, token F1 0.25 → 0.50"
    for other in (None, [], {"token_f1": 3}, {"token_f1": {"base": "x"}}):
        assert history.nearness(StageRun("evaluate", DONE, metrics={"answers": other})) == ""


def test_of_many_tags_and_owners_the_usual_ones_are_offered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the history sends them."""
    monkeypatch.setattr(history, "MOST_OFFERED", 2)
    for owner, tags in (("cy", "cz"), ("bo", "bz"), ("cy", "cz"), ("bo", "az"), ("ab", "x")):
        store.annotate(add(store, owner=owner), tags=[*tags])
    assert history.owners(store.list()) == ["bo", "cy"]
    assert history.tags(store.list()) == ["c", "z"]
