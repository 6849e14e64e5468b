"""Which models the page takes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.inputs.models import base_models, hub_models
from tests.helpers import fake_hub, planted, reachable
from tests.helpers.lab import CONFIG
from webapp import local_models
from webapp.__main__ import _warnings, arguments, main
from webapp.tabs import data, lab, runs
from webapp.tabs.tuning import scorecard, sweep
from webapp.ui import choices

SAMPLE = str(settings.SAMPLES / "travel.jsonl")
REFUSED = "is not offered on this page"


@pytest.fixture
def hub(tmp_path, home, monkeypatch):
    """A hub that an app knows which is made later."""
    with fake_hub.served(tmp_path, monkeypatch) as made:
        yield made


def values(inputs, model):
    found = [component.value for component in inputs.inputs]
    for name, value in (("model", model), ("data", SAMPLE)):
        found[inputs.keys.index(("", name))] = value
    return found


def said(inputs, model) -> set[str]:
    """What every part of the page that takes a model says of one, without its name."""
    given = values(inputs, model)
    told = [
        data.found(None, SAMPLE, "chat", model)[0]["note"],
        *(f"model: {item['said']}" for item in lab.preview(inputs, *given)[2]["items"]),
        *(f"model: {item['said']}" for item in list(lab.launch(inputs, *given, "ann"))[-1][1]["items"]),
        *list(scorecard.measure(inputs, lab.to_score, *given, ["rtn"], "ann"))[-1][1]["items"],
        *list(sweep.launch(inputs, lab.filled, *given, "seed", "1,2", None, "", "ann"))[-1][1]["items"],
    ]
    assert len(told) == 5
    return {text.partition("model: ")[2].replace(display.value(model), "IT") for text in told}


def test_a_path_that_is_not_offered_gets_one_sentence_whether_or_not_it_exists(
    store, inputs, model_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(settings.ROOT)
    (tmp_path / "empty").mkdir()
    here = [str(tmp_path / name) for name in ("tiny-llama", "empty", "none", "tiny-llama/config.json")]
    paths = [*here, "webapp/tabs/", "./webapp", "~", "~root", "..", f"{store.home}/models/../runs.db"]
    told = {sentence for path in paths for sentence in said(inputs, path)}
    assert told == {local_models.NOT_OFFERED.partition("model: ")[2].format("IT", "python -m webapp")}
    assert store.list() == []


def test_a_folder_of_the_project_is_not_taken_for_the_hubs(store, inputs, monkeypatch):
    """`webapp/tabs` is there and `webapp/nowhere` is not: both are ids of the hub."""
    monkeypatch.chdir(settings.ROOT)
    for model in ("webapp/tabs", "webapp/nowhere"):
        recipe = lab._recipe(inputs, tuple(values(inputs, model)))
        assert recipe.model == model


def test_the_list_of_models_does_not_tell_what_a_link_leads_to(home, model_folder, tmp_path):
    """Archives and repositories bring links, and anybody sees which models are offered."""
    for name, end in (("there", settings.SAMPLES / "travel.jsonl"), ("missing", tmp_path / "nothing")):
        folder = tmp_path / "many" / name
        shutil.copytree(model_folder, folder)
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(end)
        assert "config.json is a link out of its folder" in base_models.lacking(folder)
    shutil.copytree(model_folder, tmp_path / "many" / "good")
    local_models.offer([tmp_path / "many"])
    assert [path for _, path in local_models.listed()] == [str(tmp_path / "many" / "good")]
    with pytest.raises(InputError, match=r"Of this one: config\.json is a link out of its folder"):
        local_models.offer([tmp_path / "many" / "there"])


def test_folders_are_offered_from_the_home_and_from_those_that_were_named(home, model_folder, tmp_path):
    shutil.copytree(model_folder, home / "models" / "mine")
    shutil.copytree(model_folder, home / "models" / "half.part")
    shutil.copytree(model_folder, home / "models" / ".hidden")
    shutil.copytree(model_folder, tmp_path / "many" / "one")
    (tmp_path / "many" / "none").mkdir()
    local_models.offer([model_folder, tmp_path / "many"])
    paths = [str(home / "models" / "mine"), str(model_folder), str(tmp_path / "many" / "one")]
    assert [path for _, path in local_models.listed()] == paths
    assert [value for _, value in choices.models()][-3:] == paths
    for path in paths:
        assert local_models.known(path) == path
    for path in (f"{paths[0]}/", f"{paths[2]}/../one", str(home / "models" / "half.part")):
        with pytest.raises(InputError, match=REFUSED):
            local_models.known(path)


def test_a_link_that_another_user_made_is_not_offered(home, model_folder, tmp_path, monkeypatch):
    """It may lead to a model folder that its maker may not read; the user of the app may link one in."""
    (named := tmp_path / "named").mkdir()
    shutil.copytree(model_folder, named / "real")
    link = named / "gift"
    link.symlink_to(model_folder)
    assert list(local_models.find(named)) == [model_folder.resolve(), named / "real"]
    if os.geteuid() == 0:
        os.chown(link, 54321, -1, follow_symlinks=False)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert list(local_models.find(named)) == [named / "real"]


def copied(model, folder):
    shutil.copytree(model, folder)
    for each in (folder.parent, folder, *folder.iterdir()):
        each.chmod(0o755)  # whatever the umask
    return folder


def open_folder(folder):
    folder.chmod(0o777)


def open_file(folder):
    (folder / "config.json").chmod(0o666)


def open_below(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates").chmod(0o777)


def open_above(folder):
    folder.parent.chmod(0o777)


OPENED = [open_folder, open_file, open_below, open_above]


@pytest.mark.parametrize("opened", OPENED)
def test_a_model_that_others_may_change_is_offered_only_on_consent(home, model_folder, opened):
    """Whoever may change it could have other files read in its place, by links that come and go."""
    with reachable.folder() as named:
        mine = copied(model_folder, named / "folder" / "mine")
        local_models.offer([mine.parent])
        assert local_models.known(str(mine)) == str(mine)
        assert local_models.left_out() == []
        opened(mine)
        with pytest.raises(InputError, match=REFUSED):
            local_models.known(str(mine))
        (reason,) = local_models.left_out()
        assert "every user may write to " in reason
        with pytest.raises(InputError, match=r"no model in .* is offered: every user may write to "):
            local_models.offer([mine.parent])
        local_models.offer([mine.parent], shared=True)
        assert local_models.known(str(mine)) == str(mine)
        assert local_models.left_out() == []


def test_a_link_in_the_home_to_a_model_that_others_may_change_is_not_offered(home, model_folder):
    local_models.offer([])
    with reachable.folder() as outside:
        model = copied(model_folder, outside / "model")
        (home / "models").mkdir(exist_ok=True)
        (home / "models" / "linked").symlink_to(model)
        assert local_models.known(str(model)) == str(model)
        model.chmod(0o777)
        with pytest.raises(InputError, match=REFUSED):
            local_models.known(str(model))


def test_a_model_in_the_home_that_others_may_change_is_not_offered(model_folder, monkeypatch):
    """Unless others may change all of the home, of which the app warns."""
    with reachable.folder() as above:
        (above / "home").mkdir()
        monkeypatch.setenv("OLIVE_LAB_HOME", str(above / "home"))
        model = copied(model_folder, above / "home" / "models" / "mine")
        (above / "home").chmod(0o755)
        local_models.offer([])
        assert local_models.known(str(model)) == str(model)
        model.chmod(0o777)
        with pytest.raises(InputError, match=REFUSED):
            local_models.known(str(model))
        assert "every user may write to " in local_models.left_out()[0]
        (above / "home").chmod(0o1777)
        assert local_models.known(str(model)) == str(model)


@pytest.mark.parametrize("shared", [True, False])
def test_a_path_that_no_page_can_hold_is_not_offered(home, model_folder, tmp_path, shared):
    """It is in the page that everybody gets, which could not be sent."""
    for name in (b"mod\xe8le", b"mine"):
        shutil.copytree(model_folder, os.fsdecode(os.fsencode(tmp_path / "named" / "x")[:-1] + name))
    local_models.offer([tmp_path / "named"], shared=shared)
    assert [path for _, path in local_models.listed()] == [str(tmp_path / "named" / "mine")]
    assert local_models.NO_TEXT in local_models.left_out()[0]
    with pytest.raises(InputError, match=r"no model in .* is offered: the path of one is no Unicode text"):
        local_models.offer(
            [Path(os.fsdecode(os.fsencode(tmp_path / "named") + b"/mod\xe8le"))], shared=shared
        )


def test_the_operator_reads_at_the_start_what_is_not_offered(home, model_folder, tmp_path):
    with reachable.folder() as named:
        for name in ("open", "mine"):
            copied(model_folder, named / name)
        (named / "open").chmod(0o777)
        local_models.offer([named])
        (warning,) = [text for text in _warnings("127.0.0.1", 1, home) if "not offered" in text]
        assert warning.startswith(
            f"models in {named} that are not offered: 1; every user may write to {named}/open"
        )


@pytest.mark.parametrize(
    "model",
    [
        "starter",
        "org/name",
        "org/name@0123abc",
        "azureml:trips:1",
        "azureml://registries/r/models/m/versions/1",
    ],
)
def test_ids_are_taken(home, model):
    assert local_models.known(model) == model


def test_a_run_of_the_command_line_is_shown_but_not_started_again(
    store, client: TestClient, no_worker, inputs
):
    run = planted.queued(store)
    store.request_cancel(run)
    recipe = store.get(run).recipe | {"name": "other", "model": "/somewhere/else"}
    other = planted.plant(store, stages=["quantize"], **recipe)
    store.request_cancel(other)
    assert "/somewhere/else" in lab.again(inputs, other)
    assert client.get(f"/runs/{other}/recipe.yaml").status_code == 200
    refused = client.post(f"/runs/{other}/retry")
    assert (refused.status_code, REFUSED in refused.json()["error"]) == (409, True)
    with pytest.warns(UserWarning, match=REFUSED):
        [*runs.retry(other)]
    assert store.get(other).status == "canceled"
    assert client.post(f"/runs/{run}/retry").json()["status"] == "queued"


def test_a_private_model_of_the_command_lines_run_is_not_fetched_by_a_retry(
    hub, store, client: TestClient, no_worker
):
    files = {"config.json": json.dumps(CONFIG).encode(), "tokenizer_config.json": b"{}"}

    def retried(name: str) -> tuple[str, dict[str, str]]:
        run = planted.plant(store, stages=["quantize"], model=f"org/{name}@{commits[name]}")
        store.request_cancel(run)
        return run, client.post(f"/runs/{run}/retry").json()

    commits = {name: hub.put(f"org/{name}", files, private=name == "secret") for name in ("open", "secret")}
    assert retried("open")[1]["status"] == "queued"
    run, said = retried("secret")
    assert hub_models.NOT_PUBLIC in said["error"]
    assert store.get(run).status == "canceled"
    base_models.Model("org/secret", "hub", commits["secret"], {}, None).folder(store.home).mkdir(parents=True)
    assert retried("secret")[1]["status"] == "queued", "it is here, so it is offered"


def test_a_folder_without_models_is_refused_at_the_start(home, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        assert main(["--port", "0", "--models", str(folder)]) == 2
        assert "--models: " in capsys.readouterr().err
    given = arguments(["--models", "a", "--models", "b"])
    assert [str(path) for path in given.models] == ["a", "b"]
