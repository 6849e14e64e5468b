"""Which files of a repository are the rows: by its card, by names, and never what can carry code."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LabError
from pipeline.inputs.data.hub import choosing_files, dataset_id

REST = [".gitattributes", "README.md", "towns.py", "rows.pkl", "data.bin", "dataset_infos.json"]
SPLIT = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000.parquet"]


def chosen(paths: list[str], more: str = "", configs: Any = None) -> list[str]:
    return choosing_files.chosen([*REST, *paths], configs, dataset_id.parse(f"hub:org/towns{more}"))


def refused(paths: list[str], more: str = "", configs: Any = None) -> str:
    with pytest.raises(LabError) as caught:
        chosen(paths, more, configs)
    return str(caught.value)


def test_the_train_split_is_taken_unless_another_is_named() -> None:
    assert chosen(SPLIT) == SPLIT[:2]
    assert chosen(SPLIT, ",split=test") == SPLIT[2:]
    assert refused(SPLIT, ",split=dev") == "hub:org/towns,split=dev has no split dev; there are test, train."
    assert chosen(["a/validation.csv"]) == ["a/validation.csv"]
    two = ["test.csv.gz", "valid.jsonl"]
    assert refused(two).startswith("hub:org/towns has several splits; add one as ,split=NAME: test, valid")


def test_without_splits_all_rows_are_taken() -> None:
    assert chosen(["b.jsonl", "a.json.gz", "sub/c.tsv"]) == ["a.json.gz", "b.jsonl", "sub/c.tsv"]


def test_the_card_says_which_files_a_config_has() -> None:
    configs = [
        {"config_name": "en", "data_files": [{"split": "train", "path": "en/*.csv"}]},
        {"config_name": "de", "data_files": {"train": ["**/de.csv"], "test": "t.csv"}},
    ]
    there = ["en/1.csv", "en/2.csv", "x/de.csv", "t.csv"]
    assert chosen(there, ",config=en", configs) == ["en/1.csv", "en/2.csv"]
    assert chosen(there, ",config=de,split=test", configs) == ["t.csv"]
    assert (
        refused(there, "", configs) == "hub:org/towns has several configs; add one as ,config=NAME: de, en."
    )
    default = [{**configs[0], "config_name": "default"}, configs[1]]
    assert chosen(there, "", default) == ["en/1.csv", "en/2.csv"]
    assert chosen(there, "", [{"config_name": "x", "data_files": "t.csv"}]) == ["t.csv"]


def test_patterns_of_all_configs_together_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes over the files that begin like it, and a card may name as many as it likes."""
    there = [f"{name}/{number}.csv" for name in "ab" for number in range(5)]
    some = {"config_name": "a", "data_files": ["a/*.csv", "./a/*"]}
    configs = [some, {**some, "config_name": "b"}]
    monkeypatch.setattr(choosing_files, "MOST_COMPARED", 4 * (5 + 2))
    assert chosen(there, ",config=b", configs) == there[:5]
    for more in ({"config_name": "c", "data_files": "x"}, {**some, "data_files": "**/a.csv"}):
        assert refused(there, ",config=b", [*configs, more]) == (
            "hub:org/towns,config=b has a card that names its files by too many patterns;"
            " choose some with file=."
        )
    assert chosen(there, ",file=b/1.csv", [*configs, more]) == ["b/1.csv"]


def test_a_config_that_no_card_names_is_a_folder() -> None:
    there = ["en/train.csv", "de/train.csv"]
    assert chosen(there, ",config=de") == ["de/train.csv"]
    assert "has no config fr" in refused(there, ",config=fr")


def test_a_file_is_named_or_fits_a_pattern() -> None:
    assert chosen(SPLIT, ",file=data/t*st*.parquet") == SPLIT[2:]
    assert "fits no file; there are " in refused(SPLIT, ",file=none.csv")


def test_text_is_taken_where_it_is_named_or_nothing_else_is_there() -> None:
    about = ["LICENSE.txt", "requirements.txt", "sub/README.text"]
    there = [*about, "valley/train.txt", "valley/test.txt.gz"]
    assert chosen(there) == ["valley/train.txt"]
    assert chosen(there, ",split=test") == ["valley/test.txt.gz"]
    assert chosen([*there, "towns.csv"]) == ["towns.csv"]
    assert chosen([*there, "towns.csv"], ",file=valley/*") == ["valley/test.txt.gz", "valley/train.txt"]
    configs = [{"config_name": "default", "data_files": "valley/*.txt"}]
    assert chosen([*there, "towns.csv"], "", configs) == ["valley/train.txt"]
    assert chosen(["a/1.csv", "a/notes.txt"], "", [{"config_name": "x", "data_files": "a/*"}]) == ["a/1.csv"]
    assert "has no file of rows" in refused(about)


@pytest.mark.parametrize("name", ["towns.py", "rows.pkl", "*.bin"])
def test_scripts_and_pickles_are_never_chosen(name: str) -> None:
    assert "scripts and pickles are never fetched" in refused(SPLIT, f",file={name}")
    assert "has no file of rows" in refused([])


@pytest.mark.parametrize(
    "path", ["../a.csv", "/a.csv", ".git/a.csv", "a\n.csv", "a//b.csv", f"x/{'y' * 300}.csv"]
)
def test_a_path_that_leads_elsewhere_is_left_out(path: str) -> None:
    assert chosen([path, "a.csv"]) == ["a.csv"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["config_name", "data_files", "split", "path", "x"]), inner, max_size=4
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(configs=anything)
def test_whatever_a_card_says_files_are_chosen_or_a_sentence_is_said(configs: Any) -> None:
    found: list[str] = []
    with suppress(LabError):
        found = chosen(SPLIT, "", configs)
    assert set(found) <= set(SPLIT)
