"""What runs take on disk, and how it comes free without taking anything that is in use."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.exports.bound import binding
from pipeline.runs import disk, kept_datasets
from pipeline.stages import artifacts
from pipeline.stages.context import Artifact, Results
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system import files, locks
from pipeline.worker import probe
from tests.helpers.lab import until
from tests.helpers.planted import finish_all, plant

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def nothing_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "YOUNG", 0.0)


def made(home: Path, key: str, stage: str = "quantize", size: int = 1000) -> artifacts.Stored:
    """A result as a stage keeps it."""
    written = artifacts.part(home, stage, key)
    (written / "weights").write_bytes(b"x" * size)
    kept = Results([Artifact("m", "checkpoint", written / "weights")])
    return artifacts.keep(home, stage, key, written, kept, 1.0)


def using(store: Store, *results: artifacts.Stored) -> str:
    """A finished run whose stages, in order, refer to these results."""
    names = ("quantize", "finetune", "optimize", "evaluate")
    rows = {name: {"artifacts": stored.rows()} for name, stored in zip(names, results, strict=False)}
    return finish_all(store, plant(store), rows).id


def backdate(store: Store, run: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete a run, and let so many seconds go by."""
    store.delete(run)
    now = time.time() + seconds
    monkeypatch.setattr(disk.time, "time", lambda: now)


def weight(stored: artifacts.Stored) -> int:
    return files.size(stored.folder)


class TestOf:
    def test_a_run_has_its_folder_its_results_and_those_nobody_shares(self, store: Store) -> None:
        own, shared = made(store.home, "own", size=50_000), made(store.home, "shared", size=7000)
        run, other = using(store, own, shared), using(store, shared)
        (store.folder(run) / "log.txt").write_bytes(b"x" * 300)
        takes = disk.of(store, run)
        record = (store.folder(run) / "run.json").stat().st_size
        assert (takes.folder, takes.results) == (300 + record, weight(own) + weight(shared))
        assert (takes.alone, takes.freed) == (weight(own), weight(own) + 300 + record)
        store.delete(other)
        assert disk.of(store, run).alone == weight(own), "a deleted run can still be restored"
        assert store.forget(other, before=1e12)
        assert disk.of(store, run).alone == weight(own) + weight(shared)

    def test_weights_linked_into_another_export_do_not_come_free(self, store: Store) -> None:
        own, other = made(store.home, "own", size=50_000), made(store.home, "other")
        os.link(own.folder / "weights", other.folder / "carried")
        run = using(store, own)
        takes = disk.of(store, run)
        assert takes.results == weight(own)
        assert takes.alone == weight(own) - 50_000

    def test_a_bound_folder_counts_what_it_shares_once(self, store: Store, finished_bound: Run) -> None:
        folder = Path(str(finished_bound.artifact("onnx")))
        bound = Path(str(finished_bound.artifact("bound")))
        shared = (folder / "model.onnx.data").stat().st_size
        each = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert bound.is_relative_to(folder)
        assert files.size(folder) == each - shared
        assert finished_bound.stage("optimize").bytes == files.size(folder)
        assert disk.of(store, finished_bound.id).alone >= files.size(folder)

    def test_of_what_somebody_bound_elsewhere_the_weights_do_not_come_free(
        self, store: Store, finished: Run, tmp_path: Path
    ) -> None:
        folder = Path(str(finished.artifact("onnx")))
        before = disk.of(store, finished.id).alone
        binding.bind(folder, None, tmp_path / "mine")
        assert before - disk.of(store, finished.id).alone == (folder / "model.onnx.data").stat().st_size

    def test_results_that_are_gone_take_nothing(self, store: Store) -> None:
        stored = made(store.home, "k")
        run = using(store, stored)
        stored.folder.rename(store.home / "elsewhere")
        record = (store.folder(run) / "run.json").stat().st_size
        assert disk.of(store, run) == disk.Storage(record, 0, 0)

    def test_the_home_by_what_it_holds(self, store: Store) -> None:
        made(store.home, "k", size=5000)
        (store.home / "models" / "base").mkdir(parents=True)
        (store.home / "models" / "base" / "weights").write_bytes(b"x" * 70)
        total = disk.total(store.home)
        assert total["models"] == 70
        assert total["results"] > 5000
        assert (total["datasets"], total["published copies"]) == (0, 0)

    def test_what_kinds_share_by_links_counts_once(self, store: Store) -> None:
        for place in ("artifacts/optimize-1", "foundry-local/models"):
            (store.home / place).mkdir(parents=True)
        weights = store.home / "artifacts" / "optimize-1" / "weights"
        weights.write_bytes(b"x" * 70)
        (store.home / "foundry-local" / "models" / "weights").hardlink_to(weights)
        (store.home / "foundry-local" / "models" / "card").write_bytes(b"x" * 3)
        total = disk.total(store.home)
        assert (total["results"], total["for Foundry Local"]) == (70, 3)


class TestCollect:
    def test_only_what_no_run_refers_to_goes(self, store: Store, dataset: Path) -> None:
        used, restorable, unused = (made(store.home, key) for key in ("used", "restorable", "unused"))
        using(store, used)
        store.delete(using(store, restorable))
        data = kept_datasets.keep(store.home, dataset)
        takes = weight(unused) + data.stat().st_size
        for kept in ("models/base/weights", "registry/travel/1/model.onnx", "artifacts/.locks/x"):
            (store.home / kept).parent.mkdir(parents=True, exist_ok=True)
            (store.home / kept).write_text("kept")
        before = disk.unused(store)
        assert unused.folder.is_dir()
        freed = disk.collect(store)
        assert freed == before == disk.Unused(["quantize-unused"], [dataset.name], takes)
        assert [used.folder.is_dir(), restorable.folder.is_dir()] == [True, True]
        assert not unused.folder.exists()
        assert not data.parent.exists()
        assert {p.name for p in (store.home / "artifacts").iterdir()} == {
            "quantize-used", "quantize-restorable", ".locks",
        }  # fmt: skip
        assert (store.home / "models/base/weights").read_text() == "kept"
        assert (store.home / "registry/travel/1/model.onnx").read_text() == "kept"
        assert disk.collect(store) == disk.Unused()

    def test_of_probes_the_newest_stay(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "MOST_EXPORTS", 2)
        monkeypatch.setattr(probe, "MOST_WALKS", 3)
        for number in range(5):
            export, walk = (store.home / "probes" / f"{name}{number}" for name in ("tokenizer-", "walk-"))
            export.mkdir(parents=True)
            (export / "tokenizer.json").write_text("{}")
            (walk := walk.with_suffix(".json")).write_text("{}")
            for path in (export, walk):
                os.utime(path, (number, number))
        before = disk.total(store.home)["tried models"]
        assert disk.collect(store) == disk.Unused()
        assert sorted(path.name for path in (store.home / "probes").iterdir()) == [
            "tokenizer-3", "tokenizer-4", "walk-2.json", "walk-3.json", "walk-4.json",
        ]  # fmt: skip
        assert (before, disk.total(store.home)["tried models"]) == (20, 10)

    def test_a_dataset_of_a_run_stays(self, store: Store, dataset: Path) -> None:
        data = kept_datasets.keep(store.home, dataset)
        plant(store, data=data)
        assert disk.collect(store) == disk.Unused()
        assert data.is_file()

    def test_of_a_link_only_the_link_goes(self, store: Store, tmp_path: Path) -> None:
        """Somebody may have moved a result to another disk; and one that was marked before is no obstacle."""
        elsewhere = made(store.home, "0" * 16).folder.rename(tmp_path / "elsewhere")
        places = [store.home / "artifacts" / "quantize-0000000000000000", store.home / "datasets" / "linked"]
        marked = store.home / "artifacts" / ".quantize-1111111111111111.gone"
        for link in (*places, marked):
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(elsewhere)
        disk.collect(store)
        assert not [link for link in (*places, marked) if link.is_symlink()]
        assert any(elsewhere.iterdir())

    def test_young_ones_stay_and_a_dataset_taken_again_is_young(
        self, store: Store, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disk, "YOUNG", 3600.0)
        result, data = made(store.home, "k").folder, kept_datasets.keep(store.home, dataset)
        assert disk.unused(store) == disk.collect(store) == disk.Unused()
        old = time.time() - 3700
        for path in (result, *result.iterdir(), data.parent, data):
            os.utime(path, (old, old))
        assert kept_datasets.keep(store.home, dataset) == data
        assert disk.unused(store).datasets == []
        assert disk.collect(store).results == ["quantize-k"]
        assert data.is_file()

    def test_nobody_waits_until_all_are_taken_aside(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While folders are renamed nobody can queue or cancel, so there are few at a time."""
        monkeypatch.setattr(disk, "AT_ONCE", 2)
        for key in "abcde":
            made(store.home, key)
        counts, take_aside = [], disk._take_aside
        monkeypatch.setattr(
            disk, "_take_aside", lambda some, young: counts.append(len(some)) or take_aside(some, young)
        )
        assert disk.collect(store).results == [f"quantize-{key}" for key in "abcde"]
        assert counts == [2, 2, 1]

    def test_what_is_being_made_stays(self, store: Store) -> None:
        part = artifacts.part(store.home, "quantize", "k")
        held = locks.take(artifacts.lock(store.home, "quantize", "k"))
        assert held is not None
        assert disk.collect(store).results == []
        assert part.is_dir()
        os.close(held)
        assert disk.collect(store).results == ["quantize-k"]

    def test_a_killed_deletion_is_finished(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        unused = made(store.home, "k")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "_delete", killed)
            with pytest.raises(KeyboardInterrupt):
                disk.collect(store)
        assert not unused.folder.exists()
        assert artifacts.find(store.home, "quantize", "k") is None
        assert len([p for p in (store.home / "artifacts").iterdir() if p.name != ".locks"]) == 1
        disk.collect(store)
        assert [p.name for p in (store.home / "artifacts").iterdir()] == [".locks"]

    def test_what_cannot_be_deleted_keeps_nothing_else(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For example a folder that an administrator has put something into, marked before the others."""
        other, run = made(store.home, "k").folder, plant(store)
        (stuck := store.home / "artifacts" / ".a-0123456789abcdef.gone").mkdir()
        store.request_cancel(run)
        store.delete(run)
        rmtree = shutil.rmtree

        def refused(folder: Path, *given: Any, **more: Any) -> None:
            if folder == stuck:
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            rmtree(folder, *given, **more)

        monkeypatch.setattr(shutil, "rmtree", refused)
        with pytest.raises(PermissionError):
            disk.collect(store)
        assert not other.exists()
        with pytest.raises(PermissionError):
            disk.purge(store, older_than=-1.0)
        assert not store.folder(run).exists()
        assert [path.name for path in store.runs.iterdir()] == []

    def test_what_goes_wrong_after_a_run_is_forgotten_leaves_nothing_of_it(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A repair would take its folder for a run that waits, and it would run."""
        run = plant(store)
        store.request_cancel(run)
        store.delete(run)
        with monkeypatch.context() as patch:
            patch.setattr(disk, "_free", lambda *_, **__: killed(Path()))
            with pytest.raises(KeyboardInterrupt):
                disk.purge(store, older_than=-1.0)
        store.path.unlink()
        again = Store(store.home)
        assert again.list() == []
        disk.purge(again)
        assert list(store.runs.iterdir()) == []

    def test_a_folder_that_is_not_ours_to_read_keeps_nothing_else(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that somebody made with sudo."""
        other, run = made(store.home, "k").folder, plant(store)
        store.request_cancel(run)
        store.delete(run)
        closed = store.home / "datasets" / ("a" * 64)
        closed.mkdir(parents=True)
        iterdir, scandir = Path.iterdir, os.scandir

        def refused(path: Any, real: Callable[[Any], Any]) -> Any:
            if str(path) == str(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(closed))
            return real(path)

        monkeypatch.setattr(Path, "iterdir", lambda path: refused(path, iterdir))
        monkeypatch.setattr(os, "scandir", lambda path=".": refused(path, scandir))
        assert disk.purge(store, older_than=-1.0) == [run]
        assert disk.collect(store).results == ["quantize-k"]
        assert disk.datasets_make_room(store.home, 5)
        assert not other.exists()
        assert closed.is_dir()

    def test_only_empty_folders_of_unknown_runs_go(self, store: Store) -> None:
        run = plant(store)
        for name in ("empty", "full"):
            (store.runs / name).mkdir()
        (store.runs / "full" / "log.txt").write_text("whose?")
        disk.collect(store)
        assert {p.name for p in store.runs.iterdir()} == {run, "full"}

    def test_what_a_killed_publishing_took_down_goes_once_none_is_under_way(self, store: Store) -> None:
        copy = store.home / disk.CHECKED / "trips-1" / "model.onnx"
        copy.parent.mkdir(parents=True)
        copy.write_bytes(b"x")
        run = using(store)
        stage = store.add_publish(run, {"to": "local"})
        assert store.claim_publish() == (run, stage)
        disk.collect(store)
        assert copy.exists()
        store.finish(run, stage, DONE)
        disk.collect(store)
        assert not copy.parent.parent.exists()
        assert list(store.home.glob(f".*{disk.ASIDE}")) == []


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


class TestPurge:
    def test_after_a_day_a_deleted_run_is_gone_with_what_only_it_used(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, shared, unused = (made(store.home, key) for key in ("own", "shared", "unused"))
        run, other = using(store, own, shared), using(store, shared)
        published = store.home / "registry" / "travel" / "1" / "model.onnx"
        published.parent.mkdir(parents=True)
        published.write_text("kept")
        backdate(store, run, disk.DAY - 60, monkeypatch)
        assert disk.purge(store) == []
        assert [found.id for found in store.list(deleted=True)] == [run]
        backdate(store, run, disk.DAY + 60, monkeypatch)
        assert disk.purge(store) == [run]
        assert store.list(deleted=True) == []
        assert [p.name for p in store.runs.iterdir()] == [other]
        assert [p.folder.exists() for p in (own, shared, unused)] == [False, True, True]
        assert published.read_text() == "kept"

    def test_what_another_process_removes_meanwhile_is_skipped(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = [plant(store) for _ in range(2)]
        for run in runs:
            store.request_cancel(run)
            store.delete(run)
        listed = store.deleted_before(1e11)
        monkeypatch.setattr(store, "deleted_before", lambda before: listed)
        assert store.forget(listed[0], 1e11)
        assert disk.purge(store, older_than=0) == listed[1:]

    def test_datasets_that_others_remove_while_they_are_counted_are_no_fault(
        self, store: Store, dataset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the look at the list of folders and the look into each."""
        kept = kept_datasets.keep(store.home, dataset)
        scanned = {"listdir": os.listdir, "scandir": os.scandir}

        def removing(name: str) -> Any:
            def called(path: Any = ".") -> Any:
                if not isinstance(path, int) and Path(path) == kept.parent and kept.exists():
                    kept.parent.rename(store.home / "gone")
                return scanned[name](path)

            return called

        for name in scanned:
            monkeypatch.setattr(os, name, removing(name))
        assert disk.datasets_make_room(store.home, 1)
        assert not kept.exists()
        kept = kept_datasets.keep(store.home, dataset)
        (store.home / "gone").rename(store.home / "first")
        assert disk.unused(store).datasets == []

    def test_a_run_that_is_not_deleted_or_was_deleted_in_the_future_stays(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = made(store.home, "k")
        run = using(store, stored)
        assert disk.purge(store, older_than=0) == []
        backdate(store, run, -5 * disk.DAY, monkeypatch)
        assert disk.purge(store, older_than=0) == []
        assert stored.folder.is_dir()

    def test_a_run_restored_at_the_last_moment_keeps_its_folder(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = using(store, made(store.home, "k"))
        backdate(store, run, 2 * disk.DAY, monkeypatch)
        listed = store.list(deleted=True)
        store.restore(run)
        monkeypatch.setattr(store, "list", lambda **_: listed)
        assert disk.purge(store) == []
        assert store.folder(run).is_dir()


class TestWhileStagesRun:
    """A stage finds a result under its lock; what it found is recorded later, by another process."""

    def test_a_result_that_was_found_and_is_not_recorded_yet_stays(self, store: Store) -> None:
        stored, other = made(store.home, "k"), made(store.home, "k", stage="score")
        run = plant(store)
        found, go = FORK.Event(), FORK.Event()

        def stage() -> None:
            mine = Store(store.home)
            assert mine.claim("cpu") == (run, "quantize")
            with locks.locked(artifacts.lock(store.home, "quantize", "k")):
                reused = artifacts.find(store.home, "quantize", "k")
            assert reused is not None
            found.set()
            assert go.wait(120)
            mine.finish(run, "quantize", DONE, artifacts=reused.rows())

        process = FORK.Process(target=stage)
        process.start()
        assert found.wait(120)
        assert disk.unused(store).results == ["score-k"]
        assert disk.collect(store).results == ["score-k"]
        assert (stored.folder.is_dir(), other.folder.exists()) == (True, False)
        go.set()
        process.join(120)
        assert process.exitcode == 0
        assert disk.collect(store).results == []
        assert Path(store.get(run).stage("quantize").artifacts[0]["path"]).is_file()

    def test_no_stage_begins_between_the_look_at_the_store_and_the_renaming(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made(store.home, "k")
        run = plant(store)
        begun, take_aside = threading.Event(), disk._take_aside
        claiming = threading.Thread(target=lambda: store.claim("cpu") and begun.set())

        def meanwhile(*given: Any, **options: Any) -> Any:
            claiming.start()
            assert not begun.wait(0.5), "a stage began that may be about to find what is taken aside"
            return take_aside(*given, **options)

        monkeypatch.setattr(disk, "_take_aside", meanwhile)
        assert disk.collect(store).results == ["quantize-k"]
        assert begun.wait(120)
        claiming.join()
        assert store.get(run).stage("quantize").status == "running"

    def test_no_recorded_result_is_ever_missing(self, store: Store) -> None:
        """Stages find or make the same few results, and are recorded, while space is freed all the time."""
        collecting, enough, over, freed = FORK.Event(), FORK.Event(), FORK.Event(), FORK.Value("i", 0)

        def stages() -> None:
            mine = Store(store.home)
            assert collecting.wait(120)
            while not enough.is_set():
                plant(mine)
                claimed = mine.claim("cpu")
                if claimed is None:  # the other one has taken it
                    continue
                key = str(sum(map(ord, claimed[0])) % 3)
                with locks.locked(artifacts.lock(store.home, "quantize", key)):
                    stored = artifacts.find(store.home, "quantize", key) or made(store.home, key)
                mine.finish(claimed[0], claimed[1], DONE, artifacts=stored.rows())
                missing = [a["path"] for a in stored.rows() if not Path(a["path"]).exists()]
                assert missing == []
                mine.delete(end(mine, claimed[0]))
                mine.forget(claimed[0], before=1e12)

        def collect() -> None:
            mine = Store(store.home)
            while not over.is_set():
                freed.value += len(disk.collect(mine).results)
                collecting.set()

        workers = [FORK.Process(target=work, daemon=True) for work in (stages, stages, collect)]
        for process in workers:
            process.start()
        until(lambda: freed.value > 10 or any(w.exitcode is not None for w in workers), "the race")
        enough.set()
        for process in workers[:2]:
            process.join(120)
        over.set()
        workers[2].join(120)
        assert [process.exitcode for process in workers] == [0, 0, 0]


def end(store: Store, run: str) -> str:
    """End a run after its first stage."""
    store.request_cancel(run)
    store.claim_next(run, "cpu")
    return run


class TestMeasuredRows:
    """What evaluations measured of an export goes with it."""

    @staticmethod
    def measured(home: Path, stored: artifacts.Stored, size: int = 40) -> Path:
        folder = home / "measured" / f"{stored.folder.name}-0123abcd"
        folder.mkdir(parents=True)
        (folder / "losses.jsonl").write_bytes(b"x" * size)
        return folder

    def test_they_are_counted_and_freed_when_no_run_refers_to_the_export(self, store: Store) -> None:
        used, unused = made(store.home, "used", "optimize"), made(store.home, "unused", "optimize")
        using(store, used)
        kept, free = self.measured(store.home, used), self.measured(store.home, unused)
        assert disk.total(store.home)["measured rows"] == 80
        assert disk.unused(store).results == ["optimize-unused"]
        held = locks.take(store.home / "measured" / ".locks" / free.name)
        assert held is not None
        disk.collect(store)
        assert (kept.exists(), free.exists()) == (True, True), "an evaluation is using it"
        os.close(held)
        found = disk.collect(store)
        assert (kept.exists(), free.exists(), found.bytes) == (True, False, 40)

    def test_they_go_with_a_deleted_run(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        own = made(store.home, "own", "optimize")
        run, folder = using(store, own), self.measured(store.home, own)
        backdate(store, run, disk.DAY + 1, monkeypatch)
        assert disk.purge(store) == [run]
        assert not folder.exists()
