"""What can be chosen: what the page offers, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.inputs.data import datasets
from webapp.tabs.evaluating import prompt_file
from webapp.ui import choices

SAMPLE = settings.SAMPLES / "travel.jsonl"


@pytest.fixture
def kept(home: Path) -> list[Path]:
    """Two datasets, the older one first, and beside them what is none."""
    digests = ["a1", "b2", datasets.sha256(SAMPLE), ".c3.gone", "d4"]
    paths = [home / "datasets" / digest / f"{digest.strip('.')}.jsonl" for digest in digests]
    for at, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1000 + at, 1000 + at))
    paths[-1].rename(paths[-1].with_name(".made.json"))
    (home / "datasets" / "a1" / "original").mkdir()
    (home / "datasets" / "a1" / "original" / "x.csv").write_text("a,b")
    (home / "datasets" / "loose.jsonl").write_text("{}")
    return paths[:2]


def test_datasets_are_the_samples_then_those_kept_newest_first(home: Path, kept: list[Path]) -> None:
    samples = [str(path) for path in sorted(settings.SAMPLES.glob("*.jsonl"))]
    offered = [value for _, value in choices.data(home)]
    assert offered == [*samples, str(kept[1]), str(kept[0])]
    assert all(choices.has_data(home, value) for value in offered)


def test_a_dataset_is_not_in_use_by_being_named(home: Path, kept: list[Path]) -> None:
    """Every change of a form names it: one client would keep all that it has added."""
    before = kept[0].stat()
    assert choices.known_data(home, str(kept[0])) == kept[0]
    assert prompt_file.known(str(kept[0])) == str(kept[0])
    assert kept[0].stat() == before


def test_what_was_used_last_is_offered_first(home: Path, kept: list[Path]) -> None:
    datasets.use(kept[0])
    assert [value for _, value in choices.data(home)][-2:] == [str(kept[0]), str(kept[1])]


def test_no_other_path_is_a_dataset_of_the_lab(home: Path, kept: list[Path]) -> None:
    there = home / "datasets"
    others = [
        str(path)
        for path in [*there.rglob("*"), *settings.SAMPLES.iterdir(), home, settings.ROOT / "README.md"]
        if str(path) not in {value for _, value in choices.data(home)}
    ]
    assert len(others) > 10
    tricks = [
        f"{there}/a1/../b2/b2.jsonl", f"{there}//a1/a1.jsonl", f"{there}/a1/./a1.jsonl", f"{there}/a1/",
        f"{there}/a1\0/a1.jsonl", f"{there}/\ud800/a1.jsonl", f"{there}/../datasets/a1/a1.jsonl", "a1.jsonl",
        f"{SAMPLE.parent}/../samples/{SAMPLE.name}", f"{SAMPLE}/", "", "/", f"{there}/{'x' * 5000}/a1.jsonl",
        f"{there}/*/a1.jsonl", f"{there}/../../etc/passwd",
    ]  # fmt: skip
    assert [path for path in [*others, *tricks] if choices.has_data(home, path)] == []
