"""How a dataset of the hub is written, and what is no such id."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data.hub import dataset_id
from pipeline.inputs.data.hub.dataset_id import DatasetId

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:org/name", DatasetId("org/name")),
        ("hub:org/na-me.v2@main", DatasetId("org/na-me.v2", "main")),
        ("hub:org/name@refs/pr/1,split=test", DatasetId("org/name", "refs/pr/1", "", "test")),
        ("hub:org/name,config=en,split=dev", DatasetId("org/name", "", "en", "dev")),
        (f"hub:org/name@{COMMIT},file=data/*.csv", DatasetId("org/name", COMMIT, file="data/*.csv")),
    ],
)  # fmt: skip
def test_an_id_is_read_and_written_alike(text: str, expected: DatasetId) -> None:
    assert dataset_id.parse(text) == expected
    assert str(expected) == text


def test_a_commit_pins_it() -> None:
    found = dataset_id.parse("hub:org/name@main,split=test")
    assert not found.is_pinned
    assert str(found.at(COMMIT)) == f"hub:org/name@{COMMIT},split=test"
    assert found.at(COMMIT).is_pinned


@pytest.mark.parametrize(
    "text",
    [
        "org/name", "hub:", "hub:name", "hub:a/b/c", "hub:../b", "hub:org/na me", "hub:org/name@",
        "hub:org/name@../x",
        "hub:org/name,split", "hub:org/name,split=", "hub:org/name,splitt=a", "hub:org/name,split=a,split=b",
        "hub:org/name,file=\x1b", "hub:org/name,file=" + "x" * 201, "hub:org/name@main@x",
        "hub:" + "a" * 5000,
    ],
)  # fmt: skip
def test_what_is_none_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InputError, match="is no dataset of the hub; allowed: hub:org/name") as caught:
        dataset_id.parse(text)
    assert len(str(caught.value)) < 300


def test_a_file_stands_alone() -> None:
    with pytest.raises(InputError, match="has file=, so leave config= and split= out"):
        dataset_id.parse("hub:org/name,split=train,file=a.csv")
