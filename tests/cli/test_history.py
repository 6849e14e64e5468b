"""The history's verbs on the command line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from pipeline.runs import disk
from pipeline.store import Store
from tests.cli.test_cli import Capture, cli
from tests.helpers.planted import finish_all, plant
from tests.runs.comparing.test_compare_rows import evaluated
from tests.runs.test_disk import made, using


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_the_list_is_narrowed(store: Store, capsys: Capture) -> None:
    one, gone = finish_all(store, plant(store, "alps")).id, finish_all(store, plant(store, "gone")).id
    two = plant(store, "sea")
    store.annotate(one, notes="mountains", tags=["keep"])
    store.delete(gone)

    def ids(*given: str) -> list[str]:
        code, out, _ = cli(capsys, "list", *given, "--json")
        assert code == 0
        return [run["id"] for run in json.loads(out)]

    assert ids() == [two, one]
    assert ids("--search", "Mountains alps") == ids("--tag", "keep") == ids("--status", "done") == [one]
    assert ids("--owner", "nobody") == ids("--group", "nothing") == []
    assert ids("--deleted") == [gone]
    header, line = cli(capsys, "list", "--search", "alps")[1].splitlines()
    assert header.split() == ["RUN", "NAME", "STATUS", "CREATED", "TAGS", "STAGES"]
    assert line[header.index("TAGS") :].startswith("keep  ")
    assert cli(capsys, "list", "--search", "nothing")[1] == "No matching runs among 2.\n"
    assert cli(capsys, "list", "--status", "nonsense")[0] == 2


def test_notes_and_tags(store: Store, capsys: Capture) -> None:
    run = plant(store)
    assert cli(capsys, "note", run) == (0, "Tags: none\nNotes: none\n", "")
    out = cli(capsys, "note", run, "as good as float", "--tag", "keep", "--tag", "phi")[1]
    assert out == "Tags: keep, phi\nNotes: as good as float\n"
    assert cli(capsys, "note", run, "--untag", "keep")[1] == "Tags: phi\nNotes: as good as float\n"
    assert cli(capsys, "note", run, "")[1] == "Tags: phi\nNotes: none\n"
    code, out, err = cli(capsys, "note", run, "--tag", "x" * 41)
    assert (code, out) == (2, "")
    assert "up to 40 characters" in err


def test_differences_and_measures_of_runs(store: Store, capsys: Capture) -> None:
    results = {"optimize": {"metrics": {"model_bytes": 88_000_000, "exported_perplexity": 9.876543}}}
    one = finish_all(store, plant(store, "one", template="{a}\n{b}"), results).id
    two = plant(store, "two", finetune={"r": 8})
    code, out, _ = cli(capsys, "diff", one, two)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == [one, two]
    assert lines[1] == ["name", "one", "two"]
    assert ["template", '"{a}\\n{b}"', "chat"] in lines
    assert ["finetune.r", "16", "8"] in lines
    assert ["optimize.exported_perplexity", "9.877"] in lines
    assert ["optimize.model_bytes", "88.0", "MB"] in lines
    told = json.loads(cli(capsys, "diff", one, two, "--json")[1])
    assert told["runs"] == [one, two]
    assert told["differences"]["finetune.r"] == [16, 8]
    assert told["metrics"]["optimize.model_bytes"] == [88_000_000, None]
    assert "The recipes are the same." in cli(capsys, "diff", two, two)[1]
    assert cli(capsys, "diff", one)[0] == 2
    assert cli(capsys, "diff", one, "nonsense")[0] == 2


def test_a_run_is_deleted_and_restored(store: Store, capsys: Capture, monkeypatch: Any) -> None:
    run = using(store, made(store.home, "k", size=5_000_000))
    assert cli(capsys, "delete", run) == (
        2,
        "",
        f"{run}: cannot ask for confirmation here; give --yes to delete it\n",
    )
    for typed in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        code, out, _ = cli(capsys, "delete", run)
        assert code == 1
        assert "5.0 MB will be freed" in out
        assert out.endswith("Nothing was deleted.\n")
    assert store.get(run).deleted is None
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert cli(capsys, "delete", run)[0] == 0
    assert store.get(run).deleted is not None
    assert "is deleted; `python -m pipeline restore" in cli(capsys, "delete", run, "--yes")[2]
    assert cli(capsys, "restore", run) == (0, f"Run {run} is back.\n", "")
    assert cli(capsys, "restore", run)[0] == 2
    assert cli(capsys, "delete", run, "--yes")[0] == 0


def test_a_run_that_is_queued_is_not_deleted(store: Store, capsys: Capture) -> None:
    run = plant(store)
    code, out, err = cli(capsys, "delete", run, "--yes")
    assert (code, out) == (1, "")
    assert err == f"Run {run} is queued; cancel it before it is deleted.\n"


def test_space_is_freed(store: Store, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "YOUNG", 0.0)
    unused, used = made(store.home, "unused", size=5_000_000), made(store.home, "used")
    using(store, used)
    listed = "result   quantize-unused\n"
    out = cli(capsys, "gc", "--dry-run")[1]
    assert out == f"{listed}5.0 MB would be freed; this was a dry run.\n"
    assert unused.folder.is_dir()
    assert cli(capsys, "gc")[1] == f"{listed}5.0 MB were freed.\n"
    assert (unused.folder.exists(), used.folder.is_dir()) == (False, True)
    assert cli(capsys, "gc")[1] == "0 B were freed.\n"


def test_a_run_is_judged_against_another(store: Store, capsys: Capture) -> None:
    one, other = evaluated(store).id, evaluated(store, better=0.5).id
    code, out, _ = cli(capsys, "compare", one, other)
    assert code == 0
    assert out.splitlines()[0].startswith(f"{other} against {one}, with their adapters: Better: ")
    told = json.loads(cli(capsys, "compare", one, other, "--json")[1])
    assert told["adapter"]["outcome"] == "better"
    code, out, err = cli(capsys, "compare", one, plant(store))
    assert (code, out) == (2, "")
    assert "has no evaluation that is done; wait for it" in err
