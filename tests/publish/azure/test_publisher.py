"""What publishing to Azure decides without asking Azure."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs import azure_workspace
from pipeline.inputs.azure_address import parse
from pipeline.inputs.azure_workspace import Place
from pipeline.inputs.options import describe
from pipeline.publish.azure import catalogue, faults, lineage, login
from pipeline.publish.azure import publisher as azureml
from pipeline.publish.targets import options_of
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.system.transfer_progress import Meter

SUB = "11111111-2222-3333-4444-555555555555"
WHERE = Place("cli", SUB, "group", "space")
KNOWN = {"subscription_id": SUB, "resource_group": "group", "workspace_name": "space"}


def options(**given: Any) -> azureml.Options:
    parts = {"subscription": SUB, "resource_group": "group", "workspace": "space"}
    return azureml.Options(**{"name": "ft-for-travel", **parts, **given})


class TestPlan:
    def test_lists_every_file_and_the_command(self, store: Store, finished: Run) -> None:
        planned = azureml.plan(
            store.home, finished, options(version="1", tags="team=walkers", description="A b")
        )
        source = finished.artifact("onnx")
        assert planned["command"] == (
            f"az ml model create --name ft-for-travel --type custom_model --path {source} --version 1"
            " --resource-group group --workspace-name space"
            f" --subscription {SUB} --description 'A b'"
            " --tags team=walkers"
        )
        names = [file["path"] for file in planned["files"]]
        assert {"model.onnx.data", "sub/vocab.txt", "README.md", "recipe.yaml"} < set(names)
        assert "artifact.json" not in names
        assert planned["bytes"] == sum(file["bytes"] for file in planned["files"])

    @pytest.mark.parametrize("name", ["", "a.b", "-a", "a b", "x" * 256])
    def test_names_that_azure_does_not_take_are_refused(self, store: Store, finished: Run, name: str) -> None:
        with pytest.raises(InputError, match="is not allowed; allowed: letters, digits, - and _"):
            azureml.plan(store.home, finished, options(name=name))

    def test_tags_are_pairs(self, store: Store, finished: Run) -> None:
        assert lineage.parse_tags(" a=1 , b = x y,,") == {"a": "1", "b": "x y"}
        for wrong in ("a", "=x", "a=1,b", "a=\x07", f"a={'x' * 300}"):
            with pytest.raises(InputError, match="is not allowed; allowed: key=value, several with commas"):
                azureml.plan(store.home, finished, options(tags=wrong))

    def test_without_a_workspace_all_that_is_missing_is_named(self, store: Store, finished: Run) -> None:
        with pytest.raises(InputError) as raised:
            azureml.plan(store.home, finished, azureml.Options(name="a"))
        assert [problem.split(":")[0] for problem in raised.value.problems] == [*azure_workspace.CONFIG_KEYS]

    def test_no_login_opens_a_browser(self) -> None:
        (option,) = (o for o in describe(azureml.Options) if o.name == "login")
        assert set(option.choices) - {"remembered"} == set(azure_workspace.LOGINS)
        with pytest.raises(InputError, match=r"publish\.login: 'browser' is not allowed"):
            options_of("azureml", {"login": "browser"})


class TestSettled:
    def test_a_queued_publish_goes_where_it_was_told_whatever_is_remembered_later(
        self, store: Store, finished: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipeline.worker.loop.ensure", lambda home: None)
        azure_workspace.remember(store.home, WHERE)
        stage = submit.publish(store, finished, "azureml", azureml.Options(name="trips"))
        azure_workspace.remember(store.home, Place("identity", "other", "other", "other"))
        kept = store.get(finished.id).stage(stage).options
        assert azureml.place_of(store.home, options_of(kept.pop("to"), kept)) == WHERE

    def test_a_config_json_is_read_before_it_is_queued(
        self, store: Store, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(KNOWN))
        monkeypatch.chdir(tmp_path)
        settled = azureml.settled(store.home, azureml.Options(name="trips", config="config.json"))
        monkeypatch.chdir("/")
        assert azureml.place_of(store.home, settled) == WHERE
        ours = azureml.settled(store.home, azureml.Options(name="trips", registry="ours", login="identity"))
        assert azureml.place_of(store.home, ours) == Place("identity", registry="ours")


class TestPlace:
    def test_what_is_given_goes_before_the_file_and_what_is_remembered(self, tmp_path: Path) -> None:
        azure_workspace.remember(tmp_path, Place("identity", SUB, "g", "its"))
        assert (tmp_path / azure_workspace.FILE).stat().st_mode & 0o777 == 0o600
        assert azure_workspace.find(tmp_path, Place("", "", "", "mine")) == Place(
            "identity", SUB, "g", "mine"
        )
        config = tmp_path / "config.json"
        config.write_text(json.dumps(KNOWN))
        assert azure_workspace.find(tmp_path, Place("cli"), str(config)) == WHERE
        assert azure_workspace.find(tmp_path, Place(""), str(tmp_path)) == dataclasses.replace(
            WHERE, login="identity"
        )

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"subscription_id": 1}', None])
    def test_a_config_that_is_none_is_refused(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config: .*config\.json"):
            azure_workspace.find(tmp_path, Place(""), str(tmp_path / "config.json"))

    @pytest.mark.parametrize(
        "content", ["[" * 60_000, "[" * 200_000, json.dumps({**KNOWN, "subscription_id": "s" * 300_000})]
    )
    def test_a_config_too_deep_or_too_large_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config\.json is not valid JSON; download it again"):
            azure_workspace.find(tmp_path, Place(""), str(tmp_path))

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("subscription", "../../tenants?x="),
            ("subscription", "Travel"),
            ("subscription", f"{SUB}\n"),
            ("resource_group", "g#"),
            ("resource_group", ".."),
            ("resource_group", "g" * 91),
            ("workspace", "ws/../other"),
            ("workspace", "<img src=x>"),
            ("workspace", "\ud800\ud800\ud800"),
            ("registry", "../discovery?"),
        ],
    )
    def test_names_that_azure_does_not_have_are_refused_wherever_they_come_from(
        self, tmp_path: Path, part: str, value: str
    ) -> None:
        refused = rf"{part}: .* is not allowed; allowed: (its id, like 0000|letters, digits, )"
        with pytest.raises(InputError, match=refused):
            azure_workspace.find(tmp_path, dataclasses.replace(WHERE, **{part: value}))
        if part in azure_workspace.CONFIG_KEYS:
            azure_workspace.remember(tmp_path, dataclasses.replace(WHERE, **{part: value}))
            assert azure_workspace.find(tmp_path, Place("")) == Place("cli")
            facts = {**KNOWN, azure_workspace.CONFIG_KEYS[part]: value}
            (tmp_path / "config.json").write_text(json.dumps(facts))
            with pytest.raises(InputError, match=refused):
                azure_workspace.find(tmp_path, Place(""), str(tmp_path))

    def test_names_that_azure_has_are_taken_and_quoted_where_they_must_be(self, tmp_path: Path) -> None:
        given = Place("cli", SUB.upper(), "Straße_(1).a-b", "W_s-1")
        assert azure_workspace.find(tmp_path, given) == given
        assert given.path == (
            f"/subscriptions/{SUB.upper()}/resourceGroups/Stra%C3%9Fe_(1).a-b"
            "/providers/Microsoft.MachineLearningServices/workspaces/W_s-1"
        )
        assert (
            azure_workspace.find(tmp_path, Place("cli", registry="azureml-meta")).registry == "azureml-meta"
        )

    def test_many_remember_at_the_same_time(self, tmp_path: Path) -> None:
        places = [dataclasses.replace(WHERE, workspace=f"space-{number}") for number in range(8)]

        def again_and_again(mine: Place) -> None:
            for _ in range(200):
                azure_workspace.remember(tmp_path, mine)

        with ThreadPoolExecutor(len(places)) as pool:
            list(pool.map(again_and_again, places))
        assert azure_workspace.find(tmp_path, Place("")) in places
        assert [path.name for path in tmp_path.iterdir()] == [azure_workspace.FILE]
        assert (tmp_path / azure_workspace.FILE).stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"login": "browser", "workspace": "w"}', '{"workspace": 3}']
    )
    def test_a_spoilt_memory_is_no_memory(self, tmp_path: Path, content: str) -> None:
        (tmp_path / azure_workspace.FILE).write_text(content)
        assert azure_workspace.find(tmp_path, Place("")) == Place("cli")


class TestLineage:
    def test_says_all_that_the_run_knows(self, finished: Run) -> None:
        data = "/home/ann/datasets/" + "a" * 64 + "/travel.jsonl"
        recipe = {
            **finished.recipe, "model": "org/name@c0ffee", "data": data, "template": "chat",
            "quantize": {"algorithm": "awq", "bits": 4}, "finetune": {"method": "lora", "r": 16},
        }  # fmt: skip
        run = dataclasses.replace(finished, recipe=recipe, data=data)
        tags, properties = lineage.tags(run, {"team": "walkers"}), lineage.properties(run, "d1", 7)
        shown = ("run", "base", "base_revision", "algorithm", "bits", "method")
        assert {key: tags[key] for key in shown} == {
            "run": run.id, "base": "org/name", "base_revision": "c0ffee", "algorithm": "awq", "bits": "4",
            "method": "lora",
        }  # fmt: skip
        assert (tags["data_sha256"], tags["verified"], tags["team"]) == ("a" * 64, "false", "walkers")
        assert tags["finetune_eval_loss_after"] == "1.25"
        assert json.loads(properties["recipe_quantize"]) == {"algorithm": "awq", "bits": 4}
        assert (properties[lineage.CONTENT], properties["finetune_eval_loss_before"]) == ("d1", "2.5")
        everything = json.dumps([tags, properties])
        assert "/home/ann" not in everything
        assert all(isinstance(value, str) for value in [*tags.values(), *properties.values()])

    def test_a_base_in_azure_keeps_its_whole_address(self, finished: Run) -> None:
        address = "azureml://subscriptions/1111/resourceGroups/g/workspaces/w/models/phi/versions/4"
        run = dataclasses.replace(finished, recipe={**finished.recipe, "model": address})
        found = lineage.properties(run, "d1", 7)
        assert (found["base_model"], found["recipe_model"]) == (address, address)

    def test_texts_are_short_and_plain(self, finished: Run) -> None:
        recipe = {**finished.recipe, "template": "x\n" * 5000}
        run = dataclasses.replace(finished, recipe=recipe, name="a\tb" + "c" * 1000)
        assert max(map(len, lineage.tags(run, {}).values())) <= lineage.LONGEST_TAG
        properties = lineage.properties(run, "d", 1)
        assert max(map(len, properties.values())) <= lineage.LONGEST_PROPERTY
        assert "".join(properties.values()).isprintable()

    def test_nobody_calls_a_version_verified_beforehand(self, finished: Run) -> None:
        assert lineage.tags(finished, {"verified": "true"})["verified"] == "false"

    def test_the_content_has_a_name_that_any_change_changes(self) -> None:
        sums = {"a": "1" * 64, "b": "2" * 64}
        names = {
            lineage.content(s) for s in (sums, {**sums, "a": "3" * 64}, {"a": "1" * 64}, {"c": "1" * 64})
        }
        assert len(names) == 4
        assert lineage.content(dict(reversed(sums.items()))) == lineage.content(sums)


def test_an_unknown_error_is_told_without_secrets_and_without_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(
            LabError, match=r"an unexpected response: RuntimeError: at \?sig=\[removed\]"
        ) as raised,
        faults.explained(WHERE),
    ):
        raise RuntimeError("at ?sig=abcdef")
    assert raised.value.__suppress_context__
    assert "abcdef" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("actions", "denied", "may"),
    [
        (["*"], [], True),
        (["Microsoft.MachineLearningServices/workspaces/*"], [], True),
        (["microsoft.machinelearningservices/workspaces/models/versions/WRITE"], [], True),
        (["*"], ["Microsoft.MachineLearningServices/workspaces/models/*"], False),
        (["*/read"], [], False),
        ([], [], False),
    ],
)
def test_what_a_role_allows(actions: list[str], denied: list[str], may: bool) -> None:
    permissions = [{"actions": actions, "notActions": denied}]
    assert login.allowed(permissions)["register models"] is may


class TestReference:
    def test_a_whole_address_needs_no_workspace(self) -> None:
        uri = "azureml://registries/azureml/models/Phi-3.5-mini-instruct/versions/4"
        reference = parse(uri, Place())
        assert (reference.registry, reference.name, reference.version) == (
            "azureml",
            "Phi-3.5-mini-instruct",
            "4",
        )
        assert reference.uri == uri

    def test_a_short_one_is_of_the_workspace_and_has_a_whole_address(self) -> None:
        short = parse("azureml:trips:3", WHERE)
        again = parse(short.uri, Place("identity"))
        assert (again.name, again.version, again.uri) == ("trips", "3", short.uri)
        assert again.where == dataclasses.replace(WHERE, login="identity")
        with pytest.raises(InputError, match="workspace: is not known"):
            parse("azureml:trips:3", Place())

    @pytest.mark.parametrize(
        "uri",
        [
            "azureml://registries/../models/a/versions/1",
            "azureml://registries/azureml/models/../versions/1",
            f"azureml://subscriptions/{SUB}/resourceGroups/../workspaces/space/models/a/versions/1",
            "azureml://subscriptions/sub-1/resourceGroups/g/workspaces/space/models/a/versions/1",
            "azureml:..:1",
        ],
    )
    def test_names_that_would_lead_a_request_elsewhere_are_none(self, uri: str) -> None:
        with pytest.raises(InputError, match="is not a model in Azure; one looks like"):
            parse(uri, WHERE)


class TestLayout:
    def test_weights_nearest_to_the_top_and_their_tokenizer(self) -> None:
        names = ["a/config.json", "a/model.safetensors", "a/tokenizer_config.json", "deep/er/config.json",
                 "deep/er/model.safetensors", "a/modeling.py", "a/pytorch_model.bin"]  # fmt: skip
        assert catalogue.layout(names) == {
            "config.json": "a/config.json",
            "model.safetensors": "a/model.safetensors",
            "tokenizer_config.json": "a/tokenizer_config.json",
        }

    def test_code_is_never_among_them(self) -> None:
        names = [
            "config.json",
            "model.safetensors",
            "tokenizer_config.json",
            "modeling_phi3.py",
            "x.bin",
            "x.pkl",
        ]
        assert set(catalogue.layout(names)) == {"config.json", "model.safetensors", "tokenizer_config.json"}


def test_a_meter_tells_bytes_and_the_time_that_is_left() -> None:
    told: list[tuple[float, dict[str, Any]]] = []
    meter = Meter(lambda text, fraction, **facts: told.append((fraction, facts)), 100, 0.2, 0.6)
    meter.add(50, "a", moved=False)
    meter.add(50, "b")
    assert told[-1] == (pytest.approx(0.6), {"bytes_done": 100, "bytes_total": 100, "eta_seconds": 0.0})
    assert (meter.done, meter.moved) == (100, 50)


def test_nothing_of_azure_is_imported_beforehand() -> None:
    code = (
        "import sys, pipeline.__main__, pipeline.worker.stage_process;"
        "import pipeline.publish.azure.preflight, pipeline.publish.azure.catalogue;"
        "print([name for name in sys.modules if name.split('.')[0] in ('azure', 'msal', 'onnx', 'torch')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=settings.child_environment()
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("key", [*lineage.OWN_TAGS, "Run", "finetune_eval_loss_after"])
def test_tags_of_the_labs_own_cannot_be_replaced(key: str) -> None:
    with pytest.raises(InputError, match=f"^tags: {key} is a tag that the lab itself sets; choose another"):
        lineage.parse_tags(f"team=walkers, {key}=mine")


def test_every_tag_that_the_lab_sets_is_its_own(finished: Run) -> None:
    for key in lineage.tags(finished, {}):
        with pytest.raises(InputError, match="that the lab itself sets"):
            lineage.parse_tags(f"{key}=x")
