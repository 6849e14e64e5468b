"""Datasets from the hub by its real client, on a hub of our own, into a run, a check and the Data tab.

What the real hub must show is a list in docs/how-to/own-data.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import Busy, InputError, LabError
from pipeline.inputs.data import telling
from pipeline.inputs.data.hub import dataset_id, fetching_rows, places
from pipeline.inputs.data.hub.fetching_rows import Fetched
from pipeline.inputs.models import hub_download
from pipeline.runs import disk, submit
from pipeline.stages import recipe
from pipeline.store import Store
from pipeline.system import own_process
from tests.helpers import fake_hub
from tests.helpers.fake_hub import FakeHub, Fault
from tests.helpers.formats import lines, parquet, table
from tests.helpers.lab import cli

ROWS = [{"question": f"Where is town {n}?", "answer": f"In valley {n}."} for n in range(20)]
TOWNS = "datasets/org/towns"


@pytest.fixture
def commit(hub: FakeHub) -> str:
    """The commit of `org/towns`: Parquet for training, CSV for tests, and what is never fetched."""
    large = parquet(ROWS)
    digest = hashlib.sha256(large).hexdigest()
    (hub.folder / digest).write_bytes(large)
    files: fake_hub.Tree = {
        "README.md": b"rows",
        "towns.py": b"import os",
        "rows.pkl": b"\x80\x02",
        "data/train-0.parquet": fake_hub.Large(digest, len(large)),
        "data/test.csv": table(ROWS[:3]).encode(),
    }
    return hub.put(TOWNS, files, private=False)


def fetched(text: str, home: Path) -> tuple[Fetched, list[str]]:
    said: list[str] = []
    return telling.ended(fetching_rows.fetching(text, home), said.append), said


def refused(text: str, home: Path) -> str:
    with pytest.raises(LabError) as caught:
        fetched(text, home)
    return str(caught.value)


def test_what_only_this_machine_may_read_is_not_fetched_for_the_page(hub: FakeHub, home: Path) -> None:
    from webapp import local_models
    from webapp.tabs import data

    hub.put("datasets/org/secret", {"train.csv": table(ROWS).encode()})
    use = data.found(None, "hub:org/secret", "chat", "starter")[-1]
    assert not use["interactive"]
    assert not list((home / "hub").glob("*/*"))
    local_models.offer([], hub_login=True)
    try:
        assert data.found(None, "hub:org/secret", "chat", "starter")[-1]["interactive"]
    finally:
        local_models.offer([])
    assert fetched("hub:org/secret", home)[0].files, "the command line has the login"


def test_two_ids_have_two_folders(
    hub: FakeHub, commit: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a digest would be found twice in seconds; and the record says whose the folder is."""
    found, _ = fetched("hub:org/towns", home)
    assert len(found.files[0].parent.name.rpartition("-")[2]) == 64
    monkeypatch.setattr(fetching_rows, "_folder", lambda pinned, home: found.files[0].parent)
    assert fetching_rows._here(found.id, home) is not None
    assert fetching_rows._here(dataset_id.parse(f"hub:org/other@{commit}"), home) is None


def test_rows_arrive_with_progress_and_nothing_else_and_stay(hub: FakeHub, commit: str, home: Path) -> None:
    found, said = fetched("hub:org/towns", home)
    assert str(found.id) == f"hub:org/towns@{commit}"
    assert [path.name for path in found.files] == ["towns-train-0.parquet"]
    assert found.files[0].read_bytes() == parquet(ROWS)
    assert said[0] == "Asking the hub for hub:org/towns…"
    assert any(step.startswith("Downloading towns-train-0.parquet: 100% of ") for step in said)
    assert hub.count(r"GET .*(README|\.py|\.pkl|test)") == 0
    before = len(hub.asked)
    hub.put(TOWNS, {"data/train-0.parquet": b"other"})
    assert fetched(str(found.id), home)[0] == found
    assert len(hub.asked) == before  # of a commit that is here nobody is asked


def test_text_files_arrive_and_are_read_by_their_paragraphs(hub: FakeHub, home: Path) -> None:
    from webapp.tabs import data

    story = b"".join(b"In valley %d lies a town. It is town %d.\n\n" % (n, n) for n in range(5))
    hub.put("datasets/org/story", {"story.txt": story, "LICENSE.txt": b"Do as you like."}, private=False)
    (file,) = fetched("hub:org/story", home)[0].files
    assert (file.name, file.read_bytes()) == ("story-story.txt", story)
    assert data.found(None, "hub:org/story", "chat", "")[0]["text"].startswith("story-story.txt: 5 rows")


def test_an_interrupted_file_resumes_where_it_was(hub: FakeHub, commit: str, home: Path) -> None:
    whole = parquet(ROWS)
    hub.faults.append(Fault("(GET|HEAD) .*/resolve/", 500))
    assert "cannot be fetched: the hub is busy or in trouble (500)" in refused("hub:org/towns", home)
    (part,) = (home / "hub").glob("*/.towns-train-0.parquet.arriving")
    part.write_bytes(whole[:700])  # as a process that was killed leaves it
    hub.faults.clear()
    assert fetched("hub:org/towns", home)[0].files[0].read_bytes() == whole
    assert hub.sent == len(whole) - 700


@pytest.mark.parametrize(
    ("text", "faults", "reason"),
    [
        ("hub:org/none", [], "it is not on the hub any more, or your login may not read it"),
        ("hub:org/towns@v9", [], "hub:org/towns@v9 is not there: the dataset has no such revision."),
        (
            "hub:org/towns",
            [Fault("GET .*/resolve/|HEAD .*/resolve/", 403, headers={"X-Error-Code": "GatedRepo"})],
            "accept its license at https://huggingface.co/datasets/org/towns first; then run `hf auth login`",
        ),
        ("hub:org/towns,split=dev", [], "has no split dev; there are test, train."),
    ],
)
def test_what_cannot_be_fetched_says_why_in_a_sentence(
    hub: FakeHub, commit: str, home: Path, text: str, faults: list[Fault], reason: str
) -> None:
    hub.faults += faults
    said = refused(text, home)
    assert reason in said
    assert hub.url not in said
    assert list((home / "hub").glob("*/towns*")) == []


def test_a_file_that_comes_shorter_than_named_is_a_sentence_without_an_address(
    hub: FakeHub, commit: str, home: Path
) -> None:
    """The client raises a plain OSError with the storage's address, which may be a signed one."""
    whole = next(path for path in hub.folder.iterdir() if path.is_file())
    whole.write_bytes(whole.read_bytes()[:-5])
    said = refused("hub:org/towns", home)
    assert said == (
        "hub:org/towns cannot be fetched: the connection to the hub was lost (OSError);"
        f" {hub_download.AGAIN}."
    )


@pytest.mark.parametrize("card", [["x"], "text", 7])
def test_a_card_that_is_no_mapping_says_nothing(hub: FakeHub, commit: str, home: Path, card: Any) -> None:
    hub.repos[TOWNS].card = card
    assert fetched("hub:org/towns", home)[0].id.revision == commit


def test_what_nobody_foresaw_is_a_sentence_and_its_traceback_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*given: object) -> str:
        raise KeyError("of ours")

    monkeypatch.setattr(fetching_rows, "fetch", fails)
    monkeypatch.setattr(own_process, "end_with_input", lambda: None)
    for name in ("keep_private", "quiet_this_process"):
        monkeypatch.setattr(settings, name, lambda: None)
    assert fetching_rows._main("hub:org/towns", str(home)) == 1
    said = json.loads(capsys.readouterr().out)["refused"]
    assert said.endswith("The details are in errors.log of the home folder.")
    assert "of ours" in (home / "errors.log").read_text()


def test_only_so_many_are_fetched_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "AT_ONCE", 1)
    monkeypatch.setattr(places, "WAIT_SECONDS", -1.0)
    first = fetching_rows.fetching("hub:org/towns", home)
    next(first)
    with pytest.raises(Busy, match="Other datasets are being fetched just now"):
        next(fetching_rows.fetching("hub:org/towns", home))
    first.close()
    assert next(fetching_rows.fetching("hub:org/towns", home)).startswith("Asking the hub")


def test_the_oldest_makes_room_for_who_waits(
    hub: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else as many as there are places, on a hub that says nothing, close all of it to everybody."""
    hub.faults += [Fault("GET", -1)]
    monkeypatch.setattr(places, "AT_ONCE", 2)
    monkeypatch.setattr(places, "WAIT_SECONDS", 600.0)
    monkeypatch.setattr(places, "FRESH_SECONDS", 600.0)
    monkeypatch.setattr(places, "OLD_SECONDS", 600.0)
    first, second, third = (fetching_rows.fetching(f"hub:org/{name}", home) for name in "abc")
    for steps in (first, second):
        assert next(steps).startswith("Asking the hub")
    os.utime(home / "hub" / ".0.lock", (1, 1))
    assert next(third) == places.WAITS
    assert next(first).startswith("Asking the hub"), "it is not old"
    monkeypatch.setattr(places, "OLD_SECONDS", 0.0)
    assert next(second).startswith("Asking the hub"), "nobody waits for it"
    with pytest.raises(Busy, match="Others wait to fetch datasets, so this one makes room"):
        next(first)
    assert next(third) == "Asking the hub for hub:org/c…"
    monkeypatch.setattr(places, "FRESH_SECONDS", -1.0)
    assert next(third).startswith("Asking the hub"), "who waited has gone"
    for steps in (second, third):
        steps.close()


def test_who_cannot_start_a_process_leaves_the_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "AT_ONCE", 1)
    monkeypatch.setattr(places, "WAIT_SECONDS", -1.0)

    def full(*given: object) -> None:
        raise BlockingIOError

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(own_process, "start_group", full)
        with pytest.raises(BlockingIOError):
            next(fetching_rows.fetching("hub:org/towns", home))
    assert next(fetching_rows.fetching("hub:org/towns", home)).startswith("Asking the hub")


def test_offline_and_too_large_are_sentences(
    hub: FakeHub, commit: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLIVE_LAB_MAX_UPLOAD_MB", "0.0001")
    assert "of rows; allowed: 104 B, as for uploads (OLIVE_LAB_MAX_UPLOAD_MB)" in refused(
        "hub:org/towns", home
    )
    assert hub.sent == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set, so the hub is not asked" in refused("hub:org/towns", home)


def test_a_recipe_is_pinned_and_its_run_has_a_copy_with_the_original(
    hub: FakeHub, commit: str, store: Store, recipe_file: Path, no_worker: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = recipe_file.read_text().replace("data: travel.jsonl", "data: hub:org/towns")
    recipe_file.write_text(text)
    code, out, err = cli(capsys, "submit", recipe_file, "--set", "quantize=null")
    assert code == 0, err
    assert "Downloading towns-train-0.parquet: 100% of " in err
    found = store.get(out.strip())
    assert found.recipe["data"] == f"hub:org/towns@{commit}"
    kept = Path(found.data)
    assert json.loads(kept.read_text().splitlines()[0])["prompt"] == ROWS[0]["question"]
    assert (kept.parent / "original" / "towns-train-0.parquet").is_file()
    again = store.get(submit.submit(store, submit.again(found)))
    assert (again.data, again.recipe["data"]) == (found.data, found.recipe["data"])
    assert recipe.from_dict(found.recipe).data == f"hub:org/towns@{commit}"
    assert "fetched datasets" in disk.total(store.home)


def test_check_takes_an_id(
    hub: FakeHub, commit: str, home: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("check", "hub:org/towns,split=test", "--model", model_folder, "--json")
    code, out, _ = cli(capsys, *given)
    card = json.loads(out)
    assert (code, card["container"], card["rows"]) == (0, "csv", 3)
    assert cli(capsys, "check", "hub:towns")[2].startswith("data: 'hub:towns' is no dataset of the hub")


def test_a_faulty_id_is_refused_with_the_recipe(recipe_file: Path) -> None:
    with pytest.raises(InputError, match="data: 'hub:towns' is no dataset of the hub"):
        recipe.load(recipe_file, ["data=hub:towns"])


def test_the_data_tab_takes_one_and_runs_of_it_name_the_commit(
    hub: FakeHub, commit: str, store: Store, recipe_file: Path, no_worker: list[Path]
) -> None:
    from webapp.tabs import data

    hub.put(TOWNS, {"data/extra.jsonl": lines([{"eins": "a b", "zwei": "c d", "drei": "e"}] * 3)})
    *shown, _, choice, use = data.found(None, f"hub:org/towns@{commit}", "chat", "starter")
    assert f"From hub:org/towns@{commit}" in shown[0]["note"]
    assert use["interactive"]
    kept = choice["value"]
    assert Path(kept).name == "towns-train-0.jsonl"
    run = store.get(submit.submit(store, recipe.load(recipe_file, ["quantize=null", f"data={kept}"])))
    assert run.recipe["data"] == f"hub:org/towns@{commit}"
    same = store.home / "same.jsonl"
    same.write_bytes(Path(kept).read_bytes())
    own = store.get(submit.submit(store, recipe.load(recipe_file, ["quantize=null", f"data={same}"])))
    assert own.recipe["data"] == str(same), "whoever has the same rows has them from elsewhere"
    *shown, _, choice, use = data.found(None, "hub:org/towns,file=data/extra.jsonl", "chat", "starter")
    assert not use["interactive"]
    assert choice["value"].startswith("hub:org/towns@")  # still chosen, for columns to be chosen
    lists = ["eins"], ["zwei"], []
    *shown, _, choice, use = data.found(None, choice["value"], "chat", "starter", *lists)
    assert Path(choice["value"]).name == "towns-extra.jsonl"
