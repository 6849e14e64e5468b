"""What base models take in the home, and that nothing goes that is used, or was not fetched by the lab."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import InputError, LabError
from pipeline.inputs.data import telling
from pipeline.inputs.models import base_models, hub_models
from pipeline.runs import cached_models, check_pool, disk
from pipeline.store import Store
from pipeline.store.run import QUEUED, RUNNING
from pipeline.system import locks
from tests.helpers import fake_hub
from tests.helpers.fake_hub import FakeHub, Fault, Large, Tree
from tests.helpers.lab import CONFIG
from tests.helpers.planted import finish_all, plant

COMMIT = "0123456789ab" + "c" * 28
NAME = "org--tiny-0123456789ab"
AZURE = "azureml://registries/azureml/models/tiny/versions/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.served(tmp_path, monkeypatch) as made:
        yield made


def put(home: Path, name: str = NAME, size: int = 1000, *, fetched: bool = True) -> Path:
    folder = home / "models" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * size)
    if fetched and "--" in name and not name.startswith("."):
        base_models.mark(folder.with_name(name.removesuffix(".part")))  # as whoever fetches it does
    return folder


def answered(model: str, *, hub_login: bool = False) -> str:
    """The commit of a model as the page finds it, or why not."""
    check_pool.open_up(hub_login)
    try:
        steps = cached_models.looking(model)
        return telling.ended(steps)[0].revision
    except LabError as error:
        return str(error).partition(": ")[2].partition(": ")[2]
    finally:
        check_pool.close()


def one(store: Store, name: str = NAME) -> cached_models.Cached:
    (found,) = [cached for cached in cached_models.listed(store) if cached.name == name]
    return found


def test_models_are_listed_with_size_and_last_use(store: Store) -> None:
    run = store.get(plant(store, model=f"org/tiny@{COMMIT}"))
    finish_all(store, run.id)
    put(store.home)
    put(store.home, "mine", 5000)
    put(store.home, "org--half-0123456789ab.part", 10)
    put(store.home, ".tokenizers")
    names = [cached.name for cached in cached_models.listed(store)]
    assert names == ["mine", NAME, "org--half-0123456789ab"]
    assert (one(store).bytes, one(store).used, one(store).users) == (1000, run.created, ())
    assert (one(store, "mine").ours, one(store, "mine").used) == (False, None)
    assert [one(store, name).whole for name in names] == [True, True, False]


def test_what_the_lab_has_fetched_is_removed_with_all_there_is_of_it(store: Store) -> None:
    put(store.home)
    put(store.home, f"{NAME}.part", 100)
    put(store.home, f".tokenizers/{NAME}", 10)  # as an earlier release named it
    put(store.home, f".tokenizers/{NAME}{'c' * 28}", 20)
    other = put(store.home, "org--tiny-ffffffffffff")
    assert cached_models.remove(store, NAME) == 1130
    assert cached_models.listed(store)[0].name == other.name
    assert [path.name for path in (store.home / "models").glob("*") if path.is_dir()] == [
        ".tokenizers",
        other.name,
    ]
    assert not list((store.home / "models" / ".tokenizers").iterdir())


@pytest.mark.parametrize(
    "model", [f"org/tiny@{COMMIT}", "HOME/models/" + NAME, "HOME/models/../models/" + NAME + "/"]
)
def test_one_that_a_queued_run_uses_stays(store: Store, model: str) -> None:
    folder = put(store.home)
    run = plant(store, model=model.replace("HOME", str(store.home)))
    assert store.get(run).status == QUEUED
    assert one(store).users == (run,)
    with pytest.raises(LabError, match=f"is used by {run}; cancel what is queued or running"):
        cached_models.remove(store, NAME)
    assert (folder / "model.safetensors").is_file()
    store.request_cancel(run)
    cached_models.remove(store, NAME)
    assert not folder.exists()


def test_one_that_a_running_run_uses_stays(store: Store) -> None:
    run = plant(store, model=AZURE)
    assert store.claim("cpu")
    assert store.get(run).status == RUNNING
    (name,) = {cached_models._named(AZURE, store.home)}
    put(store.home, name)
    with pytest.raises(LabError, match=f"is used by {run}"):
        cached_models.remove(store, name)


def test_a_run_that_was_queued_since_it_was_looked_at_keeps_its_model(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(store.home)
    real = locks.take

    def meanwhile(path: Path) -> int | None:
        if path.name == f".{NAME}.lock":
            plant(store, model=f"org/tiny@{COMMIT}")
        return real(path)

    monkeypatch.setattr(locks, "take", meanwhile)
    with pytest.raises(LabError, match="is used by"):
        cached_models.remove(store, NAME)
    assert folder.is_dir()


def test_one_that_is_being_fetched_stays(store: Store) -> None:
    put(store.home, f"{NAME}.part")
    lock = locks.take(store.home / "models" / f".{NAME}.lock")
    assert lock is not None
    assert one(store).busy
    with pytest.raises(LabError, match="is being fetched just now"):
        cached_models.remove(store, NAME)
    os.close(lock)
    cached_models.remove(store, NAME)
    assert cached_models.listed(store) == []


@pytest.mark.parametrize("name", ["mine", "org--tiny", NAME, "starter", "starter-finetuned"])
def test_what_somebody_has_put_there_stays(store: Store, name: str) -> None:
    folder = put(store.home, name, fetched=False)
    with pytest.raises(InputError, match="was not fetched by the lab"):
        cached_models.remove(store, name)
    assert folder.is_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../datasets", f"../models/{NAME}", f"{NAME}/", f"{NAME}\0", ".tokenizers"]
)
def test_no_name_leads_elsewhere(store: Store, name: str) -> None:
    folder, data = put(store.home), store.home / "datasets"
    data.mkdir()
    with pytest.raises(InputError, match="no such model in this lab"):
        cached_models.remove(store, name)
    assert folder.is_dir()
    assert data.is_dir()


def test_a_link_to_somewhere_else_is_no_model_of_the_lab(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").touch()
    (store.home / "models").mkdir()
    (store.home / "models" / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="no such model in this lab"):
        cached_models.remove(store, NAME)
    assert (tmp_path / "mine" / "model.safetensors").is_file()


def test_what_a_killed_removal_left_goes_with_what_no_run_uses(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store.home)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        cached_models.remove(store, NAME)
    assert [path.suffix for path in (store.home / "models").iterdir() if path.is_dir()] == [disk.ASIDE]
    disk.collect(store)
    assert not [path for path in (store.home / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("model", ["azureml:x", "azureml://", "starter", "org/x", "", "/", "a/b/c@d"])
def test_whatever_a_recipe_names_can_be_asked_after(store: Store, model: str) -> None:
    assert isinstance(cached_models._named(model, store.home), str)


def test_private_models_are_for_the_page_only_if_the_operator_says_so(
    hub: FakeHub, home: Path, tmp_path: Path
) -> None:
    files: Tree = {"config.json": json.dumps(CONFIG).encode(), "tokenizer_config.json": b"{}"}
    commits = {name: hub.put(f"org/{name}", files, private=name == "secret") for name in ("open", "secret")}
    assert answered("org/open") == commits["open"]
    for revision in ("", "@main", "@nope", f"@{commits['secret']}", f"@{'0' * 40}"):
        assert answered(f"org/secret{revision}") == answered(f"org/none{revision}") == hub_models.NOT_PUBLIC
    assert answered("org/open@nope") == "has no such branch, tag or commit on the hub"
    hub.repos["org/open"].gated = "auto"
    assert answered("org/open") == commits["open"]
    assert answered("org/secret", hub_login=True) == commits["secret"]
    hub.faults.append(Fault("GET /api/models", 503))
    pinned = f"org/secret@{commits['secret']}"
    cached = tmp_path / "hf" / "hub" / "models--org--secret" / "snapshots" / commits["secret"]
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(CONFIG))
    assert answered(pinned) == hub_models.UNREACHABLE  # though the hub's cache has it
    assert answered(pinned, hub_login=True) == commits["secret"]


def test_a_file_that_no_model_has_so_large_is_not_fetched(hub: FakeHub, home: Path) -> None:
    """40 GB of config.json filled the operator's disk, a click after the other."""
    files: Tree = {"config.json": Large("0" * 64, 40 << 30), "tokenizer.json": Large("1" * 64, 40 << 30)}
    hub.put("evil/huge", files, private=False)
    assert answered("evil/huge") == "config.json is larger than any real one (4.2 MB)"
    commit = hub.put("evil/huge", {**files, "config.json": json.dumps(CONFIG).encode()}, private=False)
    model = base_models.Model("evil/huge", "hub", commit, {}, None)
    with pytest.raises(LabError, match=r"^tokenizer\.json is larger than any real one"):
        base_models.tokenizer_folder(model, home)
    assert hub.count("GET .*/resolve/.*/tokenizer.json") == 0
    assert answered("evil/huge") == commit, "it is only looked up"
