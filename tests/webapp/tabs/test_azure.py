"""The Azure part of the Publish tab. A real process asks; there is no Azure CLI to reach it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from pipeline.errors import InputError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_workspace import Place
from pipeline.runs import pulls
from tests.helpers import planted
from tests.helpers.lab import until
from webapp import uploads
from webapp.tabs import azure, publish
from webapp.tabs import versions as models
from webapp.ui import choices, form, version_tables

TRAVEL = Place("cli", "11111111-2222-3333-4444-555555555555", "travel-group", "travel-ws")
PLACE = {name: getattr(TRAVEL, name) for name in azure.WHERE}
NO_CLI = "The Azure CLI is not installed here; install it and run `az login`"
ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture
def inputs():
    with gr.Blocks():
        return azure.build().inputs


@pytest.fixture
def no_cli(home, monkeypatch):
    """No `az` on the path, whatever this machine has."""
    folder = home / "empty"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))


def values(inputs: form.Form, **changes):
    """The form's values, as the page would send them."""
    pairs = zip(inputs.keys, inputs.inputs, strict=True)
    return [changes.get(name, component.value) for (_, name), component in pairs]


def picked(chosen, **more):
    return SimpleNamespace(_data={"id": chosen, **more})


def kept(home, *versions):
    """Versions of a workspace, as the page keeps them after it has asked."""
    rows = [version_tables._of_azure(TRAVEL, version) for version in versions]
    version_tables.keep(home, TRAVEL, rows)
    return [row["id"] for row in rows]


def version(number: str, *, tags=None, properties=None):
    return {
        "name": "trips", "version": number, "description": "", "tags": tags or {}, "created_by": None,
        "properties": properties or {}, "created": "2026-11-22T10:00:00+00:00", "path": "azureml://there",
        "portal": TRAVEL.page("trips", number) + "&tid=t",
    }  # fmt: skip


def test_who_am_i_without_the_azure_cli_is_a_sentence(home, no_cli, inputs):
    asking, *_, (notice, facts) = azure.whoami(inputs, *values(inputs, **PLACE))
    assert asking == (azure.ASKING, None)
    assert notice["text"].startswith(NO_CLI)
    assert (notice["kind"], facts) == ("bad", None)
    assert not (home / azure_workspace.FILE).exists()


def test_workspaces_and_models_say_the_same(home, no_cli, inputs):
    *_, (notice, seen) = azure.find("cli")
    assert notice["text"].startswith(NO_CLI)
    assert seen["visible"] is False
    *_, (notice, *rest) = models.refresh(inputs, "azureml", *values(inputs, **PLACE))
    assert notice["text"].startswith(NO_CLI)
    assert rest == [gr.skip()] * 3


def test_a_dry_run_shows_findings_files_and_the_command_without_a_login(store, no_cli, inputs):
    run = planted.finished(store)
    first, *_, last = azure.check(inputs, run, *values(inputs, **PLACE, name="trips", tags="team=a b"))
    assert first[:2] == (None, azure.ASKING)
    problems, summary, findings, files, command = last
    assert (problems, summary["kind"]) == (None, "bad")
    assert files["rows"][0] == ["model.onnx", "2.0 kB"]
    assert command["value"].startswith("az ml model create --name trips --type custom_model --path /")
    assert "--workspace-name travel-ws" in command["value"]
    assert command["value"].endswith("--tags 'team=a b'")
    said = {row[1]: (row[0]["word"], row[2]) for row in findings["rows"]}
    assert said["Name"][0] == "Good"
    assert said["Version"] == ("Skipped", "is asked once what stands above is good")
    assert "Blocked" in {word for word, _ in said.values()}
    assert len(store.get(run).stages) == 4


def test_everything_that_is_missing_is_named_and_nothing_is_queued(store, inputs):
    run = planted.finished(store)
    *_, (problems, *_rest) = azure.check(inputs, run, *values(inputs, name="trips"))
    assert [text.partition(":")[0] for text in problems["items"]] == list(azure.WHERE)
    problems, *_, stage = azure.publish(inputs, run, *values(inputs, name="trips"))
    assert (len(problems["items"]), stage) == (3, None)
    problems, *_ = azure.publish(inputs, None, *values(inputs, **PLACE, name="trips"))
    assert problems["items"] == ["run: choose a finished run"]
    assert len(store.get(run).stages) == 4


def test_publishing_queues_a_stage_with_the_login_that_was_chosen(store, inputs):
    run = planted.finished(store)
    *_, command, stage = azure.publish(inputs, run, *values(inputs, **PLACE, name="trips", login="identity"))
    assert "az ml model create" in command["value"]
    assert (stage["run"], stage["stage"], stage["again"]) == (run, "publish", azure.AGAIN)
    queued = store.get(run).stage("publish")
    assert (queued.status, queued.options["to"], queued.options["login"]) == ("queued", "azureml", "identity")


def test_a_config_json_fills_in_the_workspace_and_no_copy_is_kept(home, uploaded):
    good = {
        "subscription_id": TRAVEL.subscription,
        "resource_group": TRAVEL.resource_group,
        "workspace_name": TRAVEL.workspace,
    }
    path = uploaded(json.dumps(good).encode(), "config.json")
    notice, *three = azure.take_config(path)
    assert (notice["text"], three) == ("Workspace travel-ws, as the file says.", list(good.values()))
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


@pytest.mark.parametrize("content", [b"{}", b"no", b"[1]"])
def test_a_file_that_is_no_config_json_is_refused_without_its_path(home, uploaded, content):
    path = uploaded(content, "config.json")
    notice, *three = azure.take_config(path)
    assert notice["text"].startswith("This file is n")
    assert (str(home) in notice["text"], three) == (False, [gr.skip()] * 3)
    assert list((home / ".gradio-uploads" / uploads.COPIES).iterdir()) == []


def test_what_is_remembered_is_filled_in_but_never_over_what_is_typed(home):
    azure_workspace.remember(home, TRAVEL)
    assert azure.arrive("identity", "", "", "") == ["cli", *PLACE.values()]
    assert azure.arrive("identity", "", "mine", "") == [gr.skip()] * 4


def test_a_workspace_that_was_found_is_filled_in():
    assert azure.pick(json.dumps(["s", "g", "w"])) == ["s", "g", "w"]
    assert azure.pick(None) == [gr.skip()] * 3
    for other in ("/root", '["s"]', "[1, 2, 3]", "[" * 100_000):
        with pytest.raises(InputError, match="Choose a workspace"):
            azure.pick(other)


def test_the_page_takes_no_path_of_a_config_json(inputs):
    assert ("azureml", "config") not in inputs.keys
    assert ("azureml", "workspace") in inputs.keys


def test_versions_are_listed_as_azure_last_said_and_text_stays_text(store, home, inputs):
    given = values(inputs, **PLACE)
    assert models.listed(inputs, "azureml", *given)[0]["empty"] == models.NOT_ASKED
    kept(home)
    assert "has no registered model yet" in models.listed(inputs, "azureml", *given)[0]["empty"]
    for broken in ("{", "[]", "{}", "3"):
        version_tables._file(home, TRAVEL).write_text(broken)
        assert models.listed(inputs, "azureml", *given)[0]["empty"] == models.NOT_ASKED
    made = version("1", tags={"verified": "true", "base": ATTACK}, properties={"olive_lab_bytes": "2048"})
    kept(home, made, version("2"))
    table, *_ = models.listed(inputs, "azureml", *given)
    assert table["rows"][0][0] == {"status": "done", "word": "Yes"}
    assert table["rows"][0][1:] == ["trips", "1", "2026-11-22 10:00", "", ATTACK, "", "2.0 kB"]
    assert table["rows"][1][0]["word"] == "Unknown"
    assert "As the workspace travel-ws said on" in table["caption"]
    elsewhere = values(inputs, **{**PLACE, "workspace": "other"})
    assert models.listed(inputs, "azureml", *elsewhere)[0]["rows"] == []  # of whom somebody else asks
    table, *_ = models.listed(inputs, "azureml", *given)
    assert len(table["rows"]) == 2


def test_an_export_is_no_base_and_says_so_another_model_is(store, home):
    run = planted.finished(store)
    content = {version_tables.lineage.CONTENT: "00"}
    export, other = kept(
        home, version("1", tags={"run": run, "base": "starter"}, properties=content), version("2")
    )
    notice, chosen, _, title, _, link, use, comparable, compare, pull, *_ = models.select(
        "azureml", picked(export)
    )
    assert (notice, chosen, comparable) == (None, export, run)
    assert "training cannot start" in title["note"]
    assert title["note"].endswith("starter.")
    assert link["href"].startswith("https://ml.azure.com/model/trips:1/details?wsid=/subscriptions/1111")
    assert link["href"].endswith("&tid=t")
    assert [update["interactive"] for update in (use, compare)] == [False, True]
    assert pull["visible"] is True
    _, _, _, title, _, _, use, comparable, compare, *_ = models.select("azureml", picked(other))
    assert comparable == ""
    assert "note" not in title
    assert [update["interactive"] for update in (use, compare)] == [True, False]
    assert models.base("azureml", other)[0] == (
        f"azureml://subscriptions/{TRAVEL.subscription}/resourceGroups/travel-group"
        "/workspaces/travel-ws/models/trips/versions/2"
    )


def test_a_version_that_is_gone_from_the_list_is_a_sentence(store, home):
    notice, *_ = models.select("azureml", picked("azureml:trips:9"))
    assert "refresh the list" in notice["text"]


def test_two_versions_show_only_what_differs(store, home):
    same = {"team": "walkers"}
    ids = kept(home, version("1", tags={**same, "bits": "4"}), version("2", tags={**same, "bits": "8"}))
    notice, table = models.check("azureml", picked("", ids=ids))
    assert (notice, table["columns"]) == (None, ["Kind", "Name", "trips:1", "trips:2"])
    assert table["rows"] == [["Tag", "bits", "4", "8"]]
    notice, table = models.check("azureml", picked("", ids=ids[:1]))
    assert ("two versions" in notice["text"], table) == (True, None)


def test_versions_of_this_lab_have_the_base_of_their_run(store, home, inputs):
    run = planted.finished(store)
    folder = home / "registry" / "travel" / "1"
    folder.mkdir(parents=True)
    facts = {"run": run, "created": 1.0, "description": "", "bytes": 2048}
    Path(folder, "published.json").write_text(json.dumps(facts))
    table, *_ = models.listed(inputs, "local")
    recipe = store.get(run).recipe
    assert table["rows"][0][4:] == [
        run,
        recipe["model"],
        recipe["quantize"]["algorithm"],
        "2.0 kB",
        str(folder),
    ]
    *_, use, comparable, compare, pull, drop, _, _ = models.select("local", picked("travel:1"))
    assert (use["interactive"], pull["visible"], compare["interactive"]) == (False, False, True)
    assert (comparable, drop["visible"]) == ("registry/travel/1", False)


def test_a_pull_that_fails_is_a_sentence_and_one_that_is_there_can_be_compared_and_removed(
    store, home, no_cli, inputs, client
):
    (chosen,) = kept(home, version("1"))
    azure_workspace.remember(home, TRAVEL)
    notice, comparable, *_, told, _ = models.pull(inputs, "azureml", chosen, *values(inputs))
    assert (notice, comparable) == (None, "")
    assert told["status"] in ("running", "failed")  # which it is soon, without the Azure CLI
    address = f"/pulled/{told['pulled']}.json"
    until(lambda: client.get(address).json()["status"] == "failed", "the end of the pull")
    assert NO_CLI in client.get(address).json()["error"]
    folder = pulls.folder(home, told["pulled"])
    folder.mkdir()
    facts = home / "pulled" / f".{told['pulled']}.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "status": "done"}))
    comparable, compare, pull, drop, told, same = models.copy("azureml", chosen)
    assert (comparable, same["visible"], choices.exports(store)) == ("", False, [])  # a base, say
    (folder / "genai_config.json").write_text("{}")
    comparable, compare, pull, drop, told, same = models.copy("azureml", chosen)
    assert comparable == choices.exports(store)[0][1] == f"pulled/{folder.name}"
    assert (compare["interactive"], pull["visible"], drop["visible"]) == (True, False, True)
    assert same["value"] == f"python -m pipeline verify {folder}"
    notice, comparable, _, pull, drop, told, _ = models.remove("azureml", chosen)
    assert (notice["text"], comparable, told) == ("The copy was removed.", "", None)
    assert (pull["visible"], drop["visible"], folder.exists()) == (True, False, False)
    assert client.get(address).status_code == 404


@pytest.mark.parametrize("key", ["..", "trips-1-00000000", "%2e%2e%2fartifacts", ".x"])
def test_only_what_is_listed_is_told_or_stopped(home, client, key):
    (home / "pulled").mkdir()
    assert client.get(f"/pulled/{key}.json").status_code == 404
    assert client.post(f"/pulled/{key}/cancel").status_code == 404


def test_choosing_the_place_shows_its_fields(home):
    places = len(publish.PLACES)
    told = publish.moved("azureml")
    (local, cloud), said, command = told[:2], told[places + 3 : -1], told[-1]
    assert (local["visible"], cloud["visible"], set(said), command["visible"]) == (False, True, {None}, False)


def test_what_was_pulled_and_is_listed_no_more_can_be_removed(store, home, inputs):
    """Else copies that nobody can see fill the disk, and all that may be kept."""
    (chosen,) = kept(home, version("1", tags={"base": "starter"}))
    (row,) = version_tables.of_azure(home, TRAVEL).versions
    key, failed = (
        version_tables.key(home, row),
        {"status": "failed", "error": "no", "progress": 0.0, "begun": 1.0},
    )
    facts = {"key": key, "uri": chosen, "name": "trips", "version": "1", "tags": row["tags"], "login": "cli"}
    pulls._write(home, {**facts, **failed, "message": ""})
    assert version_tables.pulled(home, [row]) == []
    assert version_tables.pulled(home, []) == [row], "the list of another workspace is shown"
    version_tables.keep(home, TRAVEL, [])
    place = values(inputs, **PLACE)
    assert models.listed(inputs, "azureml", *place)[0]["ids"] == [chosen]
    notice, _, _, title, details, link, use, *_ = models.select("azureml", picked(chosen))
    assert (notice, link, use["interactive"]) == (None, None, False)
    assert "starter" in title["note"]
    assert version_tables.NOT_LISTED in str(details)
    assert models.remove("azureml", chosen)[0]["text"] == "The copy was removed."
    assert models.listed(inputs, "azureml", *place)[0]["ids"] == []
    assert pulls.listed(home) == []


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000, "\u0665", "-1", ""])
def test_a_size_that_is_none_spoils_no_list(home, digits):
    """Whoever may register a model may write its properties, and everybody lists them."""
    long = "x" * 100_000
    made = version("1", tags={"base": long}, properties={"olive_lab_bytes": digits, "note": long})
    kept(home, made)
    (row,) = version_tables.of_azure(home, TRAVEL).versions
    assert row["bytes"] is None
    assert len(json.dumps(version_tables.table([row], "azureml", "", ""))) < 10_000
    assert len(json.dumps(version_tables.details(row))) < 20_000


def test_the_oldest_lists_make_room_and_a_place_has_one_however_it_is_written(home, monkeypatch):
    """A look at one may read all, and anybody can name places."""
    monkeypatch.setattr(version_tables, "MOST_LISTS", 2)
    version_tables.keep(home, TRAVEL, [])
    loud = dataclasses.replace(TRAVEL, workspace=TRAVEL.workspace.upper())
    version_tables.keep(home, loud, [])
    assert len(version_tables._files(home)) == 1
    os.utime(version_tables._file(home, TRAVEL), (1.0, 1.0))
    others = [dataclasses.replace(TRAVEL, workspace=name) for name in ("one", "two")]
    for place in others:
        version_tables.keep(home, place, [])
    assert set(version_tables._files(home)) == {version_tables._file(home, place) for place in others}


def test_texts_that_no_page_can_hold_spoil_no_list(home):
    half = "a\ud800"
    made = version("1", tags={half: half}, properties={half: half}) | {
        "description": half,
        "created_by": half,
    }
    kept(home, made)
    (row,) = version_tables.of_azure(home, TRAVEL).versions
    assert json.dumps(version_tables.details(row), ensure_ascii=False).encode()


def test_a_version_that_somebody_has_filled_with_text_is_cut_and_its_list_read_once(home, monkeypatch):
    long = {f"k{at}" + "n" * 50_000: "v" * 5_000 for at in range(300)}
    many = version("1", tags=long, properties={f"p{at}": "v" for at in range(300)})
    wide = {**version("2"), "description": "D" * 500_000, "created_by": "C" * 500_000}
    named = {**version("3"), "name": "N" * 500_000}
    version_tables.keep(
        home, TRAVEL, [{**one, "id": one["version"], "bytes": 1} for one in (many, wide, named)]
    )
    loads, parsed = json.loads, []
    monkeypatch.setattr(json, "loads", lambda text, **how: parsed.append(text) or loads(text, **how))
    for chosen in ("1", "2", "3"):
        shown = models.select("azureml", picked(chosen))
        assert len(json.dumps(shown[3:5])) < 2 * version_tables.LARGEST_FACTS
    ids = SimpleNamespace(_data={"ids": ["1", "2"]})
    assert len(json.dumps(models.check("azureml", ids)[1])) < 3 * version_tables.LARGEST_FACTS
    assert sum('"versions"' in text for text in parsed) == 1
    row = version_tables._of_azure(TRAVEL, many)
    assert len(json.dumps(row)) < 2 * version_tables.LARGEST_FACTS
    assert len(row["properties"]) == version_tables.MOST_FACTS
