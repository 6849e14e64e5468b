"""The home's own copies of datasets: their names, their bounds, who keeps them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import settings
from pipeline.errors import LabError
from pipeline.inputs.data import datasets
from pipeline.runs import check_pool, disk, kept_datasets
from pipeline.store import Store
from pipeline.system import files
from tests.helpers.formats import made as made_of
from tests.helpers.planted import plant


def test_a_full_disk_leaves_no_half_copy(home: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "x")
    store = Store(home)
    kept = kept_datasets.keep(store.home, dataset)
    kept.unlink()
    arriving = home / "datasets" / "x.part"
    arriving.mkdir()
    (arriving / f".{dataset.name}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        kept_datasets.keep(store.home, dataset)
    assert list(kept.parent.iterdir()) == []
    assert not arriving.exists()


def test_a_dataset_is_named_by_what_was_copied(
    home: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def changed_meanwhile(source: Path, target: Path) -> None:
        source.write_text('{"prompt": "a", "response": "b"}\n')
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", changed_meanwhile)
    kept = kept_datasets.keep(home, dataset)
    assert kept.parent.name == datasets.sha256(kept) == datasets.sha256(dataset)
    assert list((home / "datasets").iterdir()) == [kept.parent]


def test_originals_of_one_name_are_all_kept(store: Store, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/2 a.csv", "b/a.csv", "c/a.csv")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text("question,answer\n" + "".join(f"q{number}{row},r\n" for row in range(4)))
    kept = kept_datasets.keep_made(store.home, made_of(tmp_path, *paths))
    originals = (kept.parent / "original").iterdir()
    assert {path.read_text() for path in originals} == {path.read_text() for path in paths}


def test_names_of_ours_are_not_those_of_datasets(store: Store, dataset: Path) -> None:
    for given, kept in ((".made.json", "made.json"), ("original", "original.jsonl"), ("...", "dataset")):
        source = dataset.with_name(given)
        if not source.exists():
            source.write_bytes(dataset.read_bytes())
        assert kept_datasets.keep(store.home, source).name == kept


def test_a_copy_leaves_room_on_the_disk(store: Store, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=files.KEPT_FREE + 10))
    with pytest.raises(LabError, match="disk is nearly full"):
        kept_datasets.keep(store.home, dataset)
    assert not list((store.home / "datasets").iterdir())


@pytest.fixture
def numbered(tmp_path: Path) -> Callable[[int], Path]:
    """Datasets that differ in one row."""

    def made(number: int, name: str = "") -> Path:
        file = tmp_path / f"{name or number}.jsonl"
        file.write_text(f'{{"prompt": "a{number}", "response": "b"}}\n' * 3)
        return file

    return made


def aged(kept: Path, seconds: float, came: float = 30 * disk.DAY) -> Path:
    """A dataset that nobody has used for so long, and that came so long ago."""
    now = time.time()
    os.utime(kept, (now - seconds, now - max(came, seconds)))
    os.utime(kept.parent, (now - seconds,) * 2)
    return kept


def test_as_many_datasets_are_kept_as_may(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form lists them. Those that no run has make room, the longest unused first."""
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 3)
    kept = [aged(kept_datasets.keep(store.home, numbered(number)), 0) for number in range(3)]
    with pytest.raises(LabError, match="keeps 3 datasets, as many as it may, all of runs or used just now"):
        kept_datasets.keep(store.home, numbered(3))
    assert kept_datasets.keep(store.home, settings.SAMPLES / "travel.jsonl").is_file(), "samples always can"
    assert all(path.is_file() for path in kept)
    plant(store, data=kept[0])
    for path, seconds in zip(kept, (4000, 700, 900), strict=True):
        aged(path, seconds)
    kept_datasets.keep(store.home, numbered(4))
    assert [path.is_file() for path in kept] == [True, False, False]


def test_who_works_with_a_dataset_keeps_it(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever others add meanwhile; when it was written, by which its checks are kept, stays known."""
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 2)
    kept = [aged(kept_datasets.keep(store.home, numbered(number)), 900 - number) for number in range(2)]
    written = kept[0].stat().st_mtime_ns
    datasets.use(kept[0])
    kept_datasets.keep(store.home, numbered(2))
    assert [path.is_file() for path in kept] == [True, False]
    assert kept[0].stat().st_mtime_ns == written


def read_again(path: str, more: dict[str, Any]) -> Generator[str, None, float]:
    """Asked by the next test, as `check_pool` asks; how long ago the dataset was used when it begins."""
    yield "one"
    return time.time() - Path(path).stat().st_atime


def test_what_a_question_reads_is_in_use_for_as_long_as_it_may_take(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's check takes minutes and reads its rows once, and an event asks several questions."""
    kept = [aged(kept_datasets.keep(store.home, numbered(n)), 9000 - n) for n in range(3)]
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 1)  # so that all make room that may
    deep = {"recipes": [{"evaluate": {"data": str(kept[1])}}], "other": f"{kept[0]}\0", "none": None}
    outside = f"{store.home}/datasets/../datasets/{kept[2].parent.name}/{kept[2].name}"
    asked = {"path": str(kept[0]), "more": {**deep, "text": outside}}
    assert check_pool.answer(f"{__name__}:read_again", asked) < 600
    for used in kept[:2]:  # as it is when the question has taken all the time that it may
        began = time.time() - check_pool.MOST_SECONDS
        os.utime(used, (began, used.stat().st_mtime))
    with pytest.raises(LabError, match="all of runs or used just now"):
        kept_datasets.keep(store.home, numbered(3))
    assert [path.is_file() for path in kept] == [True, True, False]


def test_what_is_in_use_is_freed_by_nobody(store: Store, numbered: Callable[..., Path]) -> None:
    """Free space, and what removes prompt files that nobody chooses, look at the same time as uploads do."""
    kept = aged(kept_datasets.keep(store.home, numbered(1)), 2 * disk.DAY)
    disk.look_at(kept, new=True)
    aged(kept.with_name(disk.LOOKED_AT), 2 * disk.DAY)
    datasets.use(kept)
    assert disk.unused(store).datasets == disk.collect(store).datasets == disk.tidy_prompts(store) == []
    aged(kept, 2 * disk.DAY)
    assert disk.tidy_prompts(store) == ["1.jsonl"]


def test_a_crowd_takes_no_place_of_others_and_keeps_none_that_they_need(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client can add as many as there may be in minutes, and use each of them again and again."""
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 6)
    stranger = aged(kept_datasets.keep(store.home, numbered(0)), 2 * disk.DAY)
    crowd = [aged(kept_datasets.keep(store.home, numbered(n)), 5 - n / 2, 0) for n in range(1, 6)]
    news = [kept_datasets.keep(store.home, numbered(6))]
    assert stranger.is_file()
    there = [path.is_file() for path in crowd]
    assert (sorted(there[:2]), there[2:]) == ([False, True], [True] * 3), "any of those not kept by use"
    for path in (path for path in crowd if path.is_file()):
        datasets.use(path)
    datasets.use(news[0])
    news += [kept_datasets.keep(store.home, numbered(7))]
    assert all(path.is_file() for path in (stranger, *news))


def test_sending_a_dataset_again_does_not_make_it_one_of_a_crowd(
    store: Store, numbered: Callable[..., Path]
) -> None:
    kept = aged(kept_datasets.keep(store.home, numbered(1)), 2 * disk.DAY)
    came = kept.stat().st_mtime_ns
    assert kept_datasets.keep(store.home, numbered(1)) == kept
    assert kept.stat().st_mtime_ns == came
    assert time.time() - kept.stat().st_atime < 60


def test_many_who_come_at_once_take_no_more_than_a_place_each(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the store is held for a few folders at a time, not once for each."""
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 8)
    kept = [aged(kept_datasets.keep(store.home, numbered(n)), 900 - n) for n in range(8)]
    held, still = [], Store.held_still
    monkeypatch.setattr(Store, "held_still", lambda self, **given: held.append(1) or still(self, **given))
    with ThreadPoolExecutor(4) as pool:
        new = [*pool.map(lambda n: kept_datasets.keep(store.home, numbered(n)), range(8, 12))]
    assert all(path.is_file() for path in new)
    assert 4 <= sum(path.is_file() for path in kept) < 8
    assert len(held) <= 4


def test_names_for_one_content_have_an_end(store: Store, numbered: Callable[..., Path]) -> None:
    kept = {
        kept_datasets.keep(store.home, numbered(1, f"name {n}")) for n in range(kept_datasets.MOST_NAMES + 3)
    }
    assert len(kept) == kept_datasets.MOST_NAMES
    assert len({path.parent for path in kept}) == 1


def test_names_for_one_content_count_as_datasets(
    store: Store, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form lists each of them."""
    monkeypatch.setattr(kept_datasets, "MOST_DATASETS", 2)
    for name in "ab":
        aged(kept_datasets.keep(store.home, numbered(1, name)), 0)
    with pytest.raises(LabError, match="keeps 2 datasets"):
        kept_datasets.keep(store.home, numbered(1, "c"))
